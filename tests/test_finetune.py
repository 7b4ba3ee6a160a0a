"""Fine-tuning: the right weights move, a kill changes no bit, and what is written is what was trained."""

import dataclasses
import hashlib
import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2Model

from pipeline.audio import decode, views, windowing
from pipeline.core import trial_table
from pipeline.core.encoder_sections import FinetuneParams, FinetuneRates, LoraParams
from pipeline.core.errors import InputError
from pipeline.core.params import Params
from pipeline.core.params_file import load
from pipeline.core.sections import ViewsParams, WindowParams
from pipeline.core.trial_table import Row, Trials
from pipeline.encoder import cards, xlsr
from pipeline.encoder import models as models_module
from pipeline.encoder.cards import Card
from pipeline.extraction import forward, planning
from pipeline.features import dataset, sampling
from pipeline.features.sampling import Augment
from pipeline.finetuning import clock, finetune, plan, run_card, speech
from pipeline.finetuning.finetune import SpeechLearner
from pipeline.finetuning.plan import Asked
from pipeline.finetuning.speech import Speech
from pipeline.finetuning.system import pool
from pipeline.losses import samo
from pipeline.metrics.det import det_points
from pipeline.metrics.eer import Eer, official_eer
from pipeline.scoring import centroids, runs, scorer
from pipeline.training import checkpoints, drawing, history, loop, together
from pipeline.training.adam import Adam
from pipeline.training.loop import Fitted
from tests.conftest import TINY, Corpus
from tests.places import SETTINGS

ROOT = Path(__file__).parents[1]
CLEAN = ViewsParams(draw=(), probability=0.0)
FINETUNE = FinetuneParams(
    backend="asp",
    loss="cross_entropy",
    layers=(1, 2),
    views=ViewsParams(draw=("rawboost4_0", "noise_0"), probability=0.5),
    seed=3,
    epochs=3,
    batch_size=4,
    accumulate=2,
    learning_rate=FinetuneRates(encoder=1e-3, backend=1e-2, centroids=1e-2, layers=1e-2),
    weight_decay=1e-4,
    patience=3,
    average_best=2,
    freeze_front_end=False,
    gradient_checkpointing=False,
    precision="float32",
)


@cache
def project() -> Params:
    """The parameters of the tests."""
    return load(SETTINGS)


def settings(**changes: Any) -> Params:
    """The project's parameters with the tiny encoder, a short window, and fine-tuning."""
    whole = project()
    window = WindowParams(samples=3_200, pad="zero")
    return whole.model_copy(
        update={
            "encoder": TINY.model_copy(update={"finetune": FINETUNE.model_copy(update=changes)}),
            "extract": whole.extract.model_copy(update={"window": window, "layers": (0, 1, 2, 3, "final")}),
        }
    )


CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class Tuned(Fitted):
    """What a fine-tuning came to, with the encoder."""

    model: Any


def prepared(corpus: Corpus, **changes: Any) -> tuple[Any, Asked]:
    """A fresh model and the fine-tuning that is asked for; the corpus is both training and dev set."""
    root, table = corpus
    chosen = settings(**changes)
    model, card = models_module.load(chosen.encoder)
    cell = plan.chosen(chosen, card)
    cuts = sampling.thresholds(table, levels=cell.split.levels, given=cell.split.thresholds)
    spoken, labels = Speech(table, root), sampling.labels(table, cuts)
    return model, Asked(chosen.encoder.finetune, chosen.extract.window, card, cell, spoken, spoken, cuts, labels)


def tuned(corpus: Corpus, place: Path, say: Callable[[str], None] = lambda _: None, **changes: Any) -> Tuned:
    model, asked = prepared(corpus, **changes)
    return tune(model, asked, place / "c", say)


def tune(model: Any, asked: Asked, checkpoint: Path, say: Callable[[str], None] = lambda _: None) -> Tuned:
    fitted = finetune.finetune(model, asked, device=CPU, checkpoint=checkpoint, say=say)
    return Tuned(**vars(fitted), model=model)


def learner(corpus: Corpus, **changes: Any) -> SpeechLearner:
    model, asked = prepared(corpus, **changes)
    torch.manual_seed(0)
    return finetune.learner_of(finetune.make_system(model, asked, CPU), asked, device=CPU, say=lambda _: None)


