"""What storage in float16 and int8, and computation in bfloat16, do to features and to the EER of real speech.

    python bench/storage.py [--recipe recipes/speech.yaml] [--backends asp] [--seeds 1 2 3]

The encoder of a recipe runs over its sets in float32. Frames as they come are one column; rounded as the store rounds
them, to float16 or to int8 with a scale for each channel and shard, two more; the last is the encoder in bfloat16, its
features kept in float16. Backends that read frames are trained on each, with the recipe's losses, and score the sets
for evaluation. Prints the error of every layer, root mean square relative to the features' own, and all EERs. The
spread over the seeds tells what a difference between columns is worth. (Means and deviations are kept in float32.)
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.audio import inspection, loader
from pipeline.core import members, params_file
from pipeline.core.devices import Precision
from pipeline.core.params import Params
from pipeline.core.trial_table import Trials
from pipeline.encoder import models, xlsr
from pipeline.features import sampling
from pipeline.features.dataset import Dataset
from pipeline.features.shard_bytes import quantized
from pipeline.features.sources import Held
from pipeline.metrics.eer import eer_of
from pipeline.scoring import centroids, scorer
from pipeline.training import cells, heads

Frames = dict[str, tuple[Tensor, NDArray[np.int32]]]  # set -> (N, L, T, D) float32, n_frames (N,)


def tables(settings: Params) -> dict[str, Trials]:
    """The checked trials of every set."""
    found = {}
    for name, part in settings.sets.items():
        corpus = members.member("corpora", part.corpus)
        found[name] = inspection.with_contents(corpus.trials(part.folder, Path(part.protocol), part.split), part.folder)
    return found


def encoded(settings: Params, trials: dict[str, Trials], precision: Precision) -> Frames:
    """Frames of every set as the encoder gives them."""
    model, card = models.load(settings.encoder)
    encoder = xlsr.Encoder(
        model,
        taps=settings.extract.layers,
        normalize=card.normalize,
        normalize_eps=card.normalize_eps,
        precision=precision,
    )
    found: Frames = {}
    for name, table in trials.items():
        clips = [loader.clip_of(table, row, audio_root=settings.sets[name].folder) for row in range(len(table))]
        frames, counts = [], []
        for start in range(0, len(clips), 8):
            loaded = [
                loader.load_window(clip, view="clean", window=settings.extract.window)
                for clip in clips[start : start + 8]
            ]
            taps, n_frames = encoder(
                torch.from_numpy(np.stack([samples for samples, _ in loaded])), torch.tensor([n for _, n in loaded])
            )
            frames.append(torch.stack([taps[layer].float() for layer in settings.extract.layers], dim=1))
            counts.append(n_frames.int())
        found[name] = torch.cat(frames).clone(), torch.cat(counts).numpy()
    return found


def as_float16(frames: Tensor) -> Tensor:
    """As the store keeps them by default."""
    return frames.half().float()


def as_int8(frames: Tensor, *, shard: int) -> Tensor:
    """As the store keeps them in int8, and the reader gives them back."""
    kept = torch.empty_like(frames)
    for start in range(0, len(frames), shard):
        for layer in range(frames.shape[1]):
            steps, scales = quantized(frames[start : start + shard, layer].half().numpy())
            kept[start : start + shard, layer] = torch.from_numpy(steps * scales)
    return as_float16(kept)


def eers(settings: Params, trials: dict[str, Trials], frames: Frames, backend: str, seed: int) -> dict[str, float]:
    """EER in percent of every loss on every set for evaluation."""
    data = {
        name: Dataset(name, table, Held(*frames[name]), settings.extract.layers, frames[name][0].shape[-1], "", "")
        for name, table in trials.items()
    }
    train, found = data[settings.train.set], {}
    for loss in settings.grid.loss:
        cell = cells.find(
            settings, backend=backend, loss=loss, layers=settings.grid.layers[0], views=settings.grid.views[0]
        )
        cuts = sampling.thresholds(train.trials, levels=cell.split.levels, given=cell.split.thresholds)
        labels = sampling.labels(train.trials, cuts)
        fitted = heads.fit(
            partial(cell.make_backend, layers=len(train.layers), channels=train.channels),
            partial(cell.make_loss, speakers=int(labels.speaker.max()) + 1, layers=len(train.layers)),
            train=train,
            dev=data["dev"],
            labels=labels,
            params=settings.train,
            seed=seed,
        )
        for name in settings.evaluate.sets:
            scores = scorer.score_all(fitted.backend, centroids.build(fitted.centroids), data[name]).astype(float)
            bona_fide = data[name].trials.is_bonafide
            error = eer_of(scores, bona_fide)
            found[f"{backend}-{loss} on {name}"] = 100 * error.eer
    return found


def main() -> None:
    """Encode, round, train, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/speech.yaml"))
    parser.add_argument("--backends", nargs="+", default=["asp"], help="that read frames, of the recipe's grid")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    args = parser.parse_args()
    settings = params_file.load(args.recipe)
    trials = tables(settings)
    exact = encoded(settings, trials, "float32")
    ways: dict[str, Frames] = {"float32": exact}
    ways["float16"] = {name: (as_float16(frames), counts) for name, (frames, counts) in exact.items()}
    ways["int8"] = {
        name: (as_int8(frames, shard=settings.extract.shard), counts) for name, (frames, counts) in exact.items()
    }
    half = encoded(settings, trials, "bfloat16")
    ways["bfloat16"] = {name: (as_float16(frames), counts) for name, (frames, counts) in half.items()}
    for way, frames in ways.items():
        told = []
        for k, layer in enumerate(settings.extract.layers):
            wrong = sum(float((frames[n][0][:, k] - exact[n][0][:, k]).square().sum()) for n in exact)
            told.append(
                f"{layer}: {100 * (wrong / sum(float(f[:, k].square().sum()) for f, _ in exact.values())) ** 0.5:.3f} %"
            )
        print(f"{way:8} error of layer {', '.join(told)}")
    found = {
        way: [eers(settings, trials, frames, backend, seed) for backend in args.backends for seed in args.seeds]
        for way, frames in ways.items()
    }
    print(f"\n{'EER in percent':40}" + "".join(f"{way:>10}" for way in ways))
    for i, cells_of in enumerate(found["float32"]):
        for name in cells_of:
            seed = args.seeds[i % len(args.seeds)]
            print(f"{name + f', seed {seed}':40}" + "".join(f"{found[way][i][name]:10.2f}" for way in ways))
    table = {way: np.array([list(one.values()) for one in rows]) for way, rows in found.items()}
    print(f"{'mean':40}" + "".join(f"{values.mean():10.2f}" for values in table.values()))
    print(
        f"{'mean difference from float32':40}"
        + "".join(f"{np.abs(v - table['float32']).mean():10.2f}" for v in table.values())
    )
    if len(args.seeds) > 1:
        by_seed = table["float32"].reshape(len(args.backends), len(args.seeds), -1)
        print(f"standard deviation over seeds, float32, mean of all: {by_seed.std(axis=1, ddof=1).mean():.2f} points")


if __name__ == "__main__":
    main()
