"""Train the behaviour policies that the collection recipes use, with Stable-Baselines3.

    python -m ttengine.data.train_behaviours HalfCheetah-v4
    python -m ttengine.data.train_behaviours --page

The first line writes `ttengine/data/behaviours/halfcheetah.safetensors`: ten policies met along one run, the
hyperparameters, the versions and the learning curve. The shipped files were made by it; it needs the `policies` and
`mujoco` extras. The second prints docs/behaviours.md, which shows what is shipped.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from sb3_contrib import TRPO
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from ttengine.data.policies import Behaviour, MLPPolicy
from ttengine.data.recipes import behaviours_page

TRPO_SETTINGS: dict[str, Any] = {
    "n_steps": 1024,
    "batch_size": 128,
    "learning_rate": 1e-3,
    "cg_max_steps": 25,
    "cg_damping": 0.1,
    "n_critic_updates": 20,
    "gamma": 0.99,
}
PPO_SETTINGS: dict[str, Any] = {
    "n_steps": 1024,
    "batch_size": 64,
    "learning_rate": 3e-4,
    "n_epochs": 10,
    "gamma": 0.98,
    "gae_lambda": 0.92,
    "clip_range": 0.1,
    "ent_coef": 0.0004,
    "max_grad_norm": 0.8,
    "vf_coef": 0.58,
    # little exploration noise from the start: with the default of 1, HalfCheetah stays near a return of 2,000
    "policy_kwargs": {"log_std_init": -2.0, "ortho_init": False},
}
RUNS: dict[str, tuple[type[BaseAlgorithm], dict[str, Any], int]] = {
    "HalfCheetah-v4": (PPO, PPO_SETTINGS, 1_000_000),
    "Hopper-v4": (TRPO, TRPO_SETTINGS, 1_000_000),
    "Walker2d-v4": (TRPO, TRPO_SETTINGS, 1_500_000),
    "Ant-v4": (TRPO, TRPO_SETTINGS, 1_500_000),
}
"""Environment id -> algorithm, settings, environment steps."""

CURVE_POINTS = 40
KEPT_SHARES = (0.0, 0.025, 0.05, 0.1, 0.15, 0.25, 0.4, 0.6, 0.8, 1.0)
"""The shares of the training run after which a snapshot is kept; multiples of 1 / CURVE_POINTS."""
EVALUATION_EPISODES = 5
ENVIRONMENTS = 2


def extract_policy(model: BaseAlgorithm, normalise: VecNormalize) -> MLPPolicy:
    """Copy a Stable-Baselines3 actor and its observation statistics into an MLPPolicy."""
    state = {name: tensor.numpy().copy() for name, tensor in model.policy.state_dict().items()}
    statistics: Any = normalise.obs_rms  # typed as a dict, which it is only for dict observations
    layers = [f"mlp_extractor.policy_net.{i}" for i in (0, 2)] + ["action_net"]
    return MLPPolicy(
        tuple(state[f"{name}.weight"].T.copy() for name in layers),
        tuple(state[f"{name}.bias"] for name in layers),
        state["log_std"],
        statistics.mean.astype(np.float32),
        np.sqrt(statistics.var + normalise.epsilon).astype(np.float32),
    )


def check_policy(model: BaseAlgorithm, normalise: VecNormalize, policy: MLPPolicy, env_id: str) -> None:
    """Raise unless the extracted policy acts as Stable-Baselines3's own does."""
    env = gymnasium.make(env_id)
    observation, _ = env.reset(seed=0)
    for _ in range(100):
        ours = policy(observation.astype(np.float32))
        theirs, _ = model.predict(normalise.normalize_obs(observation), deterministic=True)
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
        observation, _, terminated, truncated, _ = env.step(ours)
        if terminated or truncated:
            break


def evaluate_policy(policy: MLPPolicy, env_id: str, seed: int) -> dict[str, float]:
    """Roll the sampled policy out for a few episodes; returns and lengths."""
    env = gymnasium.make(env_id)
    rng = np.random.default_rng(seed)
    returns, lengths = [], []
    for episode in range(EVALUATION_EPISODES):
        observation, _ = env.reset(seed=seed + episode)
        total, length, done = 0.0, 0, False
        while not done:
            observation, reward, terminated, truncated, _ = env.step(policy(observation.astype(np.float32), rng))
            total, length, done = total + float(reward), length + 1, terminated or truncated
        returns.append(total)
        lengths.append(length)
    return {
        "return_mean": round(float(np.mean(returns)), 2),
        "return_std": round(float(np.std(returns)), 2),
        "length_mean": float(np.mean(lengths)),
    }


def train_behaviour(env_id: str, seed: int, total_steps: int) -> Behaviour:
    """Train one behaviour policy and keep its snapshots."""
    algorithm, settings, _ = RUNS[env_id]
    normalise = VecNormalize(make_vec_env(env_id, n_envs=ENVIRONMENTS, seed=seed), gamma=settings["gamma"])
    model = algorithm("MlpPolicy", normalise, seed=seed, device="cpu", **settings)
    kept = {round(share * CURVE_POINTS) for share in KEPT_SHARES}
    snapshots: dict[int, MLPPolicy] = {}
    curve = []
    started = time.perf_counter()
    for point in range(CURVE_POINTS + 1):
        if point > 0:
            target = total_steps * point // CURVE_POINTS
            model.learn(max(1, target - model.num_timesteps), reset_num_timesteps=False)
        policy = extract_policy(model, normalise)
        curve.append({"steps": model.num_timesteps, **evaluate_policy(policy, env_id, seed=10_000 + point)})
        if point in kept:
            check_policy(model, normalise, policy, env_id)
            snapshots[model.num_timesteps] = policy
        print(f"{env_id} {time.perf_counter() - started:6.0f} s  {curve[-1]}", flush=True)
    packages = ("stable-baselines3", "sb3-contrib", "gymnasium", "mujoco", "torch", "numpy")
    metadata = {
        "env_id": env_id,
        "algorithm": algorithm.__name__,
        "settings": settings,
        "environments": ENVIRONMENTS,
        "seed": seed,
        "total_steps": model.num_timesteps,
        "command": f"python -m ttengine.data.train_behaviours {env_id} --seed {seed} --steps {total_steps}",
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "curve": curve,
    }
    return Behaviour(snapshots, metadata)


def main() -> int:
    """Parse the command line, train, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env_id", nargs="?", choices=sorted(RUNS))
    parser.add_argument("--page", action="store_true", help="print docs/behaviours.md and stop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=None, help="environment steps (default: the shipped run's)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "behaviours")
    arguments = parser.parse_args()
    if arguments.page:
        print(behaviours_page(), end="")
        return 0
    if arguments.env_id is None:
        parser.error(f"name an environment ({', '.join(sorted(RUNS))}) or ask for the --page")
    torch.set_num_threads(1)  # two 64-wide layers: threads cost more than they bring
    steps = arguments.steps or RUNS[arguments.env_id][2]
    behaviour = train_behaviour(arguments.env_id, arguments.seed, steps)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{arguments.env_id.partition('-')[0].lower()}.safetensors"
    behaviour.save(path)
    print(f"wrote {path} ({path.stat().st_size / 1000:.0f} kB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
