"""Named mixtures of the shipped behaviours: `hopper-medium-replay`, `halfcheetah-mixed`, ...

The tiers are shaped like D4RL's, from this project's own, smaller policies; they are not D4RL's data, and their names
end in `-tt` so that nobody takes one for the other. For research-grade sets, mix stronger policies by hand:

    CollectConfig("Hopper-v4", ("trpo_hopper.npz:40,share=0.5", "tqc_hopper.zip,share=0.5"), transitions=1_000_000)
"""

from __future__ import annotations

import re

from ttengine.data.collect import CollectConfig
from ttengine.data.policies import Behaviour
from ttengine.data.policy_spec import BODIES, load_behaviour
from ttengine.errors import DatasetNotFoundError

TIER_MEANING: dict[str, str] = {
    "random": "uniform actions",
    "medium": "the snapshot whose return is nearest a third of the expert's",
    "expert": "the snapshot with the best return",
    "medium-expert": "half medium, half expert",
    "medium-replay": "every snapshot from the start of training to the medium one, in equal shares",
    "full-replay": "every snapshot of the training run, in equal shares",
    "mixed": "deliberately mediocre: 15 % random, 25 % early, 40 % medium, 20 % good",
}
"""Tier -> what it is made of; shares count transitions."""

RECIPES: tuple[str, ...] = tuple(f"{body}-{tier}" for body in BODIES for tier in TIER_MEANING)
"""Every recipe's name."""


def recipe_config(
    recipe: str,
    transitions: int = 1_000_000,
    seed: int = 0,
    processes: int = 1,
    name: str | None = None,
    *,
    deterministic: bool = False,
) -> CollectConfig:
    """Return the collection that makes a recipe's dataset.

    Args:
        recipe: one of RECIPES; the dataset's name, with `-tt` at the end, is also understood.
        transitions: size of the set.
        seed: of the collection.
        processes: that roll out.
        name: of the dataset; None: the recipe and `-tt`, or `-mean-tt` of mean actions.
        deterministic: policies act by their means; else they draw their actions, as they did in training.
    Raises:
        DatasetNotFoundError: no such recipe.
    """
    recipe = recipe.removesuffix("-tt")
    if recipe not in RECIPES:
        raise DatasetNotFoundError(f"no recipe {recipe!r}; there are {', '.join(RECIPES)}")
    body, tier = re.fullmatch(r"([^-]+)-(.+)", recipe).groups()  # type: ignore[union-attr]  # RECIPES have this form
    behaviour = load_behaviour(body)
    return CollectConfig(
        behaviour.metadata["env_id"],
        _policies(body, tier, behaviour, deterministic),
        transitions=transitions,
        seed=seed,
        processes=processes,
        name=name or (f"{recipe}-mean-tt" if deterministic else f"{recipe}-tt"),
    )


def _policies(body: str, tier: str, behaviour: Behaviour, deterministic: bool) -> tuple[str, ...]:
    """Return the mixture of a tier as policy texts; where two tiers are one snapshot, it takes both shares."""
    medium, expert = behaviour.tier("medium"), behaviour.tier("expert")
    replay = [steps for steps in behaviour.snapshots if tier == "full-replay" or steps <= medium]
    parts: dict[str, list[tuple[str | int, float]]] = {
        "random": [("random", 1.0)],
        "medium": [(medium, 1.0)],
        "expert": [(expert, 1.0)],
        "medium-expert": [(medium, 0.5), (expert, 0.5)],
        "medium-replay": [(steps, 1.0 / len(replay)) for steps in replay],
        "full-replay": [(steps, 1.0 / len(replay)) for steps in replay],
        "mixed": [("random", 0.15), (behaviour.tier("early"), 0.25), (medium, 0.4), (behaviour.tier("good"), 0.2)],
    }
    mixture: dict[str, float] = {}
    for policy, share in parts[tier]:
        name = policy if policy == "random" else f"{body}/{policy}"
        mixture[str(name)] = mixture.get(str(name), 0.0) + share
    mean = {name: ",deterministic=true" if deterministic and name != "random" else "" for name in mixture}
    return tuple(f"{name},share={share}{mean[name]}" for name, share in mixture.items())


PAGE = """# Shipped behaviours

Small policies (two hidden layers of 64) met along one training run each, trained by this project with
Stable-Baselines3. `ttengine collect` rolls them out: by name (`hopper/medium`, `hopper/401408`) or in a recipe
(`hopper-medium-replay`). The sets they make are shaped like D4RL's tiers; they are not D4RL's data.

Each cell is the mean return of 5 sampled episodes during training, and the environment steps trained until then. The
expert is the best of ten such means, so a long rollout of it comes out somewhat lower; the metadata of a collected set
has the returns of its own episodes. `early`, `medium` and `good` are the snapshots nearest to a sixth, a third and two
thirds of the expert's return.

{table}

Each file in `ttengine/data/behaviours` holds ten snapshots (under 300 kB), the hyperparameters, the versions and the
whole learning curve. They were made by

```
{commands}
```

and this page by `python -m ttengine.data.train_behaviours --page`.

## Recipes

A recipe's name is a body and a tier, such as `{example}`; shares count transitions. Policies draw their actions as they
did in training. With `--deterministic` they act by their means, to which `--action-noise` may be added.

{recipes}
"""


def behaviours_page() -> str:
    """Return docs/behaviours.md, written from the shipped files."""
    head = "| body | environment | algorithm | steps | start | early | medium | good | expert |"
    rows = [head, "|" + "---|" * (head.count("|") - 1)]
    commands = []
    for body in BODIES:
        behaviour = load_behaviour(body)
        about = behaviour.metadata
        steps = [0, *(behaviour.tier(tier) for tier in ("early", "medium", "good", "expert"))]
        cells = (body, about["env_id"], about["algorithm"], f"{about['total_steps']:,}")
        returns = (f"{behaviour.curve[each]:,.0f} at {each:,}" for each in steps)
        rows.append(f"| {' | '.join((*cells, *returns))} |")
        commands.append(about["command"])
    recipes = ["| tier | what it is |", "|---|---|", *(f"| {tier} | {what} |" for tier, what in TIER_MEANING.items())]
    return PAGE.format(
        table="\n".join(rows), commands="\n".join(commands), recipes="\n".join(recipes), example=RECIPES[-1]
    )
