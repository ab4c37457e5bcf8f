"""A trained model in a control loop: `python examples/controller_loop.py runs/demo/model/model.safetensors`.

The loop is plain Python: put your robot where the simulator stands.
"""

import sys

from ttengine import Controller, PlanConfig, Planner
from ttengine.environments import make_environment


def main(model: str, steps: int = 200) -> None:
    """Run one episode and print what it brought."""
    env = make_environment("Hopper-v4")
    planner = Planner(model, PlanConfig(horizon=3, beam_width=16))
    controller = Controller(
        planner,
        deadline_s=0.1,  # each plan is the best of the rounds that fit into a tenth of a second
        bounds=(env.action_space.low, env.action_space.high),
        seed=0,
    )
    observation, _ = env.reset(seed=0)
    total = 0.0
    for _ in range(steps):
        action = controller.act(observation)
        observation, reward, terminated, truncated, _ = env.step(action)
        controller.observe(reward)
        total += reward
        if terminated or truncated:
            break
    latency = ", ".join(f"{name} {seconds * 1e3:.1f} ms" for name, seconds in controller.latency().items())
    print(f"return {total:.1f} in {controller.steps} steps; plans: {latency}; late: {controller.missed_deadlines}")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
