"""Trajectories to training windows, and the early look at the data."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from synthetic import synthetic_trajectories, tiny_model

from ttengine.config import DataConfig, ModelConfig
from ttengine.data.check import inspect_trajectories
from ttengine.data.trajectories import Trajectories
from ttengine.data.windows import (
    BatchOrder,
    Windows,
    penalised_rewards,
    returns_to_go,
    split_episodes,
    tokenise,
    transition_columns,
)
from ttengine.errors import ShapeError

EPISODES = [5, 1, 7, 2]
"""Lengths with an episode that gives no window and one that gives a single one."""


def windows_of(lengths: list[int], max_episode_steps: int = 1000, **model: object) -> Windows:
    trajectories = synthetic_trajectories(lengths)
    sizes = tiny_model(**model)
    tokens = tokenise(trajectories, DataConfig(), sizes.n_bins)[1]
    return Windows.of(tokens, trajectories.episode_ends, sizes, max_episode_steps)


def whole(windows: Windows) -> list[int]:
    return list(range(len(windows)))


# --- rewards and values ---


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.floats(0, 1), st.integers(0, 10))
def test_values_are_the_discounted_rewards_after_each_transition(
    lengths: list[int], discount: float, seed: int
) -> None:
    rewards = np.random.default_rng(seed).normal(size=sum(lengths)).astype(np.float32)
    ends = np.cumsum(lengths)
    expected = []
    for start, end in zip(ends - lengths, ends, strict=True):
        for t in range(start, end):
            expected.append(sum(discount ** (k - 1) * float(rewards[t + k]) for k in range(1, end - t)))
    values = returns_to_go(rewards, ends, discount)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-6)


def test_values_of_a_long_episode_do_not_drift() -> None:
    values = returns_to_go(np.full(200_000, 0.1, np.float32), np.array([200_000]), 0.99)
    assert values[0] == pytest.approx(float(np.float32(0.1)) / 0.01, rel=1e-7)


def test_the_penalty_replaces_the_reward_of_true_terminals_only_and_reaches_the_values() -> None:
    trajectories = synthetic_trajectories([3, 4], terminal=[1])
    rewards = penalised_rewards(trajectories, -100.0)
    assert rewards[6] == -100.0
    np.testing.assert_array_equal(rewards[:6], trajectories.rewards[:6])
    np.testing.assert_array_equal(penalised_rewards(trajectories, None), trajectories.rewards)
    columns = transition_columns(trajectories, DataConfig(discount=0.5))
    assert columns[6, -2] == -100.0
    assert columns[5, -1] == -100.0
    assert columns[4, -1] == pytest.approx(rewards[5] - 50.0)
    assert columns[2, -1] == 0.0, "a time-out cuts the value, it is no reward"


def test_columns_are_observation_action_reward_value() -> None:
    trajectories = synthetic_trajectories([4], dims=(3, 2))
    columns = transition_columns(trajectories, DataConfig())
    assert columns.shape == (4, 7)
    np.testing.assert_array_equal(columns[:, :3], trajectories.observations)
    np.testing.assert_array_equal(columns[:, 3:5], trajectories.actions)
    np.testing.assert_array_equal(columns[:, 5], trajectories.rewards)


# --- windows ---


@pytest.mark.parametrize("max_episode_steps", [3, 5, 6, 8, 1000])
def test_windows_are_those_of_a_loop_written_from_the_definition(max_episode_steps: int) -> None:
    windows = windows_of(EPISODES, max_episode_steps)
    sizes, tokens = windows.model, windows.tokens
    expected, expected_trained, start = [], [], 0
    for length in EPISODES:
        for t in range(length - 1):
            window, trained = [], []
            for step in range(t, t + sizes.window):
                logged = step < length
                window += tokens[start + step].tolist() if logged else [sizes.n_bins] * sizes.transition_dim
                trained += [logged or step < max_episode_steps] * sizes.transition_dim
            expected.append(window)
            expected_trained.append(trained[1:])  # the mask belongs to the targets
        start += length
    batch = windows.gather(np.arange(len(windows)), np.zeros(len(windows)))
    assert len(windows) == 4 + 0 + 6 + 1
    assert batch.tokens.dtype == torch.int64
    assert batch.tokens.tolist() == expected
    assert batch.trained.tolist() == expected_trained
    assert batch.inputs.tolist() == [window[:-1] for window in expected]
    assert batch.targets.tolist() == [window[1:] for window in expected]
    assert (batch.tokens == sizes.n_bins).any()
    assert batch.trained.all() == (max_episode_steps >= 8)


def test_a_gather_does_not_write_into_the_dataset() -> None:
    windows = windows_of(EPISODES)
    before = windows.tokens.copy()
    windows.gather(np.arange(len(windows)), np.zeros(len(windows)))
    np.testing.assert_array_equal(windows.tokens, before)


def test_windows_of_chosen_episodes_start_in_them_and_share_the_tokens() -> None:
    windows = windows_of(EPISODES)
    chosen = windows.of_episodes(np.array([1, 2]))
    assert chosen.starts.tolist() == [6, 7, 8, 9, 10, 11]
    assert chosen.tokens is windows.tokens


def test_tokens_of_another_width_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"needs \[transitions, 5\]"):
        Windows.of(np.zeros((4, 6), np.int16), np.array([4]), tiny_model(), 1000)


def test_goals_are_drawn_evenly_from_the_windows_last_transition_to_the_episodes_last() -> None:
    windows = windows_of([9, 8], goal=True)
    tokens = np.tile(np.arange(17, dtype=np.int16)[:, None], (1, 5))  # a token that says its row
    windows = replace(windows, tokens=tokens)
    which = windows.starts.tolist().index(2)  # rows 2, 3, 4; goals from 4 to 8
    draw = np.arange(1000) / 1000
    goals = windows.gather(np.full(1000, which), draw).goal
    assert goals is not None and goals.shape == (1000, 2)
    assert np.bincount(goals[:, 0].numpy()).tolist() == [0, 0, 0, 0, 200, 200, 200, 200, 200]
    past_the_end = windows.starts.tolist().index(15)  # rows 15, 16, then padding
    goals = windows.gather(np.full(1000, past_the_end), draw).goal
    assert goals is not None and set(goals.flatten().tolist()) == {16}


# --- the order of batches ---


def test_every_epoch_visits_every_window_once_in_an_order_of_its_own() -> None:
    windows = windows_of([30, 1, 20])
    order = BatchOrder(windows, 10, seed=3)
    assert order.batches_per_epoch == 5
    epochs = [[row for step in range(5 * e, 5 * e + 5) for row in order.batch(step).tokens.tolist()] for e in (0, 1)]
    everything = windows.gather(np.array(whole(windows)), np.zeros(48)).tokens.tolist()
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(everything)
    assert epochs[0] != epochs[1]
    assert len(order.batch(4).tokens) == 8, "the last batch is short"


def test_a_batch_is_a_pure_function_of_seed_and_step() -> None:
    windows = windows_of([30, 20], goal=True)
    order = BatchOrder(windows, 10, seed=3)
    walked = [order.batch(step) for step in range(12)][11]
    direct = BatchOrder(windows, 10, seed=3).batch(11)
    assert torch.equal(walked.tokens, direct.tokens)
    assert walked.goal is not None and direct.goal is not None and torch.equal(walked.goal, direct.goal)
    assert not torch.equal(BatchOrder(windows, 10, seed=4).batch(11).tokens, direct.tokens)


@pytest.mark.parametrize("processes", [2, 3])
def test_the_parts_of_all_processes_make_up_the_batch(processes: int) -> None:
    order = BatchOrder(windows_of([30, 20], goal=True), 10, seed=3)
    parts = [order.batch(2, process, processes) for process in range(processes)]
    batch = order.batch(2)
    assert torch.equal(torch.cat([part.tokens for part in parts]), batch.tokens)
    assert torch.equal(torch.cat([part.goal for part in parts if part.goal is not None]), batch.goal)
    assert sum(part.share for part in parts) == pytest.approx(1.0)
    assert batch.share == 1.0


def test_a_process_without_a_window_trains_on_nothing() -> None:
    order = BatchOrder(windows_of([12]), 10, seed=0)
    full, empty = (order.batch(1, process, 2) for process in (0, 1))
    assert (full.share, empty.share) == (1.0, 0.0)
    assert full.trained.all() and not empty.trained.any()


# --- the validation split ---


@given(st.lists(st.integers(1, 5), min_size=1, max_size=40), st.floats(0, 0.9), st.integers(0, 5))
def test_a_split_parts_whole_episodes_and_leaves_windows_on_both_sides(
    lengths: list[int], share: float, seed: int
) -> None:
    episodes = np.array(lengths)
    training, validation = split_episodes(episodes, share, seed)
    assert sorted([*training, *validation]) == list(range(len(lengths)))
    usable = int((episodes >= 2).sum())
    if share == 0.0 or usable < 2:
        assert len(validation) == 0
    else:
        assert (episodes[validation] >= 2).all() and len(validation) >= 1
        assert (episodes[training] >= 2).any()
        assert abs(len(validation) - share * usable) <= 1
    again = split_episodes(episodes, share, seed)
    assert again[1].tolist() == validation.tolist()


def test_another_seed_splits_otherwise() -> None:
    lengths = np.full(100, 5)
    assert split_episodes(lengths, 0.2, 0)[1].tolist() != split_episodes(lengths, 0.2, 1)[1].tolist()


# --- memory ---


def test_a_transition_of_ant_size_costs_its_tokens_and_little_more() -> None:
    trajectories = synthetic_trajectories([1000] * 40, dims=(111, 8))
    columns = 121
    tracemalloc.start()
    tokens = tokenise(trajectories, DataConfig(), 100)[1]
    windows = Windows.of(tokens, trajectories.episode_ends, ModelConfig(111, 8), 1000)
    kept, peak = (size / len(trajectories) for size in tracemalloc.get_traced_memory())
    tracemalloc.stop()
    assert windows.tokens.nbytes == 2 * columns * len(trajectories)
    assert kept < 2 * columns + 32, "float columns are kept"
    # float32 columns and int16 tokens at once, and a slice of columns being encoded; never a second copy of the whole
    assert peak < (4 + 2) * columns + 4 * columns + 100


# --- the early look at the data ---


def warnings_of(trajectories: Trajectories, data: DataConfig | None = None) -> str:
    return "\n".join(inspect_trajectories(trajectories, data or DataConfig(max_episode_steps=20)).warnings)


def altered(lengths: list[int] | None = None, terminal: tuple[int, ...] = (), **changes: np.ndarray) -> Trajectories:
    return replace(synthetic_trajectories(lengths or [20, 20, 20], terminal), **changes)


def test_sound_data_give_facts_and_no_warning() -> None:
    report = inspect_trajectories(
        synthetic_trajectories([20, 20, 7], [2], name="sound"), DataConfig(max_episode_steps=20)
    )
    assert report.warnings == ()
    assert report.facts[0] == "sound: 47 transitions in 3 episodes, 2 observation and 1 action dims"
    assert report.facts[1] == "episode length 7 to 20 (median 20), 1 ended by a terminal"


def test_a_constant_column_is_named() -> None:
    observations = altered().observations.copy()
    observations[:, 1] = 4.0
    assert "1 of 2 observation columns are constant (1)" in warnings_of(altered(observations=observations))


def test_actions_beyond_one_are_counted() -> None:
    actions = altered().actions.copy()
    actions[:6] = -3.0
    assert "10.00% of the actions lie outside [-1, 1] (largest 3)" in warnings_of(altered(actions=actions))


def test_equal_rewards_are_reported_unless_a_penalty_tells_episodes_apart() -> None:
    ones = np.ones(60, np.float32)
    assert "every reward is 1" in warnings_of(altered(rewards=ones))
    assert "every reward" not in warnings_of(altered([20, 20, 20], terminal=(1,), rewards=ones))


def test_rewards_below_the_penalty_are_reported() -> None:
    rewards = np.linspace(-500, 0, 60).astype(np.float32)
    falls = altered([20, 20, 20], terminal=(1,), rewards=rewards)
    assert "terminal_penalty=-100 does not punish" in warnings_of(falls)
    assert "does not punish" not in warnings_of(altered(rewards=rewards)), "no terminal, no penalty"


def test_time_limits_logged_as_terminals_are_reported() -> None:
    assert "time limits look logged as terminals" in warnings_of(altered([20, 20, 20, 7], terminal=(0, 1, 2)))
    assert "look logged" not in warnings_of(altered([20, 20, 20, 7], terminal=(0, 3)))


def test_many_episodes_of_one_transition_are_reported() -> None:
    assert "3 of 4 episodes have one transition" in warnings_of(synthetic_trajectories([1, 1, 1, 9]))


def test_a_time_limit_other_than_the_settings_is_reported() -> None:
    assert "set max_episode_steps=20" in warnings_of(altered(), DataConfig(max_episode_steps=1000))
    assert "longest episode has 20" in warnings_of(altered(), DataConfig(max_episode_steps=10))


def test_repeated_transitions_are_reported() -> None:
    once = altered()
    twice = Trajectories(
        *(np.concatenate([array, array]) for array in (once.observations, once.actions, once.rewards)),
        *(np.concatenate([array, array]) for array in (once.terminals, once.timeouts)),
    )
    assert "50.0% of the transitions repeat" in warnings_of(twice)
