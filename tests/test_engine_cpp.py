"""The cpp engine: the reference engine's tokens, the same bytes however it is run, errors before and after."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from ttengine.checkpoint import Checkpoint
from ttengine.config import DataConfig, ModelConfig, PlanConfig, Sampling
from ttengine.context import Context
from ttengine.discretizer import fit_discretizer
from ttengine.engines import Candidates, CppEngine, NoiseKey
from ttengine.errors import ConfigError, EngineError, NonFiniteError
from ttengine.model import TrajectoryTransformer
from ttengine.native import available_isas
from ttengine.planner import Plan, Planner

N, M = 3, 2
EVERY = Sampling()
SHAPES = (
    {"layers": 2, "heads": 2, "width": 16},
    {"layers": 1, "heads": 3, "width": 12, "context": 1},  # heads narrower than a vector
    {"layers": 3, "heads": 1, "width": 20, "context": 2, "window": 4},
)
KINDS = (("rotary", "rolling"), ("rotary", "window"), ("absolute", "window"))


def make_checkpoint(
    seed: int = 0, observation_dim: int = N, action_dim: int = M, bins: int = 12, **model: Any
) -> Checkpoint:
    """Return an untrained model with weights large enough that every token matters."""
    torch.manual_seed(seed)
    config = ModelConfig(observation_dim, action_dim, n_bins=bins, dropout=0.0, **{**SHAPES[0], **model})
    transformer = TrajectoryTransformer(config)
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    columns = np.random.default_rng(seed).uniform(-3, 3, (400, config.transition_dim)).astype(np.float32)
    return Checkpoint(transformer.eval(), fit_discretizer(columns, bins, "uniform"), DataConfig(), "tiny")


def drive(planner: Planner, steps: int, seed: int = 5, goal: Any = None) -> list[Plan]:
    """Plan along a made-up episode, the context growing and then sliding."""
    rng = np.random.default_rng(seed)
    config = planner.model.config
    context, plans = planner.empty_context(), []
    for step in range(steps):
        observation = rng.uniform(-3, 3, config.observation_dim).astype(np.float32)
        plans.append(planner.plan(observation, context, goal=goal, seed=seed, step=step))
        context = context.append(observation, rng.uniform(-3, 3, config.action_dim), float(rng.normal()))
    return plans


def assert_same_bytes(ours: Sequence[Plan], theirs: Sequence[Plan]) -> None:
    assert len(ours) == len(theirs) > 0
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        for name in ("actions", "observations", "rewards", "value", "score"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=f"{name} of plan {step}")


def assert_same_tokens(ours: Sequence[Plan], theirs: Sequence[Plan]) -> None:
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a.actions, b.actions)
        np.testing.assert_array_equal(a.observations, b.observations)
        np.testing.assert_allclose(a.score, b.score, rtol=1e-4, atol=1e-4)


def with_isa(planner: Planner, isa: str) -> Planner:
    planner.engine = CppEngine(planner.model, planner.discretizer, planner.config, isa=isa)
    assert planner.engine.isa == isa
    return planner


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("goal", [False, True])
@pytest.mark.parametrize(("positions", "kind"), KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_return_search_plans_the_reference_engines_tokens(
    shape: dict[str, int], positions: str, kind: str, goal: bool, isa: str
) -> None:
    checkpoint = make_checkpoint(positions=positions, goal=goal, **shape)
    context = None if kind == "rolling" else 3
    config = PlanConfig(horizon=4, beam_width=7, context_kind=kind, context=context, threads=2)  # type: ignore[arg-type]
    target = np.array([1.0, -2.0, 0.5]) if goal else None
    expected = drive(Planner(checkpoint, dataclasses.replace(config, engine="reference")), 14, goal=target)
    found = drive(with_isa(Planner(checkpoint, config), isa), 14, goal=target)
    assert_same_tokens(found, expected)
    assert [plan.counters.logical_rows for plan in found] == [plan.counters.logical_rows for plan in expected]
    assert [plan.counters.token_steps for plan in found] == [plan.counters.token_steps for plan in expected]
    assert [plan.counters.prefills for plan in found] == [plan.counters.prefills for plan in expected]


@pytest.mark.parametrize("filters", [EVERY, Sampling(k=3), Sampling(cdf=0.4, temperature=1.5)])
@pytest.mark.parametrize("goal", [False, True])
@pytest.mark.parametrize(("positions", "kind"), KINDS)
def test_likelihood_search_plans_the_reference_engines_tokens(
    positions: str, kind: str, goal: bool, filters: Sampling
) -> None:
    checkpoint = make_checkpoint(positions=positions, goal=goal)
    config = PlanConfig(
        horizon=3, beam_width=6, context_kind=kind, objective="likelihood", action=filters, reward=EVERY, value=EVERY,
        observation=filters, threads=2,
    )  # type: ignore[arg-type]  # fmt: skip
    target = np.array([1.0, -2.0, 0.5]) if goal else None
    expected = drive(Planner(checkpoint, dataclasses.replace(config, engine="reference")), 12, goal=target)
    assert_same_tokens(drive(Planner(checkpoint, config), 12, goal=target), expected)


@pytest.mark.parametrize("width", [1, 31, 32, 33, 127, 128, 200, 256, 512])
def test_every_beam_width_plans_the_reference_engines_tokens(width: int) -> None:
    checkpoint = make_checkpoint(layers=1)
    config = PlanConfig(horizon=3, beam_width=width, threads=2)
    expected = drive(Planner(checkpoint, dataclasses.replace(config, engine="reference")), 2)
    assert_same_tokens(drive(Planner(checkpoint, config), 2), expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"action": Sampling(k=1)},
        {"action": Sampling(k=4, temperature=0.7)},
        {"action": Sampling(cdf=0.3), "observation": Sampling(cdf=0.5), "reward": EVERY, "value": Sampling(k=2)},
        {"percentile": 0.7},
        {"percentile": 0.5, "percentile_as_released": True},
        {"expand": 5, "horizon": 1},
        {"horizon": 12, "beam_width": 3},
    ],
)
@pytest.mark.parametrize(("positions", "kind"), KINDS)
def test_every_setting_of_the_search_plans_the_reference_engines_tokens(
    positions: str, kind: str, settings: dict[str, Any]
) -> None:
    checkpoint = make_checkpoint(positions=positions)
    config = PlanConfig(**{"horizon": 4, "beam_width": 5, "context_kind": kind, "threads": 2, **settings})
    expected = drive(Planner(checkpoint, dataclasses.replace(config, engine="reference")), 8)
    assert_same_tokens(drive(Planner(checkpoint, config), 8), expected)


@pytest.mark.parametrize("context", [0, 1, 2, 10])
def test_every_window_plans_the_reference_engines_tokens(context: int) -> None:
    checkpoint = make_checkpoint(positions="absolute", window=10)
    config = PlanConfig(horizon=5, beam_width=4, context_kind="window", context=context)
    expected = drive(Planner(checkpoint, dataclasses.replace(config, engine="reference")), 13)
    assert_same_tokens(drive(Planner(checkpoint, config), 13), expected)


@pytest.mark.parametrize(
    ("observation_dim", "action_dim", "model"),
    [
        (1, 1, {"width": 4, "heads": 1, "layers": 1}),
        (37, 11, {"width": 24, "heads": 2}),
        (5, 7, {"width": 36, "heads": 9, "bins": 2}),
        (4, 2, {"width": 264, "heads": 2, "layers": 1}),
        (2, 1, {"width": 16, "heads": 2, "bins": 1024}),
    ],
)
def test_unusual_sizes_plan_the_reference_engines_tokens(
    observation_dim: int, action_dim: int, model: dict[str, int]
) -> None:
    checkpoint = make_checkpoint(observation_dim=observation_dim, action_dim=action_dim, **model)
    config = PlanConfig(horizon=3, beam_width=4, threads=2)
    expected = drive(Planner(checkpoint, dataclasses.replace(config, engine="reference")), 5)
    assert_same_tokens(drive(Planner(checkpoint, config), 5), expected)


def test_the_largest_dims_plan() -> None:
    checkpoint = make_checkpoint(observation_dim=512, action_dim=512, layers=1, width=8, context=1, window=2)
    plan = Planner(checkpoint, PlanConfig(horizon=2, beam_width=2)).plan(np.zeros(512))
    assert plan.engine == "cpp"
    assert np.isfinite(plan.actions).all()


@pytest.mark.parametrize("objective", ["return", "likelihood"])
@pytest.mark.parametrize(("positions", "kind"), KINDS)
def test_deduplication_and_threads_do_not_change_a_byte(positions: str, kind: str, objective: str) -> None:
    checkpoint = make_checkpoint(positions=positions)
    config = PlanConfig(horizon=4, beam_width=9, context_kind=kind, objective=objective, threads=1)  # type: ignore[arg-type]
    alone = drive(Planner(checkpoint, config), 14)
    for threads, deduplicate in ((2, True), (3, True), (1, False), (2, False)):
        other = dataclasses.replace(config, threads=threads, deduplicate=deduplicate)
        assert_same_bytes(drive(Planner(checkpoint, other), 14), alone)


def test_deduplication_saves_rows_and_says_how_many() -> None:
    checkpoint = make_checkpoint(positions="absolute")
    config = PlanConfig(horizon=4, beam_width=9, context_kind="window", deduplicate=True)
    shared = drive(Planner(checkpoint, config), 10)[-1].counters
    separate = drive(Planner(checkpoint, dataclasses.replace(config, deduplicate=False)), 10)[-1].counters
    assert shared.logical_rows == separate.logical_rows
    assert shared.physical_rows < 0.7 * separate.physical_rows
    # value tokens of a window's past are skipped even so: nobody attends to them
    assert 0.9 * separate.logical_rows < separate.physical_rows < separate.logical_rows
    assert 0 < shared.pages < separate.pages
    assert 0 < shared.flops < separate.flops


def test_a_rolling_plan_from_kept_pages_is_that_of_a_new_engine_byte_for_byte() -> None:
    checkpoint = make_checkpoint(context=2)
    config = PlanConfig(horizon=3, beam_width=5)
    planner = Planner(checkpoint, config)
    kept = drive(planner, 16)
    steps = iter(range(16))

    class Fresh(Planner):
        def plan(self, *args: Any, **kwargs: Any) -> Plan:
            next(steps)
            return Planner(checkpoint, config).plan(*args, **kwargs)

    fresh = drive(Fresh(checkpoint, config), 16)
    assert_same_bytes(kept, fresh)
    # once the context slides, only the round that was executed is new to the kept pages
    K = N + M + 2
    assert fresh[-1].counters.physical_rows - kept[-1].counters.physical_rows >= (planner.context_capacity - 2) * (
        K - 1
    )


def test_kept_pages_of_another_episode_are_not_taken() -> None:
    checkpoint = make_checkpoint()
    planner = Planner(checkpoint, PlanConfig(horizon=3, beam_width=5))
    for seed in (1, 2, 3):
        assert_same_bytes(drive(planner, 6, seed=seed), drive(Planner(checkpoint, planner.config), 6, seed=seed))


def test_a_context_that_parts_from_the_kept_one_is_computed_from_there() -> None:
    checkpoint = make_checkpoint()
    config = PlanConfig(horizon=3, beam_width=5)
    planner = Planner(checkpoint, config)
    rng = np.random.default_rng(0)
    context = planner.empty_context()
    for _ in range(4):
        context = context.append(rng.uniform(-3, 3, N), rng.uniform(-3, 3, M), 0.5)
    for observation in rng.uniform(-3, 3, (3, N)):  # the same past, another present: what-if plans
        found = planner.plan(observation, context)
        assert_same_bytes([found], [Planner(checkpoint, config).plan(observation, context)])
    shorter = Context(context.observations[:3], context.actions[:3], context.rewards[:3], context.capacity)
    found = planner.plan(np.zeros(N), shorter)
    assert_same_bytes([found], [Planner(checkpoint, config).plan(np.zeros(N), shorter)])


def test_a_short_context_does_not_take_the_pages_of_one_that_has_slid() -> None:
    checkpoint = make_checkpoint(context=1)
    config = PlanConfig(horizon=3, beam_width=5)
    planner = Planner(checkpoint, config)
    rng = np.random.default_rng(0)
    observations, actions = rng.uniform(-3, 3, (9, N)).astype(np.float32), rng.uniform(-3, 3, (9, M)).astype(np.float32)
    rewards = np.ones(9, np.float32)
    for first in range(6):  # full, then sliding
        window = slice(first, first + 2)
        planner.plan(observations[first + 2], Context(observations[window], actions[window], rewards[window], 2))
    start = Context(observations[5:6], actions[5:6], rewards[5:6], 2)  # it begins where the last one began
    fresh = Planner(checkpoint, config).plan(observations[6], start)
    assert_same_bytes([planner.plan(observations[6], start)], [fresh])


@pytest.mark.parametrize(("seed", "step"), [(2**63, 0), (-(2**63) - 1, 0), (0, -1), (0, 2**32)])
def test_noise_keys_out_of_range_are_refused(seed: int, step: int) -> None:
    for engine in ("cpp", "reference"):
        planner = Planner(make_checkpoint(), PlanConfig(horizon=1, engine=engine))  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="allowed is"):
            planner.plan(np.zeros(N), seed=seed, step=step)


@pytest.mark.parametrize(("positions", "kind"), KINDS)
def test_problems_of_a_batch_do_not_influence_each_other(positions: str, kind: str) -> None:
    checkpoint = make_checkpoint(positions=positions)
    config = PlanConfig(horizon=4, beam_width=5, context_kind=kind, threads=2)  # type: ignore[arg-type]
    planner = Planner(checkpoint, config)
    rng = np.random.default_rng(3)
    observations = rng.uniform(-3, 3, (6, N)).astype(np.float32)
    contexts = []
    for length in (0, 1, 3, 5, 8, 12):
        context = planner.empty_context()
        for _ in range(length):
            context = context.append(rng.uniform(-3, 3, N), rng.uniform(-3, 3, M), float(rng.normal()))
        contexts.append(context)
    together = planner.plan(observations, contexts, seed=7, step=2)
    for b in range(6):
        alone = Planner(checkpoint, config).plan(observations[b], contexts[b], seed=7 + b, step=2)
        for name in ("actions", "observations", "rewards", "value", "score"):
            np.testing.assert_array_equal(getattr(together, name)[b], getattr(alone, name))


def test_an_objective_of_the_users_is_called_with_the_same_candidates() -> None:
    checkpoint = make_checkpoint()
    seen: dict[str, list[torch.Tensor]] = {"cpp": [], "reference": []}
    plans = []
    for engine, tokens in seen.items():

        def score(candidates: Candidates, tokens: list[torch.Tensor] = tokens) -> torch.Tensor:
            tokens.append(candidates.tokens)
            return -candidates.observations[..., 0].sum(-1) - candidates.actions.square().sum((-1, -2))

        config = PlanConfig(horizon=4, beam_width=6, engine=engine)  # type: ignore[arg-type]
        plans.append(Planner(checkpoint, config, objective=score).plan(np.zeros(N), seed=3))
    assert_same_tokens(plans[:1], plans[1:])
    assert len(seen["cpp"]) == 4
    for ours, theirs in zip(seen["cpp"], seen["reference"], strict=True):
        assert torch.equal(ours, theirs)


def test_auto_takes_cpp_for_float32_on_the_cpu_and_says_so() -> None:
    checkpoint = make_checkpoint()
    assert Planner(checkpoint, PlanConfig(horizon=1)).plan(np.zeros(N)).engine == "cpp"
    checkpoint.model.double()
    assert Planner(checkpoint, PlanConfig(horizon=1)).plan(np.zeros(N)).engine == "reference"
    with pytest.raises(ConfigError, match=r"column_embedding is torch.float64"):
        Planner(checkpoint, PlanConfig(engine="cpp"))


@pytest.mark.parametrize("engine", ["auto", "cpp", "reference"])
def test_a_precision_that_only_triton_has_is_refused_and_not_ignored(engine: str) -> None:
    with pytest.raises(ConfigError, match=r"precision='bf16' is for engine='triton'.*leave precision out") as refused:
        Planner(make_checkpoint(), PlanConfig(engine=engine, precision="bf16"))  # type: ignore[arg-type]
    assert ("engine='auto' chose" in str(refused.value)) == (engine == "auto")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_weight_is_named_before_anything_is_planned(bad: float) -> None:
    checkpoint = make_checkpoint()
    with torch.no_grad():
        checkpoint.model.blocks[1].mlp_in.weight[3, 2] = bad
        checkpoint.model.head.weight[0, 0, 0] = bad
    with pytest.raises(NonFiniteError, match=r"blocks.1.mlp_in.weight holds NaN or infinity at element 50"):
        Planner(checkpoint, PlanConfig(engine="cpp"))


def test_logits_that_overflow_are_an_error_and_the_engine_plans_on() -> None:
    checkpoint = make_checkpoint()
    planner = Planner(checkpoint, PlanConfig(horizon=2, beam_width=3))
    before = planner.plan(np.zeros(N))
    with torch.no_grad():
        checkpoint.model.final_norm.weight.fill_(3e38)
    overflowing = Planner(checkpoint, PlanConfig(horizon=2, beam_width=3))
    with pytest.raises(NonFiniteError, match="logits hold NaN or infinity at token 0 of the plan"):
        overflowing.plan(np.zeros(N))
    assert overflowing.engine._search.live_pages == 0  # type: ignore[attr-defined]
    assert_same_bytes([planner.plan(np.zeros(N))], [before])


@pytest.mark.parametrize(("setting", "value"), [("beam_width", 513), ("horizon", 65), ("threads", 0), ("expand", 0)])
def test_settings_out_of_range_never_reach_native_code(setting: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"{setting} is {value}"):
        PlanConfig(**{setting: value})


def test_an_unknown_instruction_set_is_an_error_that_lists_the_known_ones() -> None:
    checkpoint = make_checkpoint()
    with pytest.raises(EngineError, match="allowed are avx512, avx2, portable"):
        CppEngine(checkpoint.model, checkpoint.discretizer, PlanConfig(), isa="mmx")


def test_verbs_out_of_order_and_wrong_arrays_are_errors() -> None:
    checkpoint = make_checkpoint()
    engine = CppEngine(checkpoint.model, checkpoint.discretizer, PlanConfig(horizon=2, beam_width=3))
    prefix = torch.tensor([1, 2, 3])
    with pytest.raises(EngineError, match="no search has begun"):
        engine.expand(2)
    with pytest.raises(EngineError, match="whole transitions of 7 and an observation"):
        engine.prefill([torch.tensor([1, 2, 3, 4])], None, [NoiseKey()])
    with pytest.raises(EngineError, match="token out of range"):
        engine.prefill([torch.tensor([1, 2, 13])], None, [NoiseKey()])
    engine.prefill([prefix], None, [NoiseKey()])
    engine.expand(2)
    with pytest.raises(EngineError, match="row 6 does not exist"):
        engine.select(torch.tensor([[0, 6]]))
    with pytest.raises(EngineError, match="another shape"):
        engine.select(torch.tensor([0, 1]))
    engine.prefill([prefix], None, [NoiseKey()])
    for _ in range(2):
        candidates = engine.expand(2)
        engine.select(torch.arange(3)[None])
        engine.observe() if candidates.rounds < 2 else None
    with pytest.raises(EngineError, match="the horizon is reached"):
        engine.expand(2)


LONG_PLAN = """
import numpy as np, signal, sys, torch
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background of a shell
sys.path.insert(0, {tests!r})
from test_engine_cpp import make_checkpoint
from ttengine.config import PlanConfig
from ttengine.planner import Planner
planner = Planner(make_checkpoint(width=64, layers=8), PlanConfig(horizon=64, beam_width=512, deduplicate=False))
print("planning", flush=True)
try:
    while True:
        planner.plan(np.zeros(3))
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


