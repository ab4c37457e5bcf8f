"""How fast training is, in tokens a second, beside a plain loop that fuses nothing.

    python bench/train_throughput.py

Both train the released hopper size (4 layers, 128 wide, batch 32 x 159 tokens, float32, dropout 0.1) on random tokens,
in turns in one process: forward, loss, backward, clipping, AdamW. The plain loop computes attention as matrix products,
a softmax and a dropout; it stands for what re-implementations do. The two first agree on a loss without dropout.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttengine.config import ModelConfig, TrainConfig
from ttengine.model import TrajectoryTransformer, attention_mask
from ttengine.optimisation import make_optimiser

HOPPER = ModelConfig(11, 3, positions="absolute")


class PlainTransformer(nn.Module):
    """The same network from the same weights, every operation on its own."""

    def __init__(self, model: TrajectoryTransformer) -> None:
        super().__init__()
        self.inner = model
        self.config = model.config
        self.register_buffer("visible", attention_mask(model.config, 0, model.config.max_tokens, torch.device("cpu")))

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [B, T] -> [B, T, V+1] logits."""
        c, m = self.config, self.inner
        drop = nn.Dropout(c.dropout)
        drop.train(self.training)
        x = drop(m._embed(tokens, 0))
        for block in m.blocks:
            h = block.attention_norm(x)
            weights, biases = block.qkv.weight.chunk(3), block.qkv.bias.chunk(3)
            q, k, v = (
                F.linear(h, w, b).unflatten(-1, (c.heads, -1)).transpose(1, 2)
                for w, b in zip(weights, biases, strict=True)
            )
            score = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.shape[-1]))
            score = score.masked_fill(~self.visible[: x.shape[1], : x.shape[1]], float("-inf"))
            mixed = drop(F.softmax(score, dim=-1)) @ v
            x = x + drop(block.projection(mixed.transpose(1, 2).flatten(2)))
            x = x + drop(block.mlp_out(F.gelu(block.mlp_in(block.mlp_norm(x)))))
        return m.head(m.final_norm(x), 0)


def train_step(network: nn.Module, optimizer: torch.optim.Optimizer, tokens: Tensor, clip: float) -> float:
    """One optimiser step; returns the loss."""
    logits = network(tokens[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), clip)
    optimizer.step()
    return float(loss.detach())


def main() -> int:
    """Measure and print; exits with 1 if the two networks disagree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each (default 20)")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--positions", choices=["absolute", "rotary"], default="absolute")
    parser.add_argument("--json", type=Path, default=None, help="write the record here")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    config = ModelConfig(HOPPER.observation_dim, HOPPER.action_dim, positions=arguments.positions)
    settings = TrainConfig()
    fused, plain = TrajectoryTransformer(config), TrajectoryTransformer(config)
    plain.load_state_dict(fused.state_dict())
    networks: dict[str, nn.Module] = {"ttengine": fused}
    if config.positions == "absolute":
        networks["plain"] = PlainTransformer(plain)
    tokens = torch.randint(0, config.n_bins + 1, (arguments.batch, config.max_tokens + 1))
    with torch.no_grad():
        logits = [network.eval()(tokens[:2, :-1]) for network in networks.values()]
        worst = max(float((other - logits[0]).abs().max()) for other in logits)
    if worst > 1e-4:
        print(f"the networks disagree by {worst:.2e}", file=sys.stderr)
        return 1

    optimizers = {name: make_optimiser(network, settings) for name, network in networks.items()}
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for step in range(arguments.steps + 2):  # two of each to warm up
        for name, network in networks.items():
            network.train()
            started = time.perf_counter()
            train_step(network, optimizers[name], tokens, settings.clip_norm)
            if step >= 2:
                seconds[name].append(time.perf_counter() - started)
    count = arguments.batch * config.max_tokens
    record = {
        "tokens_per_step": count,
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        **{f"{name}_tokens_per_s": round(count / statistics.median(times)) for name, times in seconds.items()},
    }
    for name, times in seconds.items():
        median, fastest = count / statistics.median(times), count / min(times)
        print(f"{name:10s} {median:8,.0f} tokens/s (median of {len(times)} steps; fastest {fastest:,.0f})")
    if "plain" in seconds:
        record["ratio"] = round(statistics.median(seconds["plain"]) / statistics.median(seconds["ttengine"]), 3)
        print(f"ratio      {record['ratio']:8.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
