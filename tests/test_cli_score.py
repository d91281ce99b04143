"""gaze-vlm score as a person types it: files of every kind in, a table or one JSON document or one line out."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from typer.testing import CliRunner

from gaze_vlm.metrics.scanpath import edit_distance, scanmatch
from gaze_vlm.scanpath import Scanpath

OPEN_DATA = Path(os.environ.get("GAZE_VLM_OPEN_DATA", Path(__file__).parents[1].parent / "shared" / "data"))

# GazeSearch's layouts: a release without the centre and with times, a prediction with the centre and without times
RELEASED = [
    {"name": "a.jpg", "task": "edema", "X": [28, 196, 112], "Y": [28, 28, 196], "T": [0.2, 0.3, 0.4]},
    {"name": "b.jpg", "task": "fracture", "X": [20, 60, 200], "Y": [20, 200, 60], "T": [0.2, 0.3, 0.4]},
]
PUBLISHED = [
    {"name": "b.jpg", "task": "fracture", "condition": "present", "X": [112, 20, 60], "Y": [112, 20, 200]},
    {"name": "a.jpg", "task": "edema", "condition": "present", "X": [112.0, 28, 196, 112], "Y": [112.0, 28, 28, 196]},
]


class Ran(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        """The one document on stdout; NaN is no JSON."""
        assert self.out.count("\n") == 1

        def refuse(constant):
            raise AssertionError(f"{constant} in the document")

        return json.loads(self.out, parse_constant=refuse)

    def estimate(self, metric: str, system: str) -> float:
        scores = {(score["metric"], score["system"]): score for score in self.json["scores"]}
        (name,) = {name for name, _ in scores if name.startswith(metric)}
        return scores[name, system]["interval"]["estimate"]


@pytest.fixture
def run():
    """`gaze-vlm ARGUMENTS` in this process."""

    def call(*arguments) -> Ran:
        from gaze_vlm.cli import app

        ran = CliRunner().invoke(app, list(map(str, arguments)))
        assert ran.exception is None or isinstance(ran.exception, SystemExit), ran.exception
        return Ran(ran.exit_code, ran.stdout, ran.stderr)

    return call


@pytest.fixture
def file(tmp_path):
    """name, content -> path; content that is not a text is written as JSON."""

    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


def in_a_process(*arguments, **environment) -> Ran:
    known = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"} | environment
    command = [sys.executable, "-m", "gaze_vlm.cli", *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, env=known, timeout=300)
    return Ran(ran.returncode, ran.stdout, ran.stderr)


def refused(ran: Ran, *words) -> None:
    """Status 2, nothing on stdout, one line on stderr that holds all the words."""
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("gaze-vlm: ")
    assert ran.err.count("\n") == 1, ran.err
    for word in words:
        assert str(word) in ran.err


def reports(*texts, **known) -> list[dict]:
    return [{"id": number, "report": text} | known for number, text in enumerate(texts)]


FILES = {
    "scanpath": (PUBLISHED, RELEASED),
    "report": (reports("Small left effusion.", "Clear lungs."), reports("Left pleural effusion.", "No effusion.")),
    "classify": (
        [{"id": i, "findings": [{"name": "Edema", "probability": 0.1 * i}]} for i in range(4)],
        "id,Edema\n0,0\n1,1\n2,-1\n3,1\n",
    ),
    "ground": (
        [{"image": "a.png", "phrase": "mass", "boxes": [[0, 0, 0.5, 1]]}],
        [{"image": "a.png", "phrase": "mass", "boxes": [[0, 0, 1, 1]]}],
    ),
    "vqa": ([{"id": 1, "answer": "yes"}], '{"id": 1, "answer": "yes"}'),
}


def written(file, kind) -> tuple[Path, Path]:
    predictions, references = FILES[kind]
    suffix = {"classify": "csv", "vqa": "jsonl"}.get(kind, "json")
    return file("mine.json", predictions), file(f"readers.{suffix}", references)


# ---- what comes out


def test_the_gazesearch_protocol_by_hand(run, file):
    """One path is the reader's; the other lacks the last of four fixations."""
    ran = run("score", "scanpath", *written(file, "scanpath"), "--json")
    assert (ran.status, ran.err) == (0, "")
    assert ran.estimate("ScanMatch (14 x 14 bins, threshold 3.5, gap 0, no duration)", "mine") == (1 + 3 / 4) / 2
    assert ran.estimate("string edit distance", "mine") == (0 + 1) / 2
    assert ran.estimate("fixations a scanpath", "mine") == (4 + 3) / 2
    assert ran.estimate("fixations a scanpath", "centre, 4 fixations") == 4
    assert {score["system"] for score in ran.json["scores"]} == {"mine", "centre, 4 fixations", "uniform, 4 fixations"}
    assert ran.json["what"] == "scanpath"
    assert "a made-up fixation at the centre put in front (references: 2)" in ran.json["protocol"]
    assert "durations are not known on every side, and what needs them is left out (mine: 2)" in ran.json["protocol"]


