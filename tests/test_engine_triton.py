"""The triton engine: the reference engine's tokens, the same bytes however it is run, errors that say what is wrong."""

from __future__ import annotations

import dataclasses
import importlib
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from interpreted import DEVICE, Poison
from test_engine_cpp import EVERY, make_checkpoint

from ttengine import engines
from ttengine.config import PlanConfig, Sampling
from ttengine.context import Context
from ttengine.engines import Candidates, NoiseKey, TritonEngine, triton_memory
from ttengine.engines.triton_memory import sequences_of_a_tile
from ttengine.errors import ConfigError, EngineError, NonFiniteError
from ttengine.planner import Plan, Planner

pytest.importorskip("triton")

FAST = PlanConfig(horizon=3, beam_width=3)
SHAPE: dict[str, Any] = {"layers": 2, "heads": 2, "width": 32, "context": 2}


def make_planner(config: PlanConfig = FAST, *, engine: str = "triton", **model: Any) -> Planner:
    """A planner for a tiny model, the same weights at every call."""
    checkpoint = make_checkpoint(**{**SHAPE, **model})
    device = DEVICE if engine == "triton" else "cpu"
    return Planner(checkpoint, dataclasses.replace(config, engine=engine), device=device)


def episode(planner: Planner, steps: int, seed: int = 5, goal: bool = False) -> list[Plan]:
    """Plan along a made-up episode that is already three transitions long."""
    rng = np.random.default_rng(seed)
    model = planner.model.config
    N, M = model.observation_dim, model.action_dim
    context, plans = planner.empty_context(), []
    for step in range(3 + steps):
        observation = rng.uniform(-3, 3, N)
        if step >= 3:
            wanted = np.full(N, 0.5) if goal else None
            plans.append(planner.plan(observation, context, goal=wanted, seed=seed, step=step))
        context = context.append(observation, rng.uniform(-3, 3, M), float(rng.normal()))
    return plans


def assert_same_tokens(found: Plan, wanted: Plan) -> None:
    for name in ("actions", "observations"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), err_msg=name)
    for name in ("rewards", "value", "score"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=1e-4, atol=1e-4, err_msg=name)


def assert_same_bytes(found: Plan, wanted: Plan) -> None:
    for name in ("actions", "observations", "rewards", "value", "score"):
        assert getattr(found, name).tobytes() == getattr(wanted, name).tobytes(), name


@pytest.mark.parametrize(
    ("kind", "model", "search"),
    [
        ("rolling", {}, {}),
        ("window", {"positions": "absolute"}, {}),
        ("window", {"heads": 1}, {"context": 3, "expand": 3}),
        ("rolling", {"goal": True, "context": 1, "layers": 3}, {"beam_width": 2}),
        ("window", {"positions": "absolute", "goal": True}, {"beam_width": 2, "horizon": 2}),
        ("rolling", {"observation_dim": 17, "layers": 1}, {"beam_width": 2}),
        ("rolling", {"bins": 31}, {"action": EVERY, "observation": Sampling(k=3, cdf=0.3), "percentile": 0.7}),
    ],
    ids=["rolling", "absolute", "rotary-window", "goal", "goal-window", "long-observation", "sampled-percentile"],
)
def test_plans_have_the_reference_engines_tokens(
    kind: str, model: dict[str, Any], search: dict[str, Any], poison: Poison, shuffled: list[int]
) -> None:
    """Also: nothing depends on memory that nobody wrote, on the order of programs, or on kept pages."""
    config = dataclasses.replace(FAST, context_kind=kind, **search)
    goal = bool(model.get("goal"))
    ours = episode(make_planner(config, **model), 2, goal=goal)
    wanted = episode(make_planner(config, engine="reference", **model), 2, goal=goal)
    for mine, theirs in zip(ours, wanted, strict=True):
        assert_same_tokens(mine, theirs)
        assert mine.counters.token_steps == theirs.counters.token_steps
    assert DEVICE.type == "cuda" or shuffled


