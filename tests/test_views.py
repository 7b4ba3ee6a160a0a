"""Views: what a name stands for, and that nothing but the name and the utterance decides what it sounds like."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.audio import views
from pipeline.audio.views import View
from pipeline.audio.windowing import Samples
from pipeline.core.errors import InputError
from pipeline.core.members import member, names
from pipeline.features import sampling
from pipeline.views import rawboost

AUGMENTED = ["rawboost4_0", "rawboost8_12", "noise_0", "narrowband", "mp3_32", "aac32", "opus12", "amr7400", "alaw"]
AUGMENTED += [
    "mulaw",
    "resample6",
    "clipping10",
    "quieter12",
    "packet_loss10_0",
    "reverb600_0",
    "babble10_0",
    "music5_1",
]


@pytest.fixture
def samples() -> Samples:
    return np.random.default_rng(2).normal(0, 0.1, 16_000).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "view"),
    [
        ("clean", View("clean")),
        ("rawboost1_0", View("rawboost", 1, 0)),
        ("rawboost8_99", View("rawboost", 8, 99)),
        ("noise_7", View("noise", 0, 7)),
        ("narrowband", View("narrowband")),
        ("mp3_32", View("mp3", 32)),
        ("packet_loss5_99", View("packet_loss", 5, 99)),
    ],
)
def test_names(name: str, view: View) -> None:
    assert views.parse(name) == view
    assert sampling.level_shift(name) == (0 if name == "clean" else -1)


WRONG = ["", "Clean", "clean_0", "done", "noise", "noise_-1", "narrowband_0", "rawboost", "rawboost4", "rawboost4_00"]
WRONG += ["rawboost0_0", "rawboost9_0", "rawboost4_100", "rawboost4_0 ", "rawboost4_0\n", "rawboost4_²"]
WRONG += ["mp3", "mp332", "mp3_32_0", "mp3_33", "mp", "aac_32", "trim_0", "reverb300", "packet_loss5_00", "alaws"]


@pytest.mark.parametrize("name", WRONG)
def test_any_other_name_is_an_error_that_says_which_there_are(name: str, samples: Samples) -> None:
    kinds = ["clean, aac(16|32|64), alaw, ", "mp3_(16|32|64|128), mulaw, ", "narrowband, noise_(0 to 99), "]
    kinds += ["rawboost(1|2|3|4|5|6|7|8)_(0 to 99), ", f"trim), got {name!r}"]
    message = r"expected a view \(" + ".*".join(map(re.escape, kinds))
    for call in (views.parse, lambda name: views.apply(name, samples, utterance="u")):
        with pytest.raises(InputError, match=message):
            call(name)


def test_the_documents_list_every_kind_with_its_variants() -> None:
    """A row names views such as `mp3_32`; one without alternatives to its number names all of them in the next cell."""
    text = (Path(__file__).parents[1] / "docs/features.md").read_text()
    rows = [line.split("|")[1:3] for line in text[text.index("| view |") :].splitlines()[2:] if line.startswith("|")]
    found: dict[str, list[int]] = {}
    for cell, numbers in rows:
        for name in re.findall("`(.*?)`", cell):
            variants = [int(number) for number in re.findall(r"\d+", numbers.split(":")[-1].split(";")[0])]
            found[views.parse(name).kind] = variants
    expected = {kind: list(member("views", kind).VARIANTS) for kind in names("views")}
    found["rawboost"] = list(range(found["rawboost"][0], found["rawboost"][1] + 1))  # "1 to 8"
    found["narrowband"] = []  # beside `resample`
    assert found == expected


def test_clean_is_the_samples_themselves(samples: Samples) -> None:
    np.testing.assert_array_equal(views.apply("clean", samples, utterance="u"), samples)


@pytest.mark.parametrize("name", AUGMENTED)
def test_a_view_keeps_length_and_type_and_changes_the_sound(name: str, samples: Samples) -> None:
    for n in (400, 401, 402, 403, 15_999):
        whole = samples[:n].copy()
        heard = views.apply(name, whole, utterance="u")
        assert (heard.shape, heard.dtype) == ((n,), np.float32)
        assert np.isfinite(heard).all()
        assert not np.array_equal(heard, whole)
        np.testing.assert_array_equal(whole, samples[:n])


@pytest.mark.parametrize("kind", [kind for kind in names("views") if not kind.startswith("recorded_")])
def test_a_kind_of_view_draws_or_does_not_as_it_says(kind: str, samples: Samples) -> None:
    module = member("views", kind)
    variant = module.VARIANTS[0] if module.VARIANTS else 0
    one, two = (module.apply(samples, variant=variant, rng=np.random.default_rng(seed)) for seed in (0, 1))
    assert np.array_equal(one, two) != module.RANDOM


def test_rawboost_is_seeded_by_utterance_and_name(samples: Samples) -> None:
    digest = "b7044bf62c1c37213b44a8e06a28a3796cc9b1bb7c8263366761afba3c50ab19"  # printf 'u1\nrawboost3_1' | sha256sum
    rng = np.random.default_rng(int(digest, 16))
    np.testing.assert_array_equal(
        views.apply("rawboost3_1", samples, utterance="u1"), rawboost.apply(samples, variant=3, rng=rng)
    )


def test_copies_algorithms_and_utterances_are_other_draws(samples: Samples) -> None:
    heard = [
        views.apply(name, samples, utterance=utterance).tobytes()
        for name in ("rawboost4_0", "rawboost4_1", "rawboost5_0", "noise_0", "noise_1")
        for utterance in ("u1", "u2", "1u")
    ]
    assert len(set(heard)) == len(heard)


def test_no_two_utterances_and_names_share_a_seed_by_their_spelling() -> None:
    pairs = [("noise_1", "u"), ("noise_1", "u\n"), ("oise_1", "un"), ("1", "u\nnoise_"), ("noise_1", "U")]
    states = {str(views.generator(name, utterance=utterance).bit_generator.state) for name, utterance in pairs}
    assert len(states) == len(pairs)


OTHER_ORDER = """
import sys
import numpy as np
from pipeline.audio import views

