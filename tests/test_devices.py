"""Threads: all libraries that compute keep to what a run asks for."""

import subprocess

SHOWN = """
import faiss, numpy, scipy.linalg, threadpoolctl, torch
from pipeline.core import devices
for count in (2, 1):
    devices.use_threads(count)
    print({library["num_threads"] for library in threadpoolctl.threadpool_info()}, torch.get_num_threads())
"""


def test_numpy_and_faiss_keep_to_the_threads_of_torch(warm_env: dict[str, str]) -> None:
    """Else each of many trainings side by side has threads for all processors."""
    said = subprocess.run(["python", "-c", SHOWN], capture_output=True, text=True, check=True, env=warm_env).stdout
    assert said == "{2} 2\n{1} 1\n"
