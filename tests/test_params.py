"""params.yaml: what is shipped loads, and every mistake is named with its line."""

import contextlib
import re
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core import members, params_file
from pipeline.core.errors import InputError
from pipeline.core.sections import FeaturesParams, GridParams
from pipeline.encoder import cards
from pipeline.finetuning import plan
from pipeline.training import cells
from pipeline.training.cells import QualitySplit
from tests.places import SETTINGS

ROOT = Path(__file__).parents[1]
SHIPPED = [ROOT / "params.yaml", *sorted((ROOT / "recipes").glob("*.yaml"))]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_what_is_shipped_loads_with_every_cell_of_its_grid(path: Path) -> None:
    loaded = params_file.load(path)
    for run in loaded.grid.runs:
        backend, loss, layers, views, _ = run.split("-")
        cell = cells.find(loaded, backend=backend, loss=loss, layers=layers, views=views)
        assert set(cell.backend_parameters) == set(loaded.backends[backend])
        assert set(cell.layers) <= set(loaded.extract.layers)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_what_is_shipped_can_fine_tune_where_it_says_so(path: Path) -> None:
    loaded = params_file.load(path)
    tuning = loaded.encoder.finetune
    if tuning is None:
        pytest.skip("the encoder is frozen")
    card = cards.Card(loaded.encoder.source, "", {"num_hidden_layers": 24, "hidden_size": 1024}, "none")
    cell = plan.chosen(loaded, card)
    backend = cell.make_backend(layers=len(tuning.layers), channels=card.channels)
    loss = cell.make_loss(embedding_dim=backend.embedding_dim, speakers=20, layers=len(tuning.layers))
    learned = sum(parameter.numel() for parameter in backend.parameters())
    published = {
        "aasist": 446_409,
        "conformer_tcm": 2_382_339,
    }  # docs/backends.md, of one tapped layer in place of four
    assert learned == published.get(tuning.backend, learned)
    assert loss.quality == (tuning.loss == "qamo")


def test_a_run_is_named_by_its_cell_and_a_system_by_what_varies_but_the_seed() -> None:
    grid = GridParams(backend=("a", "b"), loss=("x",), layers=("all",), views=("clean", "noisy"), seed=(1, 2))
    assert grid.runs == {
        "a-x-all-clean-1": "a-x-clean",
        "a-x-all-clean-2": "a-x-clean",
        "a-x-all-noisy-1": "a-x-noisy",
        "a-x-all-noisy-2": "a-x-noisy",
        "b-x-all-clean-1": "b-x-clean",
        "b-x-all-clean-2": "b-x-clean",
        "b-x-all-noisy-1": "b-x-noisy",
        "b-x-all-noisy-2": "b-x-noisy",
    }


