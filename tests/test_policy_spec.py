"""Policies named in text, actors of named arrays, and the third-party actors where they are at hand."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ttengine.data.policy_spec import PolicySpec, load_npz_policy
from ttengine.errors import CheckpointError, ConfigError

SHARED = Path(os.environ.get("TTENGINE_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


def test_policy_texts_come_back() -> None:
    for text in (
        "random",
        "hopper/medium,share=0.25",
        "m.zip,share=0.5,deterministic=true,normalizer=v.pkl,activation=relu",
    ):
        assert str(PolicySpec.parse(text)) == text


def save_npz(path: Path, prefix: str = "", **changes: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {"W0": rng.normal(size=(3, 8)), "b0": rng.normal(size=8), "Wo": rng.normal(size=(8, 1)), "bo": np.zeros(1)}
    arrays |= changes
    np.savez(path, **{prefix + name: np.asarray(array) for name, array in arrays.items()})
    return arrays


def test_npz_actors_and_their_snapshots_are_read(tmp_path: Path) -> None:
    arrays = save_npz(tmp_path / "a.npz", act="relu", head="tanh")
    save_npz(tmp_path / "s.npz", prefix="200/", act="relu", head="tanh")
    observation = np.array([0.3, -0.2, 1.0], np.float32)
    expected = np.tanh(np.maximum(observation @ arrays["W0"] + arrays["b0"], 0) @ arrays["Wo"])
    for policy in (load_npz_policy(tmp_path / "a.npz", None, 3), load_npz_policy(tmp_path / "s.npz", "200", 3)):
        np.testing.assert_allclose(policy(observation), expected, atol=1e-6)
    with pytest.raises(ConfigError, match=r"holds snapshots 200: write s\.npz:200"):
        load_npz_policy(tmp_path / "s.npz", None, 3)


def test_broken_npz_actors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    save_npz(path, time_feature=1)
    with pytest.raises(CheckpointError, match="time"):
        load_npz_policy(path, None, 3)
    np.savez(path, W0=np.ones((3, 1)))
    with pytest.raises(CheckpointError, match="no array 'Wo'"):
        load_npz_policy(path, None, 3)
    np.savez(path, Wo=np.array([object()]), allow_pickle=True)
    with pytest.raises(CheckpointError, match="no readable"):
        load_npz_policy(path, None, 3)
    path.write_bytes(b"not a zip")
    with pytest.raises(CheckpointError, match="no readable"):
        load_npz_policy(path, None, 3)


# --- third-party actors --------------------------------------------------------------------------------------------

DIMS = {"Ant": 27, "HalfCheetah": 17, "Hopper": 11, "Walker2d": 17}

needs_shared_data = pytest.mark.skipif(
    not (SHARED / "actor.py").is_file(), reason=f"no third-party actors at {SHARED}; set TTENGINE_SHARED_DATA"
)


def reference_actors() -> Any:
    """The NumPy code that came with the actors."""
    location = importlib.util.spec_from_file_location("third_party_actor", SHARED / "actor.py")
    assert location is not None and location.loader is not None
    module = importlib.util.module_from_spec(location)
    location.loader.exec_module(module)
    return module.Actor


def assert_acts_like(path: Path, prefix: str | None, actor: Any) -> None:
    dims = next(dims for body, dims in DIMS.items() if body in path.name)
    policy = load_npz_policy(path, prefix, dims)
    assert policy.observation_dim == dims
    for observation in np.random.default_rng(0).normal(0, 1.5, (20, dims)).astype(np.float32):
        np.testing.assert_allclose(policy(observation), actor(observation), atol=2e-4)


@needs_shared_data
def test_third_party_actors_act_as_in_their_own_code() -> None:
    actor_class, refused, read = reference_actors(), 0, 0
    for path in sorted((SHARED / "actors").glob("*.npz")):
        actor = actor_class.load(path)
        if actor.time_feature:
            refused += 1
            with pytest.raises(CheckpointError, match="time"):
                load_npz_policy(path, None, 27)
        else:
            read += 1
            assert_acts_like(path, None, actor)
    assert (read, refused) == (26, 2)


@needs_shared_data
def test_third_party_snapshots_act_as_in_their_own_code() -> None:
    paths = sorted((SHARED / "trpo_snapshots").glob("*.npz"))
    assert len(paths) == 4
    for path in paths:
        for iteration in (0, 100, 500):
            assert_acts_like(path, str(iteration), reference_actors().snapshot(path, iteration))


@needs_shared_data
def test_third_party_samples_spread_with_the_state() -> None:
    path = SHARED / "actors" / "zoo_tqc_Hopper.npz"
    policy, actor, rng = load_npz_policy(path, None, 11), reference_actors().load(path), np.random.default_rng(0)
    observation = np.full(11, 0.1, np.float32)
    # atanh undoes the squashing, whose saturated tails would make the spread of a finite sample jump about
    ours = np.arctanh([policy(observation, rng) for _ in range(4000)])
    theirs = np.arctanh([actor(observation, rng=rng) for _ in range(4000)])
    np.testing.assert_allclose(ours.std(axis=0), theirs.std(axis=0), rtol=0.08)
    assert ours.std(axis=0).min() > 1e-3
