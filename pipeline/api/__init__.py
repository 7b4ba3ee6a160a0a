"""The project in the current folder from Python: features as tensors, trainings and scores, for notebooks."""

from pipeline.api.arena import ArenaModel
from pipeline.api.feature_set import FeatureSet, features
from pipeline.api.trained import Trained, run, train

__all__ = ["ArenaModel", "FeatureSet", "Trained", "features", "run", "train"]