@pytest.mark.parametrize("kind", FILES)
def test_table_markdown_and_json_say_the_same(kind, run, file):
    arguments = ["score", kind, *written(file, kind), "--resamples", 100]
    document, table, markdown = (run(*arguments, *option) for option in (["--json"], [], ["--markdown"]))
    assert {(ran.status, ran.err) for ran in (document, table, markdown)} == {(0, "")}
    words = " ".join(table.out.split())
    for score in document.json["scores"]:
        value = score["interval"]["estimate"]
        assert score["metric"] in table.out
        assert score["system"] in table.out
        assert (f"{value:.3f}" if value is not None else " - ") in table.out
        assert (f"| {value:.3f} |" if value is not None else "| - |") in markdown.out
    for sentence in document.json["protocol"]:
        assert " ".join(sentence.split()) in words
        assert f"- {sentence}\n" in markdown.out
    assert "\x1b" not in table.out


def test_it_runs_as_a_program(file):
    predictions, references = written(file, "scanpath")
    ran = in_a_process("score", "scanpath", predictions, references, "--json")
    assert (ran.status, ran.err) == (0, "")
    assert ran.estimate("string edit distance", "mine") == 0.5
    refused(in_a_process("score", "scanpath", references, predictions.parent), f"{predictions.parent}: Is a directory")


def test_a_terminal_that_knows_no_arrows_gets_the_table_too(file):
    predictions = file("é.json", FILES["vqa"][0])
    ran = in_a_process("score", "vqa", predictions, predictions, PYTHONIOENCODING="ascii", PYTHONUTF8="1")
    assert (ran.status, ran.err) == (0, "")
    assert r"exact match, all questions \u2191" in ran.out
    assert r"\xe9" in ran.out


@pytest.mark.parametrize("option", [[], ["--markdown"]])
def test_names_are_no_markup_and_no_orders_to_the_terminal(option, run, file):
    one = file("[red]x|[b].json", FILES["vqa"][0])
    other = file("y\x1b[31m\n.json", FILES["vqa"][0])
    ran = run("score", "vqa", one, one, "--versus", other, *option)
    assert (ran.status, ran.err) == (0, "")
    assert "[red]x" in ran.out
    assert r"y\x1b[31m" in ran.out
    assert "\x1b" not in ran.out


# ---- what our own commands print


def test_what_our_commands_print_is_scored_as_it_is(run, film_file, tiny_bundle, file):
    images = [film_file(f"{seed}.png", seed) for seed in range(4)]
    printed = {
        kind: file(f"{kind}.json", run(kind, *images, "--model", tiny_bundle, "--json").out)
        for kind in ("report", "classify", "scanpath")
    }
    documents = json.loads(printed["report"].read_text())
    names = [finding["name"] for finding in documents[0]["findings"]]
    truths = {
        "report": [{"image_id": Path(known["image"]).stem, "report": known["report"]} for known in documents],
        "classify": [{"image": known["image"], "labels": names[i : i + 2]} for i, known in enumerate(documents)],
        "scanpath": [{"image": known["image"], "scanpath": known["scanpath"]} for known in documents],
    }
    for kind, truth in truths.items():
        reference = file(f"{kind}_truth.json", truth)
        for source in {kind, "report"}:
            ran = run("score", kind, printed[source], reference, "--json", "--resamples", 100)
            assert (ran.status, ran.err) == (0, ""), ran.err
            assert {score["n"] + score["undefined"] for score in ran.json["scores"]} == {len(images)}
    ran = run("score", "report", printed["report"], file("t.json", truths["report"]), "--json")
    assert ran.estimate("label F1, micro, 14", "report") == 1
    refused(
        run("score", "report", printed["classify"], file("t.json", truths["report"])),
        "classify.json: record 1: no report: a text, or its findings and impression; the record has 'image, model",
    )


