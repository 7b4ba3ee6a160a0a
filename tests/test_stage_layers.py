"""The layers stage through its `main`, on tiny stores; and the three files that it writes."""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray
from ruamel.yaml import YAML

from pipeline.analysis import layer_probe
from pipeline.core import trial_table
from pipeline.core.contracts import CLEAN, Tap
from pipeline.core.errors import InputError
from pipeline.core.trial_table import Row, Trials
from pipeline.features.specs import Spec, fingerprint
from pipeline.features.store import Store
from pipeline.features.zarr_metadata import FORMAT
from pipeline.report import layer_files as report
from stages import layers
from tests.places import SETTINGS

ROOT = Path(__file__).parents[1]
SIZES = {"train": 30, "dev": 21, "eval": 17}
LAYERS: tuple[Tap, ...] = (1, 12, "final")
CHANNELS, SHARD = 3, 8
OUTPUTS = {"--csv": "layers.csv", "--plot": "layers.png", "--chosen": "layers.json", "--atlas": "atlas.csv"}


def table(name: str) -> Trials:
    rows = [Row(name, f"{name}{i}", f"{i}.wav", "spoof" if i % 3 else "bonafide") for i in range(SIZES[name])]
    return trial_table.from_rows(rows, source=name)


def features(name: str, layer: Tap) -> NDArray[np.float32]:
    rng = np.random.default_rng((list(SIZES).index(name), LAYERS.index(layer)))
    shift = 0.3 + 0.7 * (layer == 12)
    return (rng.normal(size=(SIZES[name], 2, CHANNELS)) + shift * table(name).is_bonafide[:, None, None]).astype("f4")


def cache(folder: Path, name: str, *, taps: tuple[Tap, ...] = LAYERS, encoder: str = "ab") -> None:
    """A store of a set, its receipt and its trials."""
    receipt = stored(folder, name, np.arange(SIZES[name]), taps=taps, encoder=encoder)
    write(folder, name, receipt)


def write(folder: Path, name: str, receipt: dict) -> None:
    texts = {f"features/{name}.json": json.dumps(receipt), f"trials/{name}.csv": trial_table.to_csv(table(name))}
    for path, text in texts.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text)


def stored(
    folder: Path, name: str, rows: NDArray[np.intp], *, taps: tuple[Tap, ...] = LAYERS, encoder: str = "ab"
) -> dict:
    """A store of some rows of a set: its receipt."""
    fingerprint = trial_table.fingerprint(table(name).take(rows))
    spec = Spec({"weights_sha256": encoder}, fingerprint, len(rows), frames=1, channels=CHANNELS, shard=SHARD)
    store = Store.create(folder / "cache", name, spec)
    store.add_arrays(CLEAN, taps)
    for shard in range(spec.shards):
        own = rows[list(spec.rows(shard))]
        pooled = {layer: features(name, layer)[own] for layer in taps}
        frames = {layer: block[:, :1].astype(np.float16) for layer, block in pooled.items()}
        store.write(CLEAN, shard, frames, pooled, np.ones(len(own), np.int32))
    receipt = {"format": FORMAT, "store": spec.folder(name), "encoder": spec.encoder, "trials": fingerprint}
    receipt |= {"utterances": len(rows), "frames": 1, "channels": CHANNELS, "layers": list(taps), "views": [CLEAN]}
    return receipt | {"digest": store.digest([CLEAN], taps)}


def project(folder: Path) -> Path:
    """A folder with the trials and features of all sets, and their parameters."""
    for name in SIZES:
        cache(folder, name)
    settings = YAML(typ="safe").load(SETTINGS)
    settings["features"]["root"] = str(folder / "cache")
    settings["evaluate"]["sets"] = ["eval"]
    settings["sets"]["later"] = settings["sets"]["eval"]  # known, but nothing asks for it
    YAML(typ="safe").dump(settings, folder / "params.yaml")
    return folder


def arguments(folder: Path) -> list[str]:
    given = {"--params": "params.yaml", "--trials": "trials", "--features": "features"} | OUTPUTS
    return [part for option, name in given.items() for part in (option, str(folder / name))]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = project(tmp_path_factory.mktemp("layers"))
    layers.main(arguments(folder))
    return folder


@pytest.fixture(scope="module")
def expected() -> layer_probe.Findings:
    is_bonafide = {name: table(name).is_bonafide for name in SIZES}
    return layer_probe.probe(features, is_bonafide, layers=LAYERS, evaluation=["eval"])


