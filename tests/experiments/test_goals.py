from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest

from ttengine.data.files import save_dataset
from ttengine.data.trajectories import Trajectories
from ttengine.errors import ConfigError, DataError, MissingExtraError
from ttengine.experiments import four_rooms_walks as walks
from ttengine.experiments import goals
from ttengine.experiments.ingredients import Recipe
from ttengine.experiments.report import write_report
from ttengine.experiments.run import Run
from ttengine.stages import read_json

four_rooms = pytest.importorskip("ttengine.experiments.four_rooms", exc_type=ImportError)

RIGHT = np.array([1.0, 0.0], np.float32)
TINY = goals.Config(
    episodes=12,
    episode_steps=20,
    pairs=3,
    time_limit=4,
    recipe=Recipe(layers=1, heads=2, width=8, window=3, context=1, batch_size=4, steps=3),
    plan=dataclasses.replace(goals.PLAN, horizon=2, beam_width=3),
)
SOUTH_WEST = (-2.0, -3.0)
"""In room 0, with a wall and no door to its right."""


def push(env, action, steps):
    return np.stack([env.step(action)[0] for _ in range(steps)])


# --- the world ------------------------------------------------------------------------------------------------------


def test_a_push_moves_the_ball_its_way_and_faster_until_its_top_speed() -> None:
    env = four_rooms.FourRooms()
    env.reset(options={"start": (-3.5, 3.0)})
    seen = push(env, RIGHT, 4)
    speed, top = seen[:, 2], four_rooms.FORCE / four_rooms.DAMPING
    assert (np.diff(seen[:, 0]) > 0).all() and (np.diff(speed) > 0).all()
    assert 0.9 * top < speed[-1] < top
    np.testing.assert_allclose(seen[:, [1, 3]], [[3.0, 0.0]] * 4, atol=1e-6)


def test_a_wall_stops_the_ball_and_a_door_lets_it_through() -> None:
    env = four_rooms.FourRooms()
    env.reset(options={"start": SOUTH_WEST})
    stopped = push(env, RIGHT, 30)[-1]
    wall = -four_rooms.THICKNESS / 2 - four_rooms.RADIUS
    assert abs(stopped[0] - wall) < 0.03 and abs(stopped[2]) < 1e-3
    env.reset(options={"start": (-2.0, four_rooms.DOORS[0, 1][1])})
    assert push(env, RIGHT, 30)[-1, 0] > 3.7


@pytest.mark.parametrize("rooms", four_rooms.DOORS)
def test_a_door_joins_its_two_rooms(rooms: tuple[int, int]) -> None:
    middle = np.array(four_rooms.DOORS[rooms])
    assert four_rooms.clearance(middle) == pytest.approx(four_rooms.DOOR / 2)
    axis = np.eye(2)[int(middle[1] == 0.0)]
    assert (four_rooms.room(middle - 0.5 * axis), four_rooms.room(middle + 0.5 * axis)) == rooms


def test_equal_seeds_give_equal_bytes() -> None:
    def episode(seed: int) -> bytes:
        env, wanderer = four_rooms.FourRooms(), four_rooms.Wanderer(np.random.default_rng(seed))
        observation, _ = env.reset(seed=seed)
        seen = [observation]
        for _ in range(50):
            seen.append(env.step(wanderer.act(seen[-1]))[0])
        return np.stack(seen).tobytes()

    assert episode(3) == episode(3)
    assert episode(3) != episode(4)


def test_an_episode_gives_no_reward_and_ends_by_its_time_limit_only() -> None:
    env = four_rooms.FourRooms(max_steps=3)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    steps = [env.step(env.action_space.sample())[1:4] for _ in range(3)]
    assert steps == [(0.0, False, False), (0.0, False, False), (0.0, False, True)]


@pytest.mark.parametrize("options", [{"start": (0.0, 0.0)}, {"start": (9.0, 0.0)}, {"start": (1.0,)}, {"goal": (1, 1)}])
def test_a_start_within_a_wall_or_an_unknown_option_is_refused(options: dict) -> None:
    with pytest.raises(ConfigError, match=r"allowed"):
        four_rooms.FourRooms().reset(options=options)