# ---- several files


def test_other_systems_stand_beside_the_first_and_are_compared_with_it(run, file):
    mine, readers = written(file, "report")
    rivals = [
        file("other/mine.json", reports("Clear.", "Clear.")),
        file("rival.json", reports("Edema.", "Edema.", "x")),
    ]
    ran = run("score", "report", mine, readers, "--versus", rivals[0], "--versus", rivals[1], "--json")
    assert ran.status == 0
    systems = list(dict.fromkeys(score["system"] for score in ran.json["scores"]))
    assert systems == ["mine", str(rivals[0]), "rival", "normal template"]
    for score in ran.json["scores"]:
        assert (score["difference"] is None) == (score["system"] == "mine")
    assert "rival: 1 predictions without a reference" in ran.json["protocol"]
    short = file("short.json", reports("Clear."))
    refused(
        run("score", "report", mine, readers, "--versus", short), "short.json: no prediction for '1', one of 1 miss"
    )
    refused(run("score", "report", mine, readers, "--versus", file("b.json", "{")), "b.json: not valid JSON")
    twice = file("twice.json", reports("Clear.", "Clear.") * 2)
    refused(run("score", "report", mine, readers, "--versus", twice), "twice.json: two predictions have the id '0'")


def test_one_file_may_be_given_as_often_as_one_likes(run, file):
    mine, readers = written(file, "vqa")
    ran = run("score", "vqa", mine, readers, *["--versus", mine] * 3, "--json")
    systems = {score["system"] for score in ran.json["scores"]}
    assert systems == {"mine", str(mine), f"{mine} (2)", f"{mine} (3)", "majority answer"}


@pytest.mark.parametrize("stem", ["references", "centre, 4 fixations", "training scanpaths", "uniform, 4 fixations"])
def test_a_file_may_be_called_anything(stem, run, file):
    mine, readers = written(file, "scanpath")
    ran = run("score", "scanpath", mine, readers, "--json")
    other = run("score", "scanpath", file(f"{stem}.json", PUBLISHED), readers, "--json")
    assert other.estimate("string edit", stem) == ran.estimate("string edit", "mine")


def test_training_cases_come_from_a_file_or_from_the_references_own_split(run, file):
    records = [
        {"id": i, "question": "q", "image": f"{i % 3}.png", "answer": answer, "split": split}
        for i, (answer, split) in enumerate(
            [("left", "train"), ("left", "train"), ("right", "val"), ("left", "val"), ("right", "train")]
        )
    ]
    readers = file("readers.json", records)
    ran = run("score", "vqa", readers, readers, "--split", "val", "--json")
    assert ran.estimate("exact match, all", "majority answer") == 0.5
    assert ran.json["protocol"][0].startswith("2 questions")
    assert "3 predictions for other splits" in ran.json["protocol"]
    said = f"training: 3 cases, the train split of {readers}; 1 of the 2 scored patients or images are in it too"
    assert said in ran.json["protocol"]
    for options in ([], ["--split", "train"]):
        ran = run("score", "vqa", readers, readers, *options, "--json")
        assert any("of the references themselves" in sentence for sentence in ran.json["protocol"])
    training = file("training.json", [{"id": "t", "answer": "right"}])
    ran = run("score", "vqa", readers, readers, "--train", training, "--json")
    assert f"training: 1 cases, {training}" in ran.json["protocol"]
    assert ran.estimate("exact match, all", "majority answer") == pytest.approx(2 / 5)
    nameless = [file(f"{name}.json", [{"answer": "left"}, {"answer": "right"}]) for name in ("mine", "unnamed")]
    ran = run("score", "vqa", *nameless, "--train", nameless[1], "--json")
    assert f"training: 2 cases, {nameless[1]}" in ran.json["protocol"], "nobody knows whether they are the same"
    none = file("none.json", [{"id": "t", "answer": "right", "split": "test"}])
    refused(run("score", "vqa", readers, readers, "--train", none), "none.json: it names splits, and none is train")
    refused(
        run("score", "vqa", readers, readers, "--split", "dev"), "no reference is of the split 'dev'; known: train"
    )


