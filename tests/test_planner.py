"""The planner against an independent naive one, and its own promises."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from naive import NaiveModel, plan_naively
from torch import Tensor

from ttengine.checkpoint import Checkpoint
from ttengine.config import EVERY_TOKEN, PLAN_PRESETS, DataConfig, ModelConfig, PlanConfig, Sampling
from ttengine.context import Context
from ttengine.discretizer import Discretizer
from ttengine.engines import Candidates, NoiseKey, ReferenceEngine
from ttengine.errors import ConfigError, NonFiniteError, ShapeError
from ttengine.kernels.reference import select_beams
from ttengine.model import TrajectoryTransformer
from ttengine.objectives import discounted_return
from ttengine.planner import Clock, Planner, plan, search_return

TOP_1 = Sampling(k=1)


def make_model(
    N: int, M: int, bins: int = 7, dtype: torch.dtype = torch.float64, sharpness: float = 0.4, **settings: object
) -> TrajectoryTransformer:
    """A small model whose predictions are far from uniform; the sharper, the fewer different actions it samples."""
    torch.manual_seed(N * 100 + M)
    config = ModelConfig(N, M, n_bins=bins, layers=2, heads=2, width=16, **settings)
    model = TrajectoryTransformer(config).to(dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=sharpness if name == "head.weight" else 0.4)
    return model


def make_discretizer(K: int, bins: int = 7) -> Discretizer:
    generator = torch.Generator().manual_seed(K)
    return Discretizer(torch.randn(K, bins + 1, generator=generator).sort(dim=1).values)


def make_checkpoint(N: int = 3, M: int = 2, **settings: object) -> Checkpoint:
    model = make_model(N, M, **settings)
    return Checkpoint(model, make_discretizer(N + M + 2), DataConfig(), "made-up")


def naive_of(model: TrajectoryTransformer) -> NaiveModel:
    c = model.config
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return NaiveModel(weights, c.observation_dim, c.action_dim, c.n_bins, c.heads, c.positions == "rotary", c.context)


def random_prefix(rng: np.random.Generator, N: int, K: int, transitions: int, bins: int = 7) -> list[int]:
    return [int(t) for t in rng.integers(0, bins, transitions * K + N)]


def engine_beams(
    model: TrajectoryTransformer,
    edges: Discretizer,
    config: PlanConfig,
    prefix: list[int],
    key: NoiseKey,
    goal: Tensor | None,
) -> tuple[Tensor, Tensor]:
    engine = ReferenceEngine(model, edges, config)
    with torch.inference_mode():
        engine.prefill([torch.tensor(prefix)], None if goal is None else [goal], [key])
        beams, score = search_return(engine, rounded_return, config, Clock(None), config.beam_width)
    return beams.tokens[0], score[0]


def rounded_return(candidates: Candidates) -> Tensor:
    """The return to nine places: equal sequences tie however their sums were rounded, here and in the naive planner."""
    return discounted_return(0.99)(candidates).round(decimals=9)


@pytest.mark.parametrize(("N", "M"), [(1, 1), (3, 2), (5, 1)])
@pytest.mark.parametrize("width", [1, 5, 32])
def test_window_planner_with_greedy_sampling_equals_the_naive_one_on_random_prefixes(
    N: int, M: int, width: int
) -> None:
    model, edges, K = make_model(N, M), make_discretizer(N + M + 2), N + M + 2
    naive, rng = naive_of(model), np.random.default_rng(width)
    config = PlanConfig(horizon=3, beam_width=width, context_kind="window", action=TOP_1)
    crops = 0
    for case in range(23):  # 3 dims x 3 widths x 23 = 207 prefixes
        prefix = random_prefix(rng, N, K, transitions=case % 7)
        tokens, score = engine_beams(model, edges, config, prefix, NoiseKey(case), None)
        expected, scores = plan_naively(
            naive, edges.edges.double(), prefix, horizon=3, width=width, expand=2, discount=0.99, limit=5 * K - 1
        )
        assert tokens.tolist() == expected
        torch.testing.assert_close(score, torch.tensor(scores, dtype=torch.float64), rtol=0, atol=2e-9)
        crops += len(prefix) + len(expected[0]) > 5 * K - 1
    assert crops > 10, "the test must reach the crop"


@pytest.mark.parametrize("positions", ["absolute", "rotary"])
@pytest.mark.parametrize("goal", [False, True])
@pytest.mark.parametrize("action", [(None, 0.6), (3, None), (2, 0.3), (None, None)])
def test_sampled_plans_equal_the_naive_ones(
    positions: str, goal: bool, action: tuple[int | None, float | None]
) -> None:
    N, M, K, bins = 3, 2, 7, 30
    model = make_model(N, M, bins=bins, sharpness=0.2, positions=positions, goal=goal, context=2)
    edges, naive, rng = make_discretizer(K, bins), naive_of(model), np.random.default_rng(5)
    kind = "window" if positions == "absolute" else "rolling"
    config = PlanConfig(
        horizon=3, beam_width=6, expand=3, context=2, context_kind=kind, action=Sampling(k=action[0], cdf=action[1])
    )
    different = set()
    for case in range(3):
        prefix = random_prefix(rng, N, K, transitions=2 * case, bins=bins)
        goal_tokens = random_prefix(rng, N, K, 0, bins) if goal else None
        tokens, score = engine_beams(
            model, edges, config, prefix, NoiseKey(case, 9), None if goal_tokens is None else torch.tensor(goal_tokens)
        )
        expected, scores = plan_naively(
            naive,
            edges.edges.double(),
            prefix,
            horizon=3,
            width=6,
            expand=3,
            discount=0.99,
            action=action,
            limit=2 * K - 1 if kind == "window" else None,
            goal=goal_tokens,
            seed=case,
            plan=9,
        )
        assert tokens.tolist() == expected
        torch.testing.assert_close(score, torch.tensor(scores, dtype=torch.float64), rtol=0, atol=2e-9)
        different |= {tuple(beam) for beam in expected}
    assert len(different) > 6, "the beams must differ, or nothing was sampled"


@pytest.mark.parametrize("goal", [False, True])
def test_likelihood_search_finds_what_trying_all_sequences_finds(goal: bool) -> None:
    model = make_model(1, 1, bins=3, goal=goal, positions="absolute")
    edges, naive = make_discretizer(4, bins=3), naive_of(model)
    config = dataclasses.replace(PLAN_PRESETS["likelihood"], horizon=1, beam_width=64, context_kind="window")
    observation = np.array([0.1], np.float32)
    goal_observation = np.array([-0.4], np.float32) if goal else None
    found = Planner(Checkpoint(model, edges, DataConfig(), "made-up"), config).plan(observation, goal=goal_observation)

    prefix = edges.encode(torch.tensor(observation)).tolist()
    goal_tokens = edges.encode(torch.tensor(goal_observation)).tolist() if goal else None
    best, best_logp = [], -np.inf
    for code in range(4**3):  # all action, reward, value triples, the stop token included
        sequence = [code // 16, code // 4 % 4, code % 4]
        logp, tokens = 0.0, list(prefix)
        for token in sequence:
            logp += float(naive.probabilities(tokens, goal_tokens)[token].log())
            tokens.append(token)
        if logp > best_logp:
            best, best_logp = sequence, logp
    assert found.score == pytest.approx(best_logp, abs=1e-5)
    expected = edges.decode(torch.tensor(best), first_column=1)
    np.testing.assert_allclose([*found.actions[0], found.rewards[0], found.value], expected, rtol=1e-6)


@pytest.mark.parametrize("objective", ["return", "likelihood"])
def test_batch_elements_do_not_influence_each_other(objective: str) -> None:
    checkpoint = make_checkpoint(dtype=torch.float32)
    base = PLAN_PRESETS["likelihood"] if objective == "likelihood" else PlanConfig()
    planner = Planner(checkpoint, dataclasses.replace(base, horizon=3, beam_width=9))
    rng = np.random.default_rng(0)
    observations = rng.standard_normal((4, 3)).astype(np.float32)
    contexts = []
    for length in (0, 1, 4, 9):
        context = planner.empty_context()
        for _ in range(length):
            context = context.append(rng.standard_normal(3), rng.standard_normal(2), rng.standard_normal())
        contexts.append(context)
    together = planner.plan(observations, contexts, seed=11, step=3)
    for b in range(4):
        alone = planner.plan(observations[b], contexts[b], seed=11 + b, step=3)
        for name in ("actions", "observations", "rewards", "value", "score"):
            np.testing.assert_array_equal(getattr(together, name)[b], getattr(alone, name), err_msg=name)


def test_the_same_seed_and_step_give_the_same_bytes_and_others_do_not() -> None:
    planner = Planner(make_checkpoint(), PlanConfig(horizon=3, beam_width=4, action=EVERY_TOKEN))
    observation = np.zeros(3, np.float32)
    plans = [planner.plan(observation, seed=s, step=p).actions.tobytes() for s, p in [(1, 0), (1, 0), (2, 0), (1, 1)]]
    assert plans[0] == plans[1]
    assert len(set(plans)) == 3


def test_planning_a_rolling_context_past_its_capacity_forgets_nothing_that_counts() -> None:
    """The receptive field is layers x context transitions: what lies before it must not change the plan."""
    checkpoint = make_checkpoint(positions="rotary", context=2)
    planner = Planner(checkpoint, PlanConfig(horizon=3, beam_width=4))
    assert planner.context_capacity == 4
    rng = np.random.default_rng(0)
    rows = [(rng.standard_normal(3), rng.standard_normal(2), rng.standard_normal()) for _ in range(9)]
    short, long, changed = (Context.empty(3, 2, capacity) for capacity in (4, 9, 9))
    for i, (observation, action, reward) in enumerate(rows):
        short, long = short.append(observation, action, reward), long.append(observation, action, reward)
        changed = changed.append(-observation if i < 5 else observation, action, reward)
    observation = rng.standard_normal(3)
    wanted = planner.plan(observation, short).score
    engine = planner.engine
    scores = []
    for context in (long, changed):  # the whole episode, past the planner's own cropping
        prefix = torch.cat(
            [_context_tokens(checkpoint.discretizer, context), *planner._prefixes(observation[None], [None])]
        )
        with torch.inference_mode():
            engine.prefill([prefix], None, [NoiseKey()])
            _, score = search_return(
                engine, discounted_return(0.99), planner.config, Clock(None), planner.config.beam_width
            )
        scores.append(float(score.max()))
    np.testing.assert_allclose(scores, [wanted, wanted], rtol=1e-6)


def test_rows_that_differ_only_in_what_they_no_longer_see_have_predictions_of_their_own() -> None:
    """Keys in sight still hold what their tokens saw: equal tokens in sight do not make equal rows."""
    model = make_model(1, 1, positions="rotary", context=1)
    K, N = model.config.transition_dim, model.config.observation_dim
    config = PlanConfig(objective="likelihood", context_kind="rolling", action=EVERY_TOKEN, observation=EVERY_TOKEN)
    engine = ReferenceEngine(model, make_discretizer(K), config)
    rows = torch.zeros(2, 3 * K, dtype=torch.int64)
    rows[:, K] = torch.tensor([1, 5])  # the second action; two transitions on nobody sees it, but keys in sight have
    with torch.inference_mode():
        engine.prefill([torch.zeros(N, dtype=torch.int64)], None, [NoiseKey()])
        for i in range(rows.shape[1]):
            engine.next_log_probabilities()
            engine.branch(torch.tensor([[0, min(i, 1)]]), rows[None, :, i])
        found = engine.next_log_probabilities()[0]
        sequence = torch.cat([torch.zeros(2, N, dtype=torch.int64), rows], dim=1)
        wanted = model(sequence)[:, -1].log_softmax(dim=-1)
    assert (wanted[0] - wanted[1]).abs().max() > 1e-3
    torch.testing.assert_close(found, wanted)


def _context_tokens(discretizer: Discretizer, context: Context) -> Tensor:
    value = np.zeros((len(context), 1), np.float32)
    columns = np.concatenate([context.observations, context.actions, context.rewards[:, None], value], axis=1)
    return discretizer.encode(torch.from_numpy(columns)).flatten()


def test_the_value_placeholder_in_the_context_has_no_influence() -> None:
    model, edges = make_model(2, 1, positions="absolute"), make_discretizer(5)
    config = PlanConfig(horizon=2, beam_width=3, context_kind="window")
    results = []
    for placeholder in (0, 6):
        prefix = [1, 2, 3, 4, placeholder, 5, 6, 0, 1, placeholder, 2, 3]
        results.append(engine_beams(model, edges, config, prefix, NoiseKey(), None))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_a_plan_describes_itself() -> None:
    planner = Planner(make_checkpoint(), PlanConfig(horizon=4, beam_width=5))
    observation = np.array([0.3, -0.2, 0.9], np.float32)
    found = planner.plan(observation)
    assert (found.actions.shape, found.observations.shape, found.rewards.shape) == ((4, 2), (4, 3), (4,))
    assert found.action.dtype == np.float32
    np.testing.assert_array_equal(found.observations[0], observation)
    np.testing.assert_array_equal(found.action, found.actions[0])
    weights = 0.99 ** np.arange(5)
    assert found.score == pytest.approx(found.rewards @ weights[:4] + weights[4] * found.value, rel=1e-5)
    assert found.rounds == 4
    assert found.latency_s > 0
    assert (found.engine, found.context_kind) == ("reference", "rolling")
    # the first token comes with the prefill, the last (a value) is never fed: 1 + 4 x (2 + 1) + 3 x (1 + 3)
    assert found.counters.token_steps == 25
    assert found.counters.physical_rows == 3 + 10 * 12 + 5 * 12
    assert found.counters.prefills == 1


def test_window_prefills_once_for_every_crop() -> None:
    planner = Planner(make_checkpoint(positions="absolute"), PlanConfig(horizon=4, beam_width=5))
    context = planner.empty_context()
    for _ in range(5):
        context = context.append(np.zeros(3), np.zeros(2), 0.0)
    assert planner.plan(np.zeros(3), context).counters.prefills == 4
    assert planner.plan(np.zeros(3)).counters.prefills == 1


def test_a_deadline_ends_the_search_between_rounds_and_the_plan_says_so() -> None:
    planner = Planner(make_checkpoint(), PlanConfig(horizon=30, beam_width=5))
    found = planner.plan(np.zeros(3), deadline_s=1e-9)
    assert found.rounds == 1
    assert found.actions.shape == (1, 2)
    assert planner.plan(np.zeros(3), deadline_s=1e9).rounds == 30


def test_an_objective_of_the_users_own_replaces_the_return() -> None:
    checkpoint = make_checkpoint()
    config = PlanConfig(horizon=3, beam_width=8, action=EVERY_TOKEN)
    target = 0.4

    def closeness(candidates):  # type: ignore[no-untyped-def]
        return -(candidates.actions[..., 0] - target).abs().sum(dim=-1)

    chosen = Planner(checkpoint, config, objective=closeness).plan(np.zeros(3))
    ordinary = Planner(checkpoint, config).plan(np.zeros(3))
    distance = [np.abs(p.actions[:, 0] - target).sum() for p in (chosen, ordinary)]
    assert distance[0] < distance[1]
    assert chosen.score == pytest.approx(-distance[0], rel=1e-5)
    with pytest.raises(ShapeError, match="one score a candidate"):
        Planner(checkpoint, config, objective=lambda c: c.values[:, :1]).plan(np.zeros(3))
    with pytest.raises(NonFiniteError, match="round 0"):
        Planner(checkpoint, config, objective=lambda c: c.values * np.nan).plan(np.zeros(3))
    with pytest.raises(ConfigError, match="likelihood"):
        Planner(checkpoint, PLAN_PRESETS["likelihood"], objective=closeness)


@pytest.mark.parametrize("width", [1, 31, 32, 33, 127, 128, 200, 256])
def test_beam_widths_around_powers_of_two_keep_the_best_candidates(width: int) -> None:
    seen = []

    def spy(candidates):  # type: ignore[no-untyped-def]
        score = discounted_return(0.99)(candidates)
        seen.append(score)
        return score

    planner = Planner(
        make_checkpoint(N=1, M=1), PlanConfig(horizon=2, beam_width=width, action=EVERY_TOKEN), objective=spy
    )
    found = planner.plan(np.zeros(1))
    assert [tuple(score.shape) for score in seen] == [(1, 2 * width)] * 2
    assert found.score == np.float32(seen[-1].max())


def test_rewards_are_decoded_by_expectation_or_percentile_and_as_released() -> None:
    checkpoint = make_checkpoint()
    edges = checkpoint.discretizer.edges.double()[-2]
    mids = (edges[1:] + edges[:-1]) / 2
    rewards = []
    for settings in ({}, {"percentile": 0.7}, {"percentile": 0.7, "percentile_as_released": True}):
        config = PlanConfig(horizon=1, beam_width=1, action=TOP_1, **settings)
        rewards.append(float(Planner(checkpoint, config).plan(np.zeros(3)).rewards[0]))
    naive, tokens = naive_of(checkpoint.model), checkpoint.discretizer.encode(torch.zeros(3)).tolist()
    for _ in range(2):
        tokens.append(int(naive.probabilities(tokens).argmax()))
    p = naive.probabilities(tokens)[:-1]
    percentile = int((p.cumsum(0) / p.sum() < 0.7).sum())
    released = int((p.cumsum(0) < 0.7).sum()) - 1
    assert rewards == pytest.approx([float(p @ mids), float(mids[percentile]), float(mids[released])], rel=1e-6)
    assert len(set(rewards)) == 3


def test_plan_reads_a_model_file(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(dtype=torch.float32)
    checkpoint.save(tmp_path / "model.safetensors")
    config = PlanConfig(horizon=2, beam_width=3)
    from_file = plan(tmp_path / "model.safetensors", np.zeros(3), config=config, seed=4)
    np.testing.assert_array_equal(from_file.actions, plan(checkpoint, np.zeros(3), config=config, seed=4).actions)


def test_wrong_input_is_refused_before_anything_is_computed() -> None:
    checkpoint = make_checkpoint()
    planner = Planner(checkpoint, PlanConfig(horizon=2, beam_width=2))
    with pytest.raises(ShapeError, match="observation has 4 dims, the model was trained on 3"):
        planner.plan(np.zeros(4))
    with pytest.raises(ShapeError, match="expected"):
        planner.plan(np.zeros((2, 2, 3)))
    with pytest.raises(ShapeError, match="expected"):
        planner.plan(np.zeros((0, 3)))
    with pytest.raises(NonFiniteError, match=r"observation\[1\] is nan"):
        planner.plan(np.array([0.0, np.nan, 0.0]))
    with pytest.raises(NonFiniteError, match="is inf"):
        planner.plan(np.array([[0.0, 0.0, 0.0], [0.0, np.inf, 0.0]]))
    with pytest.raises(ShapeError, match="the context holds observations of 2"):
        planner.plan(np.zeros(3), Context.empty(2, 2, 5).append(np.zeros(2), np.zeros(2), 0.0))
    with pytest.raises(ShapeError, match="2 entries of context came for 3"):
        planner.plan(np.zeros((3, 3)), [planner.empty_context()] * 2)
    with pytest.raises(ShapeError, match="trained without goals"):
        planner.plan(np.zeros(3), goal=np.zeros(3))
    with pytest.raises(ConfigError, match="rolling"):
        Planner(make_checkpoint(positions="absolute"), PlanConfig(context_kind="rolling"))
    with pytest.raises(ConfigError, match="mask was trained with 5"):
        Planner(checkpoint, PlanConfig(context=3))
    goal_planner = Planner(make_checkpoint(goal=True), PlanConfig(horizon=2, beam_width=2))
    with pytest.raises(ShapeError, match="trained with goals"):
        goal_planner.plan(np.zeros(3))
    with pytest.raises(ShapeError, match="2 goals came for 1"):
        goal_planner.plan(np.zeros(3), goal=np.zeros((2, 3)))


def test_broken_weights_are_an_error_that_names_the_token() -> None:
    checkpoint = make_checkpoint()
    with torch.no_grad():
        checkpoint.model.head.weight[3].fill_(np.nan)  # predicts column 4, the second action number
    with pytest.raises(NonFiniteError, match="token 1 of the plan"):
        Planner(checkpoint, PlanConfig(horizon=2, beam_width=2)).plan(np.zeros(3))


def test_select_beams_keeps_lower_index_on_ties_and_index_order() -> None:
    score = torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    kept_score, kept = select_beams(score, 2)
    assert kept.tolist() == [[1, 2], [0, 1]]
    assert kept_score.tolist() == [[3.0, 3.0], [0.0, 0.0]]
