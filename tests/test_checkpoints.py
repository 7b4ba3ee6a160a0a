"""Checkpoints of others: whatever stands around an encoder, its features are those of the same weights in a folder."""

import json
import os
import pickle
import re
import sys
import types
import warnings
from argparse import Namespace
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import HubertConfig, HubertModel, Wav2Vec2Config, Wav2Vec2Model, WavLMConfig, WavLMModel

from pipeline.core import params_file
from pipeline.core.encoder_sections import EncoderParams
from pipeline.core.errors import InputError, run_command
from pipeline.encoder import models, sources, tensor_files, xlsr
from pipeline.encoder.cards import FAIRSEQ_EPS, TRANSFORMERS_EPS
from stages import encoder as stage
from tests.golden import GOLDEN

pytestmark = pytest.mark.usefixtures("no_trial_reading")
ROOT = Path(__file__).parents[1]
State = dict[str, Tensor]
SIZES = {  # the width of wav2vec 2.0 base, whose number of heads is known; all else is small
    "num_hidden_layers": 2, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 24,
    "conv_dim": (16,) * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 16,
}  # fmt: skip
LIKE_XLSR = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
KINDS = {
    "like XLSR": lambda: Wav2Vec2Model(Wav2Vec2Config(**SIZES, **LIKE_XLSR)),
    "base": lambda: Wav2Vec2Model(Wav2Vec2Config(**SIZES)),
    "hubert": lambda: HubertModel(HubertConfig(**SIZES, **LIKE_XLSR)),
    "wavlm": lambda: WavLMModel(WavLMConfig(**SIZES, num_buckets=20)),
}
# transformers' names to fairseq's, one a line as fairseq's modules are called
TO_FAIRSEQ = (
    ("masked_spec_embed", "mask_emb"),
    (r"(feature_extractor\.conv_layers\.\d+)\.conv\.", r"\1.0."),
    (r"feature_projection\.projection\.", "post_extract_proj."),
    (r"feature_projection\.layer_norm\.", "layer_norm."),
    (r"encoder\.pos_conv_embed\.conv\.parametrizations\.weight\.original0", "encoder.pos_conv.0.weight_g"),
    (r"encoder\.pos_conv_embed\.conv\.parametrizations\.weight\.original1", "encoder.pos_conv.0.weight_v"),
    (r"encoder\.pos_conv_embed\.conv\.bias", "encoder.pos_conv.0.bias"),
    (r"\.attention\.gru_rel_pos_linear\.", ".self_attn.grep_linear."),
    (r"\.attention\.gru_rel_pos_const", ".self_attn.grep_a"),
    (r"\.attention\.rel_attn_embed\.", ".self_attn.relative_attention_bias."),
    (r"\.attention\.", ".self_attn."),
    (r"(layers\.\d+)\.layer_norm\.", r"\1.self_attn_layer_norm."),
    (r"\.feed_forward\.intermediate_dense\.", ".fc1."),
    (r"\.feed_forward\.output_dense\.", ".fc2."),
)  # fmt: skip


def as_fairseq(state: Mapping[str, Tensor]) -> State:
    """The same weights by fairseq's names: layer norms of convolutions lie one module deeper than a group norm."""
    out = {}
    for name, tensor in state.items():
        conv = re.fullmatch(r"(feature_extractor\.conv_layers\.\d+)\.layer_norm\.(\w+)", name)
        if conv:
            deeper = "2.1" if "feature_extractor.conv_layers.1.layer_norm.weight" in state else "2"
            out[f"{conv[1]}.{deeper}.{conv[2]}"] = tensor
            continue
        new = name
        for pattern, ours in TO_FAIRSEQ:
            new = re.sub(pattern, ours, new)
        out[new] = tensor
    return out


def old_spelling(state: Mapping[str, Tensor]) -> State:
    return {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in state.items()
    }


def new_spelling(state: Mapping[str, Tensor]) -> State:
    new = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    return {re.sub(r"weight_[gv]$", lambda found: new[found[0]], name): tensor for name, tensor in state.items()}


