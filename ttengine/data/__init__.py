"""Where trajectories come from: D4RL, Minari, files; one in-memory type."""

from ttengine.data.files import save_dataset
from ttengine.data.load import load_dataset
from ttengine.data.scores import normalized_score, reference_score
from ttengine.data.trajectories import Trajectories

__all__ = ["Trajectories", "load_dataset", "normalized_score", "reference_score", "save_dataset"]