def gradients(trained: SpeechLearner) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one step on all ten utterances, in parts of `batch_size`."""
    trained.system.train()
    rows = speech.split(np.array([1, 3, 5, 7, 9, 0, 2, 4, 6, 8]), size=trained.params.batch_size)
    parts = speech.loaded(rows, lambda row: speech.load_clean(trained.asked.train, row, window=trained.asked.window))
    loss = trained.loss(parts, trained.labels, size=10)
    return loss.item(), {name: p.grad for name, p in trained.system.named_parameters() if p.grad is not None}


# Which weights move


def moved(corpus: Corpus, place: Path, **changes: Any) -> set[str]:
    """Parts of the encoder whose weights all, or (`x?`) partly, differ from the start after an epoch."""
    before = models_module.load(TINY)[0].state_dict()
    after = tuned(corpus, place, epochs=1, **changes).model.state_dict()
    assert before.keys() == after.keys()
    parts: dict[str, list[bool]] = {}
    for name, tensor in before.items():
        part = name.removeprefix("encoder.")
        part = ".".join(part.split(".")[:2]) if part.startswith("layers") else part.split(".")[0]
        parts.setdefault(part, []).append(not torch.equal(tensor, after[name]))
    return {part if all(changed) else f"{part}?" for part, changed in parts.items() if any(changed)}


def test_weights_up_to_the_highest_layer_move_and_no_others(corpus: Corpus, tmp_path: Path) -> None:
    below = {"feature_extractor", "feature_projection", "pos_conv_embed", "layers.0", "layers.1"}
    assert moved(corpus, tmp_path) == below
    assert moved(corpus, tmp_path, freeze_front_end=True) == below - {"feature_extractor"}
    assert moved(corpus, tmp_path, layers=("final",)) == below | {"layers.2", "layer_norm"}
    assert moved(corpus, tmp_path, layers=(0,)) == below - {"layers.0", "layers.1"}
    assert not [name for name in loop.learned_names(learner(corpus, layers=(0,)).system) if "encoder.layer" in name]


def test_learning_rates_go_to_encoder_backend_centroids_and_layer_weights(corpus: Corpus) -> None:
    rates = FinetuneRates(encoder=1.0, backend=2.0, centroids=3.0, layers=4.0)
    trained = learner(corpus, learning_rate=rates, freeze_front_end=True)
    found = {id(p): rate for parameters, rate in trained.groups() for p in parameters}
    for name, parameter in trained.system.named_parameters():
        part = "layers" if name.endswith("logits") else name.split(".")[0]
        expected = (
            {"encoder": 1.0, "backend": 2.0, "loss": 3.0, "layers": 4.0}[part] if parameter.requires_grad else None
        )
        assert found.get(id(parameter)) == expected, name
    assert sorted(set(found.values())) == [1.0, 2.0, 3.0, 4.0]
    assert not trained.system.encoder.model.masked_spec_embed.requires_grad


def test_nothing_in_the_encoder_is_random_in_training(corpus: Corpus) -> None:
    trained = learner(corpus, backend="linear", layers=(1, "final")).system
    windows = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (3, 3_200)).astype(np.float32))
    valid = torch.tensor([3_200, 2_000, 900])
    trained.train()
    first, second = (trained(windows, valid) for _ in range(2))
    assert first.requires_grad
    assert torch.equal(first, second)
    torch.testing.assert_close(first, trained.eval()(windows, valid), rtol=0, atol=0)


LORA = LoraParams(rank=2, alpha=4.0, targets=("q_proj", "out_proj"))


def test_lora_trains_low_rank_updates_alone_and_leaves_a_plain_model(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0)
    changes = {"lora": LORA, "freeze_front_end": True, "loss": "aoc", "average_best": 1}
    result = tuned(corpus, tmp_path, **changes)
    before, after = models_module.load(TINY)[0].state_dict(), result.model.state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    maps = [f"encoder.layers.{layer}.attention.{name}" for layer in (0, 1) for name in LORA.targets]
    assert changed == {f"{name}.weight" for name in maps}
    saved = load_file(tmp_path / "c" / f"weights_{result.selection.kept[0]:04d}.safetensors")
    assert result.parameters == sum(p.numel() for p in result.backend.parameters()) + 4 * 2 * (32 + 32)
    for name in maps:
        a, b = (saved[f"encoder.model.{name}.lora_{part}.default.weight"] for part in "AB")
        torch.testing.assert_close(after[f"{name}.weight"], before[f"{name}.weight"] + 2.0 * b @ a, rtol=0, atol=1e-6)
    place = tmp_path / "finetuned"
    place.mkdir()
    run_card.save(place, result.model, result, run={}, source="random")
    assert models_module.load_deployed(settings().encoder, weights=place)[1].weights_sha256 == cards.weights_sha256(
        result.model
    )
    assert not list(place.glob("adapter*"))


def test_lora_goes_on_to_the_same_bits(corpus: Corpus, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    changes = {"lora": LORA, "freeze_front_end": True, "gradient_checkpointing": True, "epochs": 2}
    expected = tuned(corpus, tmp_path / "whole", **changes)
    with pytest.MonkeyPatch.context() as patch:
        stop(patch, SpeechLearner, "loss", after=3)
        with pytest.raises(StopError):
            tuned(corpus, tmp_path, **changes)
    same(tuned(corpus, tmp_path, **changes), expected)


def test_lora_without_its_extra_is_named(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r'lora needs PEFT, which is not installed: pip install "bonafide\[peft\]"'):
        tuned(corpus, tmp_path, lora=LORA, freeze_front_end=True)


# What a step is


def test_parts_of_a_step_are_the_step(corpus: Corpus) -> None:
    """A mean loss on a backend without batch statistics: the parts' gradients, each by its share, are the whole's."""
    changes = {"backend": "linear", "loss": "oc_softmax"}
    whole_loss, whole = gradients(learner(corpus, batch_size=10, **changes))
    for size in (5, 4, 2):  # 4: parts of 4, 3 and 3
        loss, parts = gradients(learner(corpus, batch_size=size, **changes))
        assert loss == pytest.approx(whole_loss, rel=1e-6)
        assert parts.keys() == whole.keys()
        for name, gradient in whole.items():
            torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=2e-6 * float(gradient.abs().max()) + 1e-9)


def test_gradient_checkpointing_gives_the_same_gradients(corpus: Corpus) -> None:
    def computed(**changes: Any) -> tuple[float, dict[str, torch.Tensor], int]:
        trained = learner(corpus, batch_size=10, **changes)
        calls: list[int] = []
        model = trained.system.encoder.model
        inside = [conv.conv for conv in model.feature_extractor.conv_layers]
        for module in [*inside, *(layer.feed_forward for layer in model.encoder.layers)]:
            module.register_forward_pre_hook(lambda *_: calls.append(1))
        loss, found = gradients(trained)
        return loss, found, len(calls)

    plain_loss, plain, once = computed()
    loss, found, twice = computed(gradient_checkpointing=True)
    assert (once, twice) == (9, 18)  # seven convolutions, two layers of which nothing lies above the tap
    assert loss == plain_loss
    assert found.keys() == plain.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-7)


def test_gradient_checkpointing_leaves_no_trace(corpus: Corpus, tmp_path: Path) -> None:
    plain = tuned(corpus, tmp_path / "plain", epochs=1, freeze_front_end=True)
    found = tuned(corpus, tmp_path, epochs=1, freeze_front_end=True, gradient_checkpointing=True)
    assert cards.weights_sha256(found.model) == cards.weights_sha256(plain.model)
    assert not [name for name, module in found.model.named_modules() if "forward" in vars(module)]


def test_a_step_is_split_evenly_by_class() -> None:
    is_bonafide = np.arange(50) % 5 == 0
    params = FINETUNE.model_copy(update={"batch_size": 4, "accumulate": 3})
    plan = speech.steps(is_bonafide, params, epoch=1)
    assert len(plan) == 5
    for step in plan:
        assert [len(part) for part in step] == [4, 3, 3]
        assert [int(is_bonafide[part].sum()) for part in step] == [1, 1, 0]
    rows = np.concatenate([part for step in plan for part in step])
    assert sorted(rows.tolist()) == list(range(50))
    assert [len(p) for p in speech.split(np.arange(5), size=5)] == [5]
    assert speech.steps(is_bonafide, params, epoch=2)[0][0].tolist() != plan[0][0].tolist()


def test_pooled_features_are_those_of_the_store() -> None:
    frames = torch.randn(3, 2, 7, 5, generator=torch.Generator().manual_seed(0))
    n_frames = torch.tensor([7, 3, 1])
    expected = torch.stack([forward.mean_and_deviation(frames[:, layer], n_frames) for layer in range(2)], dim=1)
    torch.testing.assert_close(pool(frames, n_frames), expected, rtol=1e-5, atol=1e-6)
    one_frame = torch.ones(1, 1, 4, 2, requires_grad=True)
    pool(one_frame, torch.tensor([1])).sum().backward()
    assert one_frame.grad[0, 0].tolist() == [[1, 1], [0, 0], [0, 0], [0, 0]]


def test_bfloat16_computes_the_encoder_alone_in_half_precision(corpus: Corpus) -> None:
    full, half = learner(corpus).system, learner(corpus, precision="bfloat16").system
    seen: list[torch.dtype] = []
    half.encoder.model.encoder.layers[0].attention.register_forward_hook(lambda _m, _i, o: seen.append(o[0].dtype))
    half.backend.register_forward_pre_hook(lambda _m, given: seen.append(given[0].dtype))
    windows = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (2, 3_200)).astype(np.float32))
    valid = torch.tensor([3_200, 2_000])
    expected, found = full(windows, valid), half(windows, valid)
    assert seen == [torch.bfloat16, torch.float32]
    assert found.dtype == torch.float32
    assert 0 < (found - expected).abs().max() < 0.05 * expected.abs().max()
    assert {p.dtype for p in half.parameters()} == {torch.float32}


def test_the_averaged_system_is_scored_in_float32_as_extraction_computes(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored, seen = loop.scored, []
    monkeypatch.setattr(loop, "scored", lambda *given: (seen.append(given[0].system.precision), scored(*given))[1])
    tuned(corpus, tmp_path, precision="bfloat16", epochs=2)
    assert seen == ["bfloat16", "bfloat16", "bfloat16", "float32"]  # two epochs, their mean, and what is deployed


# Views on the fly


def test_a_drawn_view_is_made_of_the_whole_utterance_and_anew_each_epoch(corpus: Corpus) -> None:
    root, table = corpus
    spoken, window = Speech(table, root), settings().extract.window
    samples = decode.load(root / "u4.wav")
    expected = views.apply("rawboost5_0", samples, utterance="3 7 u4")
    found, valid = speech.load_drawn(spoken, 4, "rawboost5_0", seed=3, epoch=7, window=window)
    cut, all_valid = windowing.window(expected, length=3_200, pad="zero")
    np.testing.assert_array_equal(found, cut)
    assert valid == all_valid
    assert not np.array_equal(speech.load_drawn(spoken, 4, "rawboost5_0", seed=3, epoch=8, window=window)[0], cut)
    clean, _ = speech.load_clean(spoken, 4, window=window)
    np.testing.assert_array_equal(clean, windowing.window(samples, length=3_200, pad="zero")[0])


def test_a_drawn_view_takes_its_recordings_which_are_part_of_the_identity(corpus: Corpus, tmp_path: Path) -> None:
    root, table = corpus
    sound = root / "u7.wav"
    (tmp_path / "noise.txt").write_text(f"{hashlib.sha256(sound.read_bytes()).hexdigest()}  {sound}\n")
    sounds = views.all_recordings(["recorded_noise10_0"], tmp_path)
    _, asked = prepared(corpus)
    spoken, window = Speech(table, root, recordings=sounds), asked.window
    found, _ = speech.load_drawn(spoken, 4, "recorded_noise10_0", seed=3, epoch=7, window=window)
    samples = decode.load(root / "u4.wav")
    expected = views.apply("recorded_noise10_0", samples, utterance="3 7 u4", recordings=sounds["recorded_noise10_0"])
    np.testing.assert_array_equal(found, windowing.window(expected, length=window.samples, pad=window.pad)[0])
    with_sounds = dataclasses.replace(asked, train=dataclasses.replace(asked.train, recordings=sounds))
    assert with_sounds.facts["recordings"] == {"recorded_noise10_0": sounds["recorded_noise10_0"].digest}
    assert with_sounds.identity != asked.identity


@pytest.mark.parametrize("peak", [0.9, 300.0])
def test_doubtful_samples_are_refused_in_every_view_where_the_encoder_does_not_normalize(
    tmp_path: Path, peak: float
) -> None:
    samples = np.random.default_rng(0).uniform(-peak, peak, 8_000)
    soundfile.write(tmp_path / "x.wav", samples, 16_000, subtype="FLOAT")
    content = decode.digest((tmp_path / "x.wav").read_bytes())
    rows = [Row(label, label[0], "x.wav", label, content=content) for label in ("bonafide", "spoof")]
    table = trial_table.from_rows(rows, source="x")
    window = settings().extract.window
    for normalized in (True, False):
        spoken = Speech(table, tmp_path, normalized=normalized)
        for read in (speech.load_clean, partial(speech.load_drawn, view="noise_0", seed=1, epoch=1)):
            if normalized or peak < 1:
                assert read(spoken, 0, window=window)[1] == 3_200
                continue
            with pytest.raises(InputError, match=r"utterance b: .*x\.wav: the peak .* does not normalize its input"):
                read(spoken, 0, window=window)


def test_an_epoch_is_its_steps_by_a_naive_loop(corpus: Corpus) -> None:
    """Each utterance in the view that is drawn for it, with its label lowered, as in stage two."""
    changes = {"loss": "qamo", "views": ViewsParams(draw=("noise_0", "rawboost4_0"), probability=0.6)}
    trained, naive = learner(corpus, **changes), learner(corpus, **changes)
    mean = together.alone(loop.train_epoch(trained, Adam(trained.groups(), weight_decay=1e-4), 2))
    drawn = drawing.drawn_views(10, Augment(("noise_0", "rawboost4_0"), 0.6), seed=3, epoch=2)
    assert len(set(drawn.tolist())) == 3
    optimizer, losses = Adam(naive.groups(), weight_decay=1e-4), []
    for step in speech.steps(naive.train.is_bonafide, FINETUNE, epoch=2):
        total = 0.0
        for rows in step:
            heard, level = [], naive.labels.level[torch.from_numpy(rows)].tolist()
            for i, row in enumerate(rows.tolist()):
                view = {-1: None, 0: "noise_0", 1: "rawboost4_0"}[drawn[row]]
                spoken, window = naive.asked.train, naive.asked.window
                if view is None:
                    heard.append(speech.load_clean(spoken, row, window=window))
                else:
                    heard.append(speech.load_drawn(spoken, row, view, seed=3, epoch=2, window=window))
                    level[i] = max(level[i] - 1, 0) if level[i] >= 0 else level[i]
            whole = sampling.take(naive.labels, rows)
            labels = dataclasses.replace(whole, level=torch.tensor(level))
            value = naive.system.loss(naive.system.train()(*speech.batch(heard, CPU)), labels)
            (value * (len(rows) / sum(map(len, step)))).backward()
            total += value.item() * (len(rows) / sum(map(len, step)))
        optimizer.step()
        losses.append(total)
    assert mean == pytest.approx(sum(losses) / len(losses), rel=1e-6)
    for name, tensor in trained.system.state_dict().items():
        assert torch.equal(tensor, naive.system.state_dict()[name]), name


def test_batches_are_decoded_a_little_ahead_and_in_order() -> None:
    started: list[int] = []

    def load_one(row: int) -> int:
        started.append(row)
        return 10 * row

    batches = [np.arange(3 * i, 3 * i + 3) for i in range(8)]
    parts = speech.loaded(batches, load_one)
    for i, (rows, loaded) in enumerate(parts):
        assert rows.tolist() == batches[i].tolist()
        assert loaded == [10 * row for row in rows]
        assert len(started) <= 3 * (i + 1 + speech.AHEAD)
    assert i == 7


def test_all_bad_files_of_a_batch_are_told(corpus: Corpus, tmp_path: Path) -> None:
    root, _ = corpus
    (root / "u3.wav").unlink()
    (root / "u6.wav").write_bytes(b"RIFF")
    with pytest.raises(
        InputError, match=r"2 of \d+ utterances of a batch cannot be used:\n.*utterance u[36].*\n.*u[36]"
    ):
        tuned(corpus, tmp_path, batch_size=10, accumulate=1)


# The same bits after a kill


def same(first: Tuned, second: Tuned) -> None:
    assert first.curves == second.curves
    assert first.selection == second.selection
    assert (first.dev_eer, first.dev_threshold) == (second.dev_eer, second.dev_threshold)
    assert first.centroids.vectors.tobytes() == second.centroids.vectors.tobytes()
    assert cards.weights_sha256(first.model) == cards.weights_sha256(second.model)
    assert cards.weights_sha256(first.backend) == cards.weights_sha256(second.backend)


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, Tuned]:
    """Trainings of the corpus that nothing stopped, by what they changed, each made when it is first wanted."""
    return {}


def whole(uninterrupted: dict[str, Tuned], corpus: Corpus, place: Path, **changes: Any) -> Tuned:
    key = repr(changes)
    if key not in uninterrupted:
        uninterrupted[key] = tuned(corpus, place / "whole", **changes)
    return uninterrupted[key]


class StopError(Exception):
    """Ends a training at a chosen place."""


def stop(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *, after: int) -> None:
    """Keep a checkpoint of every epoch, and let a function raise from its call number `after` + 1 on."""
    original, calls = getattr(owner, name), []

    def stopping(*given: Any, **named: Any) -> Any:
        calls.append(name)
        if len(calls) > after:
            raise StopError
        return original(*given, **named)

    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(owner, name, stopping)


@pytest.mark.parametrize(
    ("owner", "name", "after", "done"),
    [
        (SpeechLearner, "loss", 3, 1),  # within the second epoch
        (loop, "scored", 1, 1),  # after its last step
        (checkpoints, "write", 3, 1),  # its weights are written, Adam's moments are not
        (checkpoints.CheckpointFolder, "keep", 1, 2),  # what is no longer needed is still there
        (loop, "average", 0, 3),  # all are
    ],
)
def test_a_stopped_training_goes_on_to_the_same_bits(
    uninterrupted: dict[str, Tuned], corpus: Corpus, tmp_path: Path, owner: Any, name: str, after: int, done: int
) -> None:
    changes = {"loss": "aoc", "backend": "mlp"}  # the centroid and its count are buffers, the backend has dropout
    expected = whole(uninterrupted, corpus, tmp_path, **changes)
    with pytest.MonkeyPatch.context() as patch:
        stop(patch, owner, name, after=after)
        with pytest.raises(StopError):
            tuned(corpus, tmp_path, **changes)
    told: list[str] = []
    torch.manual_seed(99)  # the global generator plays no part
    same(tuned(corpus, tmp_path, say=told.append, **changes), expected)
    assert told[1] == f"{done} epochs are done; going on with the next"
    assert sum(line.startswith("epoch ") for line in told) == 3 - done


KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.core import trial_table
from pipeline.training import loop
from tests import test_finetune
real = loop.scored
calls = []
def scored(*given):
    calls.append(1)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*given)
loop.scored = scored
loop.CHECKPOINT_SECONDS = 0
root = Path(sys.argv[1])
test_finetune.tuned((root, trial_table.read(Path(sys.argv[2]))), Path(sys.argv[3]), print)
"""


