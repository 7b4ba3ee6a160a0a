"""`bonafide metrics`: published values on real score files, joining with keys of every kind, and what it refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import commands
from pipeline.commands import metrics
from pipeline.core import trial_table
from pipeline.core.errors import InputError
from pipeline.core.trial_table import Row, Trials, from_rows
from pipeline.metrics import asv_scores, scorefile
from pipeline.metrics.layouts import Layout
from tests.beside import CASES, PROTOCOLS, SCORES, needs

ROOT = Path(__file__).parents[1]
ASV = SCORES / "la19_asv_eval_scores.txt"
KEY = PROTOCOLS / "ASVspoof2019.LA.cm.eval.trl.txt"
REAL = needs(SCORES)
ATTACKS = [f"A{i:02d}" for i in range(7, 20)]
# EER %, min t-DCF 2019, min t-DCF 2021, EER % of A07 to A19: as published with the score files (scores/README.md)
PUBLISHED = {
    "ocsoftmax": (2.17799, 0.05582, 0.11505, "0.12 0.18 0.12 1.14 0.12 0.47 0.22 0.69 1.40 0.33 9.18 0.90 0.87"),
    "amsoftmax": (3.16500, 0.07715, 0.13504, "0.22 0.06 0.02 0.63 0.02 0.53 0.27 0.51 0.69 0.51 13.45 4.27 0.86"),
    "softmax": (5.05777, 0.12084, 0.17599, "0.37 0.14 0.02 1.18 0.37 0.43 0.69 4.99 5.44 0.23 23.48 0.20 1.34"),
}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """Run the command on words: what it prints, and its warnings."""

    def run(*words: object) -> tuple[str, str]:
        metrics.main([str(word) for word in words])
        return tuple(capsys.readouterr())

    return run


@pytest.fixture
def table() -> Trials:
    """Forty trials by two attacks, two codecs and four speakers."""
    rows = []
    for i in range(40):
        spoof = i % 4 > 0
        kind = {"attack": f"A{i % 4 % 2 + 1}"} if spoof else {}
        label = "spoof" if spoof else "bonafide"
        rows.append(Row("here", f"u{i}", "-", label, speaker=f"S{i // 4 % 4}", codec=f"c{i // 16}", **kind))
    return from_rows(rows, source="a test")


def written(folder: Path, table: Trials, layout: Layout = "2021", *, seed: int = 1) -> tuple[Path, Path]:
    """A score file of the trials, and a trial table as their key."""
    values = np.random.default_rng(seed).normal(size=len(table)) + 1.5 * table.is_bonafide
    scorefile.write(folder / f"scores{seed}.txt", table, values, layout=layout)
    (folder / "key.csv").write_text(trial_table.to_csv(table))
    return folder / f"scores{seed}.txt", folder / "key.csv"


def negated(folder: Path, source: Path) -> Path:
    """The same 2019 file with every score negated."""
    path = folder / source.name
    lines = (line.rsplit(" ", 1) for line in source.read_text().splitlines())
    path.write_text("".join(f"{head} {-float(score)!r}\n" for head, score in lines))
    return path


@REAL
@pytest.mark.parametrize("system", PUBLISHED)
def test_published_values_of_real_score_files(run: Callable[..., tuple[str, str]], tmp_path: Path, system: str) -> None:
    path = SCORES / f"la19_eval_{system}.txt"
    if system == "ocsoftmax":  # is stored with higher = spoof
        path = negated(tmp_path, path)
    out, err = run(path, "--key", KEY, "--asv", ASV, "--folds", 0, "--json")
    report = json.loads(out)
    assert err == ""
    assert report["key"] == {"file": str(KEY), "corpus": "asvspoof2019_la", "split": "eval"} | {
        "bonafide": 7355,
        "spoof": 63882,
    }
    asv = {name: round(100 * rate, 5) for name, rate in report["asv"].items()}
    assert asv == {"p_fa": 2.46047, "p_miss": 2.45810, "p_fa_spoof": 76.06525}
    (found,) = report["systems"]
    eer, tdcf_2019, tdcf_2021, attacks = PUBLISHED[system]
    assert found["eer"] == eer
    assert (round(found["min_tdcf_2019"], 5), round(found["min_tdcf_2021"], 5)) == (tdcf_2019, tdcf_2021)
    assert list(found["attacks"]) == ATTACKS
    assert [f"{group['eer']:.2f}" for group in found["attacks"].values()] == attacks.split()
    assert {group["spoof"] for group in found["attacks"].values()} == {4914}
    assert (len(found["speakers"]), found["speakers_left_out"]) == (48, 19)
    assert found["surplus"] == 0


@REAL
def test_scores_that_are_stored_inverted_are_told_and_not_flipped(run: Callable[..., tuple[str, str]]) -> None:
    path = SCORES / "la19_eval_ocsoftmax.txt"
    out, err = run(path, "--key", KEY, "--folds", 20, "--json")
    (found,) = json.loads(out)["systems"]
    assert found["eer"] == 97.82201
    (warning,) = found["warnings"]
    assert warning.startswith("the EER is 97.82 %, above 50 %: the scores look inverted")
    assert err == f"warning: {path}: {warning}\n"
    assert found["attacks"]["A17"]["eer"] > 90


@pytest.mark.parametrize(("folder", "own"), [("data/scores/r", True), ("data/dev_scores", True), ("scores/r", False)])
def test_no_advice_to_negate_what_the_flow_wrote(
    run: Callable[..., tuple[str, str]], tmp_path: Path, folder: str, own: bool
) -> None:
    rows = [Row("t", f"u{i}", f"{i}.wav", "bonafide" if i < 20 else "spoof") for i in range(60)]
    (tmp_path / folder).mkdir(parents=True)
    path = tmp_path / folder / "eval.txt"
    scorefile.write(path, trial_table.from_rows(rows, source="t"), np.arange(60.0), layout="2019")
    _, err = run(path, "--folds", 0)
    assert "above 50 %" in err
    assert ("negate its scores" in err) is not own


@REAL
def test_a_2019_file_may_be_its_own_key(run: Callable[..., tuple[str, str]]) -> None:
    path = SCORES / "la19_eval_softmax.txt"
    own, given = (json.loads(run(path, *key, "--folds", 0, "--json")[0]) for key in ((), ("--key", KEY)))
    assert own["key"] == given["key"] | {"file": str(path), "corpus": None, "split": None}
    systems = own["systems"][0], given["systems"][0]
    assert systems[0] | {"speakers": 0} == {k: v for k, v in systems[1].items() if "left_out" not in k} | {
        "speakers": 0
    }
    text, _ = run(path, "--folds", 0)
    assert text.startswith(f"key  {path} (a score file with its own labels): 7355 bona fide, 63882 spoof\n")


@REAL
def test_a_protocol_of_another_split_is_refused(run: Callable[..., tuple[str, str]]) -> None:
    dev = PROTOCOLS / "ASVspoof2019.LA.cm.dev.trl.score.txt"
    with pytest.raises(InputError, match=r"24844 of 24844 trials have no score:\n  LA_D_1047731\n"):
        run(SCORES / "la19_eval_softmax.txt", "--key", dev)


@pytest.mark.parametrize("layout", ["2019", "2021", "asvspoof5"])
@pytest.mark.parametrize("given", ["auto", "same"])
def test_every_layout_gives_the_same_object(
    run: Callable[..., tuple[str, str]], tmp_path: Path, table: Trials, layout: Layout, given: str
) -> None:
    expected = json.loads(run(*_words(written(tmp_path, table)), "--json")[0])
    words = _words(written(tmp_path, table, layout))
    found = json.loads(run(*words, "--json", "--format", layout if given == "same" else given)[0])
    assert found["systems"][0].pop("layout") == layout
    assert expected["systems"][0].pop("layout") == "2021"
    assert found == expected


def _words(paths: tuple[Path, Path]) -> tuple[object, ...]:
    return paths[0], "--key", paths[1]


def test_the_table_shows_what_the_object_holds(
    run: Callable[..., tuple[str, str]], tmp_path: Path, table: Trials
) -> None:
    words = [*_words(written(tmp_path, table)), "--asv-rates", 0.02, 0.03, 0.6, "--threshold=-0.5"]
    report = json.loads(run(*words, "--json")[0])
    (system,) = report["systems"]
    text, err = run(*words)
    assert err == ""
    lines = text.splitlines()
    parted = [re.split(r"  +", line.strip(), maxsplit=1) for line in lines if "  " in line.strip()]
    cells = {label: rest.split() for label, rest in parted}

    def interval(name: str, digits: int) -> list[str]:
        low, high = system[name]
        return [f"[{low:.{digits}f},", f"{high:.{digits}f}]"]

    assert lines[0] == f"key  {tmp_path / 'key.csv'} (table): 10 bona fide, 30 spoof"
    assert lines[1] == "ASV  p_fa 2.00000 %, p_miss 3.00000 %, p_fa_spoof 60.00000 %"
    assert cells["EER, %"] == [f"{system['eer']:.2f}", *interval("eer_interval", 2)]
    assert cells["min t-DCF, 2019"] == [f"{system['min_tdcf_2019']:.4f}", *interval("min_tdcf_2019_interval", 4)]
    assert cells["min t-DCF, 2021 and 5"] == [f"{system['min_tdcf_2021']:.4f}", *interval("min_tdcf_2021_interval", 4)]
    assert cells["min DCF"] == [f"{system['min_dcf']:.4f}", *interval("min_dcf_interval", 4)]
    assert cells["Cllr, bits *"] == [f"{system['cllr']:.4f}"]
    assert cells["decisions at the score"] == ["-0.5"]
    assert cells["spoof accepted, %"] == [f"{system['at_threshold']['far']:.2f}"]
    assert cells["A1 (10 spoof)"] == [f"{system['attacks']['A1']['eer']:.2f}"]
    assert cells["c0 (4 bonafide + 12 spoof)"] == [f"{system['codecs']['c0']['eer']:.2f}"]
    eers = {name: group["eer"] for name, group in system["speakers"].items()}
    assert cells["median"] == [f"{np.median(list(eers.values())):.2f}"]
    assert cells["worst"] == [f"{max(eers.values()):.2f}", f"({max(eers, key=lambda name: eers[name])})"]
    assert "EER, %, of 4 speakers" in text
    assert "1000 resamples of the trials" in text
    assert not [line for line in lines if line != line.rstrip()]


@pytest.mark.parametrize(("errors", "few"), [(4, True), (5, False), (16, True)])
def test_a_comparison_of_few_errors_says_that_it_says_too_much(
    run: Callable[..., tuple[str, str]], tmp_path: Path, errors: int, few: bool
) -> None:
    """At the EER `errors` of 20 trials of each class are wrong: resamples of none of them vary not at all."""
    rows = [f"{label}{i},x,{label},a" for label in ("bonafide", "spoof") for i in range(20)]
    (tmp_path / "key.csv").write_text("\n".join(["utterance,path,label,split", *rows]) + "\n")
    wrong = {"a.txt": errors, "b.txt": 10}
    for name, count in wrong.items():
        scores = [
            f"{label}{i} {(label == 'bonafide') ^ (i < count)}" for label in ("bonafide", "spoof") for i in range(20)
        ]
        text = "\n".join(scores).replace("True", "1").replace("False", "-1")
        (tmp_path / name).write_text(text + "\n")
    arguments = (tmp_path / "a.txt", tmp_path / "b.txt", "--key", tmp_path / "key.csv", "--folds", "20")
    (found,) = json.loads(run(*arguments, "--json")[0])["comparisons"]
    assert found["few_errors"] == few
    assert ("of fewer than five errors: too narrow, and p too small" in run(*arguments)[0]) == few


def test_two_systems_are_columns_and_compared_on_the_same_trials(
    run: Callable[..., tuple[str, str]], tmp_path: Path, table: Trials
) -> None:
    (tmp_path / "b").mkdir()
    first, key = written(tmp_path, table, seed=1)
    second, _ = written(tmp_path / "b", table, "2019", seed=2)
    same = tmp_path / "b" / "scores1.txt"
    same.write_bytes(first.read_bytes())
    report = json.loads(run(first, second, same, "--key", key, "--json")[0])
    names = [system["name"] for system in report["systems"]]
    assert names == [f"{tmp_path.name}/scores1", "b/scores2", "b/scores1"]
    eers = [system["eer"] for system in report["systems"]]
    different, alike = report["comparisons"]
    assert (different["system"], different["against"]) == (names[1], names[0])
    assert different["eer_difference"] == pytest.approx(eers[1] - eers[0], abs=1e-4)
    assert different["interval"][0] < different["eer_difference"] < different["interval"][1]
    assert 0 < different["p_value"] <= 1
    assert (alike["eer_difference"], alike["interval"], alike["p_value"]) == (0.0, [0.0, 0.0], 1.0)
    text, _ = run(first, second, "--key", key, "--folds", 20)
    header = next(line for line in text.splitlines() if line.startswith(" "))
    assert header.split() == ["scores1", "scores2"]
    row = next(line for line in text.splitlines() if line.startswith("EER, %"))
    assert [cell for cell in row.split() if cell in {f"{eer:.2f}" for eer in eers}] == [
        f"{eer:.2f}" for eer in eers[:2]
    ]
    assert f"scores2 - scores1: EER {different['eer_difference']:+.2f} points [" in text


def test_without_resamples_there_is_neither_interval_nor_comparison(
    run: Callable[..., tuple[str, str]], tmp_path: Path, table: Trials
) -> None:
    words = [written(tmp_path, table, seed=seed)[0] for seed in (1, 2)]
    report = json.loads(run(*words, "--key", tmp_path / "key.csv", "--folds", 0, "--json")[0])
    assert (report["folds"], report["comparisons"], report["asv"]) == (0, [], None)
    assert not [name for system in report["systems"] for name in system if "interval" in name]


def test_each_system_brings_its_own_threshold(
    run: Callable[..., tuple[str, str]], tmp_path: Path, table: Trials
) -> None:
    words = [written(tmp_path, table, seed=seed)[0] for seed in (1, 2)]
    words += ["--key", tmp_path / "key.csv", "--folds", 0, "--json", "--threshold=-1e-3"]  # type: ignore[list-item]
    report = json.loads(run(*words, "--threshold", "0.5")[0])
    assert [system["at_threshold"]["threshold"] for system in report["systems"]] == [-0.001, 0.5]
    with pytest.raises(SystemExit, match="2"):
        run(*words)


def test_surplus_scores_are_left_out_counted_and_named(
    run: Callable[..., tuple[str, str]], tmp_path: Path, table: Trials
) -> None:
    scores, key = written(tmp_path, table)
    expected = json.loads(run(scores, "--key", key, "--json")[0])["systems"][0]
    scores.write_text("".join(f"x{i} 99\n" for i in range(12)) + scores.read_text())
    found = json.loads(run(scores, "--key", key, "--json")[0])["systems"][0]
    names = [f"x{i}" for i in range(10)]
    assert found == expected | {"surplus": 12, "surplus_first": names}
    text, _ = run(scores, "--key", key)
    left_out = "scores1: left out 12 scores that belong to no trial of the key"
    assert text.splitlines()[-1] == f"{left_out}: {', '.join(names)}, ..."


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text.replace("u3 ", "v3 "), r"(?s)scores1\.txt: 1 of 40 trials have no score:\n  u3\n.*--split"),
        (lambda text: text.replace(" ", ".wav ", 40), r"names of the scores end in \.wav"),
        (lambda text: text + "u0 1\n", r"scores1\.txt:41: utterance u0 is scored twice"),
        (lambda text: text + "u99 nan\n", r"scores1\.txt:41: utterance u99: expected a finite score, got 'nan'"),
        (
            lambda text: "utterance points\n" + text,
            r"(?s)scores1\.txt:1: expected the first line .* 'utterance points'",
        ),
    ],
)
def test_scores_that_cannot_be_used(
    run: Callable[..., tuple[str, str]],
    tmp_path: Path,
    table: Trials,
    spoil: Callable[[str], str],
    message: str,
) -> None:
    scores, key = written(tmp_path, table)
    scores.write_text(spoil(scores.read_text()))
    with pytest.raises(InputError, match=message):
        run(scores, "--key", key)


def test_a_2019_file_that_contradicts_the_key(
    run: Callable[..., tuple[str, str]], tmp_path: Path, table: Trials
) -> None:
    scores, key = written(tmp_path, table, "2019")
    scores.write_text(scores.read_text().replace("u1 A2 spoof", "u1 A1 spoof"))
    with pytest.raises(InputError, match=r"scores1\.txt:2: utterance u1: the file says A1 spoof, the key A2 spoof"):
        run(scores, "--key", key)


LA21 = "LA_0009 LA_E_{i} alaw ita_tx {attack} {label} notrim {phase}\n"
FIVE = "E_1607 E_{i} M C05 2 E_0009486171 AC1 {attack} {label} -\n"


def test_a_2021_key_is_read_by_phase(run: Callable[..., tuple[str, str]], tmp_path: Path) -> None:
    (tmp_path / "key.txt").write_text(
        "".join(
            LA21.format(i=i, phase=phase, attack="A07" if i % 2 else "bonafide", label="spoof" if i % 2 else "bonafide")
            for i, phase in enumerate(["progress"] * 2 + ["eval"] * 4)
        )
    )
    (tmp_path / "scores.txt").write_text("".join(f"LA_E_{i} {i}\n" for i in range(6)))
    words = [tmp_path / "scores.txt", "--key", tmp_path / "key.txt", "--folds", 0, "--json"]
    for split, counts, surplus in (((), 2, 2), (("--split", "progress"), 1, 4), (("--split", "all"), 3, 0)):
        report = json.loads(run(*words, *split)[0])
        assert report["key"]["corpus"] == "asvspoof2021_la"
        assert report["key"]["split"] == (split[1] if split else "eval")
        assert (report["key"]["bonafide"], report["key"]["spoof"]) == (counts, counts)
        assert report["systems"][0]["surplus"] == surplus
    with pytest.raises(InputError, match=r"got 'dev'"):
        run(*words, "--split", "dev")


def test_a_key_of_asvspoof5_brings_its_asv_rates(run: Callable[..., tuple[str, str]], tmp_path: Path) -> None:
    lines = [
        FIVE.format(i=i, attack=("A17" if i % 2 else "bonafide"), label=("bonafide", "spoof")[i % 2]) for i in range(8)
    ]
    (tmp_path / "key.tsv").write_text("".join(lines))
    (tmp_path / "scores.tsv").write_text("filename\tcm-score\n" + "".join(f"E_{i}\t{i % 5}\n" for i in range(8)))
    words = [tmp_path / "scores.tsv", "--key", tmp_path / "key.tsv", "--folds", 0, "--json"]
    report = json.loads(run(*words)[0])
    assert report["asv"] == pytest.approx({"p_fa": 0.0188102, "p_miss": 0.0188014, "p_fa_spoof": 0.4607083}, abs=1e-7)
    assert report["key"]["corpus"] == "asvspoof5"
    assert "min_tdcf_2021" in report["systems"][0]
    assert json.loads(run(*words, "--asv-rates", 0.1, 0.1, 0.5)[0])["asv"]["p_fa"] == 0.1


def test_scores_of_the_asv_are_turned_into_its_rates(
    run: Callable[..., tuple[str, str]], tmp_path: Path, table: Trials
) -> None:
    kinds = {"target": [1, 3, 5, 7], "nontarget": [0, 2, 4, -1], "spoof": [2, 3, 4, 9]}
    asv = tmp_path / "asv.txt"
    asv.write_text("\n".join(f"x {kind} {score}" for kind, scores in kinds.items() for score in scores) + "\n\n")
    words = [*_words(written(tmp_path, table)), "--asv", asv]
    report = json.loads(run(*words, "--json")[0])
    # In order n-1 n0 t1 n2 t3 n4 t5 t7: after n2, 1/4 of the targets is rejected and 1/4 of the non-targets accepted.
    # The threshold is that point's score, 2; the rates are those of accepting from 2 up, n2 too.
    assert report["asv"] == {"p_fa": 0.5, "p_miss": 0.25, "p_fa_spoof": 1.0}
    for text, message in [
        ("x target 1\nx target\n", r"asv\.txt:2: expected `source kind score` with the kind .*, got 'x target'"),
        ("x target 1\nx impostor 1\n", r"asv\.txt:2: expected .*, got 'x impostor 1'"),
        ("x target 1\nx spoof nan\n", r"asv\.txt:2: expected a finite score, got 'nan'"),
        ("x target 1\nx spoof 2\n", r"got none of nontarget"),
        ("", r"got none of target"),
        ("x target 1\nx spoof -5\nx nontarget 0\n", r"asv\.txt: expected an ASV with which .* C2 = 0"),
    ]:
        asv.write_text(text)
        with pytest.raises(InputError, match=message):
            run(*words)
    asv.unlink()
    with pytest.raises(InputError, match=r"asv\.txt: no ASV score file there"):
        run(*words)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (("A1", "A2"), None),
        (("-", "-"), None),
        (("bonafide", "bonafide"), None),
        (
            ("A1", "A1"),
            r"got other attacks \(1 only in the key: A2\); give the ASV scores of the trials that the key lists",
        ),
        (("A1", "A3"), r"asv\.txt: .*\(1 only in the file: A3; 1 only in the key: A2\)"),
        (("A3", "A4"), r"\(2 only in the file: A3, A4; 2 only in the key: A1, A2\)"),
    ],
)
def test_scores_of_the_asv_are_of_the_attacks_of_the_key(
    run: Callable[..., tuple[str, str]], tmp_path: Path, table: Trials, sources: tuple[str, str], message: str | None
) -> None:
    lines = ["bonafide target 1", "bonafide target 3", "bonafide nontarget 0", "bonafide nontarget 2"]
    lines += [f"{source} spoof {score}" for source, score in zip(sources, (2, 3), strict=True)]
    (tmp_path / "asv.txt").write_text("\n".join(lines))
    words = [*_words(written(tmp_path, table)), "--asv", tmp_path / "asv.txt", "--folds", 0, "--json"]
    if message is None:
        assert json.loads(run(*words)[0])["asv"]["p_fa_spoof"] == 1.0
    else:
        with pytest.raises(InputError, match=message):
            run(*words)


# Targets 1, 3, 5, 7, non-targets 0, 2, 4, -1, spoof 2, 3, 4, 9, as in the test above; and a phase with other scores.
ASV21 = {"target": [1, 3, 5, 7], "nontarget": [0, 2, 4, -1], "spoof": [2, 3, 4, 9]}


def asv21(folder: Path) -> tuple[Path, Path, Path, Path]:
    """Scores of a system, their key with two phases, scores of the ASV, and its key, as ASVspoof 2021 LA has them."""
    place = folder / "keys" / "LA" / "ASV" / "ASVTorch_Kaldi"
    place.mkdir(parents=True)
    key, scores, trials, asv = "", "", "", []
    for i in range(8):
        spoof, phase = i % 2, "eval" if i < 6 else "progress"
        key += LA21.format(i=i, phase=phase, attack=("bonafide", "A07")[spoof], label=("bonafide", "spoof")[spoof])
        scores += f"LA_E_{i} {-i}\n"
    for phase, shift in (("eval", 0), ("progress", 100)):
        for kind, values in ASV21.items():
            for i, value in enumerate(values):
                source = "A07" if kind == "spoof" else "bonafide"
                pair = f"LA_{i % 2}-alaw-ita_tx LA_E_{kind}{i}{phase}-alaw-ita_tx"
                trials += f"{pair} alaw ita_tx {source} {kind} notrim {phase}\n"
                asv.append(f"{pair} {value - shift * (kind == 'target')}\n")
    files = folder / "scores.txt", folder / "key.txt", place / "score.txt", place.parent / "trial_metadata.txt"
    for path, text in zip(files, (scores, key, "".join(reversed(asv)), trials), strict=True):
        path.write_text(text)
    return files


def test_scores_of_the_asv_of_2021_with_their_key(run: Callable[..., tuple[str, str]], tmp_path: Path) -> None:
    scores, key, asv, asv_key = asv21(tmp_path)
    words = [scores, "--key", key, "--asv", asv, "--asv-key", asv_key, "--folds", 0, "--json"]
    report = json.loads(run(*words)[0])
    assert report["asv"] == {"p_fa": 0.5, "p_miss": 0.25, "p_fa_spoof": 1.0}
    plain = tmp_path / "plain.txt"
    plain.write_text("".join(f"x {kind} {value}\n" for kind, values in ASV21.items() for value in values))
    expected = json.loads(run(scores, "--key", key, "--asv", plain, "--folds", 0, "--json")[0])
    assert report["systems"] == expected["systems"]
    assert "min_tdcf_2021" in report["systems"][0]
    # In the other phase the targets are -99, -97, -95 and -93: the threshold is the last of them, below all the others.
    report = json.loads(run(*words, "--split", "progress")[0])
    assert report["asv"] == {"p_fa": 1.0, "p_miss": 0.75, "p_fa_spoof": 1.0}


def test_scores_of_the_asv_of_2021_that_cannot_be_used(run: Callable[..., tuple[str, str]], tmp_path: Path) -> None:
    scores, key, asv, asv_key = asv21(tmp_path)
    words = [scores, "--key", key, "--asv", asv, "--folds", 0]
    with pytest.raises(InputError, match=re.escape(f"`speaker utterance score`, give --asv-key {asv_key}")):
        run(*words)
    words += ["--asv-key", asv_key]
    plain = tmp_path / "plain.csv"
    plain.write_text("utterance,label\n" + "".join(f"LA_E_{i},{('real', 'fake')[i % 2]}\n" for i in range(8)))
    with pytest.raises(
        InputError, match="expected ASV trials of one phase, got eval, progress; give the ASVspoof 2021"
    ):
        run(*words[:1], "--key", plain, *words[3:])
    text, trials = asv.read_text(), asv_key.read_text()
    first = trials.splitlines()[0]
    for path, spoilt, message in (
        (
            asv,
            text + "LA_9 LA_E_1 2\n",
            r"score\.txt:25: expected `speaker utterance score` of a trial of the ASV's key",
        ),
        (asv, text[: text.rstrip().rindex("\n")], r"score\.txt: 1 trials of the ASV's key have no score"),
        (asv, text.replace(" 9\n", " nan\n"), r"score\.txt:\d+: expected a finite score, got 'nan'"),
        (
            asv_key,
            trials + first.replace(" target", " nontarget") + "\n",
            r"metadata\.txt:25: .* another kind of trial",
        ),
        (asv_key, "LA_1 LA_E_0 A07 spoof\n", r"got 'LA_1 LA_E_0 A07 spoof', a line `speaker utterance source kind` of"),
        (asv_key, trials + "a b c\n", r"metadata\.txt:25: expected `speaker utterance codec .* phase`, got 'a b c'"),
        (asv_key, trials.replace("A07", "A08"), r"1 only in the file: A08; 1 only in the key: A07"),
        (asv_key, trials.replace(" nontarget", " target"), r"got none of nontarget"),
    ):
        asv.write_text(text)
        asv_key.write_text(trials)
        path.write_text(spoilt)
        with pytest.raises(InputError, match=message):
            run(*words)
    asv_key.unlink()
    with pytest.raises(InputError, match=r"trial_metadata\.txt: no ASV score file there"):
        run(*words)


@needs(CASES)
def test_asv_scores_in_the_official_form_are_read() -> None:
    # these few lines have no non-target, so they give no rates
    with pytest.raises(
        InputError, match=r"asv21_score\.txt: expected scores of every kind in .*, got none of nontarget"
    ):
        asv_scores.read_asv(CASES / "asv21_score.txt", key=CASES / "asv21_trial.txt")


def test_both_eers_stand_side_by_side_where_they_differ(run: Callable[..., tuple[str, str]], tmp_path: Path) -> None:
    # All scores alike: the official EER is 100 %, with ties counted evenly it is 50 %.
    (tmp_path / "scores.txt").write_text("a bonafide 1\nb spoof 1\n")
    assert "  official / interpolated  100.00000 / 50.00000\n" in run(tmp_path / "scores.txt", "--folds", 0)[0]
    (tmp_path / "scores.txt").write_text("a bonafide 1\nb spoof 0\n")
    assert "interpolated" not in run(tmp_path / "scores.txt", "--folds", 0)[0]


def test_a_manifest_and_a_table_are_keys(run: Callable[..., tuple[str, str]], tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text("utterance,score\n" + "".join(f"u{i},{i}\n" for i in range(4)))
    rows = [f"u{i},u{i}.wav,{('bonafide', 'spoof')[i % 2]},test" for i in range(4)]
    (tmp_path / "key.csv").write_text("utterance,path,label,split\n" + "\n".join(rows) + "\n")
    words = [tmp_path / "scores.csv", "--key", tmp_path / "key.csv", "--folds", 0, "--json"]
    report = json.loads(run(*words)[0])
    assert (report["key"]["corpus"], report["key"]["split"]) == ("manifest", "test")
    assert report["systems"][0]["eer"] == 50.0
    (tmp_path / "key.csv").write_text("something,else\n1,2\n")
    with pytest.raises(InputError, match=r"key\.csv: expected a protocol or key of asvspoof2019_la, .* trial table"):
        run(*words)


def test_a_trial_table_has_no_splits(run: Callable[..., tuple[str, str]], tmp_path: Path, table: Trials) -> None:
    with pytest.raises(InputError, match=r"a trial table has no splits, got --split eval"):
        run(*_words(written(tmp_path, table)), "--split", "eval")


def test_without_a_key_only_a_2019_file_will_do(
    run: Callable[..., tuple[str, str]], tmp_path: Path, table: Trials
) -> None:
    with pytest.raises(InputError, match=r"does not say what is bona fide; give the key"):
        run(written(tmp_path, table)[0])


def test_the_same_file_twice_is_refused(run: Callable[..., tuple[str, str]], tmp_path: Path, table: Trials) -> None:
    scores, key = written(tmp_path, table)
    with pytest.raises(InputError, match=r"expected different score files"):
        run(scores, scores, "--key", key)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--folds", "-1"], "expected a whole number from 0 to 100,000, got '-1'"),
        (["--folds", "many"], "expected a whole number from 0 to 100,000, got 'many'"),
        (["--folds", "100001"], "expected a whole number from 0 to 100,000, got '100001'"),
        (["--threshold", "nan"], "expected a finite number, got 'nan'"),
        (["--threshold", "high"], "expected a finite number, got 'high'"),
        (["--threshold", "1", "--threshold", "2"], "expected --threshold once for each of 1 score files"),
        (["--asv-rates", "0.1"], "expected 3 arguments"),
        (["--asv-key", "key.txt"], "expected --asv-key beside --asv only"),
        (["--format", "2015"], "invalid choice: '2015'"),
    ],
)
def test_words_that_make_no_sense_end_with_usage(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        metrics.main(["scores.txt", *words])
    err = capsys.readouterr().err
    assert err.startswith("usage: bonafide metrics")
    assert message in err


def test_the_entry_point_lists_its_commands_and_knows_no_others(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        commands.dispatch(["--help"])
    assert "\n  metrics    EER, t-DCF and DCF of score files" in capsys.readouterr().out
    for words in ([], ["metric"], ["__init__"]):
        with pytest.raises(SystemExit, match="2"):
            commands.dispatch(words)
    with pytest.raises(SystemExit, match="0"):
        commands.dispatch(["metrics", "--help"])
    assert "bonafide metrics scores.txt --key" in capsys.readouterr().out


def command(*words: object) -> subprocess.CompletedProcess[str]:
    code = [sys.executable, "-c", "from pipeline.commands import main; main()"]
    return subprocess.run([*code, *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command_as_a_process(tmp_path: Path, table: Trials) -> None:
    scores, key = written(tmp_path, table)
    good = command("metrics", scores, "--key", key, "--json")
    assert (good.returncode, good.stderr) == (0, "")
    report: dict[str, Any] = json.loads(good.stdout)
    assert list(report) == ["key", "asv", "folds", "systems", "comparisons"]
    bad = command("metrics", tmp_path / "none.txt", "--key", key)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == f"error: {tmp_path / 'none.txt'}: no score file there\n"


def test_starting_imports_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "faiss", "zarr", "matplotlib", "scipy", "pydantic")
    code = f"import sys, pipeline.commands.metrics; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_reader_that_goes_away_is_no_success() -> None:
    code = "from pipeline.core.errors import run_command; run_command(lambda: print('x' * 1_000_000, flush=True))"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        run.stdout.read(1)
        run.stdout.close()
        assert run.stderr.read() == b""
    assert run.returncode == 141
