"""Who computes a round: one protocol, several engines."""

from __future__ import annotations

from ttengine.engines.protocol import Candidates, Counters, Engine, NoiseKey
from ttengine.engines.reference import ReferenceEngine

__all__ = ["ENGINES", "Candidates", "Counters", "Engine", "NoiseKey", "ReferenceEngine"]

ENGINES = {"reference": ReferenceEngine}
"""Engine name -> class; `auto` takes the first."""
