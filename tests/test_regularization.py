"""Options of fine-tuning: learning rates that change, clipped gradients, random windows, and a noisy encoder."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from pydantic import ValidationError

from pipeline.audio import decode, windowing
from pipeline.core import trial_table
from pipeline.core.encoder_sections import LATER, FinetuneParams
from pipeline.core.sections import WindowParams
from pipeline.core.trial_table import Row
from pipeline.encoder import cards
from pipeline.finetuning import regularization, schedule, speech
from pipeline.finetuning.finetune import SpeechLearner
from pipeline.finetuning.speech import Speech
from pipeline.training.adam import Adam
from tests.conftest import Corpus
from tests.test_finetune import FINETUNE, StopError, learner, prepared, stop, tuned

NOISY = {
    "warm_up": 1.0,
    "schedule": "cosine",
    "clip_gradient": 0.5,
    "crop": "random",
    "dropout": 0.1,
    "layer_drop": 0.3,
    "mask_frames": 0.4,
    "mask_channels": 0.2,
}
VALID = torch.tensor([3_200, 2_000, 900])


def windows() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (3, 3_200)).astype(np.float32))


# Learning rates and gradients


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("constant", [0.25, 0.5, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.25, 0.5, 1.0, 0.75, 0.5, 0.0]),
        ("cosine", [0.25, 0.5, 1.0, (1 + np.sqrt(0.5)) / 2, 0.5, 0.0]),
    ],
)
def test_rates_rise_for_the_warm_up_and_then_follow_the_schedule(kind: str, expected: list[float]) -> None:
    params = FINETUNE.model_copy(update={"epochs": 10, "warm_up": 2.0, "schedule": kind})
    found = [schedule.rate(params, done=done) for done in (0.5, 1.0, 2.0, 4.0, 6.0, 10.0)]
    assert found == pytest.approx(expected)
    assert schedule.rate(FINETUNE, done=0.01) == schedule.rate(FINETUNE, done=3.0) == 1.0


def test_a_step_has_the_rate_of_its_end(corpus: Corpus) -> None:
    """Ten utterances in steps of eight make two steps an epoch."""
    trained = learner(corpus, epochs=2, warm_up=1.0, schedule="linear")
    assert [trained.pace(epoch, step) for epoch in (1, 2) for step in (1, 2)] == [0.5, 1.0, 0.5, 0.0]
    assert trained.clip is None


def test_a_warm_up_leaves_epochs_to_train() -> None:
    with pytest.raises(ValidationError, match="a warm_up of fewer than the 3 epochs, got 3"):
        FinetuneParams.model_validate(FINETUNE.model_dump() | {"warm_up": 3.0})


def test_a_step_is_that_of_torch_with_clipped_gradients() -> None:
    ours, theirs = ([torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0])) for _ in range(2)] for _ in range(2))
    mine = Adam([(ours[:1], 0.1), (ours[1:], 0.2)], weight_decay=0.01)
    groups = [{"params": [p], "lr": lr} for p, lr in zip(theirs, (0.05, 0.1), strict=True)]
    other = torch.optim.Adam(groups, weight_decay=0.01)
    for scale in (10.0, 0.001):  # a norm above 1, and one below it
        for some in (ours, theirs):
            for i, parameter in enumerate(some):
                parameter.grad = scale * torch.tensor([3.0, 0.0, 4.0 + i])
        torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        other.step()
        mine.step(factor=0.5, clip=1.0)
        for one, two in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-7)
    assert all(parameter.grad is None for parameter in ours)


# Random windows


def test_a_random_window_begins_anywhere_and_another_one_each_epoch(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 9_000).astype(np.float32)
    for name, samples in (("long", noise), ("short", noise[:2_000]), ("late", np.append(noise[:3_200], [0.0] * 9_000))):
        soundfile.write(tmp_path / f"{name}.wav", samples, 16_000, subtype="FLOAT")
    rows = [
        Row(name, name, f"{name}.wav", label, content=decode.digest((tmp_path / f"{name}.wav").read_bytes()))
        for name, label in (("long", "bonafide"), ("short", "spoof"), ("late", "spoof"))
    ]
    spoken, window = Speech(trial_table.from_rows(rows, source="x"), tmp_path), WindowParams(samples=3_200, pad="zero")

    def drawn(row: int, epoch: int) -> windowing.Samples:
        found = speech.load_drawn(spoken, row, "clean", seed=3, epoch=epoch, window=window, crop="random")
        return found[0]

    starts = []
    for epoch in range(1, 41):
        cut = drawn(0, epoch)
        (start,) = np.flatnonzero(noise[: 9_000 - 3_199] == cut[0])
        np.testing.assert_array_equal(cut, noise[start : start + 3_200])
        starts.append(int(start))
    assert len(set(starts)) > 30
    assert min(starts) < 600
    assert max(starts) > 5_200
    np.testing.assert_array_equal(drawn(0, 1), drawn(0, 1))
    np.testing.assert_array_equal(drawn(1, 1), speech.load_clean(spoken, 1, window=window)[0])  # all of it fits
    heads = [np.array_equal(drawn(2, epoch), noise[:3_200]) for epoch in range(1, 21)]
    assert any(heads)  # in place of silence
    assert all(np.ptp(drawn(2, epoch)) > 0 for epoch in range(1, 21))


# A noisy encoder


def test_spans_take_the_share_and_stay_in_the_signal() -> None:
    torch.manual_seed(0)
    sizes = torch.tensor([200, 100, 9])
    counts = torch.zeros(3)
    for _ in range(400):
        hidden = regularization.spans(sizes, 200, share=0.1, span=10)
        counts += hidden.sum(1)
        assert not hidden[1, 100:].any()
        assert not hidden[2].any()  # shorter than a span
    assert counts[0] / 400 == pytest.approx(19.5, abs=0.5)  # two spans, which overlap in about 1 of 20
    assert counts[1] / 400 == pytest.approx(10, abs=0.5)
    assert regularization.spans(sizes, 200, share=0.025, span=10).sum() in (0, 10, 20)


def test_all_of_it_is_off_in_eval_mode_and_seeded_in_training(corpus: Corpus) -> None:
    plain, noisy = (learner(corpus, layers=(1, "final"), **changes).system for changes in ({}, NOISY))
    given = windows(), VALID
    assert torch.equal(noisy.eval()(*given), plain.eval()(*given))

    def of(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return noisy.train()(*given)

    assert torch.equal(of(1), of(1))
    assert not torch.equal(of(1), of(2))


def test_a_layer_that_is_passed_over_gives_what_it_got(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = learner(corpus, layers=(0, 1, 2), layer_drop=0.5).system.encoder.train()
    draws = iter([0.9, 0.1])  # the first layer stays, the second one goes
    drawn = torch.rand
    # transformers draws for its own layer drop, too: a list of no sizes, where ours is a tuple.
    monkeypatch.setattr(torch, "rand", lambda size: torch.tensor(next(draws)) if size == () else drawn(size))
    taps, _ = encoder.features(windows(), VALID)
    assert torch.equal(taps[2], taps[1])
    assert not torch.equal(taps[1], taps[0])
    taps[2].sum().backward()
    first, second = encoder.model.encoder.layers[:2]
    assert first.attention.q_proj.weight.grad is not None
    assert second.attention.q_proj.weight.grad is None


def test_masked_frames_and_channels_are_those_of_pretraining_and_zero(corpus: Corpus) -> None:
    long, valid = torch.randn(2, 16_000, generator=torch.Generator().manual_seed(0)), torch.tensor([16_000, 9_000])

    def inputs(**changes: Any) -> tuple[torch.Tensor, Any]:
        encoder = learner(corpus, layers=(0,), **changes).system.encoder.train()
        found: list[torch.Tensor] = []
        encoder.model.feature_projection.register_forward_hook(lambda _m, _i, output: found.append(output[0]))
        torch.manual_seed(5)
        encoder.features(long, valid)
        return found[0], encoder

    plain, encoder = inputs()
    (masked, _), (thin, _) = inputs(mask_frames=0.99), inputs(mask_channels=0.5)
    changed = (masked != plain).any(2)  # (B, T)
    assert 10 <= changed[0].sum() < 49
    assert changed[1].any()
    assert not changed[1, int(encoder.n_frames(valid)[1]) :].any()
    for b, t in changed.nonzero().tolist():
        assert torch.equal(masked[b, t], encoder.model.masked_spec_embed.detach())
    gone = (thin != plain).any(1)  # (B, D)
    assert gone.any(1).all()
    for b, d in gone.nonzero().tolist():
        assert not thin[b, :, d].any()
    assert torch.equal(thin.masked_fill(gone[:, None], 0), plain.masked_fill(gone[:, None], 0))


def test_dropout_is_in_every_layer(corpus: Corpus) -> None:
    model = learner(corpus, dropout=0.25).system.encoder.model
    assert {part.p for part in model.modules() if isinstance(part, torch.nn.Dropout)} == {0.25}
    assert {layer.attention.dropout for layer in model.encoder.layers} == {0.25}


def test_a_stopped_training_with_all_options_goes_on_to_the_same_bits(corpus: Corpus, tmp_path: Path) -> None:
    changes = NOISY | {"epochs": 2, "gradient_checkpointing": True}
    expected = tuned(corpus, tmp_path / "whole", **changes)
    with pytest.MonkeyPatch.context() as patch:
        stop(patch, SpeechLearner, "loss", after=3)
        with pytest.raises(StopError):
            tuned(corpus, tmp_path, **changes)
    found = tuned(corpus, tmp_path, **changes)
    assert found.curves == expected.curves
    assert cards.weights_sha256(found.model) == cards.weights_sha256(expected.model)


def test_options_that_change_nothing_are_no_part_of_the_identity(corpus: Corpus) -> None:
    _, asked = prepared(corpus)
    assert not set(LATER) & asked.facts["finetune"].keys()
    assert NOISY.keys() == set(LATER)
    assert "label_smoothing" not in asked.facts["loss"]
    known = {asked.identity}
    for name, value in NOISY.items():
        changed = dataclasses.replace(asked, params=asked.params.model_copy(update={name: value}))
        assert changed.facts["finetune"][name] == value
        known.add(changed.identity)
    cell = dataclasses.replace(asked.cell, loss_parameters={"label_smoothing": 0.1})
    known.add(dataclasses.replace(asked, cell=cell).identity)
    assert len(known) == 2 + len(NOISY)
