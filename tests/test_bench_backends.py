"""The table of costs: counts against hand counts, and docs/backends.md against what is counted now."""

from __future__ import annotations

import re
from functools import cache

import pytest
import torch
from torch import nn

from bench import backends as bench
from pipeline.backends import aasist, conformer_tcm
from tests.backends import NAMES, noise

pytestmark = pytest.mark.usefixtures("one_thread")

L, T, D = 4, 201, 1024
count = cache(bench.count)


def test_all_backends_are_found() -> None:
    assert bench.names() == NAMES
    assert {"linear", "asp", "aasist"} <= set(NAMES)


def test_linear_counted_by_hand() -> None:
    counts = count("linear")
    assert counts.multiply_adds == L * 2 * D + 2 * D * 128
    assert counts.parameters == L + 2 * (2 * D) + 2 * D * 128 + 128
    assert counts.cells() == ["`linear`", "pooled", "embedding_dim 128", "128", "266,372", "270,336"]


def test_asp_counted_by_hand() -> None:
    layer_sum, scores, mean_and_variance, project = L * T * D, T * (D * 64 + 64), 2 * T * D, 2 * D * 128
    counts = count("asp")
    assert counts.multiply_adds == layer_sum + scores + mean_and_variance + project
    assert counts.parameters == L + 2 * D + (D * 64 + 64) + 64 + (2 * D * 128 + 128)
    assert (counts.reads, counts.sizes, counts.embedding_dim) == ("frames", "embedding_dim 128, attention_dim 64", 128)


def test_convolutions_counted_by_hand() -> None:
    block = aasist.ResidualBlock(3, 5).requires_grad_(False)
    # 2 × 3 kernels: the first gives 7 + 1 rows, the second 7; 1 × 3 for the input made wider.
    want = 8 * 11 * 3 * 5 * 6 + 7 * 11 * 5 * 5 * 6 + 7 * 11 * 3 * 5 * 3
    assert bench.multiply_adds(block, noise(1, 3, 7, 11).float()) == want
    depthwise = nn.Conv1d(6, 6, 5, groups=6).requires_grad_(False)
    assert bench.multiply_adds(depthwise, noise(2, 6, 12).float()) == 2 * 8 * 6 * 5


def test_attention_counted_by_hand() -> None:
    attention = conformer_tcm.Attention(8, heads=2).requires_grad_(False)
    positions = 10 + 2  # and the head tokens
    linear = positions * 8 * (3 * 8 + 8) + 2 * 4 * 8
    products = 2 * positions**2 * 8
    assert bench.multiply_adds(attention, noise(1, 10, 8).float(), None) == linear + products


@pytest.mark.parametrize("name", NAMES)
def test_counts_do_not_depend_on_the_batch_or_its_values(name: str) -> None:
    backend = bench.make(name).requires_grad_(False).eval()
    features, n_frames = bench.features(backend, 2)
    assert features.shape == (2, L, 2 if count(name).reads == "pooled" else T, D)
    assert n_frames.tolist() == [T, T]
    assert bench.multiply_adds(backend, features * 0, n_frames) == 2 * count(name).multiply_adds


def test_ratios_and_order_of_the_table() -> None:
    lines = bench.table({"mlp": 0.5, "linear": 0.25}, {"mlp": 6.0, "linear": 4.0}).splitlines()
    assert [len(line.split("|")) for line in lines] == [12] * 4
    assert lines[2].endswith("| 51,456 | 1.0 | 3,216 | 1.0 |")  # 64 · 201 frames in ¼ s, and in 4 s
    assert lines[3].endswith("| 25,728 | 2.0 | 2,144 | 1.5 |")
    assert lines[2].startswith(f"| {' | '.join(count('linear').cells())} |")


def test_what_is_timed_learns_in_training_only(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = bench.make("linear")
    monkeypatch.setattr(bench, "make", lambda name: backend)
    before = backend.project.weight.detach().clone()
    bench.forward("linear")()
    assert torch.equal(backend.project.weight, before)
    assert not backend.training
    bench.training_step("linear")()
    assert not torch.equal(backend.project.weight, before)
    assert backend.training


def test_the_table_goes_between_its_markers() -> None:
    page = f"above\n{bench.BEGIN}\nold\n{bench.END}\nbelow\n"
    got = bench.into(page, "new")
    assert got == f"above\n{bench.BEGIN}\n\nnew\n\n{bench.END}\nbelow\n"
    assert bench.into(got, "new") == got


def test_the_page_has_a_row_and_a_paragraph_on_every_backend_and_no_other() -> None:
    top = bench.PAGE.read_text().partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", top, flags=re.MULTILINE)
    assert sorted(rows) == [(name, count(name).reads) for name in NAMES]
    assert sorted(re.findall(r"\n\n`(\w+)` ", top)) == NAMES


def test_the_counts_on_the_page_are_those_of_today() -> None:
    table = bench.PAGE.read_text().split(bench.BEGIN)[1].split(bench.END)[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    assert rows[0] == list(bench.HEAD)
    assert sorted(row[:6] for row in rows[2:]) == [count(name).cells() for name in NAMES], (
        "docs/backends.md is stale; run: python bench/backends.py --write"
    )
