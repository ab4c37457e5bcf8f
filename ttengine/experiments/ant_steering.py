"""Walk a shipped ant, which has learned to run along +x, along either axis: by turning what it observes.

Two symmetries of Ant-v4 are used. The floor looks the same in all directions, so the world is turned until the way to
go is +x. The body looks the same after a quarter turn, so the legs are renumbered by as many quarters, and the ant need
not turn to go another way (legs' numbers go round counterclockwise; every other ankle bends the other way).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ttengine.data.policy_spec import load_behaviour

Array = npt.NDArray[np.float64]

ANKLE_SIGNS = np.array([-1.0, 1.0, -1.0, 1.0])
"""Of leg i, as seen from the next leg's place: Ant's ankle axes are not turned copies of one another."""
SNAPSHOT, STRENGTH, NOISE = 901_120, 0.5, 0.1
"""Which shipped ant walks (environment steps of its training), the share of its torques that is used, and the standard
deviation of what is added. With all its torques it runs, and tips over where it turns; with half it walks, as far."""
TURNS_AT = np.radians(60.0)
"""The ant goes along an axis, and along the other one when the way leads so far off. Few ways of going are learned from
fewer logs: an ant that went in all directions, its legs renumbered by how it stood, was imitated half as well."""


def is_tipped(quaternion: npt.ArrayLike) -> bool:
    """Say whether a body lies on its side or back. quaternion [4], w first."""
    _, x, y, _ = np.asarray(quaternion, np.float64)
    return bool(1 - 2 * (x * x + y * y) < 0.0)


def turned(observation: Array, quarters: int) -> Array:
    """Return what Ant-v4 would observe, [27], if that way were +x and its legs were renumbered.

    Args:
        observation: [27] of Ant-v4.
        quarters: turns from +x to where to go, counterclockwise.
    """
    angle = quarters * np.pi / 2
    stands = _product(_product(_about_z(-angle), observation[1:5]), _about_z(angle))
    if stands[0] < 0:
        stands = -stands  # the same turn; the policy knows this one
    return np.concatenate([
        observation[:1], stands, renumber(observation[5:13], -quarters),
        _rotated(observation[13:16], -angle),
        _rotated(observation[16:19], -angle),  # a free joint's spin is in the body's frame
        renumber(observation[19:27], -quarters),
    ])  # fmt: skip


def turned_back(action: Array, quarters: int) -> Array:
    """Return the torques of the legs as they are numbered, [8], from those that the policy meant, [8]."""
    by_leg = np.roll(action.reshape(4, 2), -1, axis=0)  # Ant's actuators begin with the last leg's
    return np.roll(renumber(by_leg.ravel(), quarters).reshape(4, 2), 1, axis=0).ravel()


def renumber(joints: Array, quarters: int) -> Array:
    """Return joints [8] (hip, ankle of each leg) as seen from a body frame that is turned back by quarter turns."""
    legs = joints.reshape(4, 2).copy()
    for _ in range(quarters % 4):
        legs[:, 1] *= ANKLE_SIGNS
        legs = np.roll(legs, 1, axis=0)
    return legs.ravel()


class Walker:
    """A shipped ant that is told a heading; acts by its mean at part of its strength, with noise.

    Args:
        rng: of the noise.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.policy, self.rng = load_behaviour("ant").snapshots[SNAPSHOT], rng
        self.quarters: int | None = None

    def act(self, observation: Array, heading: float) -> npt.NDArray[np.float32]:
        """Return the next action, [8] in [-1, 1]. observation [27] of Ant-v4, heading in radians."""
        if self.quarters is None or abs(_wrapped(heading - self.quarters * np.pi / 2)) >= TURNS_AT:
            self.quarters = round(heading / (np.pi / 2))
        seen = turned(observation.astype(np.float64), self.quarters)
        meant = STRENGTH * self.policy(seen.astype(np.float32)) + NOISE * self.rng.standard_normal(8)
        return turned_back(np.clip(meant, -1.0, 1.0), self.quarters).astype(np.float32)


def _wrapped(angle: float) -> float:
    return (angle + np.pi) % (2 * np.pi) - np.pi


def _about_z(angle: float) -> Array:
    return np.array([np.cos(angle / 2), 0.0, 0.0, np.sin(angle / 2)])


def _product(a: npt.ArrayLike, b: npt.ArrayLike) -> Array:
    """Multiply two quaternions."""
    w, x, y, z = np.asarray(a, np.float64)
    v, i, j, k = np.asarray(b, np.float64)
    return np.array([
        w * v - x * i - y * j - z * k, w * i + x * v + y * k - z * j,
        w * j - x * k + y * v + z * i, w * k + x * j - y * i + z * v,
    ])  # fmt: skip


def _rotated(vector: Array, angle: float) -> Array:
    """Turn a vector [3] about the vertical."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([c * vector[0] - s * vector[1], s * vector[0] + c * vector[1], vector[2]])