def below(prefix: str, state: Mapping[str, Tensor], **others: Tensor) -> State:
    return {prefix + name: tensor for name, tensor in state.items()} | others


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    """A model of each kind."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return {kind: make().eval() for kind, make in KINDS.items()}


@pytest.fixture(scope="module")
def state(made: dict[str, Any]) -> State:
    """The weights of the one like XLSR, by transformers' names."""
    return dict(made["like XLSR"].state_dict())


def load(path: Path | str, normalize: str = "utterance", **more: Any) -> tuple[Any, Any]:
    return models.load(EncoderParams(source=str(path), normalize=normalize, **more))


def features(model: Any) -> dict[Any, Tensor]:
    encode = xlsr.Encoder(model, taps=(0, 1, 2, "final"), normalize="none")
    windows = torch.from_numpy(np.random.default_rng(0).normal(0, 1, (2, 2_000)).astype("f4"))
    return encode(windows, torch.tensor([2_000, 1_300]))[0]


@pytest.fixture(scope="module")
def expected(made: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[Any, Tensor]]:
    """The features of each model's weights in a folder that transformers wrote."""
    found = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Support for mismatched")  # transformers' WavLM, with padding
        for kind, model in made.items():
            folder = tmp_path_factory.mktemp("folder")
            model.save_pretrained(folder)
            found[kind] = features(load(folder)[0])
    return found


def same(path: Path | str, wanted: dict[Any, Tensor]) -> Any:
    """Load the encoder and compare its features; its card is given back."""
    model, card = load(path)
    for tap, found in features(model).items():
        torch.testing.assert_close(found, wanted[tap], rtol=0, atol=1e-5)
    return card


HEAD = {"proj_fc.weight": torch.ones(2, 768), "proj_fc.bias": torch.ones(2)}
WRAPPINGS: dict[str, Callable[[State], Any]] = {
    "plain": lambda s: s,
    "ordered": OrderedDict,
    "state_dict": lambda s: {"epoch": 3, "state_dict": below("ssl_model.model.", s, **HEAD)},
    "model_state_dict": lambda s: {"model_state_dict": below("frontend.model.", s, **HEAD), "optimizer": {"lr": 1.0}},
    "model": lambda s: {"model": below("encoder.", s, **HEAD)},
    "nested": lambda s: {"checkpoint": {"net": {"model": below("a.b.c.", s)}}},
    "DataParallel": lambda s: below("module.ssl_model.model.", s, **{f"module.{k}": v for k, v in HEAD.items()}),
    "compiled": lambda s: below("_orig_mod.front._orig_mod.", s, **HEAD),
    "compiled by layer": lambda s: {re.sub(r"(layers\.\d+)\.", r"\1._orig_mod.", n): t for n, t in s.items()},
    "AntiDeepfake": lambda s: below("m_ssl.model.", s, **HEAD),
    "beside other heads": lambda s: s | HEAD | {"LL.weight": torch.ones(3), "backend.encoder.weight": torch.ones(3)},
    "two names of one part": lambda s: below("model.", s) | below("alias.", s),
    "an average beside it": lambda s: {
        "ema": below("m.", {n: t + 1 for n, t in s.items()}),
        "state_dict": below("m.", s),
    },
    "parameters": lambda s: {n: torch.nn.Parameter(t) for n, t in s.items()},
}
NAMINGS: dict[str, Callable[[Mapping[str, Tensor]], State]] = {
    "fairseq, old weight norm": as_fairseq,
    "fairseq, new weight norm": lambda s: new_spelling(as_fairseq(s)),
    "transformers, old weight norm": old_spelling,
    "transformers, new weight norm": dict,
}


SPELLINGS = ["fairseq, new weight norm", "transformers, old weight norm"]  # the others, below any prefix alike


