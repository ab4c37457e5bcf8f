"""The verbs of a search, each by itself, against the reference engine's."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from interpreted import DEVICE, Poison
from test_engine_cpp import make_checkpoint

from ttengine.config import PlanConfig
from ttengine.engines import NoiseKey, ReferenceEngine, TritonEngine
from ttengine.planner import Planner

pytest.importorskip("triton")


@pytest.mark.parametrize("tile", [1, 2, 4], ids="tile-{}".format)
def test_each_verb_gives_what_the_reference_engines_gives(poison: Poison, shuffled: list[int], tile: int) -> None:
    """Expand, observe, expand and take, of beams that are kept in an order of the test's own."""
    checkpoint = make_checkpoint(layers=2, heads=2, width=32, context=2)
    config = PlanConfig(horizon=2, beam_width=3, expand=2, context_kind="rolling", engine="triton")
    ours = Planner(checkpoint, config, device=DEVICE).engine
    theirs = Planner(checkpoint, dataclasses.replace(config, engine="reference")).engine
    assert isinstance(ours, TritonEngine)
    assert isinstance(theirs, ReferenceEngine)
    prefix, kept = torch.tensor([1, 4, 2, 0, 3, 5, 0, 2, 2, 6]), torch.tensor([[0, 3, 4]])
    with torch.inference_mode():
        for engine in (ours, theirs):
            engine.prefill([prefix], None, [NoiseKey(5, 2)])
        ours._memory.candidates_of_a_tile = ours._memory.beams_of_a_tile = tile
        for round in range(config.horizon):
            mine, wanted = (engine.expand(config.expand) for engine in (ours, theirs))
            assert torch.equal(mine.tokens.cpu(), wanted.tokens)
            for name in ("rewards", "values", "observation"):
                torch.testing.assert_close(getattr(mine, name).cpu(), getattr(wanted, name), rtol=1e-4, atol=1e-4)
            if round + 1 < config.horizon:
                for engine in (ours, theirs):
                    engine.select(kept.to(DEVICE if engine is ours else "cpu"))
                    engine.observe()
        ours.select_beams(mine.discounted_return(config.discount), 1)
        for best in range(6):
            taken = ours.take(torch.tensor([[best]], device=DEVICE))
            assert torch.equal(taken.tokens.cpu()[0, 0], wanted.tokens[0, best])
    assert DEVICE.type == "cuda" or shuffled
