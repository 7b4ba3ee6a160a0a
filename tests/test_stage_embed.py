"""The embed stage through its `main`, on tiny stores and a linear backend."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from ruamel.yaml import YAML

from pipeline.analysis import embeddings
from pipeline.backends.linear import Backend
from pipeline.core import trial_table
from pipeline.core.contracts import CLEAN, Centroids
from pipeline.core.errors import InputError
from pipeline.core.trial_table import Row, Trials
from pipeline.features.specs import Spec, fingerprint
from pipeline.features.store import Store
from pipeline.features.zarr_metadata import FORMAT
from pipeline.scoring import runs
from stages import embed
from tests.places import SETTINGS

ROOT = Path(__file__).parents[1]
SIZES = {"train": 70, "dev": 9, "eval": 11, "other": 5}
LAYERS, CHANNELS, SHARD = (1, 2), 3, 32


def table(name: str) -> Trials:
    rows = [
        Row(name, f"{name}{i}", f"{i}.wav", "spoof" if i % 3 else "bonafide", content=f"{i}")
        for i in range(SIZES[name])
    ]
    return trial_table.from_rows(rows, source=name)


def features(name: str) -> NDArray[np.float32]:
    """Pooled features (N, L, 2, D)."""
    rng = np.random.default_rng(list(SIZES).index(name))
    return rng.normal(size=(SIZES[name], len(LAYERS), 2, CHANNELS)).astype(np.float32)


def cache(folder: Path, name: str, *, encoder: str = "ab") -> dict[str, str]:
    """A store of a set, its receipt and its trials; the encoder's card."""
    print_of_trials = trial_table.fingerprint(table(name))
    spec = Spec({"weights_sha256": encoder}, print_of_trials, SIZES[name], frames=1, channels=CHANNELS, shard=SHARD)
    store = Store.create(folder / "cache", name, spec)
    store.add_arrays(CLEAN, LAYERS)
    for shard in range(spec.shards):
        rows = list(spec.rows(shard))
        pooled = {layer: features(name)[rows, i] for i, layer in enumerate(LAYERS)}
        frames = {layer: block[:, :1].astype(np.float16) for layer, block in pooled.items()}
        store.write(CLEAN, shard, frames, pooled, np.ones(len(rows), np.int32))
    receipt = {"format": FORMAT, "store": spec.folder(name), "encoder": spec.encoder, "trials": print_of_trials}
    receipt |= {"utterances": SIZES[name], "frames": 1, "channels": CHANNELS, "layers": list(LAYERS), "views": [CLEAN]}
    for path, text in {
        f"features/{name}.json": json.dumps(receipt | {"digest": store.digest([CLEAN], LAYERS)}),
        f"trials/{name}.csv": trial_table.to_csv(table(name)),
    }.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text)
    return spec.encoder


def backend() -> Backend:
    torch.manual_seed(3)
    return Backend(layers=len(LAYERS), channels=CHANNELS, embedding_dim=4).eval()


def project(folder: Path, *, normalize: bool = True) -> Path:
    """A folder with the trials and features of all sets, a run, and parameters."""
    cards = [cache(folder, name) for name in SIZES]
    kind = {"encoder": fingerprint(cards[0]), "layers": list(LAYERS), "channels": CHANNELS}
    card = {"backend": "linear", "backend_parameters": {"embedding_dim": 4}, "reads": "pooled", "kind": kind}
    card["train"] = {"set": "train"}
    weights = {name: tensor.numpy() for name, tensor in backend().state_dict().items()}
    centroids = Centroids(np.eye(4, dtype=np.float32)[:1], normalize, 0.0, "max")
    runs.save(folder / "runs/r", weights=weights, centroids=centroids, card=card)
    settings = YAML(typ="safe").load(SETTINGS)
    settings["features"]["root"] = str(folder / "cache")
    settings["sets"]["other"] = settings["sets"]["eval"]
    settings["evaluate"]["sets"] = ["eval", "other"]
    YAML(typ="safe").dump(settings, folder / "params.yaml")
    return folder


def arguments(folder: Path) -> list[str]:
    given = {"--params": "params.yaml", "--run": "runs/r", "--trials": "trials", "--features": "features"}
    given |= {"--embeddings": "embeddings/r"}
    return [part for option, name in given.items() for part in (option, str(folder / name))]