@pytest.mark.parametrize(
    ("wrapping", "naming"),
    [(wrapping, naming) for wrapping in WRAPPINGS for naming in NAMINGS if naming not in SPELLINGS]
    + [(wrapping, naming) for wrapping in ("plain", "state_dict") for naming in SPELLINGS],
)
def test_whatever_stands_around_an_encoder(
    state: State, expected: dict[str, Any], tmp_path: Path, wrapping: str, naming: str
) -> None:
    torch.save(WRAPPINGS[wrapping](NAMINGS[naming](state)), tmp_path / "best.pth")
    card = same(tmp_path / "best.pth", expected["like XLSR"])
    assert card.normalize_eps == (FAIRSEQ_EPS if naming.startswith("fairseq") else TRANSFORMERS_EPS)


def test_a_countermeasure_around_the_model_of_torchaudio(
    state: State, expected: dict[str, Any], tmp_path: Path
) -> None:
    places = {"feature_projection.": "encoder.feature_projection.", "encoder.": "encoder.transformer."}
    weights = {
        next((new + name.removeprefix(old) for old, new in places.items() if name.startswith(old)), name): tensor
        for name, tensor in state.items()
        if name != "masked_spec_embed"
    }
    torch.save({"state_dict": below("ssl.model.", old_spelling(weights), **HEAD)}, tmp_path / "best.pt")
    assert same(tmp_path / "best.pt", expected["like XLSR"]).normalize_eps == FAIRSEQ_EPS


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # transformers' WavLM, with padding
@pytest.mark.parametrize("naming", ["fairseq, old weight norm", "transformers, new weight norm"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_comes_from_the_weights(
    made: dict[str, Any], expected: dict[str, Any], tmp_path: Path, kind: str, naming: str
) -> None:
    torch.save({"state_dict": below("front.", NAMINGS[naming](made[kind].state_dict()))}, tmp_path / "x.ckpt")
    card = same(tmp_path / "x.ckpt", expected[kind])
    assert card.architecture["model_type"] == ("wavlm" if kind == "wavlm" else "wav2vec2")


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.ckpt", "a.bin", "a.safetensors", "a.PT", "a", "somebody/xlsr"])
@pytest.mark.parametrize("safe", [False, True])
def test_the_content_counts_and_not_the_suffix(
    state: State, expected: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, safe: bool
) -> None:
    """A file that is there is never a hub name."""
    monkeypatch.chdir(tmp_path)
    Path(name).parent.mkdir(exist_ok=True)
    weights = below("m_ssl.model.", as_fairseq(state), **HEAD)
    if safe:
        save_file(weights, name)
    else:
        torch.save(weights, name)
    same(name, expected["like XLSR"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_it_is(state: State, tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({name: tensor.to(dtype) for name, tensor in state.items()}, tmp_path / "x.safetensors")
    for name, tensor in load(tmp_path / "x.safetensors")[0].state_dict().items():
        torch.testing.assert_close(tensor, state[name].to(dtype).float(), rtol=0, atol=0)


def test_the_older_format_of_torch(state: State, expected: dict[str, Any], tmp_path: Path) -> None:
    torch.save({"model": as_fairseq(state)}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    same(tmp_path / "x.pt", expected["like XLSR"])


@pytest.mark.parametrize(
    "config", [{"backbone": "mms_300m", "num_labels": 2}, {"model_type": "DF_Arena_Antispoofing"}, None]
)
@pytest.mark.parametrize("naming", ["fairseq, old weight norm", "transformers, new weight norm"])
def test_a_folder_around_a_whole_countermeasure(
    state: State, expected: dict[str, Any], tmp_path: Path, naming: str, config: dict[str, Any] | None
) -> None:
    """As AntiDeepfake's and DF Arena's on the hub: a configuration of no kind that transformers has, or none."""
    save_file(below("m_ssl.model.", NAMINGS[naming](state), **HEAD), tmp_path / "model.safetensors")
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    same(tmp_path, expected["like XLSR"])


def test_a_configuration_beside_a_file_tells_the_heads(made: dict[str, Any], tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = Wav2Vec2Model(Wav2Vec2Config(**SIZES | {"hidden_size": 48, "num_attention_heads": 6}))
    model.save_pretrained(tmp_path)
    torch.save(below("net.", as_fairseq(model.state_dict())), tmp_path / "best.pth")
    wanted = features(load(tmp_path)[0])
    assert same(tmp_path / "best.pth", wanted).architecture["num_attention_heads"] == 6
    same(tmp_path / "model.safetensors", wanted)
    KINDS["base"]().config.save_pretrained(tmp_path)  # that of another model
    with pytest.raises(InputError, match=r"or one of width 768.*got one of width 48; put the config\.json"):
        load(tmp_path / "best.pth")


def in_module(name: str, kind: type, monkeypatch: pytest.MonkeyPatch) -> type:
    """A class that pickles under another module's name."""
    module, _, attribute = name.rpartition(".")
    parts = module.split(".")
    for place in (".".join(parts[:end]) for end in range(1, len(parts) + 1)):
        monkeypatch.setitem(sys.modules, place, types.ModuleType(place))
    kind.__module__, kind.__qualname__, kind.__name__ = module, attribute, attribute
    setattr(sys.modules[module], attribute, kind)
    return kind


def test_what_trainers_save_beside_the_weights_is_left_out(
    state: State, expected: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning's, omegaconf's and numpy's objects; none of these modules is imported."""
    with monkeypatch.context() as patched:
        attributes = in_module("pytorch_lightning.utilities.parsing.AttributeDict", type("A", (dict,), {}), patched)
        config = in_module("omegaconf.dictconfig.DictConfig", type("B", (), {}), patched)()
        config._content = {"lr": 1e-6}
        content = {
            "epoch": 7,
            "pytorch-lightning_version": "2.4.0",
            "state_dict": below("model.ssl.", as_fairseq(state), **HEAD),
            "callbacks": {"ModelCheckpoint{'monitor': 'eer'}": {"best_model_score": torch.tensor(0.1)}},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"betas": (0.9, 0.999)}]}],
            "hyper_parameters": attributes(width=3, config=config),
            "args": Namespace(lr=1e-6),
            "best_eer": np.float64(0.83),
            "best_dev": np.float32(0.5),
            "curve": np.arange(3.0),
            "path": Path("/data"),
            "meters": defaultdict(dict, a=1),
        }
        torch.save(content, tmp_path / "last.ckpt")
    assert b"pytorch_lightning" in (tmp_path / "last.ckpt").read_bytes()
    same(tmp_path / "last.ckpt", expected["like XLSR"])
    assert "pytorch_lightning.utilities.parsing" not in sys.modules


@pytest.mark.parametrize("protocol", [2, 4])
def test_no_object_of_an_unknown_kind_is_made(tmp_path: Path, protocol: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.ones(1), "b": re.compile("x")}, tmp_path / "x.pt", pickle_protocol=protocol)
    with pytest.raises(InputError, match=r"x\.pt: (expected a checkpoint of tensors|not a checkpoint that)") as error:
        load(tmp_path / "x.pt")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda s: below("a.", s) | below("b.", {n: t + 1 for n, t in s.items()}), "expected one encoder, got 2"),
        (
            lambda s: s | below("module.", {n: t + 1 for n, t in s.items()}),
            "expected one weight .*, got two that differ",
        ),
        (
            lambda s: {n: t for n, t in s.items() if "layers.1.fc2" not in n},
            r"missing encoder\.layers\.1\.feed_forward",
        ),
        (lambda s: s | {"encoder.layers.0.lora.weight": torch.ones(1)}, r"none of|unexpected encoder\.layers\.0\.lora"),
        (lambda s: {n: t.int() for n, t in s.items()}, "expected weights in floating point"),
        (
            lambda s: s | {"mask_emb": s["mask_emb"].to_sparse()},
            "expected weights as plain tensors of the CPU, got others; save these:\n  mask_emb",
        ),
        (lambda s: s | {"mask_emb": torch.empty(768, device="meta")}, "expected weights as plain tensors"),
        (lambda s: s | {"mask_emb": s["mask_emb"] / 0}, "expected finite weights, .*:\n  mask_emb"),
        (lambda _: {"fc.weight": torch.ones(2)}, "the file has 1 weights, such as fc.weight"),
        (lambda _: {}, "expected weights, or `model`"),
    ],
)
def test_what_is_wrong_is_named(state: State, tmp_path: Path, content: Callable[[State], Any], message: str) -> None:
    torch.save(content(as_fairseq(state)), tmp_path / "x.pt")
    with pytest.raises(InputError, match=message) as error:
        load(tmp_path / "x.pt")
    assert str(tmp_path / "x.pt") in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_hidden_layers": 1},
            r"has 16 weights of the encoder that its config.json leaves .*:\n  encoder.layers.1.",
        ),
        ({"feat_extract_norm": "group"}, r"has 12 .*leaves out.*:\n  feature_extractor.conv_layers.1.layer_norm.bias"),
        ({"num_hidden_layers": 3}, r"lacks 16 weights of the encoder: encoder.layers.2"),
        ({"intermediate_size": 25}, r"has 6 weights of other shapes .*\n  encoder.\S+ expected \(25,\), got \(24,\)"),
    ],
)
def test_weights_and_configuration_agree(
    made: dict[str, Any], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """Weights that the configuration has no place for would be left out, and the features be of another encoder."""
    made["like XLSR"].save_pretrained(tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(told | changes))
    with pytest.raises(InputError, match=f"(?s){message}"):
        load(tmp_path)


def test_one_of_several_files_and_an_archive_of_code_are_named(tmp_path: Path, state: State) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(InputError, match=rf"got one of 2 files; give their folder, {tmp_path}$"):
        load(tmp_path / "model-00001-of-00002.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"x.pt: expected a checkpoint of tensors, got a TorchScript archive"):
        load(tmp_path / "x.pt")
    save_file(state, tmp_path / "model-00001-of-00001.safetensors")
    load(tmp_path / "model-00001-of-00001.safetensors")


def test_containers_within_themselves_end() -> None:
    circle: dict[str, Any] = {"a": torch.ones(1)}
    circle["self"] = {"b": torch.ones(2), "again": circle}
    assert sorted(tensor_files.tensors(circle)) == ["a", "self.b"]


@pytest.mark.parametrize("safe", [False, True])
def test_damaged_files_give_one_message(tmp_path: Path, safe: bool) -> None:
    tiny = torch.load(GOLDEN / "tiny_fairseq.pt", weights_only=True)
    good = tmp_path / "good.pt"
    if safe:
        save_file({name: tensor.clone() for name, tensor in tiny["model"].items()}, good)
    else:
        torch.save(tiny, good)
    data, rng, refused = good.read_bytes(), np.random.default_rng(0), 0
    for _ in range(60):
        changed = bytearray(data)
        for place in rng.integers(min(len(data), int(rng.choice([16, 4_000, len(data)]))), size=3):
            changed[place] = rng.integers(256)
        (tmp_path / "x.pt").write_bytes(bytes(changed)[: int(rng.choice([len(data), rng.integers(len(data))]))])
        try:
            load(tmp_path / "x.pt")
        except InputError as error:
            refused += str(tmp_path / "x.pt") in str(error)
    assert refused > 30


# ---------------------------------------------------------------- how waveforms are normalized


def processor(folder: Path, name: str = "preprocessor_config.json", **told: Any) -> None:
    (folder / name).write_text(json.dumps(told))


@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
@pytest.mark.parametrize(("says", "normalize", "other"), [(True, "utterance", "none"), (False, "none", "utterance")])
@pytest.mark.parametrize("file", ["", "model.safetensors"])
def test_what_the_processor_says_counts(
    made: dict[str, Any], tmp_path: Path, name: str, says: bool, normalize: str, other: str, file: str
) -> None:
    made["like XLSR"].save_pretrained(tmp_path)
    nested = (
        {"feature_extractor": {"do_normalize": says}} if name == "processor_config.json" else {"do_normalize": says}
    )
    processor(tmp_path, name, **nested)
    assert EncoderParams(source="x").normalize == "auto"
    assert load(tmp_path / file, "auto")[1].normalize == normalize
    assert load(tmp_path / file, normalize)[1] == load(tmp_path / file, "auto")[1]
    wanted = rf"expected {normalize}, as \S*{name} says .*, got {other}; write `normalize: auto`"
    with pytest.raises(InputError, match=wanted):
        load(tmp_path / file, other)


def test_what_fairseq_says_counts(tmp_path: Path) -> None:
    for name in ("tiny_fairseq.pt", "tiny_fairseq_args.pt"):
        assert load(GOLDEN / name, "auto")[1].normalize == "utterance"
        with pytest.raises(InputError, match=rf"expected utterance, as \S*{name} says .*, got none"):
            load(GOLDEN / name, "none")
    tiny = torch.load(GOLDEN / "tiny_fairseq.pt", weights_only=True)
    tiny["cfg"]["task"]["normalize"] = False
    torch.save(tiny, tmp_path / "raw.pt")
    assert load(tmp_path / "raw.pt", "auto")[1].normalize == "none"
    assert "normalize_eps" not in load(tmp_path / "raw.pt", "auto")[1].architecture


def test_fine_tuning_and_finished_runs_may_differ_from_what_a_checkpoint_says() -> None:
    """Published fine-tunings of XLSR take raw samples, and a run is used as it was trained."""
    tuning = params_file.load(ROOT / "recipes/qamo_2019la.yaml").encoder
    assert (tuning.normalize, tuning.source) == ("none", "facebook/wav2vec2-xls-r-300m")
    source = str(GOLDEN / "tiny_fairseq.pt")
    assert load(source, "none", finetune=tuning.finetune)[1].normalize == "none"
    frozen = EncoderParams(source=source, normalize="none")
    assert models.load_deployed(frozen, weights=None)[1].normalize == "none"


def test_a_checkpoint_that_says_nothing_needs_a_word(made: dict[str, Any], tmp_path: Path) -> None:
    made["like XLSR"].save_pretrained(tmp_path)
    for normalize in ("utterance", "none"):
        assert load(tmp_path, normalize)[1].normalize == normalize
    for told in ({}, {"do_normalize": None}, {"feature_extractor": {}}):
        processor(tmp_path, **told)
        with pytest.raises(InputError, match=r"encoder\.normalize: expected utterance or none, as .* got auto"):
            load(tmp_path, "auto")


@pytest.mark.parametrize(
    "told",
    [
        {"do_normalize": "no"},
        {"do_normalize": 1},
        {"do_normalize": True, "normalize_eps": 0},
        {"do_normalize": True, "sampling_rate": 8_000},
        {"do_normalize": None, "sampling_rate": "16 kHz"},
    ],
)
def test_a_processor_of_other_values_is_refused(made: dict[str, Any], tmp_path: Path, told: dict[str, Any]) -> None:
    made["like XLSR"].save_pretrained(tmp_path)
    processor(tmp_path, **told)
    with pytest.raises(
        InputError, match=r"preprocessor_config\.json: expected (do_normalize|normalize_eps|sampling_rate 16000)"
    ):
        load(tmp_path)


QUIET = 1e-4 * torch.from_numpy(np.random.default_rng(3).normal(0, 1, (2, 4_000)).astype("f4"))


@pytest.mark.parametrize("eps", [FAIRSEQ_EPS, TRANSFORMERS_EPS])
def test_quiet_audio_is_normalized_as_the_family_does_it(eps: float) -> None:
    """fairseq normalizes with torch's layer norm, whose eps is 1e-5; a naive loop, and torch."""
    got = xlsr.normalized(QUIET, torch.ones(QUIET.shape, dtype=torch.bool), eps=eps)
    for row, samples in zip(got.numpy(), QUIET.double().numpy(), strict=True):
        naive = [(x - samples.mean()) / (samples.var() + eps) ** 0.5 for x in samples]
        np.testing.assert_allclose(row, naive, atol=1e-5)
    if eps == FAIRSEQ_EPS:
        wanted = torch.nn.functional.layer_norm(QUIET, QUIET.shape[1:])
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)


def test_the_epsilon_follows_the_family_through_the_encoder(tmp_path: Path) -> None:
    """Of the same weights: fairseq's file by fairseq's epsilon, a folder by transformers', a saved copy by its own."""
    source, folder, copy = GOLDEN / "tiny_fairseq.pt", tmp_path / "folder", tmp_path / "copy"
    model, card = load(source)
    models.save(model, folder)
    models.save(model, copy, card=card)
    valid = torch.full((2,), QUIET.shape[1])
    windows = {
        eps: (QUIET - QUIET.mean(1, keepdim=True)) / (QUIET.var(1, correction=0, keepdim=True) + eps).sqrt()
        for eps in (FAIRSEQ_EPS, TRANSFORMERS_EPS)
    }
    for place, eps in ((source, FAIRSEQ_EPS), (folder, TRANSFORMERS_EPS), (copy, FAIRSEQ_EPS)):
        params = EncoderParams(source=str(place), normalize="utterance")
        found = models.load(params)[1]
        encode = models.deployed(params, (1,), weights=None, card=found, device="cpu", precision="float32")
        raw = xlsr.Encoder(load(place)[0], taps=(1,), normalize="none")
        torch.testing.assert_close(encode(QUIET, valid)[0][1], raw(windows[eps], valid)[0][1], rtol=0, atol=1e-4)
        assert found.architecture.get("normalize_eps", TRANSFORMERS_EPS) == eps
    apart = raw(windows[FAIRSEQ_EPS], valid)[0][1] - raw(windows[TRANSFORMERS_EPS], valid)[0][1]
    assert apart.abs().max() > 0.1
    assert "normalize_eps" not in load(folder)[1].architecture  # its stores are found as ever


# ---------------------------------------------------------------- wrong paths


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "an empty file"),
        (b"\n\n <!DOCTYPE html><html><body>Not found</body></html>", "a web page.*download the file itself"),
        (b"<html lang=en>", "a web page"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>", "a web page"),
        (LFS, "a pointer of Git LFS.*git lfs pull"),
        (b'{"model_type": "wav2vec2"}', "JSON.*the folder that holds it"),
        (b"\x00" * 100, "not a checkpoint that torch.load reads"),
        (b"hello world, this is text", "not a checkpoint that torch.load reads"),
        (b"\x80\x02}q\x00.", "not a checkpoint|expected"),
        (pickle.dumps({"a": 1}), "not a checkpoint|expected"),
        (b"PK\x03\x04", "not a checkpoint that torch.load reads"),
    ],
)
@pytest.mark.parametrize("where", ["xlsr.pt", "folder/model.safetensors"])
def test_what_was_saved_by_mistake_is_named(
    made: dict[str, Any], tmp_path: Path, data: bytes, message: str, where: str
) -> None:
    place = tmp_path / where
    place.parent.mkdir(exist_ok=True)
    made["like XLSR"].config.save_pretrained(place.parent)
    place.write_bytes(data)
    given = place if where == "xlsr.pt" else place.parent
    with pytest.raises(InputError, match=f"(?s){message}|asks for .* weights, the files have") as error:
        load(given)
    assert str(given) in str(error.value)
    assert "Take its state_dict out" not in str(error.value)


