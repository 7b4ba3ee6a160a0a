"""The cached features of a set, as tensors, as a PyTorch dataset and as a Zarr group."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import zarr
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.core import params_file, trial_table
from pipeline.core.contracts import Tap
from pipeline.core.errors import InputError
from pipeline.core.trial_table import Trials
from pipeline.features import dataset, receipt_files

PARAMS, TRIALS, RECEIPTS = Path("params.yaml"), Path("data/trials"), Path("data/features")
Item = tuple[Tensor, int, bool]  # features (L, T, D) or (L, 2, D) float32, frames that are signal, whether bona fide


class FeatureSet(Dataset[Item]):
    """N utterances of a set or pool; item i is the features of utterance i, its valid frames and its class.

    A `torch.utils.data.DataLoader` reads a batch by one gather. Rows come from the store when they are asked for, so a
    set may be larger than the memory.
    """

    def __init__(self, data: dataset.Dataset, receipt: Path, root: Path) -> None:
        self.data = data
        self._receipt = receipt
        self._root = root

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, row: int) -> Item:
        if not -len(self) <= row < len(self):
            raise IndexError(f"expected a row below {len(self)}, got {row}")
        return self.__getitems__([row % len(self)])[0]

    def __getitems__(self, rows: list[int]) -> list[Item]:
        features, n_frames = self.tensors(rows)
        labels = self.trials.is_bonafide[rows].tolist()
        return list(zip(features, n_frames.tolist(), labels, strict=True))

    @property
    def trials(self) -> Trials:
        """The trial table: columns of length N, such as `utterance`, `is_bonafide`, `attack`, `quality`."""
        return self.data.trials

    def tensors(self, rows: Sequence[int] | slice | None = None) -> tuple[Tensor, Tensor]:
        """Features of some utterances, or of all, in memory of their own.

        Returns:
            (B, L, T, D) frames or (B, L, 2, D) means and standard deviations over the frames, float32, of the first
            window, or of all W, (B, W, L, ...), where `extract.windows.reduce` is attention; and (B,) int64, how many
            frames of each utterance are signal: frames from there on are padding.
        """
        chosen = np.arange(len(self))[slice(None) if rows is None else rows]
        return self.data.features(chosen)

    def zarr(self) -> zarr.Group:
        """The store, read only: `clean/layer_07` is (N, T, D), `clean/pooled_07` (N, 2, D). It holds all cached layers.

        Raises InputError for a pool, whose sets have a store each.
        """
        stores = receipt_files.open_receipts(self._receipt, root=self._root)
        if len(stores) > 1:
            raise InputError(f"{self.data.name}: a pool has no store of its own; open one of {', '.join(stores)}")
        ((store, _),) = stores.values()
        return zarr.open_group(str(store.path), mode="r")


def features(name: str, *, layers: Sequence[Tap] | None = None, pooled: bool = False) -> FeatureSet:
    """The clean features of a set or pool, as `dvc repro extract` cached them.

    Args:
        name: a key of `sets` or `pools` in params.yaml.
        layers: some of the cached ones, in this order; None: all of them.
        pooled: mean and standard deviation over the frames of each utterance, instead of the frames.

    Raises InputError where the set, a layer or the store is missing.
    """
    settings = params_file.load(PARAMS)
    data = dataset.open_set(
        RECEIPTS / f"{name}.json",
        trial_table.read(TRIALS / f"{name}.csv"),
        root=settings.features.folder,
        reads="pooled" if pooled else "frames",
        layers=layers,
    )
    return FeatureSet(data, RECEIPTS / f"{name}.json", settings.features.folder)
