"""How waveforms are prepared, as the configuration of transformers' processor beside the weights says it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.core.errors import InputError
from pipeline.core.files import read_json
from pipeline.encoder.cards import FAIRSEQ_EPS, TRANSFORMERS_EPS, Card
from pipeline.encoder.folders import MEND, MOST_BYTES

PROCESSORS = ("preprocessor_config.json", "processor_config.json")  # newer ones are nested
RATE = 16_000  # Hz


def read(find: Callable[[str], Path | None]) -> tuple[bool | None, Path | None, float | None]:
    """Whether waveforms are normalized as the processor beside the weights says; where it says it; and its epsilon.

    `normalize_eps` is a key of this project's own: transformers always adds the same.
    """
    for name in PROCESSORS:
        place = find(name)
        if place is None:
            continue
        told = read_json(place, what="configuration of a processor", remedy=MEND, most=MOST_BYTES)
        told = told["feature_extractor"] if isinstance(told.get("feature_extractor"), dict) else told
        if (rate := told.get("sampling_rate", RATE)) != RATE:
            raise InputError(
                f"{place}: expected sampling_rate {RATE}, at which all audio is heard here, got {str(rate)[:100]!r}; "
                "take an encoder of that rate"
            )
        normalizes, eps = told.get("do_normalize"), told.get("normalize_eps")
        if normalizes is None:
            continue
        if not isinstance(normalizes, bool):
            raise InputError(f"{place}: expected do_normalize true or false, got {str(normalizes)[:100]!r}; {MEND}")
        if eps not in (None, FAIRSEQ_EPS, TRANSFORMERS_EPS):
            raise InputError(
                f"{place}: expected normalize_eps {FAIRSEQ_EPS} or {TRANSFORMERS_EPS}, got {str(eps)[:100]}"
            )
        return normalizes, place, eps
    return None, None, None


def of_card(card: Card) -> dict[str, object]:
    """The configuration of transformers' feature extractor; `normalize_eps` is a key of this project's own."""
    return {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "do_normalize": card.normalize == "utterance",
        "feature_size": 1,
        "normalize_eps": card.normalize_eps,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
        "sampling_rate": RATE,
    }
