"""Training and fine-tuning on a GPU: the numbers of the CPU, wherever features are, and the same after a kill."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.core.contracts import Labels
from pipeline.features import dataset, sources, streaming
from pipeline.finetuning import finetune
from pipeline.sweep import starting
from pipeline.training import cells, heads, loop
from tests import backends, losses, test_finetune, test_fit, test_gpu_extraction
from tests.conftest import Corpus
from tests.test_fit import TRAIN, array_of, separable

pytestmark = pytest.mark.gpu
ON_GPU = TRAIN.model_copy(update={"device": "cuda"})
GPU = torch.device("cuda", 0)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.cpu() - expected).norm() / expected.norm().clamp_min(1e-30))


@pytest.mark.parametrize("name", backends.NAMES)
def test_a_backend_gives_the_embeddings_and_gradients_of_the_cpu(name: str) -> None:
    """In float64, so that nothing but a wrong operation shows."""
    both = []
    for device in ("cpu", "cuda"):
        backend = backends.make(name).eval().to(device)
        features = backends.features_for(backend).to(device).requires_grad_()
        embeddings = backend(features, backends.N_FRAMES.to(device))
        weights = torch.linspace(-1, 1, embeddings.numel(), dtype=torch.float64, device=device)
        (embeddings * weights.view_as(embeddings)).sum().backward()
        both.append((embeddings.detach(), features.grad, [p.grad for p in backend.parameters() if p.grad is not None]))
    (expected, at_input, gradients), (found, at_input_found, gradients_found) = both
    assert found.device.type == "cuda"
    assert relative(found, expected) < 1e-10
    assert relative(at_input_found, at_input) < 1e-8
    assert len(gradients) == len(gradients_found) > 0
    scale = torch.cat([g.flatten() for g in gradients]).norm()
    for one, other in zip(gradients_found, gradients, strict=True):
        assert float((one.cpu() - other).norm() / scale) < 1e-8


@pytest.mark.parametrize("name", losses.NAMES)
def test_a_loss_gives_the_value_and_gradients_of_the_cpu(name: str) -> None:
    both = []
    for device in ("cpu", "cuda"):
        loss, x, labels = losses.random_case(name)
        moved = Labels(**{column: tensor.to(device) for column, tensor in vars(labels).items()})
        there = x.detach().to(device).requires_grad_()
        value = loss.to(device)(there, moved)
        value.backward()
        both.append((value.detach(), there.grad))
    (expected, gradient), (found, gradient_found) = both
    assert found.device.type == "cuda"
    assert relative(found, expected) < 1e-5
    assert relative(gradient_found, gradient) < 1e-5


def fitted(hold: str, *, backend: str = "asp", loss: str = "qamo", params: Any = ON_GPU) -> loop.Fitted:
    """A training on the GPU from features that are read from memory batch by batch, or held on the device."""
    chosen = test_fit.cell(backend, loss)
    sets: tuple[Any, ...] = separable(90, seed=0, distance=2.0), separable(60, seed=1, distance=2.0)
    speakers = np.array([f"s{i % 5}" for i in range(90)])
    sets = tuple(replace(d, trials=replace(d.trials, speaker=speakers[: len(d)])) for d in sets)
    if backend == "linear":
        sets = tuple(test_fit.holding(data, test_fit.pooled(array_of(data))) for data in sets)
    if hold == "device":
        sets = tuple(replace(d, source=sources.hold(d.source, views=1, device=GPU, name=d.name)) for d in sets)
    train, dev = sets
    _, labels = cells.quality_labels(chosen, train.trials)
    return heads.fit(
        lambda: chosen.make_backend(layers=2, channels=6),
        lambda embedding_dim: chosen.make_loss(embedding_dim=embedding_dim, speakers=5, layers=2),
        train=train,
        dev=dev,
        labels=labels,
        params=params,
        seed=3,
    )


@pytest.mark.parametrize("loss", ["aoc", "cross_entropy", "qamo", "samo"])
@pytest.mark.parametrize("backend", ["linear", "asp"])
def test_features_from_anywhere_train_alike(backend: str, loss: str) -> None:
    first, second = (fitted(hold, backend=backend, loss=loss) for hold in ("memory", "device"))
    assert [epoch.loss for epoch in first.curves] == pytest.approx([epoch.loss for epoch in second.curves], rel=1e-4)
    assert first.backend.state_dict().keys() == second.backend.state_dict().keys()
    assert {tensor.device.type for tensor in first.backend.state_dict().values()} == {"cpu"}
    cpu = fitted("memory", backend=backend, loss=loss, params=TRAIN)
    assert first.curves[0].loss == pytest.approx(cpu.curves[0].loss, rel=1e-3)


@pytest.mark.parametrize("hold", ["disk", "ram", "device"])
@pytest.mark.parametrize("reads", ["pooled", "frames"])
def test_every_batch_on_the_gpu_has_the_numbers_of_the_store(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: Any, hold: Any
) -> None:
    """Through pinned memory and a stream of its own, while the GPU is busy with what uses the batches."""
    receipt, folder = test_gpu_extraction.extract(corpus, tmp_path), tmp_path / "dev.json"
    folder.write_text(json.dumps(receipt))
    monkeypatch.setattr(sources, "CHUNK_BYTES", 1)  # a batch a chunk, so that the two slots take turns
    opened = dataset.open_set(folder, corpus[1], root=tmp_path, reads=reads, hold=hold, device="cuda:0")
    expected = dataset.open_set(folder, corpus[1], root=tmp_path, reads=reads)
    order = [np.random.default_rng(i).integers(0, 10, 3) for i in range(60)]
    busy = torch.randn(4_096, 4_096, device=GPU)
    kept = []
    for features, n_frames in streaming.stream(opened.source, order, device=GPU):
        busy = busy @ busy / 4_096
        assert features.device.type == n_frames.device.type == "cuda"
        kept.append((features + 0 * busy[0, 0], n_frames.clone()))
    for rows, (features, n_frames) in zip(order, kept, strict=True):
        wanted, frames = expected.features(rows)
        assert torch.equal(features.cpu(), wanted)
        assert torch.equal(n_frames.cpu(), frames)


@pytest.mark.parametrize("backend", ["linear", "asp"])
def test_bfloat16_learns_too(backend: str) -> None:
    params = ON_GPU.model_copy(update={"precision": "bfloat16", "epochs": 25, "patience": 25})
    assert fitted("device", backend=backend, params=params).dev_eer < 5


def test_a_stopped_training_goes_on(tmp_path: Path) -> None:
    """On a GPU sums have no fixed order, so the numbers are close, not equal bit by bit."""
    expected = test_fit.fitted(params=ON_GPU)
    with pytest.MonkeyPatch.context() as patch:
        test_finetune.stop(patch, loop, "scored", after=2)
        with pytest.raises(test_finetune.StopError):
            test_fit.fitted(params=ON_GPU, checkpoint=tmp_path / "c")
    found = test_fit.fitted(params=ON_GPU, checkpoint=tmp_path / "c")
    assert [epoch.loss for epoch in found.curves] == pytest.approx([e.loss for e in expected.curves], rel=1e-3)


def tuned(corpus: Corpus, checkpoint: Path, device: torch.device = GPU, **changes: Any) -> loop.Fitted:
    model, asked = test_finetune.prepared(corpus, **changes)
    return finetune.finetune(model, asked, device=device, checkpoint=checkpoint, say=lambda _text: None)


WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "checkpointing": {"gradient_checkpointing": True},
    "bfloat16": {"precision": "bfloat16"},
    "lora": {"lora": test_finetune.LORA, "freeze_front_end": True},
    "lora, checkpointing": {"lora": test_finetune.LORA, "freeze_front_end": True, "gradient_checkpointing": True},
}


@pytest.mark.parametrize("way", WAYS)
def test_fine_tuning_gives_the_losses_of_the_cpu(corpus: Corpus, tmp_path: Path, way: str) -> None:
    changes = {"backend": "linear", "loss": "aoc", **WAYS[way]}
    if "lora" in changes:
        pytest.importorskip("peft")
    expected = tuned(corpus, tmp_path / "cpu", torch.device("cpu"), **changes)
    found = tuned(corpus, tmp_path / "gpu", **changes)
    bound = 5e-2 if way == "bfloat16" else 1e-2
    assert [epoch.loss for epoch in found.curves] == pytest.approx([e.loss for e in expected.curves], rel=bound)
    assert np.isfinite(found.dev_scores).all()


@pytest.mark.parametrize("way", ["full", "lora, checkpointing"])
def test_a_stopped_fine_tuning_goes_on(corpus: Corpus, tmp_path: Path, way: str) -> None:
    changes = {"backend": "mlp", "loss": "aoc", **WAYS[way]}
    if "lora" in changes:
        pytest.importorskip("peft")
    expected = tuned(corpus, tmp_path / "whole", **changes)
    with pytest.MonkeyPatch.context() as patch:
        test_finetune.stop(patch, loop, "scored", after=1)
        with pytest.raises(test_finetune.StopError):
            tuned(corpus, tmp_path / "c", **changes)
    found = tuned(corpus, tmp_path / "c", **changes)
    assert [epoch.loss for epoch in found.curves] == pytest.approx([e.loss for e in expected.curves], rel=2e-2)
    assert len(found.curves) == len(expected.curves)


def use_the_gpu() -> None:
    assert torch.ones(8, device=GPU).sum().item() == 8


def test_the_processes_of_a_sweep_can_use_the_gpu() -> None:
    """What a sweep imports before it forks must not start CUDA, which a fork could not use then."""
    starting.prepare({f"stages.{path.stem}" for path in (Path(__file__).parents[1] / "stages").glob("[!_]*.py")})
    processes = [starting.FORKS.Process(target=use_the_gpu) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]


def test_the_index_of_a_gpu_finds_what_the_cpu_finds() -> None:
    faiss = pytest.importorskip("faiss")
    if not hasattr(faiss, "StandardGpuResources"):
        pytest.skip('FAISS was built without a GPU: pip install "bonafide[gpu]"')
    from pipeline.analysis import exact_search

    rng = np.random.default_rng(0)
    vectors, queries = (rng.normal(size=(n, 32)).astype(np.float32) for n in (5_000, 50))
    flat = faiss.IndexFlatL2(32)
    flat.add(vectors)
    placed = exact_search.on_gpu(flat)
    assert "Gpu" in type(placed).__name__
    np.testing.assert_array_equal(placed.search(queries, 10)[1], flat.search(queries, 10)[1])