def test_the_csv_holds_every_eer(made: Path, expected: layer_probe.Findings) -> None:
    with (made / "layers.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["layer", "method", "set", "eer"]
    wanted = [
        [str(layer), method, name, str(round(expected.layers[layer][method][name], 5))]
        for layer in LAYERS
        for method in ("logistic", "centroid")
        for name in ("dev", "eval")
    ]
    assert rows == wanted


def test_the_json_tells_the_choice_and_what_it_rests_on(made: Path, expected: layer_probe.Findings) -> None:
    found = json.loads((made / "layers.json").read_text())
    assert list(found) == ["chosen", "steps", "layers"]
    assert found["chosen"] == [step["layer"] for step in found["steps"]] == list(expected.chosen)
    assert found["chosen"][0] == 12
    for step, wanted in zip(found["steps"], expected.steps, strict=True):
        assert step["eer"] == {name: round(wanted.eer[name], 5) for name in ("dev", "eval")}
    assert list(found["layers"]) == ["1", "12", "final"]
    assert found["layers"]["12"]["logistic"] == found["steps"][0]["eer"]
    assert found["layers"]["final"]["centroid"]["eval"] == round(expected.layers["final"]["centroid"]["eval"], 5)


def test_it_says_what_it_chose(made: Path, expected: layer_probe.Findings, capsys: pytest.CaptureFixture[str]) -> None:
    layers.main(arguments(made))
    chosen = ", ".join(map(str, expected.chosen))
    assert capsys.readouterr().out == f"chosen of 3 layers: {chosen}; dev EER {expected.steps[-1].eer['dev']:.2f} %\n"


def test_the_same_features_give_the_same_files(made: Path) -> None:
    before = {name: (made / name).read_bytes() for name in OUTPUTS.values()}
    assert before["layers.png"].startswith(b"\x89PNG")
    layers.main(arguments(made))
    assert before == {name: (made / name).read_bytes() for name in OUTPUTS.values()}


def test_the_drawing_names_layers_sets_and_methods(tmp_path: Path, expected: layer_probe.Findings) -> None:
    report.draw(tmp_path / "l.svg", expected)
    tree = ElementTree.fromstring((tmp_path / "l.svg").read_text())  # noqa: S314  # our own file
    said = ["".join(node.itertext()) for node in tree.iter("{http://www.w3.org/2000/svg}text")]
    assert {"1", "12", "fin.", "layer", "EER, %"} <= set(said)
    assert {f"{name}, {method}" for name in ("dev", "eval") for method in ("logistic", "centroid")} <= set(said)
    rings = [word for word in said if word in ("1", "2", "3")]
    assert rings == ["1", *(str(i) for i in range(1, len(expected.chosen) + 1))]  # a tick, then the rings


def test_pooled_features_come_whole_and_in_order(made: Path) -> None:
    source = layers._open(made / "trials/train.csv", made / "features/train.json", root=made / "cache")
    for layer in LAYERS:
        got = source.pooled(layer)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, features("train", layer))


def test_a_set_that_lacks_a_layer_is_refused(tmp_path: Path) -> None:
    project(tmp_path)
    cache(tmp_path, "eval", taps=(1, "final"))
    message = r"eval\.json: expected the layers of .*train\.json, got 1, final, without 12; run `dvc repro extract`"
    with pytest.raises(InputError, match=message):
        layers.main(arguments(tmp_path))
    assert not (tmp_path / "layers.csv").exists()


def test_a_layer_that_only_another_set_has_is_left_out(tmp_path: Path) -> None:
    project(tmp_path)
    cache(tmp_path, "train", taps=(1, 12))
    layers.main(arguments(tmp_path))
    found = json.loads((tmp_path / "layers.json").read_text())
    assert list(found["layers"]) == ["1", "12"]


def test_a_pool_is_its_sets_one_after_the_other(made: Path, tmp_path: Path) -> None:
    project(tmp_path)
    parts = {"a": np.arange(11), "b": np.arange(11, 30)}
    pool = {name: stored(tmp_path, "train", rows, taps=LAYERS[i:]) for i, (name, rows) in enumerate(parts.items())}
    write(tmp_path, "train", {"pool": pool})
    source = layers._open(tmp_path / "trials/train.csv", tmp_path / "features/train.json", root=tmp_path / "cache")
    assert source.layers == (12, "final")  # those of both
    np.testing.assert_array_equal(source.pooled(12), features("train", 12))
    layers.main(arguments(tmp_path))
    whole, pooled = (json.loads((folder / "layers.json").read_text()) for folder in (made, tmp_path))
    assert pooled["layers"] == {layer: whole["layers"][layer] for layer in ("12", "final")}
    for broken in ({"a": pool["a"]}, {"b": pool["b"], "a": pool["a"]}):
        write(tmp_path, "train", {"pool": broken})
        with pytest.raises(InputError, match=r"train\.json: the trials changed"):
            layers.main(arguments(tmp_path))


def test_a_pool_of_two_encoders_is_refused(tmp_path: Path) -> None:
    project(tmp_path)
    pool = {"a": stored(tmp_path, "train", np.arange(11))}
    pool["b"] = stored(tmp_path, "train", np.arange(11, 30), encoder="cd")
    write(tmp_path, "train", {"pool": pool})
    with pytest.raises(InputError, match=r"train\.json: expected features of the encoder and window"):
        layers.main(arguments(tmp_path))