def test_cases_of_one_file_only(run, file):
    mine, readers = (
        file("mine.json", reports("Clear.", "Clear.", "Clear.")),
        file("r.json", reports("Clear.", "Edema.")),
    )
    refused(
        run("score", "report", mine, readers),
        f"{mine} against {readers}: 1 predictions without a reference, the first for '2'; --common scores the rest",
    )
    ran = run("score", "report", mine, readers, "--common", "--json")
    assert "1 predictions without a reference" in ran.json["protocol"]
    assert {score["n"] for score in ran.json["scores"] if score["metric"].startswith("label F1, m")} == {2}


# ---- agreement among readers


def read_twice(films: int = 22) -> tuple[list[dict], list[dict]]:
    """Predictions, and what readers A and B saw of the same films; no two look at one place."""
    rng = np.random.default_rng(0)
    predictions, readings = [], []
    for film in range(films):
        seen = rng.uniform(0.1, 0.9, (5, 2))
        for reader in ("A", "B", None):
            x, y = (seen + rng.normal(0, 0.01, seen.shape)).T.tolist()
            record = {"image": f"{film}.png", "scanpath": {"x": x, "y": y, "duration": [0.3] * 5}}
            (readings if reader else predictions).append(record | ({"reader": reader} if reader else {}))
    return predictions, readings


def test_agreement_is_a_table_of_its_own(run, file):
    mine, readers = (file(f"{name}.json", records) for name, records in zip(("mine", "r"), read_twice(), strict=True))
    arguments = ["score", "scanpath", mine, readers, "--agreement", "--resamples", 100]
    document, table, markdown = (run(*arguments, *option) for option in (["--json"], [], ["--markdown"]))
    assert {(ran.status, ran.err) for ran in (document, table, markdown)} == {(0, "")}
    assert document.json["what"] == "agreement"
    systems = {score["system"] for score in document.json["scores"]}
    assert {"mine", "mine against reader A", "mine against reader B", "readers among themselves"} < systems
    assert not any("ScanMatch" in score["metric"] for score in document.json["scores"])
    for metric in ("ICC(2,1) of seconds a cluster (DBSCAN", "ICC(3,1) of seconds a cluster (17", "cosine of seconds"):
        assert metric in table.out
        assert metric in markdown.out
    assert document.estimate("DTW", "mine") < 0.1 < document.estimate("DTW", "mine of another case")
    for score in document.json["scores"]:
        assert f"| {score['interval']['estimate']:.3f} |" in markdown.out
        assert f"{score['interval']['estimate']:.3f}" in table.out


def test_agreement_without_two_readers_or_durations(run, file):
    ran = run("score", "scanpath", *written(file, "scanpath"), "--agreement", "--json")
    assert (ran.status, ran.err) == (0, "")
    assert "no case has two readings: no row of readers among themselves" in ran.json["protocol"]
    assert "no rows of single readers: the references name none" in ran.json["protocol"]
    assert ran.estimate("DTW", "mine") < 0.1 < ran.estimate("DTW", "mine of another case")
    assert any("every fixation counts 1 for its seconds" in sentence for sentence in ran.json["protocol"])
    given = written(file, "scanpath")
    refused(run("score", "scanpath", *given, "--agreement", "--maps"), "--maps adds to the usual table")
    refused(run("score", "scanpath", file("b.json", "{"), given[1], "--agreement"), "b.json: not valid JSON (line 1")
    double = file("twice.json", RELEASED * 2)
    refused(run("score", "scanpath", given[0], double, "--agreement"), "two references have the id 'a / Edema'")


