"""Estimates of quality: the reference's numbers, computed once, resumable at any byte, the same with any workers."""

import csv
import dataclasses
import importlib.metadata
import pickle
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.audio import decode, mos
from pipeline.core import members
from pipeline.core.errors import InputError
from pipeline.core.trial_table import Trials
from pipeline.quality import dnsmos, scoreq
from tests.beside import SPEECH, needs
from tests.conftest import Corpus

ROOT = Path(__file__).parents[1]


class Loudness:
    """An estimator that counts its calls: 1 to 5 by the loudest sample."""

    def __init__(self, version: int = 1) -> None:
        self.version = version
        self.calls = 0
        self.lock = threading.Lock()

    def identity(self) -> str:
        return f"loudness-{self.version}"

    def estimate(self, samples: np.ndarray) -> float:
        with self.lock:
            self.calls += 1
        return self.version + float(np.abs(samples).max())


def estimated(corpus: Corpus, cache: Path, estimator: object) -> Trials:
    root, table = corpus
    return mos.with_quality(table, root, estimator=estimator, cache=cache)


def lines(cache: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(cache.read_text().splitlines()))


def loudest(corpus: Corpus, version: int = 1) -> list[float]:
    root, table = corpus
    return [round(version + float(np.abs(decode.load(root / path)).max()), 4) for path in table.path]


def test_the_quality_column_of_the_corpus_is_left_alone(corpus: Corpus, tmp_path: Path) -> None:
    assert estimated(corpus, tmp_path / "q" / "dev.csv", members.member("quality", "column")) is corpus[1]
    assert not (tmp_path / "q").exists()


def test_estimates_are_computed_once(corpus: Corpus, tmp_path: Path) -> None:
    cache, estimator = tmp_path / "q" / "dev.csv", Loudness()
    table = estimated(corpus, cache, estimator)
    assert table.quality.tolist() == loudest(corpus)
    assert estimator.calls == 10
    before = cache.read_bytes()
    again = estimated(corpus, cache, estimator)
    assert (estimator.calls, cache.read_bytes()) == (10, before)
    np.testing.assert_array_equal(again.quality, table.quality)
    for field in dataclasses.fields(table):
        if field.name != "quality":
            np.testing.assert_array_equal(getattr(table, field.name), getattr(corpus[1], field.name))