WRONG = {
    "/data/models/xlsr-typo": r"got no file or folder '/data/models/xlsr-typo': looked for /data/models/xlsr-typo;",
    "./xlsr": r"looked for \S+/here/xlsr; the folder \S+/here has no xlsr; it has xlsr_300m",
    "xlsr.safetensors": r"looked for \S+/here/xlsr\.safetensors",
    "a/b/c": r"looked for \S+/here/a/b/c; the folder \S+/here has no a$",
    "xlsr_300m/nothing/x.pt": r"the folder \S+/here/xlsr_300m has no nothing",
    "file.txt/x.pt": r"\S+/here/file\.txt is a file and no folder",
    "model.safetensors": r"looked for \S+/here/model\.safetensors",
    "xlsr2_300m.PT": r"looked for \S+/here/xlsr2_300m\.PT",
    "~/xlsr/model": r"write out the home folder",
    "dangling": r"dangling is a link to nowhere, which is not there",
    "https://huggingface.co/facebook/wav2vec2-xls-r-300m/tree/main": r"URL .*; write facebook/wav2vec2-xls-r-300m, ",
    "huggingface.co/facebook/wav2vec2-xls-r-300m": r"; write facebook/wav2vec2-xls-r-300m, its name on the hub",
    "https://dl.fbaipublicfiles.com/fairseq/wav2vec/xlsr2_300m.pt": r"got the URL .*; download what is there",
    "s3://bucket/xlsr": r"got the URL 's3://bucket/xlsr'; download",
    "file:///data/xlsr.pt": r"got the URL",
    "a" * 300: r"got no file or folder",
    "/" + "a" * 300: r"got no file or folder",
    "nul\0": r"got no file or folder",
    "C:\\models\\xlsr": r"got no file or folder",
    "a b": r"got no file or folder",
    "facebook/wav2vec2-": r"got no file or folder",
    "x/wav2vec2.git": r"got no file or folder",
}