def test_the_shortest_way_leads_through_doors() -> None:
    assert len(four_rooms.way((-3, -3), (-1, -1))) == 1
    corners = np.stack([(-3, -3), *four_rooms.way((-3, -3), (3, 3))])
    assert len(corners) == 6  # two doors, a corner before and one behind each
    along = np.concatenate([np.linspace(a, b, 50) for a, b in itertools.pairwise(corners)])
    assert four_rooms.clearance(along).min() > four_rooms.RADIUS
    by_0_2 = [(-3, -3), (-2.2, 0), (0, 2.2), (3, 3)]
    assert four_rooms.length(corners) == pytest.approx(four_rooms.length(by_0_2), rel=0.03)


# --- data and held-out pairs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wandered() -> tuple[goals.Config, walks.Pairs, Trajectories]:
    config = dataclasses.replace(TINY, episodes=60, episode_steps=40, pairs=20)
    pairs = walks.draw_pairs(config.pairs)
    return config, pairs, walks.wander(pairs, config.episodes, config.episode_steps, config.held_out_m)


def test_the_wanderer_stays_on_the_floor_and_gets_around(wandered) -> None:
    _, _, data = wandered
    positions = data.observations[:, :2]
    assert four_rooms.clearance(positions).min() > four_rooms.RADIUS - 0.03
    visits = np.bincount([four_rooms.room(position) for position in positions], minlength=4) / len(positions)
    assert visits.min() > 0.1
    assert np.abs(data.actions).max() <= 1.0
    assert not data.rewards.any() and not data.terminals.any()
    assert (data.episode_lengths == 40).all()


def test_no_logged_episode_shows_a_held_out_way(wandered) -> None:
    config, pairs, data = wandered
    assert data.metadata["episodes_tried"] > data.n_episodes  # some did, and were refused
    for rows in data.episodes():
        positions = data.observations[rows, :2].astype(np.float64)
        for start, goal in pairs:
            near_start = np.flatnonzero(np.linalg.norm(positions - start, axis=1) <= config.held_out_m)
            near_goal = np.flatnonzero(np.linalg.norm(positions - goal, axis=1) <= config.held_out_m)
            assert not (len(near_start) and len(near_goal) and near_start[0] <= near_goal[-1])