def test_rows_of_the_leaderboard_are_the_runs_and_what_scorings_make_of_those_that_are_analysed(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    text = SETTINGS.read_text().replace("  seed: [1]", "  seed: [1, 2]", 1)
    path.write_text(text.replace("scorings: [kmeans, knn, knn_difference, mahalanobis]", "scorings: [knn, kmeans]"))
    loaded = params_file.load(path)
    rescored = {
        "linear-qamo-all-clean-1-knn": "linear-qamo-knn",
        "linear-qamo-all-clean-1-kmeans": "linear-qamo-kmeans",
    }
    assert loaded.analysed == ("linear-qamo-all-clean-1",)
    assert loaded.rescored == rescored
    assert loaded.runs == loaded.grid.runs | rescored
    assert len(loaded.runs) == 12 + 2
    path.write_text(re.sub(r"(analyse:.*\n  backend: )\[linear\]", r"\1[]", path.read_text()))
    assert params_file.load(path).runs == loaded.grid.runs
    path.write_text(path.read_text().replace("loss: [qamo]", "loss: [samo]"))  # nothing of what is analysed
    assert params_file.load(path).runs == loaded.grid.runs


def test_the_fine_tuned_run_is_a_row_and_reads_cached_layers(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    text = SETTINGS.read_text()
    text = text.replace("    on: false", "    on: true", 1).replace("  finetuned: []", "  finetuned: [mine]")
    path.write_text(text)
    loaded = params_file.load(path)
    assert loaded.runs == loaded.grid.runs | {"mine": "mine"} | loaded.rescored
    text = text.replace("    layers: [1, 2, 3, 4]", "    layers: [1, final]", 1)
    path.write_text(text)
    line = text.splitlines().index("    layers: [1, final]") + 1
    message = rf"params\.yaml:{line}: encoder\.finetune\.layers\.1: expected one of extract\.layers .*, got 'final'"
    with pytest.raises(InputError, match=message):
        params_file.load(path)
    path.write_text(text.replace("  finetuned: [mine]", "  finetuned: []"))
    assert params_file.load(path).runs == loaded.grid.runs | loaded.rescored  # a run that nothing caches layers for


@pytest.mark.parametrize(
    ("line", "mistake", "message"),
    [
        ("  epochs: 30", "  epochs: ten", r":{line}: train\.epochs: expected a valid integer, got 'ten'"),
        ("  epochs: 30", "  epochs: 0", r":{line}: train\.epochs: expected greater than 0, got 0"),
        ("  epochs: 30", "  epochs: 30.0", r":{line}: train\.epochs: expected a valid integer, got 30\.0"),
        ("  epochs: 30", "  epochs: true", r":{line}: train\.epochs: expected a valid integer, got True"),
        ("  epochs: 30", "  epoch: 30", r":{line}: train\.epoch: unknown parameter"),
        ("  epochs: 30", "  epoch: 30", r"train\.epochs: missing"),
        ("    backend: 0.001", "    backend: -1", r":{line}: train\.learning_rate\.backend: expected greater than 0"),
        (
            "    pad: repeat",
            "    pad: mirror",
            r":{line}: extract\.window\.pad: expected 'repeat' or 'zero', got 'mirror'",
        ),
        ("    samples: {samples}", "    samples: 399", r":{line}: extract\.window\.samples: expected .* 400, got 399"),
        ("  layers: [1, 2, 3, 4]", "  layers: [1, last]", r":{line}: extract\.layers\.1.*got 'last'"),
        ("  layers: [1, 2, 3, 4]", "  layers: [1, 1]", r":{line}: extract\.layers: expected each entry once"),
        ("  layers: [1, 2, 3, 4]", "  layers: []", r":{line}: extract\.layers: .*at least 1 item"),
        ("  source: random", "  source: facebook/wav2vec2-xls-r-300m", r":\d+: encoder: expected the section `random`"),
        (
            "  sets: [eval]",
            "  sets: [eval, test]",
            r":{line}: evaluate\.sets\.1: expected a name that has a section in sets, got 'test'",
        ),
        ("  sort_by: eval", "  sort_by: train", r":{line}: report\.sort_by: expected one of eval, got 'train'"),
        (
            "  loss: [aoc, qamo, cross_entropy]",
            "  loss: [aoc, qamo, new]",
            r":{line}: grid\.loss\.2: expected a name that has a section in losses, got 'new'",
        ),
        ("  backend: [linear, asp]", "  backend: [asp, asp]", r":{line}: grid\.backend: expected each entry once"),
        (
            "  seed: [1]",
            "  seed: [4294967296]",
            r":{line}: grid\.seed\.0: expected less than 4294967296, got 4294967296",
        ),
        ("  seed: [1]", "  seed: [1, 1]", r":{line}: grid\.seed: expected each entry once"),
        ("  seed: [1]", "  seed: [1]\n  seed: [2]", r"found duplicate key"),
        ("  layers: [all]", "  layers: [most]", r":{line}: grid\.layers\.0: expected a name .* in layers, got 'most'"),
        (
            "  backend: [linear]",
            "  backend: [mlp]",
            r":{line}: analyse\.backend\.0: expected one of grid\.backend, got 'mlp'",
        ),
        ("  bootstrap: 1000", "  bootstrap: 100001", r":{line}: evaluate\.bootstrap: .*100000, got 100001"),
        ("  neighbours: 5", "  neighbours: 0", r":{line}: analyse\.neighbours: expected greater than 0, got 0"),
        ("  projections: [pca, tsne]", "  projections: [mds]", r":{line}: analyse\.projections.*got 'mds'"),
        ("  views: [clean]", "  views: [noisy]", r":{line}: grid\.views\.0: expected a name .* in views, got 'noisy'"),
        ("  upper: [3, 4]", "  upper: [3, 5]", r":{line}: layers\.upper\.1: expected one of extract\.layers .*got 5"),
        (
            "  clean: {draw: [], probability: 0.0}",
            "  clean: {draw: [rawboost4_0], probability: 0.4}",
            r":{line}: views\.clean\.draw\.0: expected one of extract\.views \(none\), got 'rawboost4_0'",
        ),
        (
            "  clean: {draw: [], probability: 0.0}",
            "  clean: {draw: [], probability: 0.4}",
            r":{line}: views\.clean: expected views to draw with a probability above 0, or none of both",
        ),
        (
            "  finetuned: []",
            "  finetuned: [mine]",
            r":{line}: evaluate\.finetuned: expected \[\] with a frozen encoder, got \['mine'\]; set it to \[\], or",
        ),
        (
            "    set: train",
            "    set: trian",
            r":{line}: encoder\.finetune\.set: expected one of the sets train, eval, also .*, got 'trian'$",
        ),
        ("  finetuned: []", "  finetuned: [a, b]", r":{line}: evaluate\.finetuned: .*at most 1 item.*got \['a', 'b'\]"),
        ("  finetuned: []", "  finetuned: [a-b]", r":{line}: evaluate\.finetuned\.0: .*got 'a-b'"),
        ("  finetuned: []", "  # finetuned: []", r"evaluate\.finetuned: missing"),
        ("  engine: local", "  engine: dask", r":\d+: extract: expected a scheduler with engine: dask, and only then"),
        (
            "  engine: local",
            "  engine: local\n  scheduler: local:2",
            r":\d+: extract: expected a scheduler with engine: dask, and only then",
        ),
        ("  engine: local", "  engine: ray", r":{line}: extract\.engine: expected 'local' or 'dask', got 'ray'"),
        ("train:", "train: [", r":\d+: not valid YAML"),
        (
            "  normalize: utterance",
            "  normalize: utterance\n  revision: abc",
            r"encoder: expected a revision with a hub name alone",
        ),
        (
            "  asv: {}",
            "  asv: {test: {p_fa: 0.1, p_miss: 0.1, p_fa_spoof: 0.5}}",
            r":{line}: evaluate\.asv\.test: expected one of evaluate\.sets, got 'test'",
        ),
        (
            "  asv: {}",
            "  asv: {eval: {p_fa: 2.5, p_miss: 0.1, p_fa_spoof: 0.5}}",
            r":{line}: evaluate\.asv\.eval\.p_fa: expected less than or equal to 1, got 2\.5",
        ),
    ],
)
def test_mistakes_are_named_with_their_line(tmp_path: Path, line: str, mistake: str, message: str) -> None:
    text = SETTINGS.read_text()
    samples = re.search(r"    samples: (\d+)", text)
    assert samples
    line = line.replace("{samples}", samples[1])
    lines = text.splitlines()
    (at, found), *_ = [(i, full) for i, full in enumerate(lines) if full.split("#")[0].rstrip() == line]
    lines[at] = found.replace(line, mistake)
    path = tmp_path / "params.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=message.replace("{line}", str(at + 1))) as error:
        params_file.load(path)
    assert str(path) in str(error.value)


def test_no_encoder_is_finetuned_on_a_pool(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    text = SETTINGS.read_text().replace("pools: {} ", "pools: {both: [train, eval]} ", 1)
    path.write_text(text.replace("\n    set: train\n", "\n    set: both\n", 1))
    with pytest.raises(InputError, match=r"encoder\.finetune\.set: .* got 'both'; a pool is made from features, which"):
        params_file.load(path)


@pytest.mark.parametrize("precision", ["auto", "float32"])
def test_workers_must_be_told_the_precision(tmp_path: Path, precision: str) -> None:
    path = tmp_path / "params.yaml"
    text = SETTINGS.read_text().replace("  engine: local ", "  engine: dask\n  scheduler: local:2 ", 1)
    path.write_text(text.replace("\n  precision: float32 ", f"\n  precision: {precision} ", 1))
    if precision == "float32":
        assert params_file.load(path).extract.scheduler == "local:2"
        return
    with pytest.raises(InputError, match=r"extract: expected precision: float32 or bfloat16 with engine: dask"):
        params_file.load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no parameter file there; run from the project's folder"):
        params_file.load(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("line", "mistake", "message"),
    [
        (
            "    alpha: 20.0",
            "    alhpa: 20.0",
            r"losses\.qamo\.alhpa: not a parameter of qamo; expected margin_bonafide, ",
        ),
        ("    alpha: 20.0", "    alpha: high", r"losses\.qamo\.alpha: expected a valid number, got 'high'"),
        ("    levels: 2", "    levels: 0", r"losses\.qamo\.levels: expected greater than or equal to 1, got 0"),
        ("    thresholds: null", "    thresholds: 2.5", r"losses\.qamo\.thresholds: expected a valid list, got 2\.5"),
        (
            "    thresholds: null",
            "    thresholds: [3, 2]",
            r"losses\.qamo\.thresholds: expected 1 rising MOS values for 2",
        ),
        ("    reduce: mean", "    reduce: median", r"losses\.qamo\.reduce: expected .*, got 'median'"),
        (
            "    normalize: false",
            "    levels: 2",
            r"losses\.aoc\.levels: not a parameter of aoc; expected momentum, norm",
        ),
        (
            "    embedding_dim: 64",
            "    layers: 2",
            r"backends\.linear\.layers: not a parameter of linear; expected embedding",
        ),
        ("    embedding_dim: 64", "    embedding_dim: wide", r"backends\.linear\.embedding_dim: expected .*got 'wide'"),
    ],
)
def test_hyperparameters_are_checked_against_the_member(tmp_path: Path, line: str, mistake: str, message: str) -> None:
    lines = SETTINGS.read_text().splitlines()
    at = next(i for i, full in enumerate(lines) if full.split("#")[0].rstrip() == line)
    lines[at] = mistake
    (tmp_path / "params.yaml").write_text("\n".join(lines))
    loaded = params_file.load(tmp_path / "params.yaml")
    loss = re.match(r"losses\\\.(\w+)", message)
    with pytest.raises(InputError, match=rf"params\.yaml:{at + 1}: {message}"):
        cells.find(loaded, backend="linear", loss=loss[1] if loss else "aoc", layers="all", views="clean")


def test_values_the_member_itself_refuses_become_input_errors() -> None:
    loaded = params_file.load(SETTINGS)
    changed = loaded.model_copy(update={"losses": {**loaded.losses, "qamo": {"alpha": -1.0}}})
    cell = cells.find(changed, backend="linear", loss="qamo", layers="all", views="clean")
    with pytest.raises(InputError, match=r"losses\.qamo: .*alpha"):
        cell.make_loss(embedding_dim=8, speakers=0, layers=4)


def test_quality_split_is_taken_from_the_loss_section() -> None:
    loaded = params_file.load(SETTINGS)
    sections = {**loaded.losses, "qamo": {"levels": 3, "thresholds": [2.5, 4], "alpha": 10.0}}
    cell = cells.find(
        loaded.model_copy(update={"losses": sections}), backend="linear", loss="qamo", layers="all", views="clean"
    )
    assert cell.split == QualitySplit(3, (2.5, 4.0))
    assert cell.loss_parameters == {"alpha": 10.0}
    assert cell.make_loss(embedding_dim=8, speakers=0, layers=4).centroids().vectors.shape == (3, 8)
    assert cells.find(loaded, backend="linear", loss="aoc", layers="all", views="clean").split == QualitySplit(1, None)


@pytest.mark.parametrize("text", ["", "[]", "sets", "a: \x07"])
def test_what_is_no_mapping_of_sections_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(InputError, match=r"params\.yaml"):
        params_file.load(tmp_path / "params.yaml")


def test_an_unknown_member_lists_those_there_are() -> None:
    with pytest.raises(InputError, match=r"expected losses to be one of .*aoc, cross_entropy, .*qamo.*got 'nope'"):
        members.member("losses", "nope")
    with pytest.raises(InputError, match=r"expected backends to be one of .*asp, .*linear"):
        members.member("backends", "../losses/aoc")


def test_what_dvc_does_not_track_is_the_projects_own_in_a_copy_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    features, absolute = (
        FeaturesParams(root="data/cache"),
        FeaturesParams(root="/disk/cache"),
    )
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert features.folder == Path("data/cache")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert features.folder == Path("data/cache")
    monkeypatch.setenv("DVC_ROOT", "/project")  # as DVC sets it for an experiment that runs in a copy
    assert features.folder == Path("/project/data/cache")
    assert absolute.folder == Path("/disk/cache")


LAUGHS = "a0: &a0 [x, x, x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}, *a{i}]\n" for i in range(30))
HUGE = {
    "deep list": ("a: " + "[" * 50_000, ":1: expected parameters of at most 20000 values in 20 levels"),
    "deep sections": (
        "".join(" " * i + "a:\n" for i in range(500)),
        ":21: expected parameters of at most 20000 values",
    ),
    "laughs": (LAUGHS, ":9: expected parameters of at most 20000 values in 20 levels, got more; are they aliases"),
    "own alias": ("a: &a [*a]\n", ":1: expected an alias of a section above, got *a"),
    "no anchor": ("a: 1\nb: *a\n", ":2: expected an alias of a section above, got *a"),
    "a tag": ("a: 1\nb: !!python/object:os.system x\n", ":2: expected no tag, got 'tag:yaml.org,2002:python/object"),
    "tags": ("a: " + "!x " * 10_000, ":1: expected no tag, got '!x'"),
    "a long tag": (f"a: !{'x' * 9_000} 1\n", ":1: expected no tag, got '!xxx"),
    "many values": ("a: [" + "1," * 30_000 + "]\n", ":1: expected parameters of at most 20000 values"),
    "no date": ("a: 2001-99-99\n", ": expected parameters as YAML, got a value that cannot be read: month must be in"),
    "digits": (f"a: {'9' * 5_000}\n", ": expected parameters as YAML, got a value that cannot be read: Exceeds the"),
    "hexadecimal": (
        f"sets: 0x{'f' * 5_000}\n",
        ":1: sets: expected a valid dictionary, got a number of too many digits",
    ),
    "long text": (f"sets: {'x' * 9_000}\n", ":1: sets: expected a valid dictionary, got 'xxx"),
}


@pytest.mark.parametrize("name", HUGE)
def test_yaml_without_end_is_refused_at_once(tmp_path: Path, name: str) -> None:
    text, message = HUGE[name]
    (tmp_path / "params.yaml").write_text(text)
    start = time.process_time()
    with pytest.raises(InputError) as raised:
        params_file.load(tmp_path / "params.yaml")
    assert time.process_time() - start < 5
    assert f"{tmp_path}/params.yaml{message}" in str(raised.value)
    assert max(map(len, str(raised.value).split("\n"))) < 400


@pytest.mark.parametrize("code", ["0", "x1b[2J", "u202e", "x7f", "r", "L"])
def test_text_that_no_path_can_have_is_refused(tmp_path: Path, code: str) -> None:
    text = SETTINGS.read_text().replace("root: data/demo", f'root: "data/\\{code}demo"', 1)
    line = 1 + text[: text.index("root: ")].count("\n")
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(InputError, match=rf"params\.yaml:{line}: 'sets\.train\.root': expected text without control"):
        params_file.load(tmp_path / "params.yaml")


def test_merged_sections_and_aliases_are_read_and_have_a_line(tmp_path: Path) -> None:
    text = SETTINGS.read_text()
    plain, head = params_file.load(SETTINGS), "  train:\n"
    merged = text.replace(head, "  train: &train\n", 1).replace("  dev:\n", "  dev:\n    <<: *train\n", 1)
    assert merged.count("train: &train") == merged.count("<<: *train") == 1
    (tmp_path / "params.yaml").write_text(merged)
    assert params_file.load(tmp_path / "params.yaml").model_dump() == plain.model_dump()
    (tmp_path / "params.yaml").write_text(merged.replace("<<: *train", "<<: {mistake: 1}"))
    line = 1 + merged[: merged.index("  dev:")].count("\n")
    with pytest.raises(InputError, match=rf"params\.yaml:({line}|{line + 1}): sets\.dev\.mistake: unknown parameter"):
        params_file.load(tmp_path / "params.yaml")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_line_ends_and_byte_order_marks(tmp_path: Path, start: str, end: str) -> None:
    text = SETTINGS.read_text()
    (tmp_path / "params.yaml").write_bytes((start + text.replace("\n", end)).encode())
    loaded = params_file.load(tmp_path / "params.yaml").model_dump()
    assert loaded == params_file.load(SETTINGS).model_dump()


PIECES = st.sampled_from(
    ["a", ": ", "- ", "\n", "  ", "[", "]", "{", "}", "&a ", "*a", "!", "!!set ", "<<", "? ", "|\n", ">"]
)
OTHERS = st.sampled_from(
    ["'", '"', "#", "%", "---", "...", "1", "0x1", "1e9", "~", ".inf", "\t", "\\0", "2001-02-30", ","]
)


@settings(max_examples=60)
@given(st.lists(PIECES | OTHERS | st.characters(codec="utf-8"), max_size=30).map("".join))
def test_no_text_gives_another_error(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        path.write_text(text, encoding="utf-8", newline="")
        with pytest.raises(InputError, match=re.escape(str(path))):
            params_file.load(path)


@settings(max_examples=30)
@given(st.data())
def test_no_change_of_the_parameters_gives_another_error(data: st.DataObject) -> None:
    text = SETTINGS.read_text()
    at = data.draw(st.integers(0, len(text)))
    cut = data.draw(st.integers(0, 5))
    changed = text[:at] + data.draw(PIECES | OTHERS | st.characters(codec="utf-8")) + text[at + cut :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        path.write_text(changed, encoding="utf-8", newline="")
        with contextlib.suppress(InputError):
            assert params_file.load(path).sets
