"""The project in the current folder from Python: features as tensors, trainings and scores, for notebooks."""

from pipeline.api.feature_set import FeatureSet, features
from pipeline.api.trained import Trained, run, train

__all__ = ["FeatureSet", "Trained", "features", "run", "train"]