def test_the_number_of_workers_changes_no_byte(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Uneven(Loudness):
        def estimate(self, samples: np.ndarray) -> float:
            time.sleep(0.02 * (len(samples) % 3))
            return super().estimate(samples)

    caches = []
    for workers in (1, 2, 7):
        monkeypatch.setattr(mos, "WORKERS", workers)
        estimated(corpus, tmp_path / f"{workers}.csv", Uneven())
        caches.append((tmp_path / f"{workers}.csv").read_bytes())
    assert caches[0] == caches[1] == caches[2]


def test_a_cache_that_was_torn_anywhere_is_continued(corpus: Corpus, tmp_path: Path) -> None:
    """At any byte of its header and of the first and the last line, and around the ends of the lines between."""
    cache = tmp_path / "dev.csv"
    estimated(corpus, cache, Loudness())
    whole = cache.read_bytes()
    starts = [0, *(place + 1 for place, byte in enumerate(whole) if byte == ord("\n"))]
    torn = {*range(starts[2]), *range(starts[-2], len(whole))} | {at + by for at in starts[2:-2] for by in (-1, 0, 1)}
    assert len(starts) == 12
    for end in sorted(torn):
        cache.write_bytes(whole[:end])
        estimator = Loudness()
        assert estimated(corpus, cache, estimator).quality.tolist() == loudest(corpus)
        assert cache.read_bytes() == whole
        assert estimator.calls == 10 - max(0, whole[:end].count(b"\n") - 1)


def test_what_was_estimated_before_a_failure_is_kept(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(Loudness):
        def estimate(self, samples: np.ndarray) -> float:
            if self.calls == 6:
                raise RuntimeError("out of memory")
            return super().estimate(samples)

    monkeypatch.setattr(mos, "WORKERS", 1)
    with pytest.raises(RuntimeError, match="out of memory") as error:
        estimated(corpus, tmp_path / "dev.csv", Failing())
    assert error.value.__notes__ == ["while the quality of utterance u6 was estimated"]
    estimator = Loudness()
    assert estimated(corpus, tmp_path / "dev.csv", estimator).quality.tolist() == loudest(corpus)
    assert estimator.calls == 4


KILLED = """
import pickle, sys, time
from pathlib import Path
from pipeline.audio import mos

class Slow:
    def identity(self):
        return "loudness-1"
    def estimate(self, samples):
        time.sleep(0.05)
        return 1 + float(abs(samples).max())

root, table = pickle.loads(Path(sys.argv[1]).read_bytes())
mos.with_quality(table, root, estimator=Slow(), cache=Path(sys.argv[2]))
"""


def test_a_killed_run_keeps_what_it_had(corpus: Corpus, tmp_path: Path) -> None:
    cache = tmp_path / "dev.csv"
    (tmp_path / "corpus.pickle").write_bytes(pickle.dumps(corpus))
    command = [sys.executable, "-c", KILLED, str(tmp_path / "corpus.pickle"), str(cache)]
    with subprocess.Popen(command, cwd=ROOT) as process:
        while not cache.exists() or cache.read_bytes().count(b"\n") < 4:
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
    kept = cache.read_bytes().count(b"\n") - 1
    assert 3 <= kept < 10
    estimator = Loudness()
    assert estimated(corpus, cache, estimator).quality.tolist() == loudest(corpus)
    assert estimator.calls == 10 - kept


def test_another_version_or_file_is_estimated_anew_and_nothing_is_lost(corpus: Corpus, tmp_path: Path) -> None:
    cache, old, new = tmp_path / "dev.csv", Loudness(1), Loudness(2)
    estimated(corpus, cache, old)
    assert estimated(corpus, cache, new).quality.tolist() == loudest(corpus, version=2)
    assert new.calls == 10
    assert estimated(corpus, cache, old).quality.tolist() == loudest(corpus, version=1)
    assert old.calls == 10
    root, table = corpus  # another file of the same size
    data = (root / "u3.wav").read_bytes()
    (root / "u3.wav").write_bytes(data[:-2] + b"\x01\x7f")
    content = table.content.copy()
    content[3] = decode.digest((root / "u3.wav").read_bytes())
    changed = (root, dataclasses.replace(table, content=content))
    assert estimated(changed, cache, old).quality.tolist() == loudest(changed)
    assert old.calls == 11


def test_problems_name_their_utterances_and_keep_the_rest(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = corpus
    (root / "u2.wav").unlink()
    data = (root / "u4.wav").read_bytes()
    (root / "u4.wav").write_bytes(data[:-2] + b"\x01\x7f")

    class Odd(Loudness):
        def estimate(self, samples: np.ndarray) -> float:
            value = super().estimate(samples)
            return {1: float("nan"), 3: 7.5}.get(self.calls, value)

    cache, estimator = tmp_path / "dev.csv", Odd()
    monkeypatch.setattr(mos, "WORKERS", 1)
    with pytest.raises(InputError, match="the quality of 4 of 10 utterances could not be estimated") as error:
        estimated(corpus, cache, estimator)
    said = str(error.value)
    assert "utterance u0: expected a MOS from 0 to 6, got nan" in said
    assert "utterance u2: " in said
    assert "no such file" in said
    assert "utterance u3: expected a MOS from 0 to 6, got 7.5" in said
    assert "utterance u4: " in said
    assert "expected the bytes that the trial table knows" in said
    assert f"kept in {cache}" in said
    assert [line["utterance"] for line in lines(cache)] == ["u1", "u5", "u6", "u7", "u8", "u9"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("utterance,mos\nu0,3\n", 1),
        ("utterance,content,estimator,mos\nu0,ab,loudness-1\n", 2),
        ("utterance,content,estimator,mos\nu0,ab,loudness-1,3\nu1,ab,loudness-1,good\n", 3),
        ("\xff\xfe\n", 1),
        ("my notes", 1),
        ("utterance,content,estimator,mos2", 1),
    ],
)
def test_a_file_that_is_no_cache_is_left_alone(corpus: Corpus, tmp_path: Path, text: str, line: int) -> None:
    cache = tmp_path / "dev.csv"
    cache.write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=rf"dev\.csv:{line}: not a cache of estimates"):
        estimated(corpus, cache, Loudness())
    assert cache.read_text(encoding="latin-1") == text


# The members


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The DNSMOS code of speechmos; librosa, which its second model alone needs, is made of zeros."""
    librosa = types.ModuleType("librosa")
    librosa.feature = types.SimpleNamespace(melspectrogram=lambda n_mels, **_: np.zeros((n_mels, 900), np.float32))
    librosa.power_to_db = lambda mel, **_: mel
    monkeypatch.setitem(sys.modules, "librosa", librosa)
    monkeypatch.delitem(sys.modules, "speechmos.dnsmos", raising=False)
    from speechmos import dnsmos as module

    return module


def test_dnsmos_is_the_overall_mos_of_speechmos(reference: types.ModuleType) -> None:
    rng = np.random.default_rng(0)
    for samples in (90_000, 144_160, 176_000):  # doubled, two windows; one window; two windows
        tone = 0.2 * np.sin(np.arange(samples) / 7) * (np.arange(samples) % 8_000 < 4_000)
        x = (tone + rng.normal(0, 0.01, samples)).astype(np.float32)
        expected = reference.run(x, 16_000)
        got = dnsmos.estimate(x)
        assert got == pytest.approx(expected["ovrl_mos"], abs=1e-6)
        assert abs(got - expected["sig_mos"]) > 0.01


def test_dnsmos_names_its_model() -> None:
    assert dnsmos.identity() == "dnsmos-1-269fbebd"


@needs(SPEECH)
def test_dnsmos_on_speech_is_near_the_published_column() -> None:
    with (SPEECH / "digits" / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))[:560:280]
    for row in rows:  # the column is of one window alone, to two decimals
        assert dnsmos.estimate(decode.load(SPEECH / "digits" / row["path"])) == pytest.approx(
            float(row["quality"]), abs=0.1
        )


@pytest.mark.parametrize("package", ["speechmos", "onnxruntime"])
def test_without_its_packages_dnsmos_names_the_extra(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    dnsmos._session.cache_clear()
    with pytest.raises(InputError, match=r'pip install "bonafide\[quality\]"'):
        estimated(corpus, tmp_path / "dev.csv", dnsmos)


def fake_scoreq(monkeypatch: pytest.MonkeyPatch, made: list) -> None:
    """The part of scoreq 1.0.1 that is called: `predict` loads, pads to 320, and runs a session on (1, n)."""

    class Scoreq:
        def __init__(self, data_domain: str = "natural", mode: str = "nr", use_onnx: bool = True) -> None:
            made.append((data_domain, mode, use_onnx))

        def predict(self, test_path: str, ref_path: str | None = None) -> float:
            assert ref_path is None
            wave = self.load_processing(test_path)
            padded = torch.nn.functional.pad(wave, (0, -wave.size(-1) % 320)).numpy()
            assert (padded.ndim, padded.dtype, padded.shape[1] % 320) == (2, np.float32, 0)
            return np.array([[2 + padded.max()]]).item()

        def load_processing(self, filepath: str, target_sr: int = 16_000) -> torch.Tensor:
            raise AssertionError("reads files")

    module = types.ModuleType("scoreq")
    module.Scoreq = Scoreq
    monkeypatch.setitem(sys.modules, "scoreq", module)
    monkeypatch.setattr(importlib.metadata, "version", {"scoreq": "1.0.1"}.__getitem__)
    scoreq._model.cache_clear()


def test_scoreq_is_given_samples_and_made_once(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list = []
    fake_scoreq(monkeypatch, made)
    table = estimated(corpus, tmp_path / "dev.csv", scoreq)
    root, _ = corpus
    expected = [round(2 + float(decode.load(root / path).max()), 4) for path in table.path]
    assert table.quality.tolist() == expected
    assert made == [("natural", "nr", True)]
    assert {line["estimator"] for line in lines(tmp_path / "dev.csv")} == {"scoreq-1.0.1-natural"}
    scoreq._model.cache_clear()


def test_without_its_package_or_network_scoreq_says_what_to_do(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "scoreq", None)
    with pytest.raises(InputError, match=r'pip install "bonafide\[scoreq\]"'):
        estimated(corpus, tmp_path / "dev.csv", scoreq)
    fake_scoreq(monkeypatch, [])

    def offline(**_: str) -> None:
        raise OSError("<urlopen error [Errno -3] Temporary failure in name resolution>")

    monkeypatch.setattr(sys.modules["scoreq"], "Scoreq", offline)
    with pytest.raises(InputError, match=r"could not be loaded \(.*name resolution>\).*quality: dnsmos"):
        estimated(corpus, tmp_path / "dev.csv", scoreq)