@pytest.mark.parametrize("source", WRONG)
def test_a_wrong_path_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    (tmp_path / "here/xlsr_300m").mkdir(parents=True)
    (tmp_path / "here/file.txt").write_text("x")
    (tmp_path / "here/dangling").symlink_to("nowhere")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(InputError, match=r"^encoder\.source: .*" + WRONG[source]) as error:
        load(source)
    assert "\n" not in str(error.value)


def test_a_folder_of_checkpoints_names_one(tmp_path: Path) -> None:
    (tmp_path / "xlsr2_300m.pt").touch()
    with pytest.raises(
        InputError, match=r"no file model\.safetensors .*; it has xlsr2_300m\.pt; give the path of that"
    ):
        load(tmp_path)


@pytest.mark.parametrize("kind", ["nothing", "pipe", "device"])
def test_neither_a_file_nor_a_folder_is_refused(tmp_path: Path, kind: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    source = {"nothing": "", "pipe": str(tmp_path / "pipe"), "device": "/dev/null"}[kind]
    with pytest.raises(InputError, match=r"encoder\.source: expected .*, got"):
        load(source)


def test_a_hub_name_is_a_hub_name() -> None:
    for name in (
        "facebook/wav2vec2-xls-r-300m",
        "gpt2",
        "microsoft/wavlm-base-plus",
        "a/b",
        "A1_b.c/d_e.f-g",
        "nii/x_",
    ):
        assert sources.place_of(name) is None
    for name in ("", "a//b", "/a", "a/", "-a", "a--b", "a..b", "a.", "a/b.pt", "a" * 97):
        assert not sources.is_hub_name(name), name


def test_a_hub_name_that_cannot_be_had_names_the_path_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise OSError("models/xlsr is not a valid model identifier\nIf this is private, log in")

    monkeypatch.setattr("pipeline.encoder.folders.cached_file", fails)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/xlsr_300m").mkdir(parents=True)
    wanted = (
        r"the hub name 'models/xlsr': models/xlsr is not .*; as a path: looked for \S+/models/xlsr; .* has xlsr_300m"
    )
    with pytest.raises(InputError, match=wanted) as error:
        load("models/xlsr")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("source", ["/data/models/xlsr-typo", "page.pt"])
def test_the_stage_ends_with_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("page.pt").write_text("<!doctype html>")
    text = (Path(__file__).parent / "params.yaml").read_text()
    text, count = re.subn(r"  source: random\n  random:.*?(?=  normalize)", f"  source: {source}\n", text, flags=re.S)
    assert count == 1
    Path("params.yaml").write_text(text)
    monkeypatch.setattr("sys.argv", ["encoder", "--trials", "trials", "--card", "card.json"])
    with pytest.raises(SystemExit) as ended:
        run_command(stage.main)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert source in said
    assert said.count("\n") == 1
    assert not Path("card.json").exists()


def test_a_relative_path_of_an_experiment_is_that_of_the_project(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC runs an experiment in a copy of the project that has no ignored files."""
    (tmp_path / "project/weights").mkdir(parents=True)
    (tmp_path / "copy").mkdir()
    torch.save(as_fairseq(state), tmp_path / "project/weights/x.pt")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "project"))
    monkeypatch.chdir(tmp_path / "copy")
    assert load("weights/x.pt")[1].source == "weights/x.pt"
