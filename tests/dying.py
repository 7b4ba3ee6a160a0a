"""A task for a process of an executor that dies while it sends its result."""

import os
import signal
import struct
import sys


def while_sending() -> None:
    """Send the length of a result and its first bytes, then die."""
    frame = sys._getframe()
    while "result_queue" not in frame.f_locals:
        assert frame.f_back is not None
        frame = frame.f_back
    os.write(frame.f_locals["result_queue"]._writer.fileno(), struct.pack("!i", 1_000_000) + b"first bytes")
    os.kill(os.getpid(), signal.SIGKILL)
