"""Attention pictures: the weights are the model's own, shares count what they say, the experiment runs through."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_checkpoint
from torch import Tensor

from ttengine.config import ModelConfig
from ttengine.data.trajectories import Trajectories
from ttengine.errors import ConfigError, DataError
from ttengine.experiments import attention
from ttengine.experiments.attention import (
    SHARES,
    Config,
    attention_shares,
    attention_weights,
    even_attention,
    mean_attention,
)
from ttengine.experiments.ingredients import Recipe
from ttengine.experiments.report import write_report
from ttengine.experiments.run import Run, read_rows
from ttengine.model import TrajectoryTransformer

N, M = 3, 2
K = N + M + 2


def made_up_model(positions: str = "rotary", goal: bool = False) -> TrajectoryTransformer:
    torch.manual_seed(0)
    config = ModelConfig(
        N, M, n_bins=9, layers=3, heads=2, width=16, dropout=0.1, window=4, context=2, positions=positions, goal=goal
    )  # type: ignore[arg-type]
    model = TrajectoryTransformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return model


def hidden_from(model: TrajectoryTransformer, tokens: Tensor, weights: Tensor) -> Tensor:
    """Run all layers with given attention weights [B, L, A, T, T]."""
    x = model._embed(tokens, 0)
    for layer, block in enumerate(model.blocks):
        value = block.qkv(block.attention_norm(x)).unflatten(-1, (3, model.config.heads, -1))[:, :, 2].transpose(1, 2)
        x = x + block.projection((weights[:, layer] @ value).transpose(1, 2).flatten(2))
        x = x + block.mlp_out(F.gelu(block.mlp_in(block.mlp_norm(x))))
    return model.final_norm(x)


@pytest.mark.parametrize("positions", ["rotary", "absolute"])
def test_the_weights_reproduce_the_models_hidden_states(positions: str) -> None:
    model = made_up_model(positions)
    tokens = torch.randint(10, (5, 4 * K - 1), generator=torch.Generator().manual_seed(0))
    weights = attention_weights(model, tokens)
    assert weights.shape == (5, 3, 2, 4 * K - 1, 4 * K - 1)
    with torch.no_grad():
        wanted = model.hidden(tokens)
        torch.testing.assert_close(hidden_from(model, tokens, weights), wanted, atol=1e-4, rtol=1e-4)
        even = even_attention(model.config, tokens.shape[1]).expand_as(weights)
        assert float((hidden_from(model, tokens, even) - wanted).abs().max()) > 0.1  # the weights matter here
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(5, 3, 2, 4 * K - 1))
    assert not model.blocks[0].qkv._forward_hooks  # type: ignore[union-attr]


def test_nobody_looks_ahead_at_values_or_beyond_the_context() -> None:
    model = made_up_model()
    weights = attention_weights(model, torch.randint(10, (2, 4 * K - 1), generator=torch.Generator().manual_seed(1)))
    place = torch.arange(4 * K - 1)
    hidden = (place[None] > place[:, None]) | (place % K == K - 1) | (place[:, None] // K - place // K > 2)
    assert float(weights[..., hidden].max()) == 0.0 and float(weights[..., ~hidden].min()) > 0.0


def test_a_mean_over_windows_does_not_depend_on_how_they_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made_up_model()
    tokens = torch.randint(10, (7, 2 * K - 1), generator=torch.Generator().manual_seed(2))
    monkeypatch.setattr(attention, "WINDOWS_AT_A_TIME", 3)
    torch.testing.assert_close(mean_attention(model, tokens), attention_weights(model, tokens).mean(dim=0))


def test_shares_count_whose_rows_see_what_and_when() -> None:
    config = made_up_model().config
    last = 3 * K
    weights = torch.zeros(4 * K - 1, 4 * K - 1)
    # two actions are predicted from the last observation and from the first action
    weights[last + N - 1, [last, last - K + N, last - K + N + M]] = torch.tensor([0.5, 0.3, 0.2])
    weights[last + N, [last + N, last - 2 * K + 1, last - 2 * K + N + 1]] = torch.tensor([0.1, 0.6, 0.3])
    # observations from the value before and the first two observations
    for row in (last - 1, last, last + 1):
        weights[row, 0] = 1.0
    shares = {name: float(weight) for name, weight in attention_shares(weights, config, "action").items()}
    wanted = {
        "own observation": 0.25, "own action": 0.05, "preceding action": 0.15, "preceding reward": 0.1,
        "older observation": 0.3, "older action": 0.15,
    }  # fmt: skip
    assert shares == pytest.approx({name: wanted.get(name, 0.0) for name in SHARES})
    assert float(attention_shares(weights, config, "observation")["older observation"]) == pytest.approx(1.0)


def test_even_attention_is_shared_out_by_the_number_of_tokens() -> None:
    config = made_up_model().config
    even = attention_shares(even_attention(config, 4 * K - 1), config, "action")
    assert sum(even.values()) == pytest.approx(1.0)
    # of 2 * (K - 1) earlier tokens and 3 or 4 of the row's own transition, 2 * M are earlier actions
    wanted = (2 * M / (2 * (K - 1) + N) + 2 * M / (2 * (K - 1) + N + 1)) / 2
    assert float(even["preceding action"] + even["older action"]) == pytest.approx(wanted)


def test_goal_models_and_empty_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="without goals"):
        attention_weights(made_up_model(goal=True), torch.zeros(1, K, dtype=torch.int64))
    with pytest.raises(ConfigError, match="name at least one"):
        Config(datasets=(), models=())
    assert len(Config.full().datasets) == 3


def test_windows_without_padding_are_drawn() -> None:
    found = tiny_checkpoint()
    rng = np.random.default_rng(0)
    ends = np.zeros(60, bool)
    ends[[1, 3, 29, 59]] = True  # two episodes that are too short for a window of 3
    data = Trajectories(
        rng.normal(size=(60, 3)), rng.normal(size=(60, 1)), rng.normal(size=60), np.zeros(60, bool), ends
    )
    tokens = attention._whole_windows(found, data, 1_000, 0)
    assert tokens.shape == (24 + 28, 3 * 6 - 1) and int(tokens.max()) < found.discretizer.stop_token
    assert len(attention._whole_windows(found, data, 5, 0)) == 5
    with pytest.raises(DataError, match="no episode has 3 transitions"):
        attention._whole_windows(found, data.take_episodes(np.array([0, 1])), 5, 0)


def test_the_experiment_runs_from_data_to_page(tmp_path: Path) -> None:
    for package in ("mujoco", "accelerate", "matplotlib", "h5py"):
        pytest.importorskip(package)
    made = {"env_id": "Hopper-v4", "policies": ["random"], "transitions": 100, "episodes": None, "seed": 0}
    finished = tiny_checkpoint(11, 3)
    finished = dataclasses.replace(finished, provenance={"dataset": {"config": made}})
    finished.save(tmp_path / "finished.safetensors")
    silent = dataclasses.replace(finished, provenance={})
    silent.save(tmp_path / "silent.safetensors")
    recipe = Recipe(layers=2, heads=2, width=8, window=3, context=2, batch_size=8, steps=4)
    models = (str(tmp_path / "finished.safetensors"), str(tmp_path / "silent.safetensors"))
    config = Config(
        datasets=("hopper-medium",), models=models, transitions=1_500, fresh_transitions=300, windows=20, recipe=recipe
    )
    run = Run(tmp_path / "run", "attention", config)
    report = attention.run(run, config)
    assert list(run.missing) == ["silent"] and "what collected its data" in run.missing["silent"]
    page = write_report(run, report).read_text()
    assert "what actions attend to" in page
    names = ["attention-hopper-medium", "attention-finished"]
    assert report.pictures == [f"{name}{end}.png" for name in names for end in ("", "-heads")]
    assert all((run.out / name).stat().st_size > 5_000 for name in report.pictures)
    rows = read_rows(run.out / "results.csv")
    assert len(rows) == 2 * (1 + 4) + 2 * (1 + 2)
    for row in rows:
        assert sum(float(row[share]) for share in SHARES) == pytest.approx(1.0, abs=1e-5)
    assert len(report.checks) == 4
