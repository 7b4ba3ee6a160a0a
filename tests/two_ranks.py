"""Every loss trained on unequal parts of the same batches: by two ranks, or by one process with the joint batches.

`python -m tests.two_ranks RANK FOLDER` is one of the two ranks, which meet in FOLDER; it writes
FOLDER/RANK.safetensors.
"""

from __future__ import annotations

import datetime
import inspect
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.core.contracts import Enrols, Facts, Labels
from pipeline.core.errors import InputError
from pipeline.core.members import member

CHANNELS, WIDTH, SPEAKERS = 5, 6, 4
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "aoc": ("aoc", {}),
    "aoc with momentum": ("aoc", {"momentum": 0.7, "normalize": True}),
    "qamo": ("qamo", {"quality_weight": 0.5}),
    "cross_entropy": ("cross_entropy", {}),
    "cross_entropy with weights": ("cross_entropy", {"bonafide_weight": 9.0}),
    "cross_entropy with small weights": ("cross_entropy", {"bonafide_weight": 0.01}),
    "oc_softmax": ("oc_softmax", {}),
    "am_softmax": ("am_softmax", {}),
    "multi_centre": ("multi_centre", {"centres": 2}),
    "samo": ("samo", {}),
    "per_layer_oc": ("per_layer_oc", {}),
}
# With its precision, and whether rank 0 hands its buffers to the others before each step.
# Whether ranks exchange buffers at each forward pass; an older torch has another name for it.
SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
    else "broadcast_buffers"
)
RUNS = [(case, dtype, False) for case in CASES for dtype in (torch.float32, torch.float64)]
RUNS += [(case, torch.float64, True) for case in ("aoc", "aoc with momentum", "samo")]  # the ones with buffers
# What each rank sees in a step: bona fide of quality level 0, 1, 2 or unknown (?), and spoofs.
STEPS = (
    ("s s s", "s s"),
    ("0 0 1 s s", "2 s s s s s"),
    ("0 1 2 ? ?", "s s"),
    ("s", "0 1 1 2 s s"),
    ("? ? s", "2 s"),
    ("", "0 s s 1"),
    ("0 1 s", "? 2 s s s"),
    ("? s", "? ? s"),
)
# Speakers of the enrolments, on each rank, before the steps of these numbers.
ENROLMENTS = {2: ((0, 0, -1, 1), (0, 2)), 4: ((-1, -1), (3, 1, 1)), 6: ((2, 3, 0), ())}
State = dict[str, Tensor]


class System(nn.Module):
    """A linear backend and a loss in one module, as DistributedDataParallel wants it."""

    def __init__(self, name: str, hyperparameters: dict[str, Any]) -> None:
        super().__init__()
        self.backend = nn.Linear(CHANNELS, WIDTH)
        facts = Facts(embedding_dim=WIDTH, levels=3, speakers=SPEAKERS, layers=2)
        self.loss = member("losses", name).Loss(facts, **hyperparameters)

    def forward(self, features: Tensor, labels: Labels) -> Tensor:
        value: Tensor = self.loss(self.backend(features), labels)
        return value


def batch(step: int, rank: int | None, dtype: torch.dtype) -> tuple[Tensor, Labels]:
    """Features (B, CHANNELS) and labels of a step: of one rank, or of both one after the other."""
    parts = [part.split() for part in STEPS[step]]
    words = [word for part in parts for word in part]
    flags = torch.tensor([word != "s" for word in words])
    level = torch.tensor([int(word) if word.isdigit() else -1 for word in words])
    speaker = torch.arange(len(words)) % (SPEAKERS + 1) - 1
    features = noise(len(words), seed=step).to(dtype)
    cut = len(parts[0])
    rows = {None: slice(None), 0: slice(cut), 1: slice(cut, None)}[rank]
    return features[rows], Labels(is_bonafide=flags[rows], level=level[rows], speaker=speaker[rows])


def noise(rows: int, *, seed: int) -> Tensor:
    return torch.randn(rows, CHANNELS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def enrol(system: System, step: int, rank: int | None, dtype: torch.dtype) -> None:
    """Enrol the embeddings of one rank, or of both one after the other, where the loss does and the step says so."""
    if not isinstance(system.loss, Enrols) or step not in ENROLMENTS:
        return
    parts = ENROLMENTS[step]
    features = noise(sum(map(len, parts)), seed=100 + step).to(dtype).split([len(part) for part in parts])
    chosen = range(2) if rank is None else [rank]
    with torch.no_grad():
        embeddings = system.backend(torch.cat([features[part] for part in chosen]))
    speaker = torch.tensor([who for part in chosen for who in parts[part]], dtype=torch.int64)
    system.loss.enrol(embeddings, speaker)


def train(case: str, dtype: torch.dtype, rank: int | None, *, sync: bool = False) -> State:
    """Parameters, buffers, gradients and values after every step; rank None is the single process.

    Last, the value of the first rank's batch as that rank alone evaluates it, without the other one.
    """
    torch.manual_seed(rank or 0)  # the ranks begin apart, as DistributedDataParallel allows
    system = System(*CASES[case]).to(dtype)
    ranked = system if rank is None else DistributedDataParallel(system, **{SYNC_BUFFERS: sync})
    optimizer = torch.optim.SGD(system.parameters(), lr=0.01, momentum=0.9)
    found: State = {}
    for step in range(len(STEPS)):
        enrol(system, step, rank, dtype)
        optimizer.zero_grad()
        value: Tensor = ranked(*batch(step, rank, dtype))
        value.backward()  # type: ignore[no-untyped-call]
        gradients = {f"gradient of {name}": p.grad for name, p in system.named_parameters() if p.grad is not None}
        optimizer.step()
        now = {"value": value.detach(), **gradients, **system.state_dict()}
        found |= {f"{step} {name}": tensor.clone() for name, tensor in now.items()}
    if rank in (None, 0):
        with torch.no_grad():
            found["alone"] = system.eval()(*batch(1, 0, dtype)).clone()
    return found


def refuses_unknown_speakers() -> Tensor:
    """Whether an enrolment says what is wrong where no rank knows a speaker."""
    try:
        System("samo", {}).loss.enrol(torch.ones(3, WIDTH), torch.tensor([-1, -1, -1]))
    except InputError:
        return torch.tensor(True)
    return torch.tensor(False)


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=240)
    )
    found = {
        f"{case}/{dtype}/{sync}/{name}": tensor
        for case, dtype, sync in RUNS
        for name, tensor in train(case, dtype, rank, sync=sync).items()
    }
    found["refuses"] = refuses_unknown_speakers()
    save_file(found, folder / f"{rank}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