@pytest.mark.parametrize(
    ("kind", "model", "search"),
    [
        ("rolling", {"goal": True}, {}),
        ("window", {"positions": "absolute"}, {"context": 2, "action": EVERY}),
        ("rolling", {"context": 1, "bins": 20}, {"action": Sampling(cdf=0.6), "observation": Sampling(k=3)}),
    ],
    ids=["goal", "window", "filtered"],
)
def test_likelihood_searches_find_the_reference_engines_beams(
    kind: str, model: dict[str, Any], search: dict[str, Any], poison: Poison, shuffled: list[int]
) -> None:
    config = PlanConfig(horizon=3, beam_width=3, objective="likelihood", context_kind=kind, **search)  # type: ignore[arg-type]
    goal = bool(model.get("goal"))
    ours = episode(make_planner(config, **model), 2, goal=goal)
    wanted = episode(make_planner(config, engine="reference", **model), 2, goal=goal)
    for mine, theirs in zip(ours, wanted, strict=True):
        assert_same_tokens(mine, theirs)
        assert mine.counters.token_steps == theirs.counters.token_steps + 1  # the last token is fed as well
    assert DEVICE.type == "cuda" or shuffled


@pytest.mark.parametrize("kind", ["rolling", "window"])
def test_drafts_change_no_byte_and_save_tiles(kind: str) -> None:
    config = dataclasses.replace(FAST, context_kind=kind)
    drafted, plain = (episode(make_planner(dataclasses.replace(config, draft=draft)), 1)[0] for draft in (True, False))
    assert_same_bytes(drafted, plain)
    tiles = (FAST.horizon - 1) * FAST.beam_width * (3 + 1)
    assert plain.counters.observe_tiles == tiles
    assert drafted.counters.observe_tiles < tiles


def test_batch_elements_do_not_influence_each_other() -> None:
    """A batch, alone, in a tile with strangers: the same bytes; lengths of contexts differ."""
    planner = make_planner()
    rng = np.random.default_rng(1)
    contexts = []
    for length in (0, 3):
        context = planner.empty_context()
        for _ in range(length):
            context = context.append(rng.normal(size=3), rng.normal(size=2), 0.5)
        contexts.append(context)
    observations = rng.normal(size=(2, 3))
    batch = planner.plan(observations, contexts, seed=[4, 9], step=[1, 2])
    for b in range(2):
        alone = planner.plan(observations[b], contexts[b], seed=[4, 9][b], step=[1, 2][b])
        assert alone.actions.tobytes() == batch.actions[b].tobytes()
        assert alone.score.tobytes() == batch.score[b].tobytes()


@pytest.mark.parametrize(
    ("model", "lists"),
    [({}, 8), ({"observation_dim": 40, "layers": 1, "goal": True}, 1 + 8 + 3 + 1)],
    ids=["one-block", "goal-and-blocks"],
)
def test_the_size_of_tiles_changes_no_byte(model: dict[str, Any], lists: int) -> None:
    """One a program where there are multiprocessors to spare, 16 in large batches; more than two share lists.

    Of the lists of nine candidates, eight of them in one part of a tile of 16, a block without their own pages is the
    same: the goal's, and the oldest; one that ends in their beams' is as many.
    """
    few, many = [1, 66, 67, 132, 256], [265, 529, 10**6]
    assert [sequences_of_a_tile(count, 132) for count in few + many] == [1, 1, 2, 2, 4, 8, 16, 16]
    assert [sequences_of_a_tile(count, 132, least=2) for count in few + many] == [2, 2, 2, 2, 4, 8, 16, 16]
    config = PlanConfig(horizon=2, beam_width=3, expand=3)
    plans = []
    for rows in (1, 2, 4, 16):
        planner = make_planner(config, **model)
        memory = planner.engine._remember(1)  # type: ignore[attr-defined]
        memory.candidates_of_a_tile = memory.beams_of_a_tile = rows
        plans += episode(planner, 1, goal=bool(model))
    for found in plans[1:]:
        assert_same_bytes(found, plans[0])
        assert found.counters.observe_tiles >= plans[0].counters.observe_tiles
    assert found.counters.observe_tiles == 3 * (planner.model.config.observation_dim + 1)  # nothing is guessed
    assert int(memory.candidates.steps[0, 0]) == lists


