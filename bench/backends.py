"""What every backend costs on features of XLSR-300M: parameters, multiply-adds an utterance, frames a second.

    python bench/backends.py [--write] [--rounds 5]

Prints a table; --write puts it into docs/backends.md. Backends are found by listing pipeline/backends and have the
sizes of their constructors' defaults, which are the published ones where there are any. Features are noise: 4 tapped
layers, 1024 channels, 201 frames (64,600 samples), or means and standard deviations over those frames.

Parameters and multiply-adds are counted, and the same everywhere. Frames a second are measured on one core, in CPU
time, so that other work on the machine disturbs them little; in each round every backend has its turn, and the median
over the rounds is told.
"""

from __future__ import annotations

import argparse
import inspect
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipeline.core import files
from pipeline.core.members import member

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "backends.md"
BEGIN, END = "<!-- begin: python bench/backends.py --write -->", "<!-- end -->"
LAYERS, CHANNELS, FRAMES = 4, 1024, 201  # tapped layers; XLSR-300M's width, and frames of 64,600 samples
BATCH = 64
SHORTEST = 0.2  # seconds: a turn repeats its work until so much CPU time has passed
HEAD = (
    "backend", "reads", "sizes", "embedding", "parameters", "multiply-adds",
    "forward, frames/s", "time / linear's", "training step, frames/s", "time / linear's",
)  # fmt: skip


@dataclass(frozen=True)
class Counts:
    """What is counted. sizes: the constructor's, without dropouts. multiply_adds: of one utterance, forward."""

    name: str
    reads: str
    sizes: str
    embedding_dim: int
    parameters: int
    multiply_adds: int

    def cells(self) -> list[str]:
        """The columns that do not depend on the machine."""
        numbers = [f"{number:,}" for number in (self.embedding_dim, self.parameters, self.multiply_adds)]
        return [f"`{self.name}`", self.reads, self.sizes, *numbers]


def names() -> list[str]:
    """All backends."""
    return sorted(path.stem for path in (ROOT / "pipeline" / "backends").glob("[!_]*.py"))


def make(name: str) -> Any:
    """A backend of its default sizes."""
    torch.manual_seed(0)
    return member("backends", name).Backend(layers=LAYERS, channels=CHANNELS)


def features(backend: Any, batch: int) -> tuple[Tensor, Tensor]:
    """Noise (B, L, T, D), or (B, L, 2, D), and the valid frames (B,): all."""
    rows = {"frames": FRAMES, "pooled": 2}[backend.reads]
    noise = torch.randn(batch, LAYERS, rows, CHANNELS, generator=torch.Generator().manual_seed(0))
    return noise, torch.full((batch,), FRAMES)


def count(name: str) -> Counts:
    """What is counted of one backend."""
    backend = make(name)
    parameters = inspect.signature(type(backend).__init__).parameters.values()
    sizes = [f"{p.name} {p.default}" for p in parameters if isinstance(p.default, int | str)]
    return Counts(
        name,
        backend.reads,
        ", ".join(sizes) or "fixed",
        backend.embedding_dim,
        sum(p.numel() for p in backend.parameters()),
        multiply_adds(backend.requires_grad_(False).eval(), *features(backend, 1)),
    )


def multiply_adds(module: torch.nn.Module, *inputs: Tensor | None) -> int:
    """Multiply-adds of the matrix products and convolutions in a forward pass of a module that needs no gradients.

    torch counts two operations for each. It misses fused attention on a CPU, hence attention step by step, and the sum
    over layers in inference mode, which is therefore off.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return int(counter.get_total_flops()) // 2


def forward(name: str) -> Callable[[], None]:
    """The embeddings of one batch, as scoring computes them."""
    backend = make(name).eval()
    inputs = features(backend, BATCH)

    def work() -> None:
        with torch.inference_mode():
            backend(*inputs)

    return work


def training_step(name: str) -> Callable[[], None]:
    """Forward, backward and a step of Adam on one batch; the loss is as cheap as can be."""
    backend = make(name).train()
    inputs = features(backend, BATCH)
    optimizer = torch.optim.Adam(backend.parameters(), lr=1e-3)

    def work() -> None:
        backend(*inputs).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return work


def turn(work: Callable[[], None]) -> float:
    """CPU seconds of doing the work once, after once to warm up."""
    work()
    start, times = time.process_time(), 0
    while (passed := time.process_time() - start) < SHORTEST:
        work()
        times += 1
    return passed / times


def seconds(prepare: Callable[[str], Callable[[], None]], *, rounds: int) -> dict[str, float]:
    """CPU seconds a batch of every backend, the median of rounds in which each has its turn."""
    measured: dict[str, list[float]] = {name: [] for name in names()}
    for _ in range(rounds):
        for name, found in measured.items():
            found.append(turn(prepare(name)))
    return {name: statistics.median(found) for name, found in measured.items()}


def table(forward_seconds: Mapping[str, float], training_seconds: Mapping[str, float]) -> str:
    """The table in Markdown, cheapest forward pass first."""
    rows = [list(HEAD), ["---"] * 3 + ["---:"] * (len(HEAD) - 3)]
    for name in sorted(forward_seconds, key=lambda name: forward_seconds[name]):
        cells = count(name).cells()
        for measured in (forward_seconds, training_seconds):
            cells += [f"{BATCH * FRAMES / measured[name]:,.0f}", f"{measured[name] / measured['linear']:,.1f}"]
        rows.append(cells)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def note(rounds: int) -> str:
    """What the table holds, and the machine that it comes from."""
    return (
        f"{LAYERS} tapped layers of {CHANNELS} channels, {FRAMES} frames, float32; counts of one utterance; speed in "
        f"batches of {BATCH}, median of {rounds}.\nMachine: one of {os.cpu_count()} cores ({platform.machine()}, "
        f"{torch.backends.cpu.get_cpu_capability()}), torch {torch.__version__}."
    )


def into(page: str, text: str) -> str:
    """A page with the text between its two markers."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END, 1)[1]}"


def main() -> None:
    """Count, measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.relative_to(ROOT)}")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    costs = table(seconds(forward, rounds=args.rounds), seconds(training_step, rounds=args.rounds))
    text = f"{costs}\n\n{note(args.rounds)}"
    print(text)
    if args.write:
        files.write_text(PAGE, into(PAGE.read_text(encoding="utf-8"), text))


if __name__ == "__main__":
    main()
