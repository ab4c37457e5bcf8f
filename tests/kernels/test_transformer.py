"""The model in a kernel: the logits of the model in PyTorch, of any size it takes, whatever the cut into tiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from interpreted import DEVICE, Poison
from test_engine_cpp import make_checkpoint

from ttengine.config import PlanConfig
from ttengine.engines import NoiseKey, TritonEngine
from ttengine.planner import Planner

pytest.importorskip("triton")
import triton
import triton.language as tl

from ttengine.kernels.transformer import gelu


@triton.jit
def _gelu(x, out, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    tl.store(out + at, gelu(tl.load(x + at)))


def test_gelu_is_right_to_float32() -> None:
    """Nearer to the exact one than PyTorch's on a CPU, which is off by 1.2e-6 at 3.4."""
    x = torch.linspace(-8, 8, 4096, device=DEVICE)
    found = torch.empty_like(x)
    _gelu[(1,)](x, found, 4096)
    exact = torch.nn.functional.gelu(x.double())
    assert float((found - exact).abs().max()) < 5e-7


@pytest.mark.parametrize(
    ("sizes", "past"),
    [
        ({"layers": 1, "heads": 1, "width": 16, "context": 1}, 0),
        ({"layers": 2, "heads": 4, "width": 64, "context": 3}, 2),
        ({"layers": 1, "heads": 1, "width": 64, "context": 2, "observation_dim": 19}, 1),
        ({"layers": 3, "heads": 2, "width": 32, "context": 2, "goal": True}, 5),
        ({"layers": 2, "heads": 2, "width": 32, "context": 2, "positions": "absolute"}, 4),
        ({"layers": 1, "heads": 2, "width": 256, "context": 1, "bins": 100}, 1),
    ],
    ids=["smallest", "pages", "observation-of-two-tiles", "goal", "absolute", "wide"],
)
def test_a_prefix_has_the_models_logits(sizes: dict[str, Any], past: int, poison: Poison) -> None:
    checkpoint = make_checkpoint(**sizes)
    kind = "window" if sizes.get("positions") == "absolute" else "rolling"
    config = PlanConfig(horizon=1, beam_width=2, engine="triton", context_kind=kind)  # type: ignore[arg-type]
    planner = Planner(checkpoint, config, device=DEVICE)
    engine, model = planner.engine, checkpoint.model.config
    assert isinstance(engine, TritonEngine)
    rng = np.random.default_rng(0)
    N, M = model.observation_dim, model.action_dim
    context = planner.empty_context()
    for _ in range(past):
        context = context.append(rng.uniform(-3, 3, N), rng.uniform(-3, 3, M), float(rng.normal()))
    with torch.inference_mode():
        (prefix,) = planner._prefixes(rng.uniform(-3, 3, (1, N)).astype(np.float32), [context])
        goal = prefix[-N:].flip(0) if model.goal else None
        engine.prefill([prefix], None if goal is None else [goal], [NoiseKey()])
        engine._prefill()
        found = engine._memory.beams.logits[0, 0, : model.n_bins + 1].cpu()
        hidden = checkpoint.model.hidden(prefix[None], None if goal is None else goal[None])
        wanted = checkpoint.model.head(hidden[:, -1:], len(prefix) - 1)[0, 0]
    assert len(prefix) == past * model.transition_dim + N
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("goal", [False, True])
def test_any_token_can_be_read(goal: bool) -> None:
    """Below 0 it is 0, above the stop token that; of a goal, which has no stop, the last bin. No read lies outside."""
    checkpoint = make_checkpoint(layers=1, heads=1, width=16, context=1, goal=goal)
    planner = Planner(checkpoint, PlanConfig(horizon=1, beam_width=1, engine="triton"), device=DEVICE)
    engine, model = planner.engine, checkpoint.model.config
    assert isinstance(engine, TritonEngine)
    N, V = model.observation_dim, model.n_bins

    def logits(token: int, goal_token: int) -> torch.Tensor:
        engine.prefill([torch.full((N,), token)], [torch.full((N,), goal_token)] if goal else None, [NoiseKey()])
        engine._prefill()
        return engine._memory.beams.logits[0, 0].clone()

    with torch.inference_mode():
        assert torch.equal(logits(-7, -(10**6)), logits(0, 0))
        assert torch.equal(logits(2**31 - 1, 10**6), logits(V, V - 1))
        assert not torch.equal(logits(0, 0), logits(V, V - 1))


def test_triton_tells_kernels_apart_by_all_that_follows_from_their_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a newer release would be given what an older one compiled, for weights that it lays out in another way."""
    planner = Planner(make_checkpoint(layers=1, heads=1, width=16, context=1), PlanConfig(engine="triton"))
    shape = planner.engine.shape  # type: ignore[attr-defined]
    fields, text = repr(shape), str(shape)
    monkeypatch.setattr(type(shape), "hidden_chunk", property(lambda _: 16))
    assert repr(shape) == fields
    assert str(shape) != text