def test_a_killed_training_goes_on_to_the_same_bits(
    uninterrupted: dict[str, Tuned], corpus: Corpus, tmp_path: Path, warm_env: dict[str, str]
) -> None:
    root, table = corpus
    (tmp_path / "trials.csv").write_text(trial_table.to_csv(table))
    command = ["python", "-c", KILLED, str(root), str(tmp_path / "trials.csv"), str(tmp_path)]
    killed = subprocess.run(command, cwd=ROOT, env=warm_env, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    told: list[str] = []
    same(tuned(corpus, tmp_path, say=told.append), whole(uninterrupted, corpus, tmp_path))
    assert told[1].startswith("1 epochs are done")


def test_the_seed_decides_everything(corpus: Corpus, tmp_path: Path) -> None:
    first = tuned(corpus, tmp_path / "a", epochs=1)
    other = tuned(corpus, tmp_path / "b", epochs=1, seed=4)
    assert cards.weights_sha256(first.model) != cards.weights_sha256(other.model)


def test_what_the_result_depends_on_is_its_identity(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    _, asked = prepared(corpus)
    assert prepared(corpus)[1].identity == asked.identity
    assert len(asked.identity) == 16

    def params(**changes: Any) -> Asked:
        return dataclasses.replace(asked, params=asked.params.model_copy(update=changes))

    def speech_of(trials: Trials) -> Speech:
        return Speech(trials, asked.train.root)

    table, labels, cell = asked.train.trials, asked.labels, asked.cell
    other_audio = dataclasses.replace(table, content=np.array(["0" * 16, *table.content[1:].tolist()]))
    flipped = dataclasses.replace(table, is_bonafide=~table.is_bonafide)
    variants = [
        asked,
        *(params(**change) for change in ({"weight_decay": 0.0}, {"seed": 4}, {"layers": (1,)}, {"epochs": 4})),
        dataclasses.replace(asked, window=WindowParams(samples=3_200, pad="repeat")),
        dataclasses.replace(asked, card=dataclasses.replace(asked.card, weights_sha256="0" * 64)),
        dataclasses.replace(asked, card=dataclasses.replace(asked.card, normalize="none")),
        dataclasses.replace(asked, cell=dataclasses.replace(cell, backend_parameters={"embedding_dim": 2})),
        dataclasses.replace(asked, cell=dataclasses.replace(cell, loss_parameters={"bonafide_weight": 2.0})),
        dataclasses.replace(asked, labels=dataclasses.replace(labels, level=labels.level + 1)),
        dataclasses.replace(asked, train=speech_of(other_audio)),
        dataclasses.replace(asked, dev=speech_of(other_audio)),
        dataclasses.replace(asked, dev=speech_of(table.take(np.arange(9)))),
        dataclasses.replace(asked, dev=speech_of(flipped)),
    ]
    known = {one.identity for one in variants}
    assert len(known) == len(variants)
    elsewhere = dataclasses.replace(asked, train=Speech(table, Path("/elsewhere")))
    moved = dataclasses.replace(asked, card=dataclasses.replace(asked.card, source="another/path"))
    assert {elsewhere.identity, moved.identity, params(on=False).identity} == {asked.identity}
    default = dataclasses.replace(asked, cell=dataclasses.replace(cell, loss_parameters={"bonafide_weight": None}))
    assert default.identity == asked.identity
    monkeypatch.setattr(plan, "FINETUNE_VERSION", plan.FINETUNE_VERSION + 1)
    assert dataclasses.replace(asked).identity not in known


def test_the_arithmetic_is_that_of_its_version(corpus: Corpus, tmp_path: Path) -> None:
    """Golden: where these losses change, raise FINETUNE_VERSION, or encoders of before are taken for those of now."""
    assert plan.FINETUNE_VERSION == 2
    losses = [epoch.loss for epoch in tuned(corpus, tmp_path, views=CLEAN).curves]
    assert losses == pytest.approx([1.04705, 0.63725, 0.75894], rel=2e-3)


# Selection


@pytest.mark.parametrize(("mean", "averages"), [(15.0, True), (99.0, False)])
def test_selection_averages_the_best_where_that_is_no_worse_and_stops_after_patience(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mean: float, averages: bool
) -> None:
    script = iter([40.0, 30.0, 35.0, 30.0, 20.0, 25.0, 20.0, 30.0, mean, mean if averages else 20.0])
    states: list[dict[str, torch.Tensor]] = []
    real = loop.scored

    def watched(trained: SpeechLearner, *given: Any) -> Any:
        states.append(loop.learned(trained.system))
        return real(trained, *given)

    monkeypatch.setattr(loop, "scored", watched)
    monkeypatch.setattr(loop, "dev_eer", lambda _scores, _dev: Eer(next(script) / 100, 0.5, 0))
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0)
    result = tuned(corpus, tmp_path, epochs=20, patience=3, average_best=3)
    assert [e.dev_eer for e in result.curves] == pytest.approx(
        [40, 30, 35, 30, 20, 25, 20, 30]
    )  # three without a lower
    best = min((5, 7), key=lambda epoch: result.curves[epoch - 1].dev_loss)
    kept = (5, 6, 7) if averages else (best,)
    assert result.selection.kept == kept
    assert result.dev_eer == pytest.approx(mean if averages else 20)
    name = "encoder.model.encoder.layers.0.attention.q_proj.weight"
    expected = torch.stack([states[i - 1][name] for i in kept]).mean(0)
    found = result.model.state_dict()[name.removeprefix("encoder.model.")]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)
    assert torch.equal(found, states[-1][name])
    weights = [f"weights_{epoch:04d}.safetensors" for epoch in (5, 6, 7, 8)]
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["last.safetensors", *weights]


