"""Stable-Baselines3 files: our actions are theirs, and nothing that a file holds is run."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from ttengine.data.policy_spec import PolicySpec, load_policy
from ttengine.data.sb3_policies import load_sb3_policy, load_vec_normalize
from ttengine.errors import CheckpointError, ConfigError, ShapeError

sb3 = pytest.importorskip("stable_baselines3", reason="needs the policies extra")
contrib = pytest.importorskip("sb3_contrib", reason="needs the policies extra")

from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize  # noqa: E402 - after the skip

ALGORITHMS = {
    "PPO": sb3.PPO,
    "A2C": sb3.A2C,
    "SAC": sb3.SAC,
    "TD3": sb3.TD3,
    "DDPG": sb3.DDPG,
    "TQC": contrib.TQC,
    "ARS": contrib.ARS,
    "TRPO": contrib.TRPO,
}
SMALL = {"net_arch": [16, 8]}
TOLERANCE = 1e-5

pytestmark = pytest.mark.filterwarnings("ignore")


class Skewed(gymnasium.Env[Any, Any]):
    """Four observation dims, three action dims with bounds that are neither symmetric nor equal."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32)
    action_space = gymnasium.spaces.Box(np.array([-2, -3, -1], np.float32), np.array([1, 2, 5], np.float32))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.np_random.standard_normal(4).astype(np.float32), {}

    def step(self, action: Any) -> Any:
        return (3 * self.np_random.standard_normal(4) + 1).astype(np.float32), 0.0, False, False, {}


def make_model(algorithm: str, env: Any = None, policy: str = "MlpPolicy", spread: float = 0.3, **settings: Any) -> Any:
    """A model whose weights are far enough from their initial values for every part of the network to count."""
    settings = {"policy_kwargs": dict(SMALL), **settings}
    model = ALGORITHMS[algorithm](policy, env or DummyVecEnv([Skewed]), seed=0, device="cpu", **settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.policy.named_parameters():
            if "log_std" not in name:
                parameter += spread * torch.randn(parameter.shape, generator=generator)
    return model


def observations(count: int = 64, n: int = 4) -> np.ndarray:
    return np.random.default_rng(3).normal(0.5, 2.0, (count, n)).astype(np.float32)


def assert_same_actions(policy: Any, model: Any, normalise: Any = None) -> np.ndarray:
    seen = observations(n=policy.observation_dim)
    theirs, _ = model.predict(normalise.normalize_obs(seen) if normalise else seen, deterministic=True)
    ours = np.stack([policy(observation) for observation in seen])
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)
    assert ours.std(axis=0).min() > 1e-3  # constant actions would agree for the wrong reason
    return ours


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_mean_action_is_that_of_stable_baselines(algorithm: str, tmp_path: Path) -> None:
    model = make_model(algorithm)
    model.save(tmp_path / "model.zip")
    assert_same_actions(load_sb3_policy(tmp_path / "model.zip"), model)


@pytest.mark.parametrize("algorithm", ["PPO", "A2C", "TRPO", "SAC", "TQC", "TD3", "ARS"])
def test_vec_normalize_is_applied_as_stable_baselines_does(algorithm: str, tmp_path: Path) -> None:
    normalise = VecNormalize(DummyVecEnv([Skewed]), clip_obs=1.5)
    normalise.reset()
    for _ in range(50):
        normalise.step(np.zeros((1, 3), np.float32))
    model = make_model(algorithm, normalise)
    model.save(tmp_path / "model.zip")
    normalise.save(str(tmp_path / "vecnormalize.pkl"))
    policy = load_sb3_policy(tmp_path / "model.zip", tmp_path / "vecnormalize.pkl")
    assert policy.observation_clip == 1.5
    ours = assert_same_actions(policy, model, normalise)
    raw = load_sb3_policy(tmp_path / "model.zip")
    assert not np.allclose(ours, [raw(observation) for observation in observations()], atol=1e-2)


def test_a_model_trained_for_a_moment_on_pendulum_is_read(tmp_path: Path) -> None:
    normalise = VecNormalize(DummyVecEnv([lambda: gymnasium.make("Pendulum-v1")]))
    model = sb3.PPO("MlpPolicy", normalise, n_steps=64, batch_size=32, n_epochs=2, seed=0, device="cpu").learn(128)
    model.save(tmp_path / "model.zip")
    normalise.save(str(tmp_path / "vecnormalize.pkl"))
    spec = PolicySpec(str(tmp_path / "model.zip"), normalizer=str(tmp_path / "vecnormalize.pkl"))
    policy, facts = load_policy(spec, 3, np.array([-2], np.float32), np.array([2], np.float32))
    assert facts["kind"] == "stable-baselines3" and len(facts["sha256"]) == 64
    assert_same_actions(policy, model, normalise)


