"""From an audio file to a verdict, with a run of a project or a package."""

from pipeline.detect.loading import load, of_parts
from pipeline.detect.system import Detection, System, Timeline, Unreadable

__all__ = ["Detection", "System", "Timeline", "Unreadable", "load", "of_parts"]
