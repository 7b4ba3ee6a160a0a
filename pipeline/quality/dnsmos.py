"""DNSMOS P.835: how good noisy or processed speech sounds overall (OVRL), by a small network. Needs no download.

Reddy, Gopal, Cutler, "DNSMOS P.835: A non-intrusive perceptual objective speech quality metric to evaluate noise
suppressors", ICASSP 2022. The model comes in the wheel of `speechmos`, and the estimate equals
`speechmos.dnsmos.run(samples, 16000)["ovrl_mos"]`, from the ordinary model, not from the personalised one that takes
other talkers for noise. speechmos itself is not imported: it needs librosa, for a second, unused model (P.808).
Beyond 17 s, speechmos loses some windows to a rounding error; here they count, which changes a MOS by some thousandths.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import InputError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable


VERSION = 1  # raise it when the same samples and model give another MOS
SAMPLE_RATE = 16_000  # Hz
WINDOW = 144_160  # samples that the model hears: 9.01 s
OVERALL = 2  # of the model's three outputs: signal, background, overall
SCALE = (-0.06766283, 1.11546468, 0.04602535)  # polynomial from the output to a MOS, highest power first

_loading = threading.Lock()


def identity() -> str:
    """The name of this estimator, its version, and a digest of its model. Raises InputError where it is missing."""
    return f"dnsmos-{VERSION}-{hashlib.sha256(_model().read_bytes()).hexdigest()[:8]}"


def estimate(samples: NDArray[np.float32]) -> float:
    """The overall MOS of (n,) float32 mono at 16 kHz: the mean over windows of 9.01 s that start every second.

    A shorter signal is doubled until it fills a window. Raises InputError where onnxruntime is missing.
    """
    with _loading:
        session = _session()
    while len(samples) < WINDOW:
        samples = np.append(samples, samples)
    windows = max(1, len(samples) // SAMPLE_RATE - WINDOW // SAMPLE_RATE)
    starts = range(0, windows * SAMPLE_RATE, SAMPLE_RATE)
    outputs = [session.run(None, {"input_1": samples[None, start : start + WINDOW]})[0] for start in starts]  # (1, 3)
    return float(np.polyval(SCALE, np.concatenate(outputs)[:, OVERALL]).mean())


def _model() -> Traversable:
    try:
        return importlib.resources.files("speechmos") / "dnsmos_models" / "sig_bak_ovr.onnx"
    except ImportError:
        raise _extra() from None


@functools.cache
def _session() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise _extra() from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # utterances are estimated side by side
    return onnxruntime.InferenceSession(_model().read_bytes(), options, providers=["CPUExecutionProvider"])


def _extra() -> InputError:
    return InputError('the quality estimator dnsmos needs packages that are not there: pip install "bonafide[quality]"')