@pytest.mark.parametrize("algorithm", ["PPO", "A2C", "TRPO", "SAC", "TQC"])
def test_samples_spread_as_those_of_stable_baselines(algorithm: str, tmp_path: Path) -> None:
    model = make_model(algorithm, spread=0.1)
    with torch.no_grad():
        for name, parameter in model.policy.named_parameters():
            if "log_std" in name and "weight" not in name:
                parameter += torch.tensor([-2.0, -3.0, -1.5])
    model.save(tmp_path / "model.zip")
    policy = load_sb3_policy(tmp_path / "model.zip")
    torch.manual_seed(0)
    rng, count = np.random.default_rng(0), 3000
    for observation in observations(2):
        theirs, _ = model.predict(np.tile(observation, (count, 1)), deterministic=False)
        ours = np.stack([policy(observation, rng) for _ in range(count)])
        error = np.sqrt(ours.var(axis=0) + theirs.var(axis=0)) / np.sqrt(count)
        assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) < 5 * error + 1e-6).all()
        np.testing.assert_allclose(ours.std(axis=0), theirs.std(axis=0), rtol=0.12, atol=1e-6)
        assert ours.std(axis=0).max() > 1e-3


@pytest.mark.parametrize("activation", [torch.nn.ReLU, torch.nn.ELU, torch.nn.LeakyReLU, torch.nn.Tanh])
@pytest.mark.parametrize("algorithm", ["PPO", "TD3"])
def test_the_activation_is_read_from_the_file(algorithm: str, activation: type, tmp_path: Path) -> None:
    model = make_model(algorithm, policy_kwargs={"activation_fn": activation, **SMALL})
    model.save(tmp_path / "model.zip")
    assert_same_actions(load_sb3_policy(tmp_path / "model.zip"), model)


def test_an_activation_that_is_not_known_is_refused_unless_the_user_names_one(tmp_path: Path) -> None:
    model = make_model("PPO", policy_kwargs={"activation_fn": torch.nn.GELU, **SMALL})
    model.save(tmp_path / "model.zip")
    with pytest.raises(ConfigError, match="GELU"):
        load_sb3_policy(tmp_path / "model.zip")
    assert load_sb3_policy(tmp_path / "model.zip", activation="relu").activation == "relu"


def test_networks_without_hidden_layers_are_read(tmp_path: Path) -> None:
    for algorithm in ("PPO", "SAC", "TD3"):
        model = make_model(algorithm, policy_kwargs={"net_arch": {"pi": [], "vf": [8], "qf": [8]}})
        model.save(tmp_path / "model.zip")
        assert_same_actions(load_sb3_policy(tmp_path / "model.zip"), model)


def test_a_linear_ars_policy_clips_where_the_deep_one_squashes(tmp_path: Path) -> None:
    for policy, squash in (("LinearPolicy", False), ("MlpPolicy", True)):
        model = make_model("ARS", policy=policy, policy_kwargs={} if policy == "LinearPolicy" else SMALL)
        model.save(tmp_path / "model.zip")
        loaded = load_sb3_policy(tmp_path / "model.zip")
        assert loaded.squash is squash
        assert_same_actions(loaded, model)


@pytest.mark.parametrize("squash", [False, True])
def test_state_dependent_exploration_gives_its_mean_and_refuses_samples(squash: bool, tmp_path: Path) -> None:
    model = make_model("PPO", use_sde=True, policy_kwargs={"squash_output": squash, **SMALL})
    model.save(tmp_path / "model.zip")
    with pytest.raises(ConfigError, match="deterministic=true"):
        load_sb3_policy(tmp_path / "model.zip")
    assert_same_actions(load_sb3_policy(tmp_path / "model.zip", deterministic=True), model)


def test_models_that_are_no_plain_perceptron_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    make_model("SAC", use_sde=True).save(path)
    with pytest.raises(CheckpointError, match="gSDE"):
        load_sb3_policy(path, deterministic=True)
    sb3.DQN("MlpPolicy", "CartPole-v1", device="cpu", buffer_size=10).save(path)
    with pytest.raises(CheckpointError, match="no actor with continuous actions"):
        load_sb3_policy(path)
    contrib.RecurrentPPO("MlpLstmPolicy", "Pendulum-v1", device="cpu", policy_kwargs=SMALL).save(path)
    with pytest.raises(CheckpointError, match="LSTM"):
        load_sb3_policy(path)