def test_features_of_another_encoder_are_refused(tmp_path: Path) -> None:
    project(tmp_path)
    cache(tmp_path, "dev", encoder="cd")
    with pytest.raises(InputError, match=r"dev\.json: expected features of the encoder and window of .*train\.json"):
        layers.main(arguments(tmp_path))


def test_features_of_other_trials_are_refused(tmp_path: Path) -> None:
    project(tmp_path)
    listed = table("eval").take(np.arange(16))
    (tmp_path / "trials/eval.csv").write_text(trial_table.to_csv(listed))
    with pytest.raises(InputError, match=r"eval\.json: the trials changed .* run `dvc repro extract`"):
        layers.main(arguments(tmp_path))


def test_trials_of_one_class_are_refused(tmp_path: Path) -> None:
    project(tmp_path)
    lines = (tmp_path / "trials/dev.csv").read_text().replace(",bonafide,", ",spoof,")
    (tmp_path / "trials/dev.csv").write_text(lines)
    with pytest.raises(InputError, match=r"dev\.csv: expected bona fide and spoof trials, got only spoof"):
        layers.main(arguments(tmp_path))


def test_a_missing_receipt_is_one_message_and_exit_code_2(tmp_path: Path, warm_env: dict[str, str]) -> None:
    project(tmp_path)
    (tmp_path / "features/eval.json").unlink()
    command = ["python", "-m", "stages.layers", *arguments(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, env=warm_env, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr == f"error: {tmp_path}/features/eval.json: no receipt there; run `dvc repro -f extract`\n"


def test_help_teaches_and_nothing_imports_torch() -> None:
    code = "import sys; from stages import layers; print('torch' in sys.modules); layers.main(['--help'])"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.startswith("False\n")
    for word in ("evaluate.sets", "logistic", "centroid", "steps", "example:", "python -m stages.layers"):
        assert word in ended.stdout


def test_audio_of_the_training_set_in_another_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = table

    def with_contents(name: str) -> Trials:
        found = plain(name)
        contents = [f"{name}{i}" for i in range(len(found))]
        if name == "eval":
            contents[3:5] = ["train6", "train8"]
        return dataclasses.replace(found, content=np.array(contents))

    monkeypatch.setattr(sys.modules[__name__], "table", with_contents)
    layers.main(arguments(project(tmp_path)))
    said = capsys.readouterr().err
    assert "warning: 2 of 17 trials of eval have audio that is in train, which is trained on, byte by byte; " in said
    assert "  eval3 is train6 of train\n  eval4 is train8 of train\n" in said
    assert "of dev have audio" not in said


def test_the_atlas_goes_over_domains_and_encoders(tmp_path: Path) -> None:
    project(tmp_path)
    for name in ("train", "dev", "eval"):
        stored(tmp_path, name, np.arange(SIZES[name]), taps=(1, "final"), encoder="cd")
        if name == "dev":  # an encoder without a store of eval is left out
            stored(tmp_path, name, np.arange(SIZES[name]), encoder="ef")
    settings = YAML(typ="safe").load(tmp_path / "params.yaml")
    settings["atlas"] = {"domains": {"one": ["train", "dev"], "two": ["eval"]}, "encoders": "all"}
    YAML(typ="safe").dump(settings, tmp_path / "params.yaml")
    layers.main(arguments(tmp_path))
    with (tmp_path / "atlas.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    mine, others = (fingerprint({"weights_sha256": encoder}) for encoder in ("ab", "cd"))
    assert {(row["encoder"], row["layer"]) for row in rows} == {
        *((mine, str(layer)) for layer in LAYERS), (others, "1"), (others, "final")
    }  # fmt: skip
    with (tmp_path / "layers.csv").open(newline="") as file:
        probed = {(row["layer"], row["method"], row["set"]): float(row["eer"]) for row in csv.DictReader(file)}
    for row in rows:
        if (row["encoder"], row["trained"]) == (mine, "train"):
            assert float(row["eer"]) == pytest.approx(probed[row["layer"], row["method"], row["tested"]], abs=1e-9)
    chosen = json.loads((tmp_path / "layers.json").read_text())["atlas"]
    assert list(chosen) == [mine, others]
    assert [one["left_out"] for one in chosen[mine]] == ["two", None]
    assert [one["set"] for one in chosen[mine][0]["eer"]] == ["eval"]


def test_an_encoder_without_stores_is_refused(tmp_path: Path) -> None:
    project(tmp_path)
    settings = YAML(typ="safe").load(tmp_path / "params.yaml")
    settings["atlas"] = {"domains": {"one": ["train"], "two": ["eval"]}, "encoders": ["0123456789abcdef"]}
    YAML(typ="safe").dump(settings, tmp_path / "params.yaml")
    with pytest.raises(InputError, match=r"atlas.encoders: expected stores of all sets by .* whole of train, eval"):
        layers.main(arguments(tmp_path))