samples = np.random.default_rng(2).normal(0, 0.1, 16_000).astype(np.float32)
np.random.default_rng(0).normal(size=99)
heard = {name: views.apply(name, samples, utterance="u") for name in reversed(sys.argv[1:])}
sys.stdout.buffer.write(b"".join(heard[name].tobytes() for name in sys.argv[1:]))
"""


def test_order_process_and_threads_change_nothing(samples: Samples) -> None:
    here = b"".join(views.apply(name, samples, utterance="u").tobytes() for name in AUGMENTED)
    command = [sys.executable, "-c", OTHER_ORDER, *AUGMENTED]
    env = {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "PYTHONHASHSEED": "7"}
    there = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, check=True, env=env)
    assert there.stdout == here


def test_narrowband_keeps_what_is_below_4_khz_alone() -> None:
    seconds = np.arange(16_000) / 16_000
    low, high = (np.sin(2 * np.pi * hertz * seconds).astype(np.float32) for hertz in (1_000, 6_000))
    heard = views.apply("narrowband", low + high, utterance="u")
    middle = slice(1_000, 15_000)  # beside the ringing of the ends
    np.testing.assert_allclose(heard[middle], low[middle], atol=2e-3)


def test_noise_lies_5_to_20_db_below_and_between_white_and_pink() -> None:
    speech = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    snr_db, slope = [], []
    for copy in range(100):
        noise = views.apply(f"noise_{copy}", speech, utterance="u").astype(np.float64) - speech
        snr_db.append(10 * np.log10((speech.astype(np.float64) ** 2).sum() / (noise**2).sum()))
        power = np.abs(np.fft.rfft(noise)) ** 2
        # a power of 1 / f^s has between its octaves from 4 to 8 kHz and from 500 Hz to 1 kHz the ratio 2^(-3 s)
        slope.append(-np.log2(power[4_000:8_000].mean() / power[500:1_000].mean()) / 3)
    assert 5 <= min(snr_db) < 6
    assert 19 < max(snr_db) <= 20
    assert np.mean(snr_db) == pytest.approx(12.5, abs=4 * 15 / np.sqrt(12 * 100))
    assert -0.1 < min(slope) < 0.15
    assert 0.85 < max(slope) < 1.1
    assert np.mean(slope) == pytest.approx(0.5, abs=4 / np.sqrt(12 * 100))


def test_numbers_of_views_have_not_changed(samples: Samples) -> None:
    """Golden numbers of this project's own. If they must change, raise VIEWS_VERSION and write the new ones here."""
    assert views.VIEWS_VERSION == 1
    golden = {
        "rawboost1_0": [-0.0318212, -0.0977757, -0.0326284],
        "rawboost2_0": [0.0189053, 0.1233073, -0.0501206],
        "rawboost3_0": [0.0380788, 0.1057829, -0.0562947],
        "rawboost4_0": [-0.0365051, -0.1236083, -0.0128383],
        "rawboost4_1": [-0.0111893, -0.0882142, -0.0292146],
        "rawboost5_0": [-0.0967187, -0.0975224, -0.0025242],
        "rawboost6_0": [-0.0804183, -0.0816023, 0.0251498],
        "rawboost7_0": [0.0227303, 0.0882384, -0.0480243],
        "rawboost8_0": [-0.0860438, 0.0237369, -0.0378412],
        "noise_0": [0.0025023, 0.1333948, -0.0296052],
        "narrowband": [0.0166217, 0.0136938, 0.006114],
    }
    for name, expected in golden.items():
        heard = views.apply(name, samples, utterance="LA_T_1000137")
        np.testing.assert_allclose(heard[[0, 777, 15_999]], expected, atol=1e-6, err_msg="raise VIEWS_VERSION")
