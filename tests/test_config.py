"""Settings: validated, strict about keys, and the paper's presets by dataset."""

from __future__ import annotations

import dataclasses

import pytest

from ttengine.config import (
    DataConfig,
    ModelConfig,
    PlanConfig,
    Sampling,
    TrainConfig,
    from_dict,
    plan_preset,
    to_dict,
    train_preset,
)
from ttengine.errors import ConfigError

CONFIGS = [
    ModelConfig(11, 3, positions="absolute", goal=True),
    DataConfig(terminal_penalty=None, binning="uniform"),
    TrainConfig(betas=(0.8, 0.9), steps=7),
    PlanConfig(action=Sampling(k=3, cdf=0.5, temperature=2.0), percentile=0.9, context=0),
    PlanConfig(percentile="mean"),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_a_config_survives_the_way_through_plain_values(config: object) -> None:
    assert from_dict(type(config), to_dict(config)) == config


def test_an_unknown_key_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"DataConfig has no discnt; it has discount, terminal_penalty"):
        from_dict(DataConfig, {"discnt": 0.9})
    with pytest.raises(ConfigError, match="Sampling has no q"):
        from_dict(PlanConfig, {"action": {"q": 1}})


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match="action_dim"):
        from_dict(ModelConfig, {"observation_dim": 3})


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (ModelConfig, {"action_dim": 1, "observation_dim": 0}),
        (ModelConfig, {"action_dim": 1, "observation_dim": 513}),
        (ModelConfig, {"observation_dim": 3, "action_dim": 1, "dropout": 1.0}),
        (ModelConfig, {"observation_dim": 3, "action_dim": 1, "positions": "relative"}),
        (DataConfig, {"discount": 1.1}),
        (DataConfig, {"discount": float("nan")}),
        (DataConfig, {"binning": "kmeans"}),
        (TrainConfig, {"batch_size": 0}),
        (TrainConfig, {"betas": (0.9, 1.0)}),
        (TrainConfig, {"precision": "fp8"}),
        (PlanConfig, {"horizon": 0}),
        (PlanConfig, {"horizon": 65}),
        (PlanConfig, {"beam_width": 513}),
        (PlanConfig, {"beam_width": True}),
        (PlanConfig, {"beam_width": "8"}),
        (PlanConfig, {"percentile": 0.0}),
        (PlanConfig, {"percentile": "median"}),
        (PlanConfig, {"horizon": 3, "plan_every": 4}),
        (PlanConfig, {"engine": "cuda"}),
        (PlanConfig, {"objective": "goal"}),
        (Sampling, {"k": 0}),
        (Sampling, {"cdf": -0.1}),
        (Sampling, {"temperature": 0.0}),
    ],
)
def test_a_setting_out_of_range_is_refused_with_its_name_and_what_is_allowed(
    kind: type, values: dict[str, object]
) -> None:
    with pytest.raises(ConfigError, match=list(values)[-1]):
        kind(**values)


def test_configs_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PlanConfig().horizon = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("dataset", "horizon", "width", "k", "cdf"),
    [
        ("hopper-medium-v2", 15, 128, None, 0.6),
        ("hopper-medium-expert-v2", 15, 128, None, 0.6),
        ("walker2d-medium-v2", 15, 128, None, 0.6),
        ("ant-medium-expert-v2", 5, 128, None, 0.6),
        ("halfcheetah-medium-v2", 5, 32, None, 0.6),
        ("halfcheetah-medium-replay-v2", 5, 32, None, 0.6),
        ("halfcheetah-medium-expert-v2", 15, 32, None, 0.6),
        ("walker2d-medium-expert-v2", 5, 128, None, 0.6),
        ("walker2d-medium-replay-v2", 20, 32, 40, None),
        ("ant-medium-v2", 5, 128, None, 0.6),
        ("ant-random-v2", 5, 128, None, 0.6),
        ("halfcheetah-medium-tt", 5, 32, None, 0.6),
        ("mine", 15, 128, None, 0.6),
    ],
)
def test_planner_presets_are_the_released_ones(
    dataset: str, horizon: int, width: int, k: int | None, cdf: float | None
) -> None:
    preset = plan_preset(dataset)
    assert (preset.horizon, preset.beam_width, preset.action.k, preset.action.cdf) == (horizon, width, k, cdf)
    assert (preset.expand, preset.reward.k, preset.value.k, preset.observation.k) == (2, 1, 1, 1)
    assert (preset.percentile, preset.plan_every, preset.discount) == ("mean", 1, 0.99)


@pytest.mark.parametrize(
    ("dataset", "batch", "epochs"),
    [
        ("hopper-medium-v2", 256, 50),
        ("hopper-medium-replay-v2", 256, 80),
        ("walker2d-medium-replay-v2", 256, 80),
        ("halfcheetah-medium-replay-v2", 256, 50),
        ("ant-medium-replay-v2", 128, 50),
        ("antmaze-umaze-v2", 256, 50),
    ],
)
def test_training_presets_are_the_released_ones(dataset: str, batch: int, epochs: int) -> None:
    preset = train_preset(dataset)
    assert (preset.batch_size, preset.epochs_reference) == (batch, epochs)
    assert (preset.learning_rate, preset.betas, preset.weight_decay, preset.clip_norm) == (6e-4, (0.9, 0.95), 0.1, 1.0)
    assert (preset.action_weight, preset.observation_weight, preset.reward_weight, preset.value_weight) == (5, 1, 1, 1)
