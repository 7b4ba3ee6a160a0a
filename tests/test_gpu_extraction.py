"""Extraction on a GPU: the bytes of an undisturbed one after any disturbance, and batches that fit its memory."""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from pipeline.core.encoder_sections import EncoderParams, RandomEncoder
from pipeline.core.errors import HopelessError
from pipeline.core.sections import ExtractParams, WindowParams
from pipeline.core.trial_table import to_csv
from pipeline.encoder import models, xlsr
from pipeline.extraction import forward, planning
from tests.conftest import Corpus
from tests.test_store import tree

pytestmark = pytest.mark.gpu
SMALL = EncoderParams(
    source="random",
    random=RandomEncoder(layers=3, width=256, heads=4, feedforward=512, conv_channels=128, seed=5),
    normalize="utterance",
)
PARAMS = ExtractParams(
    layers=(1, 3),
    window=WindowParams(samples=16_000, pad="repeat"),
    shard=4,
    batch_size=2,
    device="cuda",
    precision="float32",
)


def extract(corpus: Corpus, root: Path, params: ExtractParams = PARAMS, say: Any = lambda _text: None) -> dict:
    """The receipt of the corpus's store."""
    folder, trials = corpus

    def make(taps: tuple) -> xlsr.Encoder:
        model, card = models.load(SMALL)
        return xlsr.Encoder(model, taps=taps, normalize=card.normalize, precision=params.precision).to(params.device)

    card = models.load(SMALL)[1]
    return planning.extract(
        trials, set_name="dev", audio_root=folder, root=root, card=card, encoder=make, params=params, say=say
    )


def stored(corpus: Corpus, root: Path, params: ExtractParams = PARAMS) -> Path:
    """The store of the corpus."""
    return root / extract(corpus, root, params)["store"]


def arrays(store: Path) -> dict[str, np.ndarray]:
    group = zarr.open_group(store, mode="r")
    names = [f"{kind}_{layer:02d}" for kind in ("layer", "pooled") for layer in (1, 3)]
    return {name: group[f"clean/{name}"][:] for name in names}


@pytest.mark.parametrize(("precision", "bound"), [("float32", 2e-3), ("bfloat16", 3e-2)])
def test_the_store_is_that_of_the_cpu(corpus: Corpus, tmp_path: Path, precision: str, bound: float) -> None:
    expected = arrays(stored(corpus, tmp_path / "cpu", PARAMS.model_copy(update={"device": "cpu"})))
    found = arrays(stored(corpus, tmp_path / "gpu", PARAMS.model_copy(update={"precision": precision})))
    for name, array in expected.items():
        wanted = array.astype(np.float64)
        for row, got in zip(wanted, found[name].astype(np.float64), strict=True):
            assert np.linalg.norm(got - row) < bound * np.linalg.norm(row), name


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_fixed_batch_size_gives_the_same_bytes(corpus: Corpus, tmp_path: Path, precision: str) -> None:
    params = PARAMS.model_copy(update={"precision": precision})
    assert tree(stored(corpus, tmp_path / "a", params)) == tree(stored(corpus, tmp_path / "b", params))


KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.core import trial_table
from pipeline.extraction import units
from tests import test_gpu_extraction as test
units.WRITING = 1  # files of one unit after those of another
real, marked = os.replace, []
def replace(part, whole):
    if marked and "/layer_" in str(whole):
        os.kill(os.getpid(), signal.SIGKILL)
    real(part, whole)
    if "/done/clean/0" in str(whole):
        marked.append(whole)
os.replace = replace
test.extract((Path(sys.argv[1]), trial_table.read(Path(sys.argv[2]))), Path(sys.argv[3]))
"""


def test_a_killed_extraction_continues_and_ends_byte_identical(corpus: Corpus, tmp_path: Path) -> None:
    folder, trials = corpus
    (tmp_path / "trials.csv").write_text(to_csv(trials))
    command = [sys.executable, "-c", KILLED, str(folder), str(tmp_path / "trials.csv"), str(tmp_path / "cache")]
    killed = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    said: list[str] = []
    continued = tmp_path / "cache" / extract(corpus, tmp_path / "cache", say=said.append)["store"]
    assert "1 of 3 shards are complete" in said[0]
    assert tree(continued) == tree(stored(corpus, tmp_path / "undisturbed"))


@contextlib.contextmanager
def memory_of(megabytes: int) -> Iterator[None]:
    """Let this process take so much more of the GPU's memory than it holds, and no more than that."""
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + megabytes * 2**20) / whole)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


@pytest.fixture(scope="module")
def encode() -> xlsr.Encoder:
    model, card = models.load(SMALL)
    return xlsr.Encoder(model, taps=(3,), normalize=card.normalize).cuda()


def computed(encode: xlsr.Encoder, batch: forward.BatchSize, count: int = 64) -> tuple[np.ndarray, list[int]]:
    """Features of noise, and the sizes of the batches that came through."""
    samples = np.random.default_rng(0).normal(0, 0.1, (count, 64_000)).astype(np.float32)
    sizes: list[int] = []
    found = forward.compute(
        encode,
        lambda rows: (samples[rows], np.full(len(samples[rows]), 64_000)),
        (3,),
        batch=batch,
        names=[str(i) for i in range(count)],
        advance=sizes.append,
    )
    return found.blocks()[0][3].astype(np.float64), sizes


def test_a_batch_that_does_not_fit_is_halved_until_it_fits(encode: xlsr.Encoder) -> None:
    expected, _ = computed(encode, forward.BatchSize(8, grows=False))
    with memory_of(1_000):
        batch = forward.BatchSize(64, grows=True)
        found, sizes = computed(encode, batch)
    assert sum(sizes) == 64
    assert max(sizes) < 64
    assert batch.now < 64
    assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected)


def test_not_even_one_utterance_fits(encode: xlsr.Encoder) -> None:
    with memory_of(10), pytest.raises(HopelessError, match="not even one utterance fits"):
        computed(encode, forward.BatchSize(8, grows=True))


def test_batches_grow_while_memory_is_free(encode: xlsr.Encoder) -> None:
    batch = forward.BatchSize(8, grows=True)
    _, sizes = computed(encode, batch, 120)
    assert sizes == [8, 16, 32, 64]