# Every loss, and what is told


@pytest.mark.parametrize("loss", ["aoc", "qamo", "am_softmax", "oc_softmax", "multi_centre", "samo"])
def test_every_loss_can_be_fine_tuned_with(corpus: Corpus, tmp_path: Path, loss: str) -> None:
    before = cards.weights_sha256(models_module.load(TINY)[0])
    result = tuned(corpus, tmp_path, loss=loss, backend="linear", epochs=1, batch_size=2, accumulate=1)
    assert cards.weights_sha256(result.model) != before
    assert 0 <= result.dev_eer <= 100


def test_centres_of_speakers_are_enrolled_by_the_averaged_system(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "dev_eer", lambda _scores, _dev: Eer(0.2, 0.5, 0))  # so that the mean is no worse
    result = tuned(corpus, tmp_path, loss="samo", backend="linear", epochs=2)
    _, table = corpus
    found = embedded(result, corpus)
    for speaker, vector in enumerate(result.centroids.vectors):
        mean = found[(table.speaker == f"s{speaker}") & table.is_bonafide].mean(0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)


def test_a_loss_that_enrols_is_asked_before_every_epoch(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int, list[int]]] = []

    def start_epoch(_loss: Any, epoch: int, enrolment: Callable[[], tuple[torch.Tensor, torch.Tensor]]) -> None:
        embeddings, speaker = enrolment()
        asked.append((epoch, len(embeddings), speaker.tolist()))

    monkeypatch.setattr(samo.Loss, "start_epoch", start_epoch)
    tuned(corpus, tmp_path, loss="samo", backend="linear", epochs=2)
    assert asked == [(1, 5, [1, 0, 2, 1, 0]), (2, 5, [1, 0, 2, 1, 0])]


