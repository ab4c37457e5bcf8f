"""Recipes: every tier resolves to a mixture of the shipped behaviours, under a name that is not D4RL's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ttengine.data.catalogue import d4rl_catalogue
from ttengine.data.collect import collect
from ttengine.data.policy_spec import BODIES, load_behaviour
from ttengine.data.recipes import RECIPES, TIER_MEANING, behaviours_page, recipe_config
from ttengine.errors import DatasetNotFoundError


def test_there_is_a_recipe_for_every_body_and_tier() -> None:
    assert len(RECIPES) == len(BODIES) * len(TIER_MEANING) == 28


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_resolves_to_shares_that_sum_to_one(recipe: str) -> None:
    config = recipe_config(recipe, transitions=1000)
    assert config.name == f"{recipe}-tt" and config.name not in d4rl_catalogue()
    specs = config.mixture()
    np.testing.assert_allclose(sum(spec.share for spec in specs), 1.0)
    body = recipe.partition("-")[0]
    assert config.env_id.lower() == f"{body}-v4"
    for spec in specs:
        if spec.policy != "random":
            assert int(spec.policy.removeprefix(f"{body}/")) in load_behaviour(body).snapshots


@pytest.mark.parametrize("body", BODIES)
def test_the_tiers_are_made_of_what_they_say(body: str) -> None:
    def mixture(tier: str) -> dict[str, float]:
        return {spec.policy: spec.share for spec in recipe_config(f"{body}-{tier}").mixture()}

    behaviour = load_behaviour(body)
    medium, expert = f"{body}/{behaviour.tier('medium')}", f"{body}/{behaviour.tier('expert')}"
    assert mixture("random") == {"random": 1.0}
    assert mixture("medium") == {medium: 1.0} and mixture("expert") == {expert: 1.0}
    assert mixture("medium-expert") == {medium: 0.5, expert: 0.5}
    replay, full = mixture("medium-replay"), mixture("full-replay")
    assert medium in replay and expert not in replay and f"{body}/0" in replay
    assert len(full) == len(behaviour.snapshots) == 10 and set(replay) < set(full)
    mixed = mixture("mixed")
    assert mixed["random"] == 0.15 and expert not in mixed


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_can_act_by_means(recipe: str) -> None:
    drawn, mean = recipe_config(recipe), recipe_config(recipe, deterministic=True)
    assert mean.name == f"{recipe}-mean-tt"
    for before, after in zip(drawn.mixture(), mean.mixture(), strict=True):
        assert (after.policy, after.share) == (before.policy, before.share)
        assert after.deterministic == (after.policy != "random") and not before.deterministic


def test_a_recipe_collects(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mujoco", reason="needs the mujoco extra")
    data = collect(recipe_config("hopper-mixed-tt", transitions=400, seed=1), progress=False)
    assert len(data) == 400 and data.name == "hopper-mixed-tt"


def test_an_unknown_recipe_is_refused_with_the_list() -> None:
    with pytest.raises(DatasetNotFoundError, match="no recipe 'hopper-great'; there are hopper-random, "):
        recipe_config("hopper-great")


def test_the_documentation_shows_the_behaviours_that_are_shipped() -> None:
    page = Path(__file__).parents[1] / "docs" / "behaviours.md"
    assert page.read_text() == behaviours_page(), "write it again: python -m ttengine.data.train_behaviours --page"
    for body in BODIES:
        assert f"| {body} |" in behaviours_page() and load_behaviour(body).metadata["command"] in behaviours_page()
