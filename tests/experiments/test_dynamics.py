"""Long-horizon dynamics: densities are densities, actions are forced, nothing leaks, who knows gets its due."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ttengine.config import ModelConfig
from ttengine.data.trajectories import Trajectories
from ttengine.discretizer import Discretizer, fit_discretizer
from ttengine.errors import ConfigError, DataError, RenderError, ShapeError
from ttengine.experiments import dynamics, rollouts
from ttengine.experiments.dynamics import Config, markovian_recipe
from ttengine.experiments.ensemble import EnsembleConfig, fit_ensemble, gaussian_log_density, saved_ensemble
from ttengine.experiments.ingredients import Recipe
from ttengine.experiments.report import write_report
from ttengine.experiments.rollouts import (
    Forecast,
    Pieces,
    Ruler,
    bin_widths,
    draw_pieces,
    fitted_log_density,
    roll_transformer,
)
from ttengine.experiments.run import Run, read_rows
from ttengine.model import TrajectoryTransformer
from ttengine.viz import curves

N, M, V = 3, 2, 7
K = N + M + 2
TINY = EnsembleConfig(members=2, width=16, layers=1, batch_size=64, steps=400, learning_rate=1e-2)


def made_up(episodes: int = 6, length: int = 40, seed: int = 0) -> Trajectories:
    """Episodes of a linear system with a little noise: o' = 0.9 o + B a."""
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-1, 1, (episodes, length, M)).astype(np.float32)
    observations = np.zeros((episodes, length, N), np.float32)
    observations[:, 0] = rng.normal(size=(episodes, N))
    for t in range(length - 1):
        noise = 0.05 * rng.normal(size=(episodes, N))
        observations[:, t + 1] = 0.9 * observations[:, t] + actions[:, t] @ [[0.5, 0.0, 0.2], [0.0, 0.4, -0.2]] + noise
    timeouts = np.zeros((episodes, length), bool)
    timeouts[:, -1] = True
    flat = [array.reshape(episodes * length, -1) for array in (observations, actions)]
    rewards = rng.normal(size=episodes * length).astype(np.float32)
    return Trajectories(*flat, rewards, np.zeros(episodes * length, bool), timeouts.ravel())


def made_up_model(context: int = 2, layers: int = 2) -> tuple[TrajectoryTransformer, Discretizer]:
    torch.manual_seed(1)
    config = ModelConfig(N, M, n_bins=V, layers=layers, heads=2, width=16, dropout=0.0, window=4, context=context)
    model = TrajectoryTransformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    columns = np.random.default_rng(0).normal(size=(500, K)).astype(np.float32)
    return model, fit_discretizer(columns, V)