def test_centroids_that_the_last_step_made_infinite_are_an_error(corpus: Corpus) -> None:
    trained = learner(corpus)
    trained.system.loss.classify.bias.data[0] = torch.inf
    with pytest.raises(InputError, match=r"centroids must be finite; lower encoder\.finetune\.learning_rate"):
        loop.scored(trained)


def embedded(result: Tuned, corpus: Corpus) -> np.ndarray:
    """Embeddings (N, E) of the pooled features that extraction would store of layers 1 and 2."""
    root, table = corpus
    encoder = xlsr.Encoder(result.model, taps=(1, 2), normalize="utterance")
    loaded = [speech.load_clean(Speech(table, root), i, window=settings().extract.window) for i in range(10)]
    taps, n_frames = encoder(*speech.batch(loaded, CPU))
    pooled = torch.stack([forward.mean_and_deviation(taps[tap], n_frames) for tap in (1, 2)], dim=1)
    with torch.no_grad():
        return result.backend(pooled.clone(), n_frames.clone()).numpy()


def test_what_is_about_to_be_done_is_told(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "TIMED", 2)
    ticks = itertools.count(step=4)  # seconds, from the first look at the clock to the second, two steps later
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    told: list[str] = []
    result = tuned(corpus, tmp_path, say=told.append, freeze_front_end=True, accumulate=1)
    lines = told[0].splitlines()
    assert lines[0] == "10 utterances to train on, 10 to select on; layers 1, 2; float32 on cpu"
    total = f"{result.parameters:,}"
    assert lines[1].startswith(f"{total} trainable parameters: ")
    assert lines[2] == "3 steps of 1 × 4 utterances an epoch, up to 3 epochs"
    assert lines[3].endswith("for weights, gradients and Adam's moments; activations come on top")
    assert told[1] == "about 6 s an epoch, 18 s for all 3, without scoring the dev set"
    assert [line.split(":")[0] for line in told[2:]] == ["epoch 1", "epoch 2", "epoch 3"]
    frozen, free = learner(corpus, freeze_front_end=True), learner(corpus)
    front_end = sum(p.numel() for p in frozen.system.encoder.model.feature_extractor.parameters())
    assert loop.count(free.groups()) - loop.count(frozen.groups()) == front_end > 0
    assert result.parameters == loop.count(frozen.groups())