def test_kept_context_pages_save_work_and_change_no_byte() -> None:
    """From the second plan of an episode on only the last transition is computed: K - 1 slots."""
    warm = make_planner()
    model, rng, context = warm.model.config, np.random.default_rng(5), warm.empty_context()
    moments = []
    for step in range(6):
        observation = rng.uniform(-3, 3, 3)
        moments.append((observation, context, step))
        context = context.append(observation, rng.uniform(-3, 3, 2), float(rng.normal()))
    for number, (observation, past, step) in enumerate(moments[3:]):
        kept, anew = (planner.plan(observation, past, step=step) for planner in (warm, make_planner()))
        assert_same_bytes(kept, anew)
        saved = anew.counters.physical_rows - kept.counters.physical_rows
        computed = min(3 + number, len(past)) * (model.transition_dim - 1) + model.observation_dim
        assert saved == (computed - (model.transition_dim - 1) if number else 0)


def test_windows_share_what_they_have_in_common_and_change_no_byte(poison: Poison, shuffled: list[int]) -> None:
    """Many beams from few actions: their windows begin alike."""
    config = dataclasses.replace(FAST, context_kind="window", beam_width=5, horizon=4, context=3)
    shared, alone = (
        episode(make_planner(dataclasses.replace(config, deduplicate=share), bins=4), 2) for share in (True, False)
    )
    for ours, theirs in zip(shared, alone, strict=True):
        assert_same_bytes(ours, theirs)
        assert ours.counters.logical_rows == theirs.counters.logical_rows
        assert ours.counters.physical_rows < 0.8 * theirs.counters.physical_rows
    assert DEVICE.type == "cuda" or shuffled


