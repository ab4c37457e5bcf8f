"""The medium maze: its physics and data, the critic's scores, and the experiment at toy size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mujoco")
pytest.importorskip("d3rlpy")
from ttengine import cli
from ttengine.config import DataConfig
from ttengine.data.windows import tokenise
from ttengine.engines import Candidates
from ttengine.experiments.antmaze import Config, Critic, _report
from ttengine.experiments.maze import MEDIUM, REACHED, Maze, cell_of, cells, middle, next_cells, wander
from ttengine.experiments.run import Run, read_rows


def test_walls_stop_the_ball_and_the_goal_ends_an_episode() -> None:
    env = Maze(max_steps=40)
    observation, _ = env.reset(seed=3)
    for step in range(40):
        observation, reward, terminated, truncated, _ = env.step(np.array([-1.0, 1.0], np.float32))
        assert not terminated and reward == 0.0 and truncated == (step == 39)
    assert cell_of(observation[:2]) == cells("S")[0]
    np.testing.assert_allclose(observation[:2], [1.2, -1.2], atol=0.02)  # in the corner: a radius from two walls
    env.data.qpos[:] = env.goal + np.array([REACHED + 0.1, 0.0])
    env.data.qvel[:] = 0.0
    for _ in range(3):
        observation, reward, terminated, truncated, _ = env.step(np.array([-1.0, 0.0], np.float32))
        if terminated:
            break
    assert terminated and reward == 1.0 and not truncated


def test_the_way_leads_from_every_free_cell_to_the_goal() -> None:
    goal = cells("G")[0]
    ways = next_cells(goal)
    assert set(ways) == set(cells("SG."))
    here, steps = cells("S")[0], 0
    while here != goal:
        there = ways[here]
        assert abs(here[0] - there[0]) + abs(here[1] - there[1]) == 1 and MEDIUM[there[0]][there[1]] != "#"
        here, steps = there, steps + 1
    assert steps == 10
    for cell in ways:
        assert cell_of(middle(cell)) == cell


def test_no_logged_walk_leads_from_the_start_to_the_goal() -> None:
    data = wander(6000, Config().episode_steps, seed=1)
    starts = np.flatnonzero(np.r_[True, data.terminals[:-1] | data.timeouts[:-1]])
    ends = np.flatnonzero(data.terminals | data.timeouts)
    from_start = [cell_of(data.observations[i, :2]) == cells("S")[0] for i in starts]
    assert any(from_start) and data.terminals.any()
    assert not any(data.terminals[end] for end, begins in zip(ends, from_start, strict=True) if begins)
    assert (data.rewards == data.terminals).all()
    assert all(cell_of(position) in cells("SG.") for position in data.observations[:, :2])
    again = wander(6000, Config().episode_steps, seed=1)
    assert again.observations.tobytes() == data.observations.tobytes()


def test_the_critic_scores_rewards_so_far_and_the_last_actions_value() -> None:
    class Learner:
        def predict_value(self, observations: np.ndarray, actions: np.ndarray) -> np.ndarray:
            return 100 * observations[:, 0] + actions[:, 1]

    data = wander(300, 30, seed=0)
    discretizer, tokens = tokenise(data, DataConfig(terminal_penalty=None), 20)
    rows = torch.from_numpy(np.asarray(tokens)).long().view(-1, 8)
    planned = torch.cat([rows[:2, 4:], rows[2:4]], dim=1)[None]  # [1, 2, 4 + 8]: two rounds
    rewards = torch.tensor([[[0.5, 9.0], [0.25, 9.0]]])
    candidates = Candidates(planned, rewards, torch.zeros(1, 2), torch.zeros(1, 4), discretizer, 2)
    score = Critic(Learner(), 0.9)(candidates)
    wanted = [
        rewards[0, c, 0] + 0.9 * (100 * candidates.observations[0, c, 1, 0] + candidates.actions[0, c, 1, 1])
        for c in range(2)
    ]
    torch.testing.assert_close(score, torch.stack(wanted)[None])
    assert float(candidates.observations[0, 0, 1, 0]) != 0.0


def test_the_experiment_runs_from_data_to_page_and_claims_follow_from_the_numbers(tmp_path: Path) -> None:
    out = tmp_path / "maze"
    arguments = ["--transitions", "600", "--episodes", "1", "--critic-steps", "5", "--recipe.steps", "3",
                 "--recipe.batch-size", "4", "--recipe.width", "16", "--recipe.layers", "1", "--plan.horizon", "2",
                 "--plan.beam-width", "2"]  # fmt: skip
    assert cli.main(["experiment", "antmaze", "--out", str(out), *arguments]) == cli.DONE
    assert {row["arm"] for row in read_rows(out / "results.csv")} == {"return 0", "Q 0", "IQL 0"}
    assert "data:image/png" in (out / "report.html").read_text()

    def rows(*returns: float) -> list[dict[str, str | float]]:
        return [{"return": each, "length": 10.0} for each in returns]

    run, data = Run(tmp_path / "other", "antmaze", Config()), wander(300, 30, seed=0)
    found = {"return 0": rows(0, 0, 0, 1), "Q 0": rows(1, 1, 0, 0), "IQL 0": rows(0, 1, 0, 1)}
    assert list(_report(run, Config(), data, found).checks.values()) == [True, False]