def test_a_loss_that_explodes_is_an_error(corpus: Corpus, tmp_path: Path) -> None:
    rates = FinetuneRates(encoder=1e30, backend=1e30, centroids=1e30, layers=1e30)
    with pytest.raises(
        InputError, match=r"the (loss is (nan|inf)|.* not finite); lower encoder\.finetune\.learning_rate"
    ):
        tuned(corpus, tmp_path, learning_rate=rates, accumulate=1)


# What is written


@pytest.mark.parametrize("backend", ["linear", "asp"])
def test_what_is_written_is_what_was_trained(corpus: Corpus, tmp_path: Path, backend: str) -> None:
    """transformers loads the encoder, and the run scores the features extracted with it as training did."""
    root, table = corpus
    model, asked = prepared(corpus, backend=backend, average_best=1)
    card, result = asked.card, tune(model, asked, tmp_path / "c")
    written = cards.card_of(result.model, source="encoders/w", normalize="utterance")
    run = run_card.run_card(result, asked)
    (tmp_path / "w").mkdir()
    run_card.save(tmp_path / "w", result.model, result, run=run, source="random")
    files = sorted(str(path.relative_to(tmp_path / "w")) for path in (tmp_path / "w").rglob("*") if path.is_file())
    in_run = [f"run/{name}" for name in ("backend.safetensors", "centroids.faiss", "run.json")]
    assert files == ["README.txt", "config.json", "model.safetensors", *in_run]

    loaded, found = models_module.load_deployed(settings().encoder, weights=tmp_path / "w")
    assert found == written
    assert found.architecture == card.architecture
    assert found.weights_sha256 != card.weights_sha256
    plain = Wav2Vec2Model.from_pretrained(tmp_path / "w", attn_implementation="sdpa").eval()
    assert plain.config.layerdrop == plain.config.hidden_dropout == 0
    samples = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 3_200)).astype(np.float32))
    with torch.inference_mode():
        expected = result.model(samples).last_hidden_state
        assert torch.equal(plain(samples).last_hidden_state, expected)
        assert len(plain.encoder.layers) == 3

    params = settings().extract.model_copy(
        update={"layers": (1, 2), "shard": 4, "batch_size": 3, "precision": "float32"}
    )
    receipt = planning.extract(
        table,
        set_name="dev",
        audio_root=root,
        root=tmp_path / "cache",
        card=found,
        encoder=lambda taps: xlsr.Encoder(loaded, taps=taps, normalize="utterance"),
        params=params,
        say=lambda _: None,
    )
    (tmp_path / "dev.json").write_text(json.dumps(receipt))
    data = dataset.open_set(tmp_path / "dev.json", table, root=tmp_path / "cache", reads=run["reads"])
    assert data.kind.items() > runs.card(tmp_path / "w" / "run")["kind"].items()
    index = centroids.build(runs.centroids(tmp_path / "w" / "run"))
    scores = scorer.score_all(runs.backend(tmp_path / "w" / "run"), index, data).astype(float)
    error = official_eer(det_points(scores[table.is_bonafide], scores[~table.is_bonafide]))
    assert 100 * error.eer == pytest.approx(result.dev_eer)
    assert error.threshold == pytest.approx(result.dev_threshold, abs=1e-5)