def test_ctrl_c_stops_a_long_plan(request: pytest.FixtureRequest) -> None:
    program = LONG_PLAN.format(tests=str(request.path.parent))
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "planning\n"
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            said, _ = process.communicate(timeout=10)
        finally:
            process.kill()
    assert said == "stopped\n"
    assert process.returncode == 0


def test_plans_in_a_row_leave_memory_flat() -> None:
    planner = Planner(make_checkpoint(), PlanConfig(horizon=2, beam_width=8))
    drive(planner, 300)
    before = psutil.Process().memory_info().rss
    drive(planner, 1500)
    assert psutil.Process().memory_info().rss - before < 4 * 2**20
    # what is left after a plan: its beams, and one context
    assert planner.engine._search.live_pages < 100  # type: ignore[attr-defined]


def test_a_window_of_more_rows_than_pass_through_the_layers_at_once_has_the_references_tokens() -> None:
    """120 beams of four transitions, six slots each, shared by none: 2,880 rows, in parts of 2,048."""
    config = PlanConfig(horizon=2, beam_width=120, context_kind="window", action=EVERY, deduplicate=False)
    plans = []
    for engine in ("cpp", "reference"):
        planner = Planner(make_checkpoint(), dataclasses.replace(config, engine=engine, threads=2))  # type: ignore[arg-type]
        plans.append(drive(planner, 6)[-1])
    ours, theirs = plans
    np.testing.assert_array_equal(ours.actions, theirs.actions)
    np.testing.assert_array_equal(ours.observations, theirs.observations)
    np.testing.assert_allclose(ours.score, theirs.score, rtol=1e-4)
    assert ours.counters.physical_rows > 120 * 4 * 6
