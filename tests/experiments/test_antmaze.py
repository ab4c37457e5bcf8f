"""The medium maze: its map and bodies, logged walks, the ant's steering, the critic's scores, and a run at toy size."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium_robotics")
pytest.importorskip("d3rlpy")
from ttengine import cli
from ttengine.config import DataConfig
from ttengine.data.files import save_dataset
from ttengine.data.trajectories import Trajectories
from ttengine.data.windows import tokenise
from ttengine.engines import Candidates
from ttengine.errors import CheckpointError, ConfigError, DataError, MissingExtraError
from ttengine.experiments.ant_steering import Walker, renumber, turned, turned_back
from ttengine.experiments.antmaze import Config, Critic, _load, _report, run
from ttengine.experiments.baselines import fit_baseline, state_values
from ttengine.experiments.maze import Maze, reached
from ttengine.experiments.maze_map import FRAMES, FREE, GOAL, MEDIUM, MINARI, START, Frame, cells, next_cells
from ttengine.experiments.maze_walks import HABITS, _Waypoints, wander
from ttengine.experiments.run import Run, read_rows

TOY = ["--transitions", "600", "--episodes", "1", "--max-steps", "4", "--critic-steps", "5", "--recipe.steps", "3",
       "--recipe.batch-size", "4", "--recipe.width", "16", "--recipe.layers", "1", "--plan.horizon", "2",
       "--plan.beam-width", "2"]  # fmt: skip


@pytest.mark.parametrize(("body", "frame"), [("point", FRAMES["point"]), ("ant", FRAMES["ant"]), ("ant", MINARI)])
def test_walls_stand_where_the_map_says_and_the_goal_ends_an_episode(body: str, frame: Frame, tmp_path: Path) -> None:
    env = Maze(body, max_steps=3, paths=tmp_path, frame=frame)
    observation, _ = env.reset(seed=3)
    assert frame.cell_of(env.position) == START and env.observation_space.contains(observation)
    names = [env.inner.model.geom(i).name for i in range(env.inner.model.ngeom)]
    boxes = [env.inner.model.geom_pos[i, :2] for i, name in enumerate(names) if name.startswith("block")]
    assert sorted(frame.cell_of(box) for box in boxes) == cells("#")
    ends = [env.step(np.zeros(env.action_space.shape, np.float32))[1:4] for _ in range(3)]
    assert ends == [(0.0, False, False)] * 2 + [(0.0, False, True)]
    assert not reached(np.load(tmp_path / "3.npy"), frame)
    env.reset(seed=4)
    env.inner.data.qpos[:2] = env.goal
    assert env.step(np.zeros(env.action_space.shape, np.float32))[1:4] == (1.0, True, False)
    assert reached(np.load(tmp_path / "4.npy"), frame)


def test_the_way_leads_from_every_free_cell_to_the_goal() -> None:
    ways, here, steps = next_cells(GOAL), START, 0
    assert set(ways) == set(FREE)
    while here != GOAL:
        there = ways[here]
        assert abs(here[0] - there[0]) + abs(here[1] - there[1]) == 1 and MEDIUM[there[0]][there[1]] != "#"
        here, steps = there, steps + 1
    assert steps == 10
    assert all(frame.cell_of(frame.middle(cell)) == cell for cell in ways for frame in (FRAMES["ant"], MINARI))
    np.testing.assert_array_equal(FRAMES["ant"].middle(GOAL) - FRAMES["ant"].zero, [20.0, 20.0])  # D4RL's
    np.testing.assert_array_equal(MINARI.middle(GOAL), [10.0, -10.0])


def test_no_logged_walk_of_the_point_leads_from_the_start_to_the_goal() -> None:
    data = wander("point", 20_000, Config().episode_steps, seed=1)
    starts, ends = data.episode_starts, data.episode_ends
    from_start = [FRAMES["point"].cell_of(data.observations[i, :2]) == START for i in starts]
    assert any(from_start) and data.terminals.any()
    assert not any(data.terminals[end - 1] for end, begins in zip(ends, from_start, strict=True) if begins)
    assert (data.rewards == data.terminals).all()
    assert all(FRAMES["point"].cell_of(position) in FREE for position in data.observations[:, :2])


def test_walks_are_whole_reproducible_and_the_same_for_any_number_of_processes() -> None:
    data = wander("point", 1_000, 30, seed=1)
    assert 1_000 <= len(data) < 1_030 and data.episode_lengths.max() == 30
    assert (data.terminals | data.timeouts)[data.episode_ends - 1].all()
    for again in (wander("point", 1_000, 30, seed=1), wander("point", 1_000, 30, seed=1, processes=2)):
        assert again.observations.tobytes() == data.observations.tobytes()
        assert again.actions.tobytes() == data.actions.tobytes() and again.metadata == data.metadata
    assert wander("point", 1_000, 30, seed=2).observations.tobytes() != data.observations.tobytes()


def test_a_world_that_is_turned_with_the_legs_renumbered_looks_to_the_ant_as_it_did() -> None:
    rng = np.random.default_rng(0)
    observation = rng.standard_normal(27)
    observation[1:5] = w, x, y, z = np.array([0.9, 0.1, -0.2, -0.3]) / np.linalg.norm([0.9, 0.1, -0.2, -0.3])
    other = observation.copy()
    other[1:5] = w, -y, x, z
    for joints in (slice(5, 13), slice(19, 27)):
        other[joints] = renumber(observation[joints], 1)
    for vector in (13, 16):
        other[vector : vector + 2] = -observation[vector + 1], observation[vector]
    np.testing.assert_array_equal(turned(observation, 0), observation)
    np.testing.assert_allclose(turned(other, 1), observation, atol=1e-12)
    np.testing.assert_array_equal(renumber(renumber(observation[5:13], 3), -3), observation[5:13])
    np.testing.assert_array_equal(turned_back(turned_back(observation[:8], 1), 3), observation[:8])


@pytest.mark.parametrize(("body", "goals"), [("point", 1 / len(FREE)), ("ant", 0.2 + 0.8 / len(FREE))])
def test_a_body_is_sent_to_any_cell_and_the_ant_more_often_and_exactly_to_the_goal(body: str, goals: float) -> None:
    frame = FRAMES[body]
    waypoints = _Waypoints(np.random.default_rng(0), frame.middle(START), frame, HABITS[body])
    position, targets, off = frame.middle(START), [], []
    while waypoints.reached < 1000:
        before = waypoints.reached
        position = position + waypoints.ahead(position)
        if waypoints.reached > before:
            targets.append(waypoints.target)
        if waypoints.cell == waypoints.target:
            off.append(float(np.abs(position - frame.middle(waypoints.cell)).max()))
    assert set(targets) == set(FREE)
    assert np.mean([target == GOAL for target in targets]) == pytest.approx(goals, abs=0.04)
    assert (max(off) < 1e-6) is (body == "ant") and max(off) <= 0.2 * frame.cell_m + 1e-6


def test_the_ant_keeps_to_its_axis_until_the_way_leads_far_off_it() -> None:
    walker = Walker(np.random.default_rng(0))
    axes = []
    for degrees in (10, 50, 59, 70, 40, -170, 170, 130, 100):
        walker.act(np.zeros(27), np.radians(degrees))
        axes.append(walker.quarters)
    assert [axis % 4 for axis in axes] == [0, 0, 0, 1, 1, 2, 2, 2, 1]


def test_the_ant_walks_where_it_is_sent() -> None:
    gymnasium = pytest.importorskip("gymnasium")
    for heading in (0.0, np.pi / 2, np.pi, -np.pi / 2):
        far = []
        for seed in range(3):
            env, walker = gymnasium.make("Ant-v4", terminate_when_unhealthy=False), Walker(np.random.default_rng(seed))
            observation, _ = env.reset(seed=seed)
            for _ in range(120):
                observation = env.step(walker.act(observation, heading))[0]
            far.append(float(env.unwrapped.data.qpos[:2] @ [np.cos(heading), np.sin(heading)]))
        assert min(far) > 3.0, (heading, far)  # of a cell's 4 m, in 6 s, from a stand


def _candidates(rewards: torch.Tensor) -> Candidates:
    discretizer, tokens = tokenise(wander("point", 300, 30, seed=0), DataConfig(terminal_penalty=None), 20)
    rows = torch.from_numpy(np.asarray(tokens)).long().view(-1, 8)
    planned = torch.cat([rows[:2, 4:], rows[2:4]], dim=1)[None]  # [1, 2, 4 + 8]: two rounds
    return Candidates(planned, rewards, torch.zeros(1, 2), torch.zeros(1, 4), discretizer, 2)


def test_the_critic_scores_rewards_so_far_and_the_last_actions_value_but_nothing_after_a_goal() -> None:
    def worth(observations: np.ndarray, actions: np.ndarray) -> np.ndarray:
        return np.asarray(100 * observations[:, 0] + actions[:, 1])

    rewards = torch.tensor([[[0.25, 9.0], [1.0, 9.0]]])
    candidates = _candidates(rewards)
    score = Critic(worth, 0.9)(candidates)
    value = 100 * candidates.observations[0, 0, 1, 0] + candidates.actions[0, 0, 1, 1]
    torch.testing.assert_close(score, torch.stack([-0.75 + 0.75 * 0.9 * value, torch.tensor(0.0)])[None])
    assert float(value) != 0.0


def test_data_of_another_maze_and_missing_packages_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(dims: int, x: float, reward: float, **metadata: str) -> str:
        rng = np.random.default_rng(0)
        observations = rng.standard_normal((20, dims)).astype(np.float32) * 0.1
        observations[:, 0] += x
        actions = rng.uniform(-1, 1, (20, 8)).astype(np.float32)
        rewards, ends = np.full(20, reward, np.float32), np.arange(20) % 10 == 9
        path = tmp_path / f"{dims}-{x}-{reward}.npz"
        save_dataset(Trajectories(observations, actions, rewards, np.zeros(20, bool), ends, "logs", metadata), path)
        return str(path)

    data, frame = _load(write(29, 0.0, 1.0))
    assert data.observation_dim == 29 and frame == FRAMES["ant"]
    assert _load(write(29, 0.0, 1.0, env_id="AntMaze_Medium-v4"))[1] == FRAMES["ant"]  # so D4RL's files are read
    with pytest.raises(DataError, match="is of AntMaze_UMaze-v4, the experiment's maze is AntMaze_Medium"):
        _load(write(29, 0.0, 1.0, env_id="AntMaze_UMaze-v4"))
    for dims, x, reward, why in ((27, 0.0, 1.0, "27 observation"), (29, 9.0, 1.0, "walls"), (29, 0.0, 0.0, "reward")):
        with pytest.raises(DataError, match=why):
            _load(write(dims, x, reward))
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)
    with pytest.raises(MissingExtraError, match=r"ttengine\[maze\]"):
        run(Run(tmp_path / "run", "antmaze", Config()), Config())


def test_a_critic_that_was_kept_is_read_and_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, kept = wander("point", 300, 30, seed=0), tmp_path / "critic.safetensors"
    fitted = fit_baseline("IQL", data, 5, 0, kept, gamma=0.9).learner
    fresh = fit_baseline("IQL", data, 1, 1, gamma=0.9).learner
    monkeypatch.setattr(type(fitted), "fit", lambda *_, **__: pytest.fail("it was trained again"))
    read = fit_baseline("IQL", data, 5, 0, kept, gamma=0.9).learner
    pairs = data.observations[:50], data.actions[:50]
    np.testing.assert_array_equal(read.predict(pairs[0]), fitted.predict(pairs[0]))
    np.testing.assert_array_equal(read.predict_value(*pairs), fitted.predict_value(*pairs))
    assert not np.array_equal(read.predict_value(*pairs), fresh.predict_value(*pairs))
    with pytest.raises(ConfigError, match=r"another critic or policy: steps is 5 there, 6 now, gamma is 0\.9 there, 0"):
        fit_baseline("IQL", data, 6, 0, kept, gamma=0.5)
    kept.write_bytes(kept.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="truncated"):
        fit_baseline("IQL", data, 5, 0, kept, gamma=0.9)


def test_a_critics_target_sums_up_as_many_rewards_as_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import d3rlpy

    data = wander("point", 300, 30, seed=0)
    data = dataclasses.replace(data, rewards=np.full(len(data), -1.0, np.float32))
    shown: list[Any] = []
    monkeypatch.setattr(d3rlpy.algos.IQL, "fit", lambda _, dataset, **__: shown.append(dataset))
    for n_step, total in ((1, -1.0), (3, -1.0 - 0.9 - 0.81)):
        fit_baseline("IQL", data, 5, 0, n_step=n_step, gamma=0.9)
        drawn = [shown[-1].sample_transition() for _ in range(100)]
        assert max(each.interval for each in drawn) == n_step
        assert min(float(each.reward[0]) for each in drawn) == pytest.approx(total)


@pytest.mark.parametrize("wrong", [{"heuristic": "q"}, {"critic_n_step": 0}, {"body": "hopper"}])
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Config(**wrong)


def test_values_of_states_are_of_observations_that_are_scaled_as_in_training() -> None:
    data = wander("point", 300, 30, seed=0)
    learner = fit_baseline("IQL", data, 5, 0).learner
    scaled = (data.observations - data.observations.mean(axis=0)) / (data.observations.std(axis=0) + 1e-3)
    with torch.no_grad():
        wanted = learner.impl.modules.value_func(torch.from_numpy(scaled[:20]))[:, 0].numpy()
    found = state_values(learner, data.observations[:20])
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert found.dtype == np.float32 and float(np.std(found)) > 0.0


@pytest.fixture
def minaris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A Minari dataset of the ant's maze: one of two episodes comes by the evaluated goal, and stays there."""
    minari, gymnasium = pytest.importorskip("minari"), pytest.importorskip("gymnasium")
    pytest.importorskip("h5py")
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    env, buffers = gymnasium.make("AntMaze_Medium-v4", continuing_task=True), []
    actions = np.random.default_rng(0).uniform(-0.1, 0.1, (30, 8)).astype(np.float32)
    for e, goal in enumerate((MINARI.middle(GOAL), MINARI.middle(START))):
        seen = [env.reset(seed=e, options={"reset_cell": np.array(START), "goal_cell": np.array(GOAL)})[0]]
        for t in range(30):
            if t == 20:
                env.unwrapped.data.qpos[:2] = goal + 0.01
            seen.append(env.step(actions[t])[0])
        ends = [t == 29 for t in range(30)]
        observations = {key: np.stack([each[key] for each in seen]) for key in seen[0]}
        buffers.append(EpisodeBuffer(id=e, observations=observations, actions=actions,
                                     rewards=[1.0] * 30, terminations=[False] * 30, truncations=ends))  # fmt: skip
    minari.create_dataset_from_buffers("D4RL/antmaze/medium-play-v1", buffers, env=env, data_format="hdf5")
    env.close()
    return "D4RL/antmaze/medium-play-v1"