def made_up_pieces(past: int = 3, steps: int = 5, starts: int = 4) -> Pieces:
    data = made_up()
    return draw_pieces(data, np.arange(data.n_episodes), past, steps, starts, seed=0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Spy:
    """Records what a model is fed."""

    def __init__(self, model: TrajectoryTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fed: list[Tensor] = []
        hidden = model.hidden

        def spying(tokens: Tensor, goal: Tensor | None = None, cache: Any = None) -> Tensor:
            self.fed.append(tokens.clone())
            return hidden(tokens, goal, cache)

        monkeypatch.setattr(model, "hidden", spying)


def test_a_gaussian_density_integrates_to_one_and_has_its_known_peak() -> None:
    x = torch.linspace(-20, 20, 40_001, dtype=torch.float64)
    mean, spread = torch.tensor(1.5, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    density = gaussian_log_density(x, mean, spread).exp()
    assert torch.trapezoid(density, x).item() == pytest.approx(1.0, abs=1e-9)
    assert gaussian_log_density(mean, mean, spread).item() == pytest.approx(-math.log(0.7 * math.sqrt(2 * math.pi)))
    assert gaussian_log_density(mean + 0.7, mean, spread).exp().item() == pytest.approx(0.34567, abs=1e-5)


def test_a_clouds_density_integrates_to_one_and_is_students_t() -> None:
    particles = torch.tensor([0.0, 1.0, 2.0, 5.0])[None, None, :, None]
    x = torch.linspace(-4000, 4000, 2_000_001)[None, :, None]
    density = fitted_log_density(x, particles.expand(1, x.shape[1], -1, -1)).exp().double()
    assert torch.trapezoid(density[0, :, 0], x[0, :, 0].double()).item() == pytest.approx(1.0, abs=1e-3)
    # t with 3 degrees of freedom at its centre, 2 / (sqrt(3) pi), over the scale s * sqrt(1 + 1/4), s^2 = 14 / 3
    peak = fitted_log_density(torch.full((1, 1, 1), 2.0), particles)
    assert peak.exp().item() == pytest.approx(2 / (math.sqrt(3) * math.pi) / math.sqrt(14 / 3 * 5 / 4), rel=1e-5)
    same = fitted_log_density(torch.zeros(1, 1, 1), torch.zeros(1, 1, 4, 1))
    assert bool(torch.isfinite(same).all())  # all particles alike: no infinite density


def test_a_models_density_integrates_to_one_over_an_observation(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = ModelConfig(2, 1, n_bins=4, layers=1, heads=2, width=8, dropout=0.0, window=3, context=1)
    model = TrajectoryTransformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    edges = torch.tensor([[0.0, 0.5, 2.0, 2.25, 4.0], [-1.0, 0.0, 0.5, 3.0, 3.5], *[[0.0, 1.0, 2.0, 3.0, 4.0]] * 3])
    discretizer = Discretizer(edges)
    bins = torch.cartesian_prod(torch.arange(4), torch.arange(4))  # every cell of the grid of both dimensions
    observations = torch.ones(len(bins), 2, 2)
    observations[:, 1] = discretizer.decode(bins)
    pieces = Pieces(observations, torch.ones(len(bins), 1, 1), torch.ones(len(bins), 1), past=0)
    # all starts are alike; that they draw the same reward and value makes them the same history
    monkeypatch.setattr(rollouts, "_draw", lambda logits, config, generator: logits.new_zeros(len(logits)).long())
    found = roll_transformer(model, discretizer, pieces, 1, generator())
    density = found.log_density[:, 0, 0].sum(dim=-1).exp()
    assert (density * bin_widths(edges[:2], bins).prod(dim=-1)).sum().item() == pytest.approx(1.0, abs=1e-5)
    assert density.max() > 1.5 * density.min()  # or the sum would say little


def test_densities_are_the_models_own_without_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    model, discretizer = made_up_model()
    pieces = made_up_pieces()
    spy = Spy(model, monkeypatch)
    found = roll_transformer(model, discretizer, pieces, 1, generator())
    monkeypatch.undo()
    prefix, calls = spy.fed[0], spy.fed[1:]
    steps = pieces.truth.shape[1]
    assert len(calls) == steps * (2 + N)  # the forced block, the reward, value and truth, N - 1 drawn numbers
    truth = discretizer.encode(pieces.truth)
    drawn = discretizer.encode(found.predicted[:, :, 0])
    row = torch.cat([prefix, discretizer.encode(pieces.start)[:, -1:]], dim=1)
    for t in range(steps):
        block, reward, looked = calls[t * (2 + N)], calls[t * (2 + N) + 1], calls[t * (2 + N) + 2]
        row = torch.cat([row, block[:, 1:], reward, looked[:, :1]], dim=1)
        logits = model(torch.cat([row, truth[:, t, :-1]], dim=1))[:, -N:, :V]  # a rotary mask: no cropping needed
        likely = logits.log_softmax(dim=-1).gather(-1, truth[:, t, :, None])[..., 0]
        wanted = likely - bin_widths(discretizer.edges[:N], truth[:, t]).log()
        torch.testing.assert_close(found.log_density[:, t, 0], wanted, atol=2e-5, rtol=1e-5)
        row = torch.cat([row, drawn[:, t]], dim=1)


@pytest.mark.parametrize("markovian", [False, True])
def test_the_true_actions_are_executed_and_nothing_else_of_the_future_is_used(
    markovian: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, discretizer = made_up_model()
    pieces = made_up_pieces(past=3, steps=5)
    spy = Spy(model, monkeypatch)
    found = roll_transformer(model, discretizer, pieces, 2, generator(), markovian=markovian)
    actions = discretizer.encode(pieces.actions, N).repeat_interleave(2, dim=0)
    calls = spy.fed if markovian else spy.fed[1:]  # the first is what came before the start
    blocks = [tokens[:, -M:] for tokens in calls[:: 2 + N]]  # then the reward, the value and truth, N - 1 drawn numbers
    assert len(blocks) == 5
    if markovian:  # each step begins with nothing but what the particle became
        drawn = discretizer.encode(found.predicted).transpose(1, 2).flatten(0, 1)
        for t, block in enumerate(calls[2 + N :: 2 + N]):
            assert torch.equal(block[:, :-M], drawn[:, t])
    for t, block in enumerate(blocks):
        assert torch.equal(block, actions[:, 3 + t])
    monkeypatch.undo()

    def again(**changes: Tensor) -> Forecast:
        return roll_transformer(
            model, discretizer, dataclasses.replace(pieces, **changes), 2, generator(), markovian=markovian
        )

    future = pieces.observations.clone()
    future[:, 4:] += 0.5
    other = again(observations=future)
    assert torch.equal(other.predicted, found.predicted)  # what happened is looked at, never fed on
    assert not torch.equal(other.log_density, found.log_density)
    rewards = pieces.rewards.clone()
    rewards[:, 3:] += 2.0
    assert torch.equal(again(rewards=rewards).log_density, found.log_density)
    forced = pieces.actions.clone()
    forced[:, 5] = -forced[:, 5]
    other = again(actions=forced)
    assert torch.equal(other.log_density[:, :2], found.log_density[:, :2])
    assert not torch.equal(other.log_density[:, 2], found.log_density[:, 2])
    past = pieces.observations.clone()
    past[:, 2] += 1.0
    assert torch.equal(again(observations=past).log_density, found.log_density) == markovian


def test_a_markovian_model_sees_one_past_transition_at_any_depth() -> None:
    model, discretizer = made_up_model(context=1, layers=2)
    pieces = made_up_pieces(past=0, steps=1, starts=1)
    tokens = torch.randint(V, (1, 3 * K - 1), generator=generator())
    other = tokens.clone()
    other[0, 0] = (other[0, 0] + 1) % V
    hidden = (model.hidden(tokens) - model.hidden(other)).detach()[0, 2 * K :]
    assert (
        float(hidden.abs().max()) > 1e-4
    )  # through two layers the mask alone lets two transitions through: so, cropping
    found = roll_transformer(model, discretizer, pieces, 1, generator(), markovian=True)
    assert found.log_density.shape == (1, 1, 1, N)
    recipe = markovian_recipe(Recipe(window=6, context=3, batch_size=32))
    assert (recipe.window, recipe.context, recipe.batch_size * recipe.window) == (2, 1, 32 * 6)


def test_a_model_that_knows_nothing_gets_even_bins_and_one_that_knows_gets_the_limit() -> None:
    data = made_up()
    ruler = Ruler.of(data, np.arange(data.n_episodes))
    edges = torch.cat([ruler.discretizer.edges, torch.linspace(-3, 3, 101).repeat(M + 2, 1)])
    discretizer = Discretizer(edges)
    config = ModelConfig(N, M, layers=1, heads=1, width=8, dropout=0.0, window=3, context=1)
    model = TrajectoryTransformer(config).eval()
    pieces = draw_pieces(data, np.arange(data.n_episodes), 1, 4, 3, seed=0)
    with torch.no_grad():
        model.head.weight.zero_()
    rows = ruler.rows(roll_transformer(model, discretizer, pieces, 2, generator()), pieces)
    assert len(rows) == 3 * 4 and rows[0]["start"] == 0 and rows[5]["step"] == 2
    for row in rows:
        assert float(row["log_likelihood"]) == pytest.approx(float(row["limit"]) - math.log(100), abs=1e-4)
        assert float(row["mean_log"]) == pytest.approx(float(row["log_likelihood"]), abs=1e-4)
    # the true trajectory stands still in bins that the model is sure of
    still = data.observations[7]
    sure = discretizer.encode(torch.from_numpy(still))
    with torch.no_grad():
        model.final_norm.weight.zero_()
        model.final_norm.bias.fill_(1.0)
        for column, token in enumerate(sure):
            model.head.weight[(column - 1) % K, token] = 10.0
    held = dataclasses.replace(pieces, observations=torch.from_numpy(still).expand(3, 6, N).contiguous())
    rows = ruler.rows(roll_transformer(model, discretizer, held, 2, generator()), held)
    for row in rows:
        assert float(row["log_likelihood"]) == pytest.approx(float(row["limit"]), abs=1e-4)
        assert float(row["squared_error"]) < 1e-2 and row["standstill"] == 0.0


def test_the_ruler_takes_the_mean_of_densities_and_leaves_out_what_has_none() -> None:
    spread = torch.tensor([2.0, 1.0, 1.0])
    edges = torch.tensor([[0.0, 1.0, 2.0], [0.0, 2.0, 4.0], [1.0, 1.0, 3.0]])
    ruler = Ruler(spread, torch.tensor([True, True, False]), Discretizer(edges))
    observations = torch.tensor([[[0.0, 0.0, 1.0], [0.5, 3.0, 1.0]]])
    pieces = Pieces(observations, torch.zeros(1, 1, 1), torch.zeros(1, 1), past=0)
    density = torch.tensor([[[[0.1, 0.2, math.nan], [0.3, 0.4, math.nan]]]]).log()
    predicted = torch.tensor([[[[1.5, 1.0, 9.0], [1.5, 3.0, 9.0]]]])
    (row,) = ruler.rows(Forecast(density, predicted), pieces)
    # the spreads' product turns densities into those of standardised numbers
    assert float(row["log_likelihood"]) == pytest.approx(math.log(2 * (0.02 + 0.12) / 2) / 2, abs=1e-6)
    assert float(row["mean_log"]) == pytest.approx((math.log(2 * 0.02) + math.log(2 * 0.12)) / 4, abs=1e-6)
    assert float(row["limit"]) == pytest.approx((math.log(2 / 1) + math.log(1 / 2)) / 2, abs=1e-6)
    assert float(row["squared_error"]) == pytest.approx((0.5**2 + 1.0**2) / 2)
    assert float(row["standstill"]) == pytest.approx((0.25**2 + 3.0**2) / 2)


def test_a_clipped_dimension_is_not_counted() -> None:
    data = made_up()
    observations = data.observations.copy()
    observations[:, 1] = np.clip(observations[:, 1], -0.3, 0.3)
    clipped = dataclasses.replace(data, observations=observations)
    assert Ruler.of(clipped, np.arange(4)).counted.tolist() == [True, False, True]
    observations[:] = 1.0
    with pytest.raises(DataError, match="every observation dimension"):
        Ruler.of(dataclasses.replace(data, observations=observations), np.arange(4))


def test_starts_lie_in_the_given_episodes_with_room_before_and_after() -> None:
    data = made_up(episodes=4, length=12)
    numbered = np.arange(len(data), dtype=np.float32)
    data = dataclasses.replace(data, rewards=numbered, observations=np.repeat(numbered[:, None], N, axis=1))
    pieces = draw_pieces(data, np.array([1, 3]), past=3, steps=6, starts=100, seed=0)
    assert sorted(pieces.start[:, 0].tolist()) == [15.0, 16.0, 17.0, 39.0, 40.0, 41.0]
    assert torch.equal(pieces.truth[:, 0, 0], pieces.start[:, 0] + 1)
    assert torch.equal(pieces.rewards[:, 3], pieces.start[:, 0])
    with pytest.raises(DataError, match="needs a held-out episode of 13, the longest of 2 has 12"):
        draw_pieces(data, np.array([1, 3]), past=3, steps=9, starts=1, seed=0)


def test_an_ensemble_learns_a_linear_system_and_its_noise() -> None:
    data = made_up(episodes=30)
    ensemble = fit_ensemble(data, TINY, seed=0)
    observation, action = torch.tensor([0.2, -0.1, 0.3]), torch.tensor([0.5, -0.5])
    mean, spread = ensemble.predict(observation.expand(2, 1, N), action.expand(2, 1, M))
    wanted = 0.9 * observation + action @ torch.tensor([[0.5, 0.0, 0.2], [0.0, 0.4, -0.2]])
    torch.testing.assert_close(mean.mean(dim=0)[0], wanted, atol=0.04, rtol=0)
    assert spread.min() > 0.03 and spread.max() < 0.09  # 0.05
    assert not torch.equal(mean[0], mean[1])


def test_an_ensembles_particles_keep_their_member_and_see_only_start_and_actions() -> None:
    data = made_up(episodes=30)
    ensemble = fit_ensemble(data, dataclasses.replace(TINY, steps=50), seed=0)
    with torch.no_grad():  # all but sure, and each its own way
        ensemble.change_spread.fill_(1.0)
        ensemble.highest.fill_(-30.0)
        ensemble.lowest.fill_(-40.0)
        ensemble.low.fill_(-math.inf)
        ensemble.high.fill_(math.inf)
    pieces = made_up_pieces(past=0, steps=6)
    density, predicted = ensemble.roll(pieces.start, pieces.actions, pieces.truth, 4, generator())
    assert density.shape == predicted.shape == (4, 6, 4, N)
    torch.testing.assert_close(predicted[:, :, 0], predicted[:, :, 2], atol=1e-3, rtol=0)
    assert float((predicted[:, :, 0] - predicted[:, :, 1]).abs().max()) > 0.01
    state = pieces.start
    for t in range(6):  # by hand, member 1
        both, spread = ensemble.predict(state.expand(2, -1, -1), pieces.actions[:, t].expand(2, -1, -1))
        wanted = gaussian_log_density(pieces.truth[:, t], both[1], spread[1])
        torch.testing.assert_close(density[:, t, 1], wanted, rtol=1e-2, atol=1.0)
        state = predicted[:, t, 1]
        torch.testing.assert_close(state, both[1], atol=1e-4, rtol=0)
    other = ensemble.roll(pieces.start, pieces.actions, pieces.truth + 1.0, 4, generator())
    assert torch.equal(other[1], predicted) and not torch.equal(other[0], density)
    with pytest.raises(ShapeError, match="3 particles cannot be shared evenly by 2 members"):
        ensemble.roll(pieces.start, pieces.actions, pieces.truth, 3, generator())


def test_an_ensemble_is_trained_once_and_again_when_settings_change(tmp_path: Path) -> None:
    data, config = made_up(), dataclasses.replace(TINY, steps=3)
    first = saved_ensemble(tmp_path / "e.safetensors", data, config, 0)
    kept = saved_ensemble(tmp_path / "e.safetensors", data, config, 0)
    other = saved_ensemble(tmp_path / "e.safetensors", data, config, 1)
    same = [torch.equal(a, kept.state_dict()[name]) for name, a in first.state_dict().items()]
    assert all(same) and not torch.equal(first.weights[0], other.weights[0])
    assert torch.equal(fit_ensemble(data, config, 0).weights[0], first.weights[0])


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="allowed is a multiple of the 5"):
        Config(particles=12)
    with pytest.raises(ConfigError, match="hopper-medium is there twice"):
        Config(datasets=("hopper-medium", "data/hopper-medium.npz"))
    assert Config.full().particles % Config.full().ensemble.members == 0
    model = TrajectoryTransformer(ModelConfig(N, M, n_bins=V, layers=1, heads=1, width=8, positions="absolute"))
    with pytest.raises(ConfigError, match="rotary"):
        roll_transformer(model, made_up_model()[1], made_up_pieces(), 1, generator())


def test_a_bodys_state_is_what_its_observation_says() -> None:
    pytest.importorskip("mujoco")
    from ttengine.environments import make_environment

    env: Any = make_environment("HalfCheetah-v4")
    observation, _ = env.reset(seed=0)
    inner, seen, positions = env.unwrapped, [observation], [env.unwrapped.data.qpos.copy()]
    for action in np.random.default_rng(0).uniform(-1, 1, (5, 6)):
        seen.append(env.step(action)[0])
        positions.append(inner.data.qpos.copy())
    states, velocities = curves._states(np.array(seen, np.float32), inner.model.nq, inner.model.nv, 0.05)
    np.testing.assert_allclose(states[:, 1:], np.array(positions)[:, 1:], atol=1e-5)
    np.testing.assert_allclose(velocities[-1], inner.data.qvel, atol=1e-5)
    assert states[0, 0] == 0.0 and states[1, 0] == pytest.approx(0.05 * seen[0][8])
    with pytest.raises(ShapeError, match="observations have 5 dims"):
        curves._states(np.zeros((2, 5), np.float32), 9, 9, 0.05)


@pytest.mark.parametrize("renderer", [True, False])
def test_the_experiment_runs_from_data_to_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renderer: bool) -> None:
    for package in ("mujoco", "accelerate", "matplotlib", "h5py"):
        pytest.importorskip(package)
    filmed: list[dict[str, Any]] = []

    def draw(env_id: str, tracks: dict[str, Any], film: Path, strip: Path) -> None:
        if not renderer:
            raise RenderError("nothing can be rendered here")
        filmed.append(tracks)
        strip.write_bytes(b"")

    monkeypatch.setattr(dynamics, "draw_side_by_side", draw)
    recipe = Recipe(layers=1, heads=2, width=8, window=3, context=2, batch_size=8, steps=4)
    config = Config(
        datasets=("hopper-medium",), transitions=1_500, starts=3, particles=4, steps=12, recipe=recipe,
        ensemble=dataclasses.replace(TINY, steps=20),
    )  # fmt: skip
    run = Run(tmp_path, "dynamics", config)
    report = dynamics.run(run, config)
    assert not run.missing
    page = write_report(run, report).read_text()
    assert "Trajectory Transformer" in page and (tmp_path / "dynamics-hopper-medium.png").stat().st_size > 10_000
    rows = read_rows(tmp_path / "results.csv")
    assert len(rows) == 3 * 3 * 12 and {row["arm"] for row in rows} == {
        "hopper-medium TT 0", "hopper-medium Markovian 0", "hopper-medium ensemble 0",
    }  # fmt: skip
    assert all(math.isfinite(float(row[key])) for row in rows for key in ("log_likelihood", "fitted", "squared_error"))
    assert len(report.checks) == 2 and all("from step 10 on" in claim for claim in report.checks)
    if renderer:
        (tracks,) = filmed
        assert [track.shape for track in tracks.values()] == [(13, 11)] * 4
        truth, imagined = tracks["true"], tracks["Trajectory Transformer"]
        assert np.array_equal(truth[0], imagined[0]) and not np.array_equal(truth[1:], imagined[1:])
        assert "dynamics-hopper-medium-film.png" in report.pictures
    else:
        assert "no film of hopper-medium: nothing can be rendered here" in report.text
        assert report.pictures == ["dynamics-hopper-medium.png"]