def test_only_the_way_from_start_to_goal_counts_not_the_way_back() -> None:
    pairs = np.array([[[0.0, 0.0], [2.0, 0.0]], [[2.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [9.0, 0.0]]])
    path = np.array([[0.4, 0.0], [1.0, 0.0], [1.6, 0.0]])
    assert walks.connected(path, pairs, 0.5).tolist() == [True, False, False]
    assert walks.connected(path, pairs, 0.3).tolist() == [False, False, False]


def test_data_that_show_a_held_out_way_or_hold_rewards_are_refused(wandered) -> None:
    config, _, data = wandered
    shown = np.stack([data.observations[45, :2], data.observations[60, :2]])[None].astype(np.float64)
    with pytest.raises(DataError, match=r"episode 1 leads from the start to the goal of held-out pair 0"):
        walks.check_data(data, shown, config.held_out_m)
    rewarded = dataclasses.replace(data, rewards=np.ones_like(data.rewards))
    with pytest.raises(DataError, match="holds rewards"):
        walks.check_data(rewarded, walks.draw_pairs(1), config.held_out_m)


def test_pairs_that_leave_no_episode_are_an_error_not_an_endless_search() -> None:
    with pytest.raises(DataError, match="hold out fewer pairs"):
        walks.wander(walks.draw_pairs(200), TINY.episodes, episode_steps=100, held_out_m=2.0)


def test_pairs_lie_in_different_rooms_and_are_those_of_their_seed() -> None:
    pairs = walks.draw_pairs(40)
    assert all(four_rooms.room(start) != four_rooms.room(goal) for start, goal in pairs)
    assert four_rooms.clearance(pairs).min() > four_rooms.RADIUS
    assert (walks.draw_pairs(10) == pairs[:10]).all() and not (walks.draw_pairs(10, seed=1) == pairs[:10]).any()


# --- the measure ----------------------------------------------------------------------------------------------------


def test_success_is_to_be_near_the_goal_in_time(tmp_path: Path) -> None:
    run = Run(tmp_path, "goals", TINY)
    config = dataclasses.replace(TINY, time_limit=10)
    #              straight ahead            behind a wall              too far for the time       there already
    ends = [((-3, -1.6), (1, -1.6)), (SOUTH_WEST, (1.0, -3.0)), ((-3.5, 2.2), (3.7, 2.2)), ((1, 1), (1.1, 1))]
    rows = goals._head_straight(run, config, np.array(ends, np.float64))
    assert [row["reached"] for row in rows] == [1, 0, 0, 1]
    assert [row["steps"] for row in rows][1:] == [10, 10, 0] and 0 < rows[0]["steps"] < 10
    assert [row["doors"] for row in rows] == [1, 1, 1, 0]
    assert rows[0]["nearest_m"] <= config.reached_m < rows[2]["nearest_m"]
    paths = goals._read_paths(tmp_path / "paths" / "head straight.npz")
    assert [len(path) - 1 for path in paths] == [row["steps"] for row in rows]
    np.testing.assert_allclose([path[0] for path in paths], [start for start, _ in ends], atol=1e-6)


def test_an_interval_holds_its_rate_and_narrows_with_more_pairs() -> None:
    low, high = goals.interval(45, 50)
    assert low == pytest.approx(0.786, abs=1e-3) and high == pytest.approx(0.957, abs=1e-3)
    assert goals.interval(50, 50)[1] == pytest.approx(1.0) and goals.interval(50, 50)[0] < 0.95
    assert goals.interval(450, 500)[0] > low


# --- the experiment -------------------------------------------------------------------------------------------------


def test_the_experiment_runs_from_data_to_page_and_goes_on_where_it_was(tmp_path: Path) -> None:
    run = Run(tmp_path, "goals", TINY)
    page = write_report(run, goals.run(run, TINY))
    assert not run.missing
    report = read_json(tmp_path / "report.json")
    assert len(report["tables"][0]["rows"]) == 4 and report["pictures"] == ["goals.png"]
    assert list(report["checks"]) == ["reaches at least 90 % of the held-out goals"]
    assert page.stat().st_size > (tmp_path / "goals.png").stat().st_size > 10_000
    assert (tmp_path / "models" / "with-goal-seed0" / "model.safetensors").is_file()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/**/*.*") if path.is_file()}
    again = Run(tmp_path, "goals", TINY)
    write_report(again, goals.run(again, TINY))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert read_json(tmp_path / "report.json") == report


def test_data_of_another_making_in_the_folder_are_refused_before_training(tmp_path: Path) -> None:
    run = Run(tmp_path, "goals", TINY)
    start, goal = walks.draw_pairs(TINY.pairs)[0]
    observations = np.zeros((2, 4), np.float32)
    observations[:, :2] = start, goal
    zeros = np.zeros(2, np.float32)
    save_dataset(Trajectories(observations, np.zeros((2, 2)), zeros, zeros, zeros), tmp_path / "data" / "wanderer.hdf5")
    with pytest.raises(DataError, match="held-out pair 0"):
        goals.run(run, TINY)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"episode_steps": 3}, "longer"),
        ({"seeds": ()}, "seeds is empty"),
        ({"pairs": 0}, "pairs is 0"),
        ({"reached_m": 0.0}, "reached_m"),
        ({"plan": dataclasses.replace(goals.PLAN, objective="return")}, "likelihood"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(TINY, **change)


def test_a_package_that_is_missing_is_named_before_anything_is_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def require(module: str, extra: str) -> None:
        if module == "mujoco":
            raise MissingExtraError(f"{module} is not installed: {extra}")

    monkeypatch.setattr(goals, "require", require)
    run = Run(tmp_path, "goals", TINY)
    with pytest.raises(MissingExtraError, match="mujoco"):
        goals.run(run, TINY)
    assert not (tmp_path / "data").exists()


def test_both_sizes_are_valid_and_the_full_one_is_larger() -> None:
    small, full = goals.Config(), goals.Config.full()
    assert full.pairs > small.pairs and len(full.seeds) >= 3 and full.recipe.steps > small.recipe.steps