def test_a_model_of_other_dims_than_the_environment_is_refused(tmp_path: Path) -> None:
    make_model("PPO").save(tmp_path / "model.zip")
    with pytest.raises(ShapeError, match="4 observation dims to 3 action dims, the environment has 17 and 6"):
        load_policy(PolicySpec(str(tmp_path / "model.zip")), 17, -np.ones(6, np.float32), np.ones(6, np.float32))
    VecNormalize(DummyVecEnv([lambda: gymnasium.make("Pendulum-v1")])).save(str(tmp_path / "v.pkl"))
    with pytest.raises(ShapeError, match="4 dims"):
        load_sb3_policy(tmp_path / "model.zip", tmp_path / "v.pkl")


# --- hostile and broken files --------------------------------------------------------------------------------------


class Bomb:
    """A pickle of this runs a command when it is loaded freely."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def test_a_malicious_vec_normalize_file_runs_nothing(tmp_path: Path) -> None:
    witness, path = tmp_path / "witness", tmp_path / "v.pkl"
    pickle.loads(pickle.dumps(Bomb(witness)))
    assert witness.exists()  # the bomb is live
    witness.unlink()
    for content in (Bomb(witness), {"obs_rms": Bomb(witness)}, print, VecNormalize):
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(CheckpointError, match="not a VecNormalize"):
            load_vec_normalize(path)
    assert not witness.exists()


def test_pickles_inside_a_model_are_not_opened(tmp_path: Path) -> None:
    """SB3 itself unpickles every `:serialized:` of `data` and would light the bomb."""
    import base64

    model = make_model("PPO")
    model.save(tmp_path / "model.zip")
    witness = tmp_path / "witness"
    with zipfile.ZipFile(tmp_path / "model.zip") as source:
        members = {name: source.read(name) for name in source.namelist()}
    data = json.loads(members["data"])
    data["policy_class"][":serialized:"] = base64.b64encode(pickle.dumps(Bomb(witness))).decode()
    members["data"] = json.dumps(data).encode()
    write_zip(tmp_path / "bomb.zip", members)
    assert_same_actions(load_sb3_policy(tmp_path / "bomb.zip"), model)
    write_zip(tmp_path / "bomb.zip", members | {"policy.pth": pickle.dumps(Bomb(witness))})
    with pytest.raises(CheckpointError):
        load_sb3_policy(tmp_path / "bomb.zip")
    assert not witness.exists()


def write_zip(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as target:
        for name, content in members.items():
            target.writestr(name, content)


def test_truncated_foreign_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    with pytest.raises(CheckpointError, match="no such file"):
        load_sb3_policy(path)
    path.write_bytes(b"no zip")
    with pytest.raises(CheckpointError, match="no complete"):
        load_sb3_policy(path)
    make_model("PPO").save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="no complete"):
        load_sb3_policy(path)
    write_zip(path, {"data": b"[]"})
    with pytest.raises(CheckpointError, match="no complete"):
        load_sb3_policy(path)


def test_truncated_foreign_and_missing_normalizers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "v.pkl"
    with pytest.raises(CheckpointError, match="no such file"):
        load_vec_normalize(path)
    VecNormalize(DummyVecEnv([Skewed])).save(str(path))
    whole = path.read_bytes()
    for size in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            load_vec_normalize(path)
    VecNormalize(DummyVecEnv([Skewed]), norm_obs=False).save(str(path))
    with pytest.raises(CheckpointError, match="norm_obs=False"):
        load_vec_normalize(path)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_every_default_pickle_protocol_of_python_3_is_read(protocol: int, tmp_path: Path) -> None:
    normalise = VecNormalize(DummyVecEnv([Skewed]), clip_obs=7.0, epsilon=1e-4)
    normalise.reset()
    normalise.observation_space.seed(0)  # a space that carries a random generator, as in older files
    (tmp_path / "v.pkl").write_bytes(pickle.dumps(normalise, protocol))
    mean, std, clip = load_vec_normalize(tmp_path / "v.pkl")
    np.testing.assert_allclose(mean, normalise.obs_rms.mean, rtol=1e-6)
    np.testing.assert_allclose(std, np.sqrt(normalise.obs_rms.var + 1e-4), rtol=1e-6)
    assert clip == 7.0
