"""The paper's experiments, one command each: data, training, evaluation, table, plot and page, all from a seed."""

from __future__ import annotations

import importlib
from typing import Any

EXPERIMENTS = {
    "imitation": "plain likelihood beam search beside behaviour cloning, on an expert's logs",
    "offline_rl": "returns on data of several tiers, beside BC, CQL, IQL and the Decision Transformer",
    "goals": "four rooms: likelihood beam search towards a prepended future observation",
    "dynamics": "likelihood and error of predictions, steps ahead, beside an ensemble of networks",
    "attention": "which tokens actions attend to, on trained models",
    "antmaze": "AntMaze's medium maze: a critic as the search's heuristic",
    "ablations": "horizon, beam width, expansion and filters: what each brings, and what it costs",
}
"""Name -> what it shows."""


def load_experiment(name: str) -> Any:
    """Return the module of an experiment: its `Config`, with a small default and `full()`, and its `run`."""
    return importlib.import_module(f"ttengine.experiments.{name}")