# ---- what is refused


@pytest.mark.parametrize(
    ("kind", "predictions", "words"),
    [
        ("report", "{", "mine.json: not valid JSON (line 1"),
        ("report", "[]", "mine.json: holds no case"),
        ("report", reports("Clear.", "."), "mine.json: record 2: the report has no words"),
        ("report", reports("Clear.", ""), "mine.json: record 2: the report is empty"),
        ("report", reports("Clear.", "Clear.") * 2, "two predictions have the id '0'"),
        ("report", [{"report": "Clear."}] * 2, "the references say which case they are of and the predictions do not"),
        ("report", [*reports("Clear."), {"report": "Clear."}], "predictions: case 2 does not say which it is"),
        ("scanpath", [{"name": "a.jpg", "task": "edema"}], "record 1: no scanpath"),
        ("scanpath", [RELEASED[0] | {"X": [0.1, 0.2, 0.3], "Y": [0, 0, 0]}], "X and Y are all within 0..1"),
        ("scanpath", [RELEASED[0] | {"T": [200, 300, 400]}], "median fixation of 300 s; durations are seconds"),
        ("scanpath", [{"image": "a", "scanpath": {"x": [60], "y": [9], "duration": [1]}}], "not pixels"),
        ("classify", [{"id": i, "labels": {"Edeema": 1}} for i in range(4)], "unknown finding 'Edeema'; did you mean"),
        ("classify", [{"id": i, "labels": {"Edema": 2.5}} for i in range(4)], "mine: case 0: Edema is 2.5, no probab"),
        ("classify", [{"id": i, "labels": ["Edema"][:i]} for i in range(4)], "mine: case 0 has no score for Edema"),
        (
            "ground",
            [{"image": "a", "phrase": "mass", "boxes": [[9, 9, 99, 99]]}],
            "mine: case a / mass has a box at 9",
        ),
        ("ground", '[{"id": "a", "boxes": [[0, 0, NaN, 1]]}]', "record 1: a corner is nan"),
        ("vqa", [{"id": 1, "answer": ["yes", "no"]}], "mine: case 1 has several answers"),
        ("vqa", [{"id": 1}], "record 1: no answer"),
    ],
)
def test_a_broken_file_gets_one_line(kind, predictions, words, run, file):
    _, readers = written(file, kind)
    refused(run("score", kind, file("mine.json", predictions), readers), words)


def test_a_missing_file_an_unknown_option_and_a_missing_program(run, file, monkeypatch):
    mine, readers = written(file, "report")
    refused(run("score", "report", mine.parent / "none.json", readers), "none.json: No such file or directory")
    for options in (["--preparation", "bleu"], ["--resamples", 1], ["--uncertain", "maybe"], ["--seed", "x"]):
        ran = run("score", "report", mine, readers, *options)
        assert ran.status == 2
        assert options[0] in ran.err
    pytest.importorskip("pycocoevalcap", reason='needs pycocoevalcap: pip install "gaze2report[eval]"')
    monkeypatch.setenv("PATH", str(mine.parent))
    refused(run("score", "report", mine, readers, "--meteor"), "METEOR runs in Java, and there is no java")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [*FILES, "agreement"])
def test_noise_in_place_of_a_file_never_gets_a_traceback(kind, run, file):
    """Every value of every record, exchanged for what does not belong there."""
    kind, options = ("scanpath", ["--agreement"]) if kind == "agreement" else (kind, [])
    mine, readers = written(file, kind)
    odd = [None, "", "x", -1, 1e308, True, [], {}, [[]], [None], {"x": 1}, "\ud800", float("nan"), float("inf")]
    records = json.loads(mine.read_text())
    for name in records[0]:
        for value in odd:
            path = file("odd.json", json.dumps([records[0] | {name: value}, *records[1:]]))
            ran = run("score", kind, path, readers, *options, "--json", "--resamples", 100, "--common")
            if ran.status == 0:
                assert ran.json["scores"]
            else:
                refused(ran)


