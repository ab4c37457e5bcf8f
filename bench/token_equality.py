"""Whether a fast engine plans the same tokens as the reference engine, plan after plan; near-ties are counted.

    python bench/token_equality.py --preset halfcheetah-medium --model halfcheetah --data mine.hdf5 --plans 1000
    python bench/token_equality.py --engine triton --preset hopper --plans 1000
    python bench/token_equality.py --engine triton --virtual-gpu --model halfcheetah    compiled kernels, without a GPU

The virtual GPU has few multiprocessors, so that a program takes up to 16 candidates or beams: that is fewest
instructions. `--tile 1` runs the kernels of a single plan on a large GPU.

Both engines search in step with the same seeds, contexts sliding through recorded episodes. Where they first part, the
decision behind it is looked at: a token's probability against its rival's, a draw against the edge that it fell beside,
a score against the one that was kept instead. Closer than 1e-4 it is a near-tie, and that plan is not followed further;
anything else is a mismatch. Exits with 1 if there was one.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import os
import sys
import time
from pathlib import Path

import torch
from plan_inputs import Log, find_body, random_checkpoint, read_log, replay, synthetic_log
from torch import Tensor

from ttengine.checkpoint import Checkpoint, load
from ttengine.config import PlanConfig, Sampling, plan_preset
from ttengine.engines import ENGINES, Engine, NoiseKey, ReferenceEngine, default_device
from ttengine.engines.reference import window_tokens
from ttengine.kernels import reference as ops
from ttengine.objectives import discounted_return
from ttengine.planner import Planner

NEAR = 1e-4
"""Of a probability, a share of the noise, or a score (of its own size where that is above 1)."""


class Pair:
    """A fast engine and the reference engine, on the same device, that search in step."""

    def __init__(self, checkpoint: Checkpoint, config: PlanConfig, engine: str = "cpp") -> None:
        device = default_device(dataclasses.replace(config, engine=engine))  # type: ignore[arg-type]
        self.planner = Planner(checkpoint, dataclasses.replace(config, engine="reference"), device=device)
        self.config = self.planner.config
        self.fast: Engine = ENGINES[engine](self.planner.model, self.planner.discretizer, self.config)
        assert isinstance(self.planner.engine, ReferenceEngine)
        self.reference = self.planner.engine

    def compare(self, prefix: Tensor, key: NoiseKey) -> float | None:
        """Return None for equal plans, else the margin of the decision at which they part."""
        score = discounted_return(self.config.discount)
        for engine in (self.reference, self.fast):
            engine.prefill([prefix], None, [key])
        while True:
            ours, theirs = (engine.expand(self.config.expand) for engine in (self.fast, self.reference))
            if not torch.equal(ours.tokens, theirs.tokens):
                return self.token_margin(prefix, key, ours.tokens[0].cpu(), theirs.tokens[0].cpu(), ours.rounds)
            width = 1 if ours.rounds == self.config.horizon else self.config.beam_width
            pairs = (self.fast, score(ours)), (self.reference, score(theirs))
            kept, expected = (engine.select_beams(scored, width)[1] for engine, scored in pairs)
            if not torch.equal(kept, expected):
                return selection_margin(score(theirs)[0], kept[0], expected[0])
            if ours.rounds == self.config.horizon:
                return None
            for engine in (self.reference, self.fast):
                engine.select(kept)
                engine.observe()

    def token_margin(self, prefix: Tensor, key: NoiseKey, ours: Tensor, theirs: Tensor, rounds: int) -> float:
        """The widest of the margins at which rows of this round first part. ours, theirs [C, tokens] int64."""
        margins = []
        for row in (ours != theirs).any(dim=1).nonzero()[:, 0].tolist():
            at = int((ours[row] != theirs[row]).nonzero()[0])
            column = (len(prefix) + at) % self.planner.model.config.transition_dim
            survivor = column < self.planner.model.config.observation_dim  # observations are of beams, not candidates
            noise_row = row // self.config.expand if survivor else row
            sampling = self.sampling(column)
            probabilities = self.probabilities(torch.cat([prefix, theirs[row, :at]]), sampling)
            noise = ops.philox_uniform(*(torch.tensor(n) for n in (key.seed, key.plan, noise_row, at)))
            margins.append(
                decision_margin(probabilities, sampling, float(noise), int(ours[row, at]), int(theirs[row, at]))
            )
        return max(margins)

    def sampling(self, column: int) -> Sampling:
        """How the token in a column of its transition is drawn."""
        model = self.planner.model.config
        if column < model.observation_dim:
            return self.config.observation
        if column < model.observation_dim + model.action_dim:
            return self.config.action
        return self.config.value if column == model.transition_dim - 1 else self.config.reward

    def probabilities(self, tokens: Tensor, sampling: Sampling) -> Tensor:
        """[V+1] of the token after `tokens`, with the context that the search shows it."""
        if self.config.context_kind == "window":
            K = self.planner.model.config.transition_dim
            limit = window_tokens(self.planner.model.config, self.config)
            tokens = tokens[max(0, -(-(len(tokens) - limit) // K)) * K :]
        with torch.inference_mode():
            logits = self.planner.model(tokens[None].to(self.reference.device))[0, -1].cpu()
            return (logits / sampling.temperature).softmax(dim=-1)


def decision_margin(probabilities: Tensor, sampling: Sampling, noise: float, ours: int, theirs: int) -> float:
    """How far a token's choice was from going the other way."""
    if sampling.greedy:
        return float((probabilities[ours] - probabilities[theirs]).abs())
    margins = []
    weights = ops.filter_tokens(probabilities, sampling.cdf, sampling.k)
    cumulative = weights.cumsum(0) / weights.sum()
    margins.append(float((cumulative - noise).abs().min()))  # the draw fell beside an edge
    if sampling.cdf is not None:
        ascending = probabilities.sort().values
        cumulative = ascending.cumsum(0)
        margins.append(float((cumulative - sampling.cdf).abs().min()))  # the filter's edge
        last = min(max(0, int((cumulative < sampling.cdf).sum()) - 1), len(ascending) - 2)
        margins.append(float(ascending[last + 1] - ascending[last]))  # who is beside it: equals are all dropped
    if sampling.k is not None:
        top = probabilities.topk(min(sampling.k + 1, len(probabilities))).values
        margins.append(float(top[-2] - top[-1]))
    return min(margins)