@pytest.mark.filterwarnings("ignore:.*is set to None:UserWarning")
def test_minaris_ants_are_placed_and_rewarded_for_the_evaluated_goal(minaris: str, tmp_path: Path) -> None:
    data, frame = _load(minaris)
    assert frame == MINARI and data.observation_dim == 29
    starts = data.observations[data.episode_starts]
    assert all(frame.cell_of(each[:2]) == START for each in starts) and (starts[:, 2] > 0.5).all()  # then the height
    assert data.episode_lengths.tolist() == [21, 30] and data.rewards.nonzero()[0].tolist() == [20]
    assert data.terminals.nonzero()[0].tolist() == [20] and data.timeouts.nonzero()[0].tolist() == [50]
    env = Maze("ant", frame=frame)
    np.testing.assert_allclose(env.reset(seed=0)[0][:2], frame.middle(START), atol=1.1)
    assert cli.main(["experiment", "antmaze", "--out", str(tmp_path / "run"), "--dataset", minaris, "--jobs", "1", *TOY,
                     "--recipe.window", "4"]) == cli.DONE  # fmt: skip


@pytest.mark.parametrize("body", ["point", "ant"])
def test_the_experiment_runs_from_data_to_page(body: str, tmp_path: Path) -> None:
    out = tmp_path / "maze"
    assert cli.main(["experiment", "antmaze", "--out", str(out), "--body", body, "--jobs", "1", *TOY]) == cli.DONE
    assert {row["arm"] for row in read_rows(out / "results.csv")} == {"return 0", "Q 0", "IQL 0"}
    assert (out / "models" / "critic-seed0.safetensors").is_file()
    assert (out / "report.html").read_text().count("data:image/png") == 2


def test_claims_follow_from_the_numbers(tmp_path: Path) -> None:
    def rows(*returns: float) -> list[dict[str, str | float]]:
        return [{"return": each, "length": 10.0} for each in returns]

    folder, data = Run(tmp_path / "other", "antmaze", Config()), wander("point", 300, 30, seed=0)
    found = {"return 0": rows(0, 0, 0, 1), "Q 0": rows(1, 1, 0, 0), "IQL 0": rows(0, 1, 0, 1)}
    assert list(_report(folder, Config(), data, FRAMES["point"], found).checks.values()) == [True, False]