def test_a_run_card_has_what_reading_a_run_needs(corpus: Corpus, tmp_path: Path) -> None:
    model, asked = prepared(corpus, loss="qamo", epochs=1)
    card, result = asked.card, tune(model, asked, tmp_path / "c")
    run = json.loads(json.dumps(run_card.run_card(result, dataclasses.replace(asked, cuts=(2.5,)))))
    assert set(runs.KEYS) - {"scoring"} <= run.keys()
    assert (run["backend"], run["loss"], run["quality_thresholds"], run["reads"]) == ("asp", "qamo", [2.5], "frames")
    assert run["kind"]["layers"] == [1, 2]
    assert run["kind"]["channels"] == 32
    assert run["finetune"]["learning_rate"]["encoder"] == 1e-3
    assert run["epochs_averaged"] == [1]
    assert run["finetuned_from"] == {"source": "random", "weights_sha256": card.weights_sha256}
    (line,) = run["curves"]
    assert line == {name: getattr(result.curves[0], name) for name in history.COLUMNS}  # no seconds


def test_a_checkpoint_holds_adam_and_no_frozen_weights(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0)
    trained = learner(corpus, freeze_front_end=True)
    tuned(corpus, tmp_path, epochs=1, freeze_front_end=True)
    folder = tmp_path / "c"
    weights, last = load_file(folder / "weights_0001.safetensors"), load_file(folder / "last.safetensors")
    assert not [name for name in weights if "feature_extractor" in name or "masked" in name]
    assert {name.split(".")[0] for name in weights} == {"encoder", "backend", "loss"}
    kinds = [name.rpartition(".")[2] for name in last]
    learn = sum(len(parameters) for parameters, _ in trained.groups())
    assert kinds.count("mean") == kinds.count("square") == kinds.count("step") == learn == len(weights)
    assert {float(last[name]) for name in last if name.endswith("step")} == {2.0}