def selection_margin(score: Tensor, kept: Tensor, expected: Tensor) -> float:
    """The widest gap between a score that was kept and one that should have been. score [C]."""
    wrong = score[[int(i) for i in kept if i not in expected]].sort().values
    missed = score[[int(i) for i in expected if i not in kept]].sort().values
    return float(((missed - wrong).abs() / missed.abs().clamp(min=1.0)).max())


def main() -> int:
    """Compare, print, write; exits with 1 after a mismatch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="cpp", choices=["cpp", "triton"])
    parser.add_argument("--virtual-gpu", action="store_true", help="of triton: run what it compiles on the CPU, slowly")
    parser.add_argument(
        "--tile", type=int, default=None, choices=[1, 2, 4, 8, 16], help="of triton: candidates or beams of a program"
    )
    parser.add_argument("--preset", nargs="+", default=["halfcheetah-medium"])
    parser.add_argument("--context", nargs="+", default=["rolling", "window"], choices=["rolling", "window"])
    parser.add_argument("--plans", type=int, default=1000, help="of each preset and context (default 1000)")
    parser.add_argument("--first", type=int, default=0, help="the plan to begin with, to go on where a run was ended")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--model", default=None, help="file or shipped name; else random weights")
    parser.add_argument("--data", type=Path, default=None, help="dataset to replay; else a random walk")
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    if arguments.engine != "triton" and (arguments.virtual_gpu or arguments.tile):
        parser.error("--virtual-gpu and --tile are of compiled kernels: add --engine triton")
    if arguments.virtual_gpu:
        os.environ.pop("TRITON_INTERPRET", None)
        from virtual_gpu.driver import VirtualGPU, plan_on

        plan_on(VirtualGPU())
    if arguments.tile:
        from ttengine.engines import triton_memory

        triton_memory.sequences_of_a_tile = lambda sequences, multiprocessors, least: max(arguments.tile, least)
    records, failed = [], False
    for preset, kind in itertools.product(arguments.preset, arguments.context):
        body = find_body(preset)
        checkpoint = (
            load(arguments.model) if arguments.model else random_checkpoint(body.observation_dim, body.action_dim)
        )
        config = dataclasses.replace(plan_preset(preset), context_kind=kind)
        pair = Pair(checkpoint, config, arguments.engine)
        log = read_log(arguments.data) if arguments.data else synthetic_log(checkpoint.discretizer, body.action_dim)
        record = compare_plans(pair, log, arguments.first, arguments.plans)
        record |= {
            "engine": arguments.engine,
            "preset": preset,
            "context": kind,
            "weights": arguments.model or "random",
            "tile": arguments.tile,
            "isa": "virtual sm_90" if arguments.virtual_gpu else getattr(pair.fast, "isa", None),
        }
        failed |= bool(record["mismatches"])
        records.append(record)
        print(json.dumps(record), flush=True)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(records, indent=2) + "\n")
    return 1 if failed else 0


def compare_plans(pair: Pair, log: Log, first: int, plans: int, limit_s: float = math.inf) -> dict[str, object]:
    """Return how many plans were equal, near-ties and mismatches, and the margins at which they parted.

    Args:
        pair: the engines.
        log: what to replay.
        first: the plan to begin with.
        plans: how many.
        limit_s: no further plan is begun after so many seconds; one always is.
    """
    capacity = pair.planner.context_capacity
    margins = []
    done = 0
    began = time.perf_counter()
    try:
        with torch.inference_mode():
            moments = enumerate(replay(log, capacity, capacity))
            for step, (moment, _) in itertools.islice(moments, first, first + plans):
                (prefix,) = pair.planner._prefixes(moment.observation[None], [moment.context])
                margin = pair.compare(prefix, NoiseKey(0, step))
                done += 1
                if margin is not None:
                    margins.append(margin)
                    print(f"plan {step} parts at a margin of {margin:.1e}", file=sys.stderr, flush=True)
                if time.perf_counter() - began > limit_s:
                    break
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    near = [margin for margin in margins if margin < NEAR]
    return {
        "first": first,
        "plans": done,
        "equal": done - len(margins),
        "near_ties": len(near),
        "mismatches": len(margins) - len(near),
        "margins": margins,
        "observations": log.label,
    }


if __name__ == "__main__":
    sys.exit(main())
