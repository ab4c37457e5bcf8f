"""One step of a likelihood search: a beam goes on with a token as the model would, whoever else continues it."""

from __future__ import annotations

import pytest
import torch
from interpreted import DEVICE, Poison
from test_engine_cpp import make_checkpoint

from ttengine.config import PlanConfig
from ttengine.engines import NoiseKey, TritonEngine
from ttengine.planner import Planner

pytest.importorskip("triton")


def test_beams_that_part_have_the_models_logits(poison: Poison, shuffled: list[int]) -> None:
    """Three beams of one, each with a token of its own; then two of them go on from the same beam."""
    checkpoint = make_checkpoint(layers=2, heads=2, width=32, context=1)
    config = PlanConfig(horizon=2, beam_width=3, engine="triton", objective="likelihood")
    engine = Planner(checkpoint, config, device=DEVICE).engine
    assert isinstance(engine, TritonEngine)
    model = checkpoint.model
    prefix = torch.tensor([1, 4, 2])
    steps = (([0, 0, 0], [3, 7, 5]), ([1, 1, 2], [2, 6, 0]))
    planned = torch.zeros(3, 0, dtype=torch.int64)
    with torch.inference_mode():
        engine.prefill([prefix], None, [NoiseKey()])
        engine.next_log_probabilities()
        for beams, tokens in steps:
            engine.branch(*(torch.tensor([each], device=DEVICE) for each in (beams, tokens)))
            planned = torch.cat([planned[beams], torch.tensor(tokens)[:, None]], dim=1)
            assert torch.equal(engine.planned()[0].cpu(), planned)
            whole = torch.cat([prefix.expand(3, -1), planned], dim=1)
            wanted = model.head(model.hidden(whole, None)[:, -1:], whole.shape[1] - 1)[:, 0]
            found = engine._newest.logits[0, :, : model.config.n_bins + 1].cpu()
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert DEVICE.type == "cuda" or shuffled
