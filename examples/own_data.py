"""Your own logs, from arrays to a plan: `python examples/own_data.py OUT_FOLDER`.

The made-up robot is a point on a line that is pushed towards 0; its log stands in for yours.
"""

import sys
from pathlib import Path

import numpy as np

import ttengine


def log_of_a_robot(episodes: int = 60, length: int = 40) -> ttengine.Trajectories:
    """Return what was logged: position and speed, the push, and a reward for being near 0."""
    rng = np.random.default_rng(0)
    observations, actions, rewards = [], [], []
    for _ in range(episodes):
        position, speed = rng.uniform(-1, 1), 0.0
        for _ in range(length):
            push = np.clip(-position - speed + 0.5 * rng.normal(), -1, 1)
            observations.append((position, speed))
            actions.append((push,))
            rewards.append(-abs(position))
            speed = 0.9 * speed + 0.1 * push
            position += 0.1 * speed
    ends = np.arange(1, episodes * length + 1) % length == 0
    return ttengine.Trajectories(
        np.array(observations),  # [transitions, N], before the action
        np.array(actions),  # [transitions, M]
        np.array(rewards),  # [transitions]
        terminals=np.zeros_like(ends),  # nothing ended by itself ...
        timeouts=ends,  # ... each episode was cut after `length` steps
        name="point-on-a-line",
    )


def main(out: str, steps: int = 600) -> None:
    """Save the log, train on it, plan from a new observation."""
    trajectories = log_of_a_robot()
    ttengine.save_dataset(trajectories, Path(out) / "log.npz")  # `ttengine info log.npz` reads it
    model = ttengine.ModelConfig(observation_dim=2, action_dim=1, n_bins=32, layers=2, width=32, dropout=0.0)
    data = ttengine.DataConfig(max_episode_steps=40)
    config = ttengine.TrainConfig(batch_size=32, steps=steps, learning_rate=3e-3, log_every=25)
    trained = ttengine.train(trajectories, Path(out) / "run", model, data, config)
    plan = ttengine.plan(trained, [0.8, 0.0], config=ttengine.PlanConfig(horizon=5, beam_width=16))
    print(f"at 0.8, standing still, push {plan.action[0]:+.2f}; expected positions {plan.observations[:, 0].round(2)}")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
