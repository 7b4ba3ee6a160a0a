"""SCOREQ without a reference, for natural speech: the estimator behind the quality levels of QAMO.

Ragano, Skoglund, Hines, "SCOREQ: Speech quality assessment with contrastive regression", NeurIPS 2024. The package
downloads its model (400 MB, to ~/.cache/scoreq) when it is imported, so nothing but `estimate` imports it.
"""

from __future__ import annotations

import functools
import importlib.metadata
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import InputError

DOMAIN = "natural"  # speech of people, recorded and transmitted; the package also has `synthetic`

_loading = threading.Lock()


def identity() -> str:
    """The package, its version, which fixes the model's file, and the domain. Raises InputError where it is missing."""
    try:
        return f"scoreq-{importlib.metadata.version('scoreq')}-{DOMAIN}"
    except importlib.metadata.PackageNotFoundError as error:
        raise _extra(error) from None


def estimate(samples: NDArray[np.float32]) -> float:
    """The MOS of (n,) float32 mono at 16 kHz. Raises InputError where the package or its model cannot be had."""
    with _loading:
        model = _model()
    return float(model.predict(samples))


@functools.cache
def _model() -> Any:
    import torch

    try:
        import scoreq

        model = scoreq.Scoreq(data_domain=DOMAIN, mode="nr")
    except ImportError as error:
        raise _extra(error) from None
    except OSError as error:  # no network, no space, a torchaudio for another torch
        raise InputError(
            f"SCOREQ could not be loaded ({error}); it needs a torchaudio built as torch is, and a network once, to "
            "download its model to ~/.cache/scoreq (or that folder from elsewhere); else estimate with quality: dnsmos"
        ) from None
    # `predict` takes a path and loads it with this method; the samples are loaded already.
    model.load_processing = lambda samples: torch.from_numpy(samples)[None]  # (1, n)
    return model


def _extra(error: ImportError) -> InputError:
    return InputError(
        f'the quality estimator scoreq needs packages that are not there ({error}): pip install "bonafide[scoreq]"'
    )
