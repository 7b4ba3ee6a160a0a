"""Threads: all libraries that compute keep to what a run asks for."""

import subprocess
import sys

SHOWN = """
import faiss, numpy, scipy.linalg, threadpoolctl, torch
from pipeline.core import devices
devices.use_threads(COUNT)
print({library["num_threads"] for library in threadpoolctl.threadpool_info()}, torch.get_num_threads())
"""


def test_numpy_and_faiss_keep_to_the_threads_of_torch() -> None:
    """Else each of many trainings side by side has threads for all processors."""
    for count in (1, 2):
        script = SHOWN.replace("COUNT", str(count))
        said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
        assert said == f"{{{count}}} {count}\n"
