"""What windows have in common: pages are taken over exactly as far as the tokens agree, values aside."""

from __future__ import annotations

import pytest
import torch
from interpreted import DEVICE
from test_engine_cpp import make_checkpoint

from ttengine.config import PlanConfig
from ttengine.engines import NoiseKey, TritonEngine
from ttengine.planner import Planner

pytest.importorskip("triton")


@pytest.mark.parametrize(
    ("column", "shared"), [(None, 3), (0, 2), (3, 3), (4, 2)], ids=["equal", "action", "value", "observation"]
)
def test_pages_are_shared_as_far_as_tokens_agree(column: int | None, shared: int) -> None:
    """Two beams after two rounds; the second differs from the first in one column of round 0, if in any."""
    checkpoint = make_checkpoint(layers=1, heads=1, width=16, context=2)
    config = PlanConfig(horizon=3, beam_width=2, expand=1, context_kind="window", context=3, engine="triton")
    engine = Planner(checkpoint, config, device=DEVICE).engine
    assert isinstance(engine, TritonEngine)
    K = checkpoint.model.config.transition_dim
    with torch.inference_mode():
        engine.prefill([torch.tensor([1, 4, 2])], None, [NoiseKey()])
        for _ in range(2):
            first, second = engine.expand(1).tokens[0]
            second[:K] = first[:K]
            if column is not None and column < len(first):
                second[column] = (first[column] + 1) % 9
            engine.select(torch.tensor([[0, 1]], device=DEVICE))
            engine.observe()
    ours, theirs = engine._memory.beams.table[0, :, : engine.search.entries].cpu()
    assert (ours == theirs).tolist() == [page < shared for page in range(4)]  # the last is each beam's own
