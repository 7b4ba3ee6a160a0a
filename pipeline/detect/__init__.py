"""From an audio file to a verdict, with a run of a project or a package."""

from pipeline.detect.detection import Detection, Timeline, Unreadable
from pipeline.detect.loading import load, of_parts
from pipeline.detect.system import System

__all__ = ["Detection", "System", "Timeline", "Unreadable", "load", "of_parts"]