# Wrong parameters


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("backend", "resnet", r"finetune\.backend: expected one of linear, asp.*, got 'resnet'"),
        ("loss", "focal", r"finetune\.loss: expected one of aoc.*, got 'focal'"),
        ("set", "training", r"finetune\.set: expected one of the sets train, eval, also .*got 'training'"),
        ("set", "dev", r"finetune\.set: expected one of train, eval, got 'dev'"),
        ("layers", "[1, 4]", r"finetune\.layers\.1: expected 0 to 3 or final, got 4"),
        ("layers", "[1, 1]", r"finetune\.layers: expected each entry once"),
        ("layers", "[]", r"finetune\.layers: "),
        (
            "views",
            "{draw: [rawboost9_0], probability: 0.5}",
            r"finetune\.views\.draw\.0: expected a view .*'rawboost9_0'",
        ),
        ("views", "{draw: [], probability: 0.5}", r"finetune\.views: expected views to draw"),
        ("epochs", "0", r"finetune\.epochs: expected greater than 0, got 0"),
        ("accumulate", "1.5", r"finetune\.accumulate: expected a valid integer"),
        ("batch_size", "1", r"finetune\.batch_size: expected greater than or equal to 2, got 1"),
        ("precision", "float16", r"finetune\.precision: expected 'float32' or 'bfloat16'"),
        (
            "learning_rate",
            "{encoder: 0, backend: 1, centroids: 1, layers: 1}",
            r"learning_rate\.encoder: expected greater",
        ),
        ("learning_rate", "{backend: 1.0, centroids: 1.0, layers: 1.0}", r"learning_rate\.encoder: missing"),
        ("freeze_front_end", "0", r"finetune\.freeze_front_end: expected a valid boolean"),
        ("lora", "{rank: 2, alpha: 4.0, targets: [proj]}", r"finetune\.lora\.targets\.0: expected 'q_proj'"),
        ("momentum", "0.9", r"finetune\.momentum: unknown parameter"),
    ],
)
def test_a_wrong_parameter_is_named_with_its_line(
    card: Card, tmp_path: Path, key: str, value: str, message: str
) -> None:
    section = {name: json.dumps(value) for name, value in FINETUNE.model_dump().items()} | {key: value}
    lines = SETTINGS.read_text().splitlines()
    at, end = (
        next(i for i, line in enumerate(lines) if line.startswith(start)) for start in ("  finetune:", "features:")
    )
    lines[at:end] = ["  finetune:", *(f"    {name}: {value}" for name, value in section.items()), ""]
    path = tmp_path / "params.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=message) as caught:
        plan.chosen(load(path), card)
    line = at + 2 + list(section).index(key)  # lines count from 1
    assert f"{path}:{line}: encoder.finetune." in str(caught.value)


def test_a_folder_without_weights_is_no_fine_tuned_encoder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"w: no fine-tuned encoder there; run `dvc repro -f encoder`"):
        models_module.load_deployed(settings().encoder, weights=tmp_path / "w")
    assert models_module.load_deployed(TINY, weights=tmp_path / "w")[1] == models_module.load(TINY)[1]
