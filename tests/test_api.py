"""The Python API on a small project: the same numbers as the stages and the store."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pipeline import api
from pipeline.core.errors import InputError
from pipeline.scoring import runs
from tests import systems
from tests.systems import FRAMES, POOLED

pytestmark = pytest.mark.usefixtures("one_thread", "here")


def test_tensors_are_what_the_store_holds() -> None:
    dev = api.features("dev", layers=[3, 1])
    features, n_frames = dev.tensors()
    group = dev.zarr()
    assert features.shape == (12, 2, 9, 32)
    for i, layer in enumerate((3, 1)):
        stored = group[f"clean/layer_0{layer}"][:].astype(np.float32)
        for row, frames in enumerate(n_frames.tolist()):
            np.testing.assert_array_equal(features[row, i, :frames].numpy(), stored[row, :frames])
    assert n_frames.tolist() == group["n_frames"][:].tolist()
    pooled, _ = api.features("dev", layers=[1], pooled=True).tensors([4, 2])
    np.testing.assert_array_equal(pooled[:, 0].numpy(), group["clean/pooled_01"][:][[4, 2]])
    assert api.features("dev").data.layers == (1, 3)


def test_a_data_loader_reads_batches() -> None:
    dev = api.features("dev", pooled=True)
    whole, n_frames = dev.tensors()
    batches = list(DataLoader(dev, batch_size=5))
    assert [len(batch[0]) for batch in batches] == [5, 5, 2]
    assert torch.equal(torch.cat([batch[0] for batch in batches]), whole)
    assert torch.equal(torch.cat([batch[1] for batch in batches]), n_frames)
    assert torch.cat([batch[2] for batch in batches]).tolist() == dev.trials.is_bonafide.tolist()
    assert torch.equal(dev[-1][0], whole[-1])
    with pytest.raises(IndexError, match="expected a row below 12, got 12"):
        dev[12]


@pytest.mark.parametrize("name", [POOLED, FRAMES])
def test_a_run_scores_as_its_score_file_says(name: str) -> None:
    trained = api.run(name)
    scores = trained.score(trained.embed(trained.features("eval")))
    assert scores.tolist() == np.float32(list(systems.scores(name))).tolist()


@pytest.mark.parametrize("name", [POOLED, FRAMES])
def test_training_here_gives_the_run_of_the_stage(name: str) -> None:
    backend, loss, layers, views, seed = name.split("-")
    trained, kept = api.train(backend, loss, layers=layers, views=views, seed=int(seed)), api.run(name)
    for key, weights in kept.backend.state_dict().items():
        assert torch.equal(trained.backend.state_dict()[key], weights)
    np.testing.assert_array_equal(trained.centroids.vectors, runs.centroids(Path("data/runs") / name).vectors)
    assert trained.dev_eer == pytest.approx(kept.dev_eer, abs=1e-5)
    assert [epoch.epoch for epoch in trained.curves] == list(range(1, len(trained.curves) + 1))


def test_features_of_another_kind_are_refused() -> None:
    with pytest.raises(InputError, match="dev: expected features of "):
        api.run(POOLED).embed(api.features("dev", layers=[1], pooled=True))


def test_what_is_not_there_is_one_message() -> None:
    with pytest.raises(InputError, match=r"nope\.csv: no trial table there"):
        api.features("nope")
    with pytest.raises(InputError, match="no trained run there"):
        api.run("nope")
    with pytest.raises(InputError, match="expected one of all, got 'none'"):
        api.train("linear", "aoc", layers="none")