def test_memory_that_others_hold_is_given_up_for_a_new_size(monkeypatch: pytest.MonkeyPatch) -> None:
    from ttengine.engines import triton_memory

    planner = make_planner(PlanConfig(horizon=1, beam_width=2))
    clean = planner.plan(np.ones(3))
    engine = planner.engine
    assert isinstance(engine, TritonEngine)
    before = weakref.ref(engine._memory)

    def full(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        if before() is not None:  # nobody may refer to it any more
            raise torch.OutOfMemoryError
        return torch.empty(size, dtype=dtype, device=device)

    monkeypatch.setattr(triton_memory, "_new", full)
    batch = planner.plan(np.ones((2, 3)), seed=[0, 0])
    assert list(engine._memories) == [2]
    assert batch.actions[1].tobytes() == clean.actions.tobytes()

    def none(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError

    half = make_planner(PlanConfig(horizon=1, beam_width=2, precision="fp16"))
    monkeypatch.setattr(triton_memory, "_new", none)
    for each, advice in ((planner, "use precision='fp16' or 'bf16', a narrower beam"), (half, "use a narrower beam")):
        with pytest.raises(EngineError, match=rf"pages of keys and values take.*{advice} or fewer problems .* than 3"):
            each.plan(np.ones((3, 3)))


def test_a_plan_launches_three_kernels_a_round_and_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefill; expand, rank, observe; at the end take in place of observe."""
    if DEVICE.type == "cuda":
        pytest.skip("bench/gpu_suite.py counts launches on a GPU")
    launched: list[str] = []
    executor = importlib.import_module("triton.runtime.interpreter").GridExecutor
    call = executor.__call__

    def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        launched.append(self.fn.__name__)
        return call(self, *arguments, **options)

    monkeypatch.setattr(executor, "__call__", counted)
    make_planner().plan(np.ones(3))
    rounds = ["expand", "_select_beams", "observe"] * FAST.horizon
    assert launched == ["prefill", *rounds[:-1], "take"]
    assert len(launched) == 3 * FAST.horizon + 1


def test_pages_with_traces_of_what_is_gone_or_of_another_goal_are_not_kept() -> None:
    """A context that slides before it is as long as can be seen; then another goal for the same context."""
    config = PlanConfig(horizon=1, beam_width=2)
    warm = make_planner(config, goal=True)
    rng = np.random.default_rng(2)
    context = Context.empty(3, 2, 3)
    for _ in range(5):
        context = context.append(rng.uniform(-3, 3, 3), rng.uniform(-3, 3, 2), 0.5)
        for goal in (np.zeros(3), np.full(3, 2.0)):
            found = warm.plan(np.ones(3), context, goal=goal)
            assert_same_bytes(found, make_planner(config, goal=True).plan(np.ones(3), context, goal=goal))


def test_a_prefill_that_was_never_computed_leaves_no_pages_to_keep() -> None:
    config = PlanConfig(horizon=1, beam_width=2)
    planner = make_planner(config)
    clean = planner.plan(np.ones(3))
    planner.plan(np.zeros(3))
    with torch.inference_mode():
        planner.engine.prefill(planner._prefixes(np.ones((1, 3), np.float32), [None]), None, [NoiseKey()])
    assert_same_bytes(planner.plan(np.ones(3)), clean)


def test_an_objective_of_the_users_own_sees_what_it_is_promised() -> None:
    seen: list[tuple[int, ...]] = []

    def slow_and_low(candidates: Candidates) -> torch.Tensor:
        seen.append(tuple(candidates.actions.shape))
        return candidates.values - candidates.actions.square().sum(dim=(-1, -2))

    plans = []
    for engine in ("triton", "reference"):
        checkpoint = make_checkpoint(**SHAPE)
        device = DEVICE if engine == "triton" else "cpu"
        config = dataclasses.replace(FAST, engine=engine)
        plans.append(Planner(checkpoint, config, objective=slow_and_low, device=device).plan(np.zeros(3)))
    assert_same_tokens(*plans)
    assert seen[:3] == seen[-3:] == [(1, 6, 1, 2), (1, 6, 2, 2), (1, 6, 3, 2)]


def test_a_deadline_ends_the_search_between_rounds() -> None:
    planner = make_planner()
    assert planner.plan(np.zeros(3), deadline_s=1e-6).rounds == 1
    assert planner.plan(np.zeros(3), deadline_s=1e6).rounds == FAST.horizon


def test_beam_width_one_and_horizon_one_are_searches_too() -> None:
    config = PlanConfig(horizon=1, beam_width=1, expand=1)
    assert_same_tokens(*(make_planner(config, engine=e).plan(np.ones(3)) for e in ("triton", "reference")))


def test_broken_logits_and_scores_are_errors_that_name_the_round() -> None:
    planner = make_planner()
    engine = planner.engine
    assert isinstance(engine, TritonEngine)
    clean = planner.plan(np.zeros(3))
    head = engine._packed.matrices[0, -7 * 32 * 16 :].view(7, 32, 16)
    saved = head.clone()
    for column, name in ((2, "round 0, at token 0"), (3, "round 0, at token 1"), (6, "round 0, at token 4")):
        head[column, 0, 0] = float("nan")
        with pytest.raises(NonFiniteError, match=name):
            planner.plan(np.zeros(3))
        head.copy_(saved)
    assert_same_bytes(planner.plan(np.zeros(3)), clean)

    def broken(candidates: Candidates) -> torch.Tensor:
        return candidates.values / (candidates.rounds < 2)

    bad = Planner(make_checkpoint(**SHAPE), dataclasses.replace(FAST, engine="triton"), objective=broken, device=DEVICE)
    with pytest.raises(NonFiniteError, match="objective returned NaN or infinity in round 1"):
        bad.plan(np.zeros(3))


def test_a_tile_has_a_strand_for_every_warp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or its sums would run in another order than those of larger tiles: so wide heads are not planned for alone."""
    monkeypatch.setattr(triton_memory, "sequences_of_a_tile", lambda sequences, multiprocessors, least: least)
    for width, heads, least in ((32, 2, 1), (128, 4, 1), (64, 1, 2), (256, 4, 2)):
        for precision in ("fp32", "fp16", "bf16"):
            planner = make_planner(PlanConfig(precision=precision), width=width, heads=heads)  # type: ignore[arg-type]
            memory = planner.engine._remember(1)  # type: ignore[attr-defined]
            assert memory.candidates_of_a_tile == memory.beams_of_a_tile == least


def test_weights_beyond_float16_are_refused() -> None:
    """Float32 is taken apart into two numbers of float16, and those end at 65,504; bfloat16 goes on."""
    checkpoint = make_checkpoint(**SHAPE)
    weight = checkpoint.model.blocks[0].mlp_in.weight
    with torch.no_grad():
        weight[0, 0] = 65_504.0
        Planner(checkpoint, dataclasses.replace(FAST, engine="triton"), device=DEVICE)
        weight[0, 0] = -66_000.0
    for precision in ("fp32", "fp16"):
        with pytest.raises(ConfigError, match=rf"65,504.*{precision}.*reference"):
            Planner(checkpoint, dataclasses.replace(FAST, engine="triton", precision=precision), device=DEVICE)  # type: ignore[arg-type]
    Planner(checkpoint, dataclasses.replace(FAST, engine="triton", precision="bf16"), device=DEVICE)


@pytest.mark.parametrize("kind", ["rolling", "window"])
def test_float16_plans_nearly_as_float32_does(kind: Any) -> None:
    """Most plans are the same, but rounding shows: it is not float32."""
    config = dataclasses.replace(FAST, context_kind=kind)
    half = make_planner(dataclasses.replace(config, precision="fp16"))
    assert half.engine._packed.matrices.dtype == torch.float16  # type: ignore[attr-defined]
    pairs = list(zip(episode(half, 3), episode(make_planner(config, engine="reference"), 3), strict=True))
    same = [np.array_equal(ours.actions, theirs.actions) for ours, theirs in pairs]
    off = [abs(float(ours.score - theirs.score)) for (ours, theirs), equal in zip(pairs, same, strict=True) if equal]
    assert sum(same) >= 2
    assert 1e-6 < max(off) < 1e-2


def test_what_the_kernels_do_not_take_is_refused_at_construction() -> None:
    for model, match in (({"width": 24}, "width"), ({"width": 32, "heads": 4}, "head width")):
        with pytest.raises(ConfigError, match=match):
            make_planner(**model)
    for model in ({"width": 512, "heads": 8}, {"width": 256, "heads": 8, "bins": 130}):
        with pytest.raises(ConfigError, match=r"fp32.*use (precision='fp16' or 'bf16'|engine='reference')"):
            make_planner(**model)
    with pytest.raises(ConfigError, match="4096"):
        make_planner(PlanConfig(horizon=1, beam_width=512, expand=9))
    checkpoint = make_checkpoint(**SHAPE)
    with torch.no_grad():
        checkpoint.model.blocks[1].qkv.weight[3, 3] = float("nan")
    with pytest.raises(NonFiniteError, match=r"blocks\.1\.qkv\.weight"):
        Planner(checkpoint, dataclasses.replace(FAST, engine="triton"), device=DEVICE)


def test_an_older_triton_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triton.__version__", "3.5.1")
    with pytest.raises(EngineError, match=r"Triton 3\.5\.1 .* 3\.6"):
        make_planner()


def test_auto_walks_one_list_of_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the model's device, its type, the GPU's age, and what the kernels take."""
    capability = (9, 0)
    monkeypatch.setattr(engines, "ENGINES", dict.fromkeys(engines.ENGINES, lambda model, *_: model))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    sizes = make_checkpoint(**SHAPE).model.config

    def chosen(device: str, dtype: torch.dtype = torch.float32, **changes: Any) -> str:
        weight = SimpleNamespace(device=torch.device(device), dtype=dtype)
        config = dataclasses.replace(sizes, **changes)
        model = SimpleNamespace(parameters=lambda: iter([weight]), config=config)
        return engines.make_engine(model, None, FAST)[0]  # type: ignore[arg-type]

    assert chosen("cpu") == "cpp"
    assert chosen("cuda:0") == "triton"
    assert chosen("mps") == "reference"
    assert chosen("cpu", torch.float64) == chosen("cuda:0", torch.float64) == "reference"
    assert chosen("cuda:0", width=24, heads=1) == "reference"
    capability = (7, 5)
    assert chosen("cuda:0") == "reference"


def test_all_that_a_gpu_is_asked_for_is_of_the_models_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launches, and a capture; one that fails leaves the caller's stream in place."""
    now: dict[str, Any] = {"stream": "the caller's", "device": None}

    @contextmanager
    def capture(graph: Any, *, stream: Any, capture_error_mode: str) -> Iterator[None]:
        now.update(stream=stream, mode=capture_error_mode)
        yield
        raise RuntimeError("operation failed due to a previous error during capture")

    @contextmanager
    def device(which: Any) -> Iterator[None]:
        now["device"] = which
        yield

    engine = make_planner(PlanConfig(horizon=1, beam_width=1)).engine
    assert isinstance(engine, TritonEngine)
    fakes = {"graph": capture, "device": device, "CUDAGraph": object, "Stream": lambda which: f"a stream of {which}"}
    fakes |= {"synchronize": lambda which: None, "current_stream": lambda which: now["stream"]}
    fakes["set_stream"] = lambda stream: now.update(stream=stream)
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(engine, "device", torch.device("cuda", 1))
    seen: list[Any] = []
    with pytest.raises(EngineError, match="graph=False"), engine.cores():
        engine._capture(lambda: seen.append(dict(now)))  # type: ignore[arg-type, return-value]
    assert seen == [{"stream": "a stream of cuda:1", "device": torch.device("cuda", 1), "mode": "thread_local"}]
    assert now["stream"] == "the caller's"


def test_a_gpu_that_fails_is_an_error_at_construction(monkeypatch: pytest.MonkeyPatch) -> None:
    planner = make_planner(PlanConfig(horizon=1, beam_width=2), goal=True)
    engine = planner.engine
    assert isinstance(engine, TritonEngine)
    engine._try_out()
    clean = make_planner(PlanConfig(horizon=1, beam_width=2), goal=True).plan(np.ones(3), goal=np.zeros(3))
    assert_same_bytes(planner.plan(np.ones(3), goal=np.zeros(3)), clean)  # what was tried out leaves no trace
    monkeypatch.setattr("ttengine.engines.triton.describe", lambda device: "a GPU")
    monkeypatch.setattr(engine._segments, "take", {(1,): lambda *_, **__: 1 / 0})
    with pytest.raises(EngineError, match=r"does not run on a GPU: ZeroDivisionError.* driver .*engine='reference'"):
        engine._try_out()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_why_there_is_no_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(EngineError, match="no planner for cuda here: PyTorch"):
        Planner(make_checkpoint(**SHAPE), FAST, device="cuda")

    def old() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update")

    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "init", old)
    with pytest.raises(EngineError, match=r"driver on your system is too old \(found version 11040\)\.; use"):
        Planner(make_checkpoint(**SHAPE), FAST, device="cuda")


def test_without_a_gpu_the_error_says_which_engine_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(EngineError, match="engine='cpp'"):
        Planner(make_checkpoint(**SHAPE), dataclasses.replace(FAST, engine="triton"), device="cpu")


def test_context_that_is_too_long_is_cropped_like_the_reference_does() -> None:
    """A window of two transitions, a context of five."""
    config = dataclasses.replace(FAST, context_kind="window", context=2, horizon=2)
    plans = []
    for engine in ("triton", "reference"):
        planner = make_planner(config, engine=engine, positions="absolute")
        context = Context.empty(3, 2, 5)
        for i in range(5):
            context = context.append(np.full(3, i / 3), np.full(2, -i / 4), i)
        plans.append(planner.plan(np.ones(3), context))
    assert_same_tokens(*plans)