@pytest.mark.parametrize("normalize", [True, False])
def test_every_set_is_embedded_in_the_order_of_its_trials(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *, normalize: bool
) -> None:
    project(tmp_path, normalize=normalize)
    embed.main(arguments(tmp_path))
    assert sorted(path.name for path in (tmp_path / "embeddings/r").iterdir()) == sorted(SIZES)
    for name, size in SIZES.items():
        found = embeddings.of_run(tmp_path / "embeddings/r" / name, tmp_path / "runs/r", name, table(name))
        with torch.inference_mode():
            wanted = backend()(torch.from_numpy(features(name)), torch.ones(size, dtype=torch.int64)).numpy()
        np.testing.assert_allclose(found.vectors, wanted, rtol=1e-5, atol=1e-6)
        assert found.utterances.tolist() == [f"{name}{i}" for i in range(size)]
        assert found.normalize is normalize
        receipt = json.loads((tmp_path / f"features/{name}.json").read_text())
        told = {key: found.record[key] for key in ("run", "set", "trials", "features", "kind", "count")}
        facts = {"run": "r", "set": name, "trials": trial_table.fingerprint(table(name)), "features": receipt["digest"]}
        assert told == facts | {"kind": "flat", "count": size}
    assert capsys.readouterr().out.splitlines()[0] == "r: 70 embeddings of train, flat index, recall 1.000"


def test_the_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    project(tmp_path)
    embed.main(arguments(tmp_path))
    before = {path: path.read_bytes() for path in (tmp_path / "embeddings/r").rglob("*") if path.is_file()}
    embed.main(arguments(tmp_path))  # over an older one
    assert before == {path: path.read_bytes() for path in (tmp_path / "embeddings/r").rglob("*") if path.is_file()}
    (tmp_path / "features/other.json").unlink()  # the last one
    with pytest.raises(InputError, match=r"other\.json: no receipt there"):
        embed.main(arguments(tmp_path))
    assert before == {path: path.read_bytes() for path in (tmp_path / "embeddings/r").rglob("*") if path.is_file()}
    aside = tmp_path / "aside"
    (tmp_path / "embeddings/r").rename(aside)
    with pytest.raises(InputError, match=r"other\.json: no receipt there"):
        embed.main(arguments(tmp_path))
    assert not (tmp_path / "embeddings/r").exists()


def test_the_receipt_of_the_choice_is_read(tmp_path: Path) -> None:
    project(tmp_path)
    for name in SIZES:
        (tmp_path / f"analysed/{name}").mkdir(parents=True)
        (tmp_path / f"features/{name}.json").rename(tmp_path / f"analysed/{name}/all-clean.json")
    with pytest.raises(InputError, match=r"features/train\.json: no receipt there"):
        embed.main(arguments(tmp_path))
    embed.main([*arguments(tmp_path), "--features", str(tmp_path / "analysed"), "--choice", "all-clean"])
    assert sorted(path.name for path in (tmp_path / "embeddings/r").iterdir()) == sorted(SIZES)


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    project(tmp_path)
    (tmp_path / "embeddings/r").mkdir(parents=True)
    (tmp_path / "embeddings/r/mine.txt").write_text("mine")
    with pytest.raises(InputError, match="got a folder of other things"):
        embed.main(arguments(tmp_path))
    assert (tmp_path / "embeddings/r/mine.txt").read_text() == "mine"


def test_features_of_another_encoder_are_refused(tmp_path: Path) -> None:
    project(tmp_path)
    cache(tmp_path, "eval", encoder="cd")
    with pytest.raises(
        InputError, match=r"runs/r: trained on features of \{.*\}, got \{.*\}; run `dvc repro extract`, and"
    ):
        embed.main(arguments(tmp_path))


def test_an_embedding_that_is_not_finite_is_named(tmp_path: Path) -> None:
    project(tmp_path)
    weights = {name: np.full(tensor.shape, np.inf, np.float32) for name, tensor in backend().state_dict().items()}
    run = tmp_path / "runs/r"
    runs.save(run, weights=weights, centroids=runs.centroids(run), card=runs.card(run))
    with pytest.raises(InputError, match="utterance train0: expected a finite embedding, got NaN or infinity"):
        embed.main(arguments(tmp_path))


def test_one_message_and_exit_code_2(tmp_path: Path, warm_env: dict[str, str]) -> None:
    project(tmp_path)
    (tmp_path / "runs/r/run.json").unlink()
    command = ["python", "-m", "stages.embed", *arguments(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, env=warm_env, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr == f"error: {tmp_path}/runs/r/run.json: no trained run there; run `dvc repro`\n"


def test_help_needs_no_torch() -> None:
    code = "import sys; from stages import embed; print('torch' in sys.modules); embed.main(['--help'])"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.startswith("False\n")
    assert "a folder for each set" in ended.stdout