# ---- leaks


def test_leaks_are_listed_and_are_the_status(run, file):
    clean = file("clean.csv", "image,patient_id,split\na.png,1,train\nb.png,2,test\n")
    ran = run("score", "leaks", clean)
    assert (ran.status, ran.err) == (0, "")
    assert "images:" in ran.out
    assert ran.out.count("no id is in two splits") == 2
    leaky = file("leaky.csv", "image,patient_id,split\na.png,1,train\nb.png,1,val\n")
    ran = run("score", "leaks", leaky, "--json")
    assert ran.status == 1
    assert ran.json == {
        "images": {"distinct": {"train": 1, "validation": 1}, "shared": []},
        "patients": {
            "distinct": {"train": 1, "validation": 1},
            "shared": [
                {"split": "train", "other": "validation", "ids": ["1"]},
                {"split": "validation", "other": "train", "ids": ["1"]},
            ],
        },
    }
    assert "train: 1 of 1 ids are in validation too" in run("score", "leaks", leaky).out
    refused(run("score", "leaks", file("no.csv", "image,split\na,\n")), "no.csv: record 1 has no split")


# ---- the release itself


@pytest.fixture(scope="module")
def release() -> Path:
    files = sorted((OPEN_DATA / "gazesearch").glob("*.json"))
    if not files:
        pytest.skip("no open data: GAZE_VLM_OPEN_DATA names no folder with gazesearch")
    return files[0]


def test_gazesearch_is_scored_as_released(release, run, file):
    """Published predictions have the centre and no times; those of other splits are left out."""
    rng = np.random.default_rng(0)
    records = json.loads(release.read_text())
    published, expected = [], []
    for record in records:
        x, y = (np.concatenate([[112], rng.integers(0, 224, 6)]) for _ in range(2))
        known = {name: record[name] for name in ("name", "task", "condition")}
        published.append(known | {"X": x.tolist(), "Y": y.tolist()})
        if record["split"] == "valid":
            truth = Scanpath.from_pixels(record["X"], record["Y"], record["T"], image_size=(224, 224)).with_centre()
            expected.append((Scanpath.from_pixels(x, y, np.zeros(7), image_size=(224, 224)), truth))
    predictions = file("published.json", published)
    ran = run("score", "scanpath", predictions, release, "--split", "validation", "--resamples", 100, "--json")
    assert (ran.status, ran.err) == (0, "")
    assert ran.json["scores"][0]["n"] == len(expected) == 517
    sides = [list(side) for side in zip(*expected, strict=True)]
    assert ran.estimate("ScanMatch", "published") == pytest.approx(scanmatch(*sides).mean(), abs=1e-12)
    assert ran.estimate("string edit", "published") == edit_distance(*sides).mean()
    assert ran.estimate("ScanMatch", "random reader, same finding") == pytest.approx(0.345, abs=0.01)
    assert ran.estimate("ScanMatch", "centre, 7 fixations") == pytest.approx(0.355, abs=0.01)
    assert ran.estimate("ScanMatch", "uniform, 7 fixations") == pytest.approx(0.275, abs=0.01)
    assert any("351 of the 472 scored patients or images are in it too" in said for said in ran.json["protocol"])


def test_gazesearch_against_itself_is_perfect_and_leaks(release, run):
    ran = run("score", "scanpath", release, release, "--resamples", 100, "--json")
    assert ran.estimate("ScanMatch (14 x 14 bins, threshold 3.5, gap 0, no", release.stem) == 1
    assert ran.estimate("string edit", release.stem) == 0
    assert "another reader" not in {score["system"] for score in ran.json["scores"]}
    leaks = run("score", "leaks", release, "--json")
    assert leaks.status == 1
    shared = {(one["split"], one["other"]): len(one["ids"]) for one in leaks.json["images"]["shared"]}
    assert shared["validation", "train"] == 351
    assert leaks.json["images"]["distinct"]["validation"] == 472
