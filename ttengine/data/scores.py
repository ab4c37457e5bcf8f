"""D4RL's normalised score: 0 is a random policy, 100 an expert."""

from __future__ import annotations

import difflib
import re

import numpy as np
import numpy.typing as npt

from ttengine.data.catalogue import BODIES, d4rl_catalogue
from ttengine.errors import DatasetNotFoundError, NonFiniteError

_GYMNASIUM_ID = re.compile(r"([A-Za-z0-9]+)-v[2-5]")
_MINARI_MUJOCO_ID = re.compile(r"mujoco/([a-z0-9]+)/[-\w]+-v\d+")
_MINARI_D4RL_ID = re.compile(r"D4RL/(pen|hammer|relocate|door|kitchen|antmaze)/([-\w]+)-v\d+")


def reference_score(name: str) -> tuple[float, float]:
    """Return the undiscounted return of a random policy and of an expert, in reward units.

    Args:
        name: a D4RL id (`hopper-medium-v2`), a Gymnasium id of one of the four locomotion bodies (`Hopper-v4`), or the
            Minari id of a set that comes from one of these (`mujoco/hopper/medium-v0`, `D4RL/pen/human-v2`).
    Raises:
        DatasetNotFoundError: no reference scores are known for this name.
    Source: Fu et al. 2020 (arXiv 2004.07219) and the `d4rl` package.
    """
    catalogue = d4rl_catalogue()
    entry = catalogue.get(name) or catalogue.get(_d4rl_id(name))
    if entry is not None and entry.scores is not None:
        return entry.scores
    known = [each for each, known_entry in catalogue.items() if known_entry.scores is not None]
    near = difflib.get_close_matches(name, [*known, *(f"{stem}-v4" for stem, _, _ in BODIES.values())], n=3, cutoff=0.5)
    raise DatasetNotFoundError(
        f"no reference scores are known for {name!r}, so a return has no normalised score there"
        + (f"; near it: {', '.join(near)}" if near else "")
        + f"; known are the {len(known)} D4RL ids and Gymnasium's Hopper, HalfCheetah, Walker2d and Ant"
    )


def normalized_score(name: str, returns: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return 100 (R - random) / (expert - random) for each return.

    Args:
        name: dataset or environment, as for `reference_score`.
        returns: any shape, undiscounted episode returns in reward units.
    Returns:
        float64, the shape of `returns`; in per cent (D4RL's own function gives the hundredth of it).
    Raises:
        DatasetNotFoundError: no reference scores are known for this name.
        NonFiniteError: a return is NaN or infinite.
    """
    low, high = reference_score(name)
    array = np.asarray(returns, dtype=np.float64)
    if not np.isfinite(array).all():
        raise NonFiniteError(f"returns hold {int((~np.isfinite(array)).sum())} NaN or infinite numbers")
    return np.asarray(100.0 * (array - low) / (high - low))


def _d4rl_id(name: str) -> str:
    """Return a D4RL id with the same reference scores as a Gymnasium or Minari id, or the name unchanged."""
    for body, (stem, _, _) in BODIES.items():
        for pattern, wanted in ((_GYMNASIUM_ID, stem), (_MINARI_MUJOCO_ID, body)):
            found = pattern.fullmatch(name)
            if found is not None and found.group(1) == wanted:
                return f"{body}-medium-v2"
    minari = _MINARI_D4RL_ID.fullmatch(name)
    if minari is not None:
        family, task = minari.groups()
        return f"{family}-{task}-v{'2' if family == 'antmaze' else '0' if family == 'kitchen' else '1'}"
    return name
