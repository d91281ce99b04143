"""The command gaze-vlm as a person types it: its entry point, in this process and, where that differs, in its own.

The models are tiny and random (`tiny_bundle`); what they see does not matter here, what comes out and how does.
"""

import json
import os
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from gaze_vlm import __version__
from gaze_vlm.evidence import EvidenceBundle
from gaze_vlm.findings import FINDINGS, NO_FINDING
from gaze_vlm.images import read_film
from gaze_vlm.labeler import label
from gaze_vlm.scanpath import Scanpath
from gaze_vlm.visualize import draw_density

CANONICAL = {*FINDINGS, "Emphysema", "Hernia"}
FILES = {"report.txt", "evidence.json", "evidence.html", "overlay.png", "heatmap.png", "scanpath.gif"}
PICTURES = {"overlay.png", "heatmap.png", "scanpath.gif"}


class Ran(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self):
        """The one document on stdout."""
        assert self.out.endswith("\n")
        return json.loads(self.out)


@pytest.fixture
def run(tiny_bundle, monkeypatch, capsys):
    """`gaze-vlm ARGUMENTS --model TINY` through its entry point; `model=None` leaves the option out."""

    def call(*arguments, model=tiny_bundle) -> Ran:
        from gaze_vlm.cli import main

        option = [] if model is None else ["--model", str(model)]
        monkeypatch.setattr(sys, "argv", ["gaze-vlm", *map(str, arguments), *option])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        ran = Ran(left.value.code or 0, *capsys.readouterr())
        assert "Traceback" not in ran.out + ran.err
        return ran

    return call


def in_a_process(*arguments, cwd=None, command=(sys.executable, "-m", "gaze_vlm.cli")) -> Ran:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
    ran = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, env=environment, cwd=cwd, timeout=300
    )
    return Ran(ran.returncode, ran.stdout, ran.stderr)


def one_line(ran: Ran, *words) -> None:
    """stderr is one line that holds all the words."""
    assert ran.err.count("\n") == 1, ran.err
    assert ran.err.startswith("gaze-vlm: ")
    assert len(ran.err) < 1000
    for word in words:
        assert str(word) in ran.err


def check_scanpath(scanpath: dict) -> None:
    assert scanpath.keys() == {"x", "y", "onset", "duration"}
    (length,) = {len(values) for values in scanpath.values()}
    assert length > 0
    assert all(type(value) is float for values in scanpath.values() for value in values)
    assert all(0 <= value <= 1 for value in scanpath["x"] + scanpath["y"])
    assert min(scanpath["duration"]) >= 0
    assert scanpath["onset"] == sorted(scanpath["onset"])
    assert scanpath["onset"][0] == 0


def check_regions(regions: list) -> None:
    for region in regions:
        assert region.keys() == {"name", "box"}
        assert isinstance(region["name"], str)
        x1, y1, x2, y2 = region["box"]
        assert 0 <= x1 < x2 <= 1
        assert 0 <= y1 < y2 <= 1


def check_findings(findings: list) -> None:
    for finding in findings:
        assert finding.keys() == {"name", "probability", "present", "regions"}
        assert isinstance(finding["name"], str)
        assert type(finding["probability"]) is float
        assert 0 <= finding["probability"] <= 1
        assert type(finding["present"]) is bool
        assert bool(finding["regions"]) == (finding["name"] not in (NO_FINDING, "Hernia")) or finding["regions"]
        check_regions(finding["regions"])
    names = {finding["name"] for finding in findings if finding["present"]}
    assert names
    assert NO_FINDING not in names or names == {NO_FINDING}
    if "Mass" in names:
        assert "Lung Lesion" in names


def check_reading(document: dict) -> None:
    """Exactly the keys of the contract, of the right types, coordinates in 0..1."""
    assert list(document) == ["image", "model", "report", "findings", "scanpath", "evidence"]
    for name in ("image", "model", "report"):
        assert isinstance(document[name], str)
        assert document[name]
    check_findings(document["findings"])
    check_scanpath(document["scanpath"])
    assert document["evidence"]
    end = 0
    for sentence in document["evidence"]:
        keys = "text start end findings confidence regions fixations key_frames stage source review"
        assert sentence.keys() == set(keys.split())
        assert document["report"][sentence["start"] : sentence["end"]] == sentence["text"]
        assert end <= sentence["start"] < sentence["end"]
        end = sentence["end"]
        check_regions(sentence["regions"])
        assert all(0 <= index < len(document["scanpath"]["x"]) for index in sentence["fixations"])
        assert sentence["confidence"] is None or 0 <= sentence["confidence"] <= 1
        assert sentence["source"] in ("model", "template")
        assert sentence["review"] is None
    assert end == len(document["report"])


def nearly(value):
    """The same structure, with room in the last digits of its numbers."""
    if isinstance(value, dict):
        return {key: nearly(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [nearly(inner) for inner in value]
    return pytest.approx(value, abs=2e-4) if type(value) is float else value


# ---- report


def test_report_prints_one_json_document_with_one_object_an_image(run, film_file):
    images = [film_file("A.png", 1), film_file("B.jpg", 2), film_file("C.dcm", 3)]
    ran = run("report", *images, "--json")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.count("\n") == 1
    assert [document["image"] for document in ran.json] == list(map(str, images))
    for document in ran.json:
        check_reading(document)


def test_the_report_says_exactly_what_is_listed_present(run, film_file, tiny_bundle):
    images = [film_file(f"{seed}.png", seed) for seed in range(24)]
    ran = run("report", *images, "--json")
    listed = []
    for document in ran.json:
        names = {finding["name"] for finding in document["findings"] if finding["present"]}
        assert label(document["report"]).positive() == names & CANONICAL
        assert document["model"] == tiny_bundle.name
        listed.append(frozenset(names))
    assert {NO_FINDING} in listed
    assert len(set(listed)) >= 8, "the films are different enough to mean something"
    assert {name for names in listed for name in names} >= {"Emphysema", "Hernia", "Mass", "Cardiomegaly"}


def test_a_batch_says_what_single_films_say(run, film_file):
    images = [film_file(f"{seed}.png", seed) for seed in range(10)]  # more than go through a model together
    together = run("report", *images, "--json").json
    for image, document in zip(images, together, strict=True):
        (alone,) = run("report", image, "--json").json
        assert alone == nearly(document)


def test_report_in_words(run, film_file, tmp_path, monkeypatch):
    film_file("film[copy].png", 1)
    monkeypatch.chdir(tmp_path)
    image = "film[copy].png"
    ran = run("report", image)
    assert (ran.status, ran.err) == (0, "")
    (document,) = run("report", image, "--json").json
    words = " ".join(ran.out.split())
    assert words.startswith("film[copy].png ─")
    assert document["report"] in words
    for finding in document["findings"]:
        assert finding["name"] in words
    assert "\x1b" not in ran.out, "no colours where nobody sees them"


def test_out_writes_report_evidence_and_pictures(run, film_file, tmp_path):
    image, out = film_file("film.png", 1), tmp_path / "results" / "today"
    ran = run("report", image, "--out", out, "--json")
    assert (ran.status, ran.err) == (0, "")
    folder = out / "film"
    assert {path.name for path in folder.iterdir()} == FILES
    (document,) = ran.json
    assert (folder / "report.txt").read_text() == document["report"] + "\n"
    bundle = EvidenceBundle.from_json((folder / "evidence.json").read_text())
    assert bundle.report == document["report"]
    assert bundle.image["name"] == "film.png"
    assert (bundle.image["width"], bundle.image["height"]) == (96, 112)
    assert bundle.gaze == "predicted"
    assert bundle.model["version"] == __version__
    assert document["report"].split(".")[0] in (folder / "evidence.html").read_text()
    for name in ("overlay.png", "heatmap.png"):
        with Image.open(folder / name) as picture:
            assert picture.height == 1024
            assert picture.width / picture.height == pytest.approx(96 / 112, abs=0.01)
    with Image.open(folder / "scanpath.gif") as picture:
        assert picture.n_frames > 1


def test_out_is_not_overwritten_unless_asked(run, film_file, tmp_path):
    images, out = [film_file("first.png", 1), film_file("second.png", 2)], tmp_path / "out"
    assert run("report", images[0], "--out", out).status == 0
    kept = out / "first" / "report.txt"
    kept.write_text("mine")
    ran = run("report", *images, "--out", out, "--json")
    assert ran.status == 1
    one_line(ran, out / "first", "already there", "--overwrite")
    assert kept.read_text() == "mine"
    assert {path.name for path in (out / "second").iterdir()} == FILES, "the other one is done"
    assert len(ran.json) == 2
    ran = run("report", *images, "--out", out, "--overwrite")
    assert (ran.status, ran.err) == (0, "")
    assert kept.read_text() != "mine"


def test_one_file_that_is_there_keeps_all_from_being_written(run, film_file, tmp_path):
    folder = tmp_path / "out" / "film"
    folder.mkdir(parents=True)
    (folder / "evidence.html").write_text("mine")
    assert run("report", film_file("film.png"), "--out", tmp_path / "out").status == 1
    assert [path.name for path in folder.iterdir()] == ["evidence.html"]


def test_two_images_of_one_name_get_folders_of_their_own(run, film_file, tmp_path):
    images = [film_file("monday/film.png", 1), film_file("tuesday/film.png", 2), film_file("film-2.png", 3)]
    ran = run("report", *images, "--out", tmp_path / "out", "--json")
    assert (ran.status, ran.err) == (0, "")
    folders = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert folders == ["film", "film-2", "film-2-2"]
    for name, document in zip(folders, ran.json, strict=True):
        assert (tmp_path / "out" / Path(name).stem / "report.txt").read_text().strip() == document["report"]


def test_out_beside_a_file_without_a_suffix(run, film_file, tmp_path, monkeypatch):
    film_file("film.png").rename(tmp_path / "film")
    monkeypatch.chdir(tmp_path)
    film_file("other.png")
    ran = run("scanpath", "film", "other.png", "--out", ".")
    assert (ran.status, ran.err) == (0, "")
    assert {path.name for path in (tmp_path / "film-2").iterdir()} == PICTURES
    assert {path.name for path in (tmp_path / "other").iterdir()} == PICTURES


def test_what_cannot_be_written_is_no_fault_of_the_image(tmp_path):
    from gaze_vlm.cli import OutputError, write

    (tmp_path / "report.txt").touch()
    with pytest.raises(OutputError, match="already there"):
        write(tmp_path, {"report.txt": Path.touch}, overwrite=False)


def test_findings_of_one_region_share_its_box():
    from gaze_vlm.cli import present_boxes

    def record(name, box, present=True):
        return {"name": name, "present": present, "regions": [{"name": "here", "box": box}] if box else []}

    one, other = [0.1, 0.1, 0.4, 0.4], [0.5, 0.5, 0.9, 0.9]
    findings = [record("Mass", one), record("Edema", other), record("Nodule", one), record("Fracture", one, False)]
    boxes = present_boxes([*findings, record("Tuberculosis", None)])
    assert boxes == [{"name": "Mass, Nodule", "box": one}, {"name": "Edema", "box": other}]


def test_a_message_holds_no_control_character(run, tmp_path):
    ran = run("classify", tmp_path / "a\x1b[31mb\x07.png")
    assert ran.status == 2
    one_line(ran, r"a\x1b[31mb\x07.png")
    assert "\x1b" not in ran.err


@pytest.mark.parametrize(
    ("view", "is_read"), [("LL", False), ("LATERAL", False), ("PA", True), ("AP SUPINE", True), ("SUPINE", True)]
)
def test_lateral_films_are_refused(view, is_read, run, film_file):
    import pydicom

    path = film_file("film.dcm")
    data = pydicom.dcmread(path)
    data.ViewPosition = view
    data.save_as(path)
    ran = run("classify", path, film_file("frontal.png"), "--json")
    assert len(ran.json) == 1 + is_read
    assert ran.status == (0 if is_read else 1)
    if not is_read:
        one_line(ran, f"{path}: a lateral view ({view}); the models know frontal films only")


@pytest.mark.parametrize("command", ["report", "scanpath", "classify"])
def test_progress_is_shown_on_a_terminal_only(command, run, film_file, monkeypatch):
    from gaze_vlm import cli, terminal

    counts, tracked = [], cli.tracked
    monkeypatch.setattr(cli, "tracked", lambda readings, *rest: counts.append(rest) or tracked(readings, *rest))
    images = [film_file(f"{seed}.png", seed) for seed in range(10)]
    assert run(command, *images, "--json").err == ""
    monkeypatch.setattr(type(terminal.errors), "is_terminal", True)
    assert len(run(command, *images[:2], "--json").json) == 2
    assert counts == [(10, True), (2, True)]
    assert run(command, *images[:2]).status == 0
    assert counts[-1] == (2, False)


@pytest.mark.parametrize("command", ["report", "scanpath"])
def test_an_out_that_cannot_be_written_is_one_line(command, run, film_file, tmp_path):
    (tmp_path / "taken").write_text("a file")
    ran = run(command, film_file("film.png"), "--out", tmp_path / "taken", "--json")
    assert ran.status == 1
    one_line(ran, tmp_path / "taken", "cannot be written")
    assert len(ran.json) == 1


@pytest.mark.parametrize("name", ["two  blanks.png", "Thorax größer 胸.png", "[red]film.png", "-film.png"])
def test_unusual_names(name, run, film_file, tmp_path, monkeypatch):
    image = film_file(name, 1)
    monkeypatch.chdir(tmp_path)
    ran = run("report", "--json", "--out", "out", image if name[0] != "-" else f"./{name}")
    assert (ran.status, ran.err) == (0, "")
    assert ran.json[0]["image"].endswith(name)
    assert (tmp_path / "out" / Path(name).stem / "report.txt").exists()
    image.write_bytes(b"")
    one_line(run("report", image), name, "empty")


@pytest.mark.parametrize("command", ["report", "scanpath", "classify"])
def test_markup_in_a_path_is_shown_and_not_obeyed(command, run, film_file, tmp_path, monkeypatch):
    film_file("scans[/red].png", 1)  # a folder "scans[" with the file "red].png"
    monkeypatch.chdir(tmp_path)
    ran = run(command, "scans[/red].png")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith("scans[/red].png ─")


def test_a_name_that_is_no_text_is_still_one_json_document(tiny_bundle, film_file):
    image = film_file("plain.png", 1)
    odd = os.path.join(os.fsencode(image.parent), b"\xff\xfe.png")
    try:
        os.rename(image, odd)
    except OSError:
        pytest.skip("this file system takes only names in UTF-8")
    ran = in_a_process("classify", os.fsdecode(odd), "--json", "--model", tiny_bundle)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.isascii()
    assert os.fsencode(ran.json[0]["image"]) == odd
    ran = in_a_process("report", os.fsdecode(odd), "--out", image.parent / "out", "--model", tiny_bundle)
    assert (ran.status, ran.err) == (0, "")


# ---- the composer


def test_a_composed_report_says_what_is_listed_and_is_a_reading(run, film_file, tmp_path):
    images, out = [film_file(f"{seed}.png", seed) for seed in range(10)], tmp_path / "out"
    ran = run("report", *images, "--composer", "--writer", "template", "--json")
    assert (ran.status, ran.err) == (0, "")
    assert run("report", images[0], "--composer", "--out", out).status == 0
    drafted = run("report", *images, "--json").json
    for document, other in zip(ran.json, drafted, strict=True):
        check_reading(document)
        names = {finding["name"] for finding in document["findings"] if finding["present"]}
        assert label(document["report"]).positive() == names & CANONICAL
        assert {sentence["source"] for sentence in document["evidence"]} == {"template"}
        for key in ("image", "model", "findings", "scanpath"):
            assert document[key] == other[key], "only the report is another one"
    assert {path.name for path in (out / "0").iterdir()} == FILES


def test_the_composer_s_writer_is_the_language_model(run, film_file, monkeypatch):
    from gaze_vlm.pipelines import ReadingPipeline

    def generate(self, pixels, scanpaths, known, sample=False):
        return [f"There is {names[0].lower()}." for names in known]

    monkeypatch.setattr(ReadingPipeline, "_generate", generate)
    images = [film_file(f"{seed}.png", seed) for seed in range(6)]
    ran = run("report", *images, "--composer", "--json")
    assert (ran.status, ran.err) == (0, "")
    assert ran.json == run("report", *images, "--composer", "--writer", "model", "--json").json
    assert "model" in {sentence["source"] for document in ran.json for sentence in document["evidence"]}


def test_a_chat_model_s_folder_writes(run, film_file, tmp_path, monkeypatch):
    from gaze_vlm.chat_writer import ChatWriter

    loaded = []
    answer = '{"number": 1, "sentence": "There is something else."}'
    monkeypatch.setattr(
        ChatWriter,
        "from_pretrained",
        classmethod(lambda cls, name: loaded.append(name) or cls(lambda messages: answer, "chat")),
    )
    images, out = [film_file("a.png", 1), film_file("b.png", 2)], tmp_path / "out"
    ran = run("report", *images, "--composer", "--writer", "some/chat", "--out", out, "--json")
    assert (ran.status, ran.err, loaded) == (0, "", ["some/chat"])
    plain = run("report", *images, "--composer", "--writer", "template", "--json").json
    assert [document["report"] for document in ran.json] == [document["report"] for document in plain]
    assert json.loads((out / "a" / "evidence.json").read_text())["model"]["name"] == "tiny, chat"


def test_a_writer_without_the_composer_and_one_that_cannot_be_loaded_are_one_line(run, film_file, tiny_bundle):
    image = film_file("a.png")
    ran = run("report", image, "--writer", "template", "--json")
    assert (ran.status, ran.out) == (2, "")
    one_line(ran, "--writer goes with --composer")
    for name in ("no/where/at/all", tiny_bundle / "gaze_classifier"):
        ran = run("report", image, "--composer", "--writer", name, "--json")
        assert (ran.status, ran.out) == (2, "")
        one_line(ran, f"--writer {name}: no chat model that can be loaded")


# ---- attention


def test_classify_out_draws_the_attention_of_what_is_present(run, film_file, tmp_path, monkeypatch):
    from gaze_vlm import visualize

    drawn, draw = [], visualize.draw_attention
    monkeypatch.setattr(visualize, "draw_attention", lambda film, maps: drawn.append((film, maps)) or draw(film, maps))
    images, out = [film_file("a.png", 1), film_file("b.png", 2)], tmp_path / "out"
    ran = run("classify", *images, "--out", out, "--json")
    assert (ran.status, ran.err) == (0, "")
    assert ran.json == run("classify", *images, "--json").json
    assert [list(document) for document in ran.json] == [["image", "model", "findings"]] * 2
    for document, image, (film, maps) in zip(ran.json, images, drawn, strict=True):
        check_findings(document["findings"])
        present = [finding for finding in document["findings"] if finding["present"]]
        named = {f"{finding['name']} {finding['probability']:.2f}" for finding in present}
        assert set(maps) == named
        assert {path.name for path in (out / image.stem).iterdir()} == {"attention.png"}
        with Image.open(out / image.stem / "attention.png") as picture:
            assert picture.tobytes() == draw(film, maps).tobytes()
    ran = run("classify", images[0], "--out", out)
    assert ran.status == 1
    one_line(ran, out / "a", "already there", "--overwrite")
    assert run("classify", images[0], "--out", out, "--overwrite").status == 0


# ---- gaze


def gaze_file(path: Path, gaze) -> Path:
    path.write_text(gaze if isinstance(gaze, str) else json.dumps(gaze))
    return path


GAZE = {"x": [0.25, 0.75, 0.5], "y": [0.5, 0.5, 0.125], "duration": [0.25, 0.5, 0.25]}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("gaze.json", json.dumps(GAZE)),
        ("gaze.csv", "x,y,duration\n0.25,0.5,0.25\n0.75,0.5,0.5\n0.5,0.125,0.25\n"),
    ],
)
def test_recorded_gaze_goes_into_the_report(name, text, run, film_file, tmp_path):
    image, out = film_file("film.png", 1), tmp_path / "out"
    ran = run("report", image, "--gaze", gaze_file(tmp_path / name, text), "--out", out, "--json")
    assert (ran.status, ran.err) == (0, "")
    check_reading(ran.json[0])
    assert ran.json[0]["scanpath"] == GAZE | {"onset": [0.0, 0.25, 0.75]}
    assert json.loads((out / "film" / "evidence.json").read_text())["gaze"] == "given"


BAD_GAZE = {
    "NaN": ('{"x": [0.5, NaN], "y": [0.5, 0.5], "duration": [0.1, 0.1]}', "fixation 1", "nan"),
    "infinite": ('{"x": [Infinity], "y": [0.5], "duration": [0.1]}', "fixation 0", "inf"),
    "negative duration": ('{"x": [0.5], "y": [0.5], "duration": [-0.1]}', "fixation 0", "below zero"),
    "no fixation": ('{"x": [], "y": [], "duration": []}', "no fixation"),
    "empty list": ("[]", "no fixation"),
    "empty file": ("", "not valid JSON"),
    "cut": ('{"x": [0.5', "not valid JSON"),
    "no duration": ('{"x": [0.5], "y": [0.5]}', "duration"),
    "unequal": ('{"x": [0.5, 0.1], "y": [0.5], "duration": [0.1]}', "one length"),
    "text": ('{"x": ["left"], "y": [0.5], "duration": [0.1]}', "not a number"),
    "number": ("7", "expected an object"),
}


@pytest.mark.parametrize("case", BAD_GAZE)
def test_a_bad_gaze_file_is_one_line(case, run, film_file, tmp_path):
    text, *words = BAD_GAZE[case]
    file = gaze_file(tmp_path / "gaze.json", text)
    ran = run("report", film_file("film.png"), "--gaze", file, "--json")
    assert (ran.status, ran.out) == (2, "")
    one_line(ran, file, *words)


def test_a_missing_gaze_file_and_one_that_is_a_picture(run, film_file, tmp_path):
    image = film_file("film.png")
    ran = run("report", image, "--gaze", tmp_path / "nowhere.json")
    assert ran.status == 2
    one_line(ran, tmp_path / "nowhere.json", "No such file")
    ran = run("report", image, "--gaze", image)
    assert ran.status == 2
    one_line(ran, image, "not a text file")


def test_gaze_off_the_film_is_read_and_drawn(run, film_file, tmp_path):
    gaze = gaze_file(
        tmp_path / "gaze.json", {"x": [-0.5, 3.0, 0.5], "y": [0.5, 0.5, 0.5], "duration": [0.25, 0.0, 0.25]}
    )
    ran = run("report", film_file("film.png"), "--gaze", gaze, "--out", tmp_path / "out", "--json")
    assert (ran.status, ran.err) == (0, "")
    assert ran.json[0]["scanpath"]["x"] == [-0.5, 3.0, 0.5]


def test_gaze_in_other_units_is_refused(run, film_file, tmp_path):
    image = film_file("film.png")
    pixels = gaze_file(tmp_path / "pixels.json", {"x": [20, 48], "y": [50, 60], "duration": [0.25, 0.5]})
    ran = run("report", image, "--gaze", pixels, "--json")
    assert (ran.status, ran.out) == (2, "")
    one_line(ran, f"{pixels}: no fixation lies on the image; x and y are 0..1 of the image, not pixels")
    slow = gaze_file(tmp_path / "slow.json", GAZE | {"duration": [250, 500, 250]})
    ran = run("report", image, "--gaze", slow, "--json")
    assert (ran.status, ran.out) == (2, "")
    one_line(ran, f"{slow}: median fixation of 250 s; durations are seconds, not milliseconds")


def test_gaze_goes_with_one_image(run, film_file, tmp_path):
    gaze = gaze_file(tmp_path / "gaze.json", GAZE)
    ran = run("report", film_file("a.png"), film_file("b.png"), "--gaze", gaze)
    assert (ran.status, ran.out) == (2, "")
    one_line(ran, "--gaze goes with one image, got 2")


# ---- scanpath


def test_scanpath_of_images(run, film_file):
    images = [film_file("a.png", 1), film_file("b.jpg", 2)]
    ran = run("scanpath", *images, "--json")
    assert (ran.status, ran.err) == (0, "")
    for image, document in zip(images, ran.json, strict=True):
        assert list(document) == ["image", "model", "scanpath"]
        assert document["image"] == str(image)
        check_scanpath(document["scanpath"])
    assert run("scanpath", *images, "--json").json == ran.json, "the point estimate is a property of the model"


def test_scanpath_of_a_text_alone(run):
    (document,) = run("scanpath", "--text", "pleural effusion", "--json").json
    assert document["image"] is None
    check_scanpath(document["scanpath"])


def test_the_text_counts(run, film_file):
    image = film_file("a.png")
    texts = ([], ["--text", "pleural effusion"], ["--text", "cardiomegaly"])
    paths = [run("scanpath", image, *text, "--samples", 8, "--seed", 1, "--json").json[0]["samples"] for text in texts]
    assert paths[0] != paths[1] != paths[2]


def test_samples_and_seed(run, film_file):
    image = film_file("a.png")
    first, again, other = (run("scanpath", image, "--samples", 5, "--seed", seed, "--json").json for seed in (3, 3, 4))
    assert first == again
    assert first != other
    (document,) = first
    assert list(document) == ["image", "model", "scanpath", "samples"]
    assert len(document["samples"]) == 5
    assert document["samples"][0] == document["scanpath"]
    for sample in document["samples"]:
        check_scanpath(sample)
    assert len({json.dumps(sample) for sample in document["samples"]}) == 5


def test_one_seeded_scanpath_repeats(run, film_file):
    images = [film_file("a.png", 1), film_file("b.png", 2)]
    together = run("scanpath", *images, "--seed", 3, "--json").json
    assert run("scanpath", *images, "--seed", 3, "--json").json == together
    assert run("scanpath", images[1], "--seed", 3, "--json").json[0] == nearly(together[1])
    assert run("scanpath", *images, "--seed", 4, "--json").json != together


def test_unseeded_samples_differ_between_calls(run, film_file):
    calls = [run("scanpath", film_file("a.png"), "--samples", 5, "--json").json for _ in range(2)]
    assert calls[0] != calls[1]


def test_a_text_as_long_as_a_book_is_refused_and_read_sentence_by_sentence(run):
    book = "There is a small left pleural effusion. " * 400
    ran = run("scanpath", "--text", book, "--json")
    assert ran.status == 2
    one_line(ran, "--text", "text tokens; the language model has room for", "--by-sentence")
    ran = run("scanpath", "--text", book, "--by-sentence", "--json")
    assert (ran.status, ran.err) == (0, "")
    assert len(ran.json[0]["sentences"]) == 400


def test_a_report_is_followed_sentence_by_sentence(run, film_file, tmp_path):
    report, out = "The heart is large.  No effusion.", tmp_path / "out"
    ran = run("scanpath", film_file("a.png"), "--text", report, "--by-sentence", "--out", out, "--json")
    assert (ran.status, ran.err) == (0, "")
    (document,) = ran.json
    check_scanpath(document["scanpath"])
    assert document["text"] == report
    assert [one["text"] for one in document["sentences"]] == ["The heart is large.", "No effusion."]
    assert document["sentences"][1]["start"] == document["sentences"][0]["end"]
    assert document["sentences"][1]["end"] == pytest.approx(sum(document["scanpath"]["duration"]), abs=1e-3)
    with Image.open(out / "a" / "scanpath.gif") as told:
        height = told.height
    assert run("scanpath", film_file("a.png"), "--text", report, "--out", tmp_path / "silent").status == 0
    with Image.open(tmp_path / "silent" / "a" / "scanpath.gif") as silent:
        assert height > silent.height, "the sentences stand below the film"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--by-sentence"], ["--by-sentence needs --text"]),
        (["--by-sentence", "--text", "No effusion.", "--samples", 2], ["not drawn"]),
        (["--by-sentence", "--text", "No effusion.", "--seed", 2], ["not drawn"]),
        (["--by-sentence", "--text", "..."], ["--text", "no sentence"]),
    ],
)
def test_what_cannot_be_followed_is_said_in_one_line(options, words, run, film_file):
    ran = run("scanpath", film_file("a.png"), *options)
    assert ran.status == 2
    one_line(ran, *words)


def test_a_letter_without_a_shape_leaves_the_scanpath(run, film_file, tmp_path):
    ran = run(
        "scanpath", film_file("a.png"), "--text", "No 滲出.", "--by-sentence", "--out", tmp_path / "out", "--json"
    )
    assert ran.status == 1
    one_line(ran, "a.png", "滲")
    check_scanpath(ran.json[0]["scanpath"])


def test_scanpath_out(run, film_file, tmp_path):
    image, out = film_file("a.png"), tmp_path / "out"
    assert run("scanpath", image, "--out", out).status == 0
    assert {path.name for path in (out / "a").iterdir()} == PICTURES
    ran = run("scanpath", image, "--out", out)
    assert ran.status == 1
    one_line(ran, "already there")
    assert run("scanpath", "--text", "edema", "--out", out).status == 0
    assert {path.name for path in (out / "grey film").iterdir()} == PICTURES


def test_samples_out_bring_their_density(run, film_file, tmp_path):
    image, out = film_file("a.png"), tmp_path / "out"
    ran = run("scanpath", image, "--samples", 5, "--seed", 1, "--out", out, "--json")
    assert (ran.status, ran.err) == (0, "")
    assert {path.name for path in (out / "a").iterdir()} == PICTURES | {"density.png"}
    samples = [Scanpath.from_records(sample) for sample in ran.json[0]["samples"]]
    with Image.open(out / "a" / "density.png") as picture:
        assert picture.tobytes() == draw_density(read_film(image).to_pil("L"), samples).tobytes()


@pytest.mark.parametrize("video", ["gif", "webp", "mp4"])
def test_video_chooses_the_format_of_the_animation(video, run, film_file, tmp_path):
    if video == "mp4":
        pytest.importorskip("av", reason='an .mp4 needs PyAV: pip install "gaze2report[video]"')
    ran = run("scanpath", film_file("a.png"), "--out", tmp_path / "out", "--video", video)
    assert (ran.status, ran.err) == (0, "")
    written = {path.name: path.read_bytes() for path in (tmp_path / "out" / "a").iterdir()}
    assert written.keys() == {"overlay.png", "heatmap.png", f"scanpath.{video}"}
    begins = {"gif": b"GIF89a", "webp": b"RIFF", "mp4": b"\0\0\0\x20ftyp"}
    assert written[f"scanpath.{video}"].startswith(begins[video])


@pytest.mark.parametrize(
    "video, out, words",
    [
        ("avi", True, ["--video avi", "gif, webp or mp4"]),
        ("MP4", True, ["--video MP4", "gif, webp or mp4"]),
        ("../a.gif", True, ["gif, webp or mp4"]),
        ("gif", False, ["--video gif", "--out"]),
        ("mp4", True, ["--video mp4", 'pip install "gaze2report[video]"']),
    ],
)
def test_a_video_that_cannot_be_written_is_one_line_before_any_model(video, out, words, run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr("gaze_vlm.cli.pipeline", lambda model: pytest.fail("a model was loaded"))
    monkeypatch.setattr("gaze_vlm.cli.read_films", lambda images: pytest.fail("a film was read"))
    ran = run("scanpath", "a.png", "--video", video, *(["--out", tmp_path / "out"] if out else []))
    assert (ran.status, ran.out) == (2, "")
    one_line(ran, *words)
    assert not (tmp_path / "out").exists()


def test_scanpath_in_words(run, film_file):
    image = film_file("a.png")
    ran = run("scanpath", image)
    (document,) = run("scanpath", image, "--json").json
    path = Scanpath.from_records(document["scanpath"])
    assert "duration s" in ran.out
    for x, y in zip(path.x, path.y, strict=True):
        assert f"{x:.3f}" in ran.out
        assert f"{y:.3f}" in ran.out


@pytest.mark.parametrize("arguments", [(), ("--text", "  ")])
def test_a_scanpath_of_nothing_is_one_line(arguments, run):
    ran = run("scanpath", *arguments)
    assert (ran.status, ran.out) == (2, "")
    one_line(ran, "needs an image, --text, or both")


@pytest.mark.parametrize("arguments", [("scanpath", "--text", "edema", "--samples", "0"), ("report",)])
def test_a_call_that_makes_no_sense_is_explained(arguments, run):
    ran = run(*arguments)
    assert (ran.status, ran.out) == (2, "")
    assert "Usage:" in ran.err


# ---- classify


def test_classify(run, film_file):
    images = [film_file("a.png", 1), film_file("b.dcm", 2)]
    ran = run("classify", *images, "--json")
    assert (ran.status, ran.err) == (0, "")
    for image, document in zip(images, ran.json, strict=True):
        assert list(document) == ["image", "model", "findings"]
        assert document["image"] == str(image)
        assert len(document["findings"]) == 8
        check_findings(document["findings"])
    reported = run("report", *images, "--json").json
    assert [document["findings"] for document in reported] == [document["findings"] for document in ran.json]


def test_classify_in_words(run, film_file):
    image = film_file("a.png", 1)
    ran = run("classify", image)
    (document,) = run("classify", image, "--json").json
    for finding in document["findings"]:
        assert finding["name"] in ran.out
        assert f"{finding['probability']:.2f}" in ran.out


# ---- bad images


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises a picture of that size and holds a few bytes."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(1000))),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def write_bad(kind: str, folder: Path, film_file, save_dicom) -> Path:
    path = folder / f"{kind.replace(' ', '_')}.png"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(film_file("whole.png").read_bytes()[:-100])
    elif kind == "truncated JPEG":
        path.write_bytes(film_file("whole.jpg").read_bytes()[:-100])
    elif kind == "text":
        path.write_text("The heart is normal in size.")
    elif kind == "folder":
        path.mkdir()
    elif kind == "colour noise":
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(path)
    elif kind == "huge":
        path.write_bytes(png_header(40_000, 40_000))
    elif kind == "CT":
        save_dicom(path, np.zeros((64, 64), np.uint8), modality="CT")
    elif kind == "DICOM without pixels":
        save_dicom(path, None)
    elif kind == "random bytes":
        path.write_bytes(random.Random(0).randbytes(5000))
    return path


BAD = {
    "missing": "no such file",
    "empty": "the file is empty",
    "truncated": "cut short",
    "truncated JPEG": "cut short",
    "text": "not an image file",
    "folder": "is a directory",
    "colour noise": "a colour picture",
    "huge": "too large (40,000 x 40,000 pixels",
    "CT": "modality is CT",
    "DICOM without pixels": "without pixel data",
    "random bytes": "not an image file",
}


@pytest.fixture
def bad_file(tmp_path, film_file, save_dicom):
    return lambda kind: write_bad(kind, tmp_path, film_file, save_dicom)


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("command", ["report", "scanpath", "classify"])
def test_a_bad_image_is_one_line(command, kind, run, bad_file, tmp_path):
    image = bad_file(kind)
    ran = run(command, image, "--json", *(["--out", tmp_path / "out"] if command != "classify" else []))
    assert (ran.status, ran.out) == (2, "")
    one_line(ran, image, BAD[kind])
    assert not (tmp_path / "out").exists()


def test_the_rest_of_a_batch_is_done(run, bad_file, film_file, tmp_path):
    good = [film_file("first.png", 1), film_file("last.dcm", 2)]
    bad = [bad_file(kind) for kind in BAD]
    ran = run("report", good[0], *bad, good[1], "--json", "--out", tmp_path / "out")
    assert ran.status == 1
    assert [document["image"] for document in ran.json] == list(map(str, good))
    for document in ran.json:
        check_reading(document)
    lines = ran.err.splitlines()
    assert len(lines) == len(BAD)
    for line, image, reason in zip(lines, bad, BAD.values(), strict=True):
        assert str(image) in line
        assert reason in line
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["first", "last"]


def test_nothing_of_a_batch_can_be_done(run, bad_file):
    ran = run("report", bad_file("empty"), bad_file("text"), "--json")
    assert (ran.status, ran.out) == (2, "")
    assert len(ran.err.splitlines()) == 2


def test_a_process_of_its_own_says_nothing_else(tiny_bundle, film_file, bad_file, tmp_path):
    """No progress bar, no warning of a library, no traceback: stderr is what the person can mend."""
    good, bad = film_file("film.png", 1), [bad_file("empty"), bad_file("huge")]
    ran = in_a_process("report", good, *bad, "--json", "--model", tiny_bundle, "--out", tmp_path / "out")
    assert ran.status == 1
    (document,) = ran.json
    check_reading(document)
    lines = ran.err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"gaze-vlm: {bad[0]}: ")
    assert lines[1].startswith(f"gaze-vlm: {bad[1]}: ")


def test_the_installed_command(tmp_path, tiny_bundle, film_file):
    command = Path(sys.executable).with_name("gaze-vlm")
    if not command.exists():
        pytest.skip("gaze-vlm is not installed as a command beside this Python")
    ran = in_a_process("--version", command=[command])
    assert ran == Ran(0, f"gaze-vlm {__version__}\n", "")
    ran = in_a_process("report", film_file("a.png"), "--model", tmp_path / "nowhere", command=[command])
    assert (ran.status, ran.out) == (2, "")
    one_line(ran, tmp_path / "nowhere")


# ---- bad models


def copied(bundle: Path, to: Path) -> Path:
    import shutil

    return shutil.copytree(bundle, to / "copy")


def broken_model(kind: str, bundle: Path, folder: Path) -> Path | str:
    if kind == "missing folder":
        return folder / "nowhere"
    if kind == "no repository":
        return "nano-of-mine"
    if kind == "a file":
        path = folder / "model.txt"
        path.write_text("weights")
        return path
    if kind == "no config":
        (folder / "empty").mkdir()
        return folder / "empty"
    copy = copied(bundle, folder)
    part = copy / "gaze_classifier"
    if kind == "part without config":
        (part / "config.json").unlink()
    elif kind == "broken config":
        (part / "config.json").write_text("{")
    elif kind == "unknown type":
        (part / "config.json").write_text('{"model_type": "crystal_ball"}')
    elif kind == "corrupt safetensors":
        data = (part / "model.safetensors").read_bytes()
        (part / "model.safetensors").write_bytes(data[: len(data) // 2])
    elif kind == "random safetensors":
        (part / "model.safetensors").write_bytes(random.Random(0).randbytes(4000))
    elif kind == "no weights":
        (part / "model.safetensors").unlink()
    elif kind == "weights of another part":
        data = (copy / "gaze_vlm" / "model.safetensors").read_bytes()
        (part / "model.safetensors").write_bytes(data)
    elif kind == "some weights":
        from safetensors.torch import load_file, save_file

        weights = load_file(part / "model.safetensors")
        save_file(
            {k: v for k, v in weights.items() if k != "head.weight"}, part / "model.safetensors", {"format": "pt"}
        )
    elif kind == "weights of another size":
        from safetensors.torch import load_file, save_file

        weights = load_file(part / "model.safetensors")
        weights["head.weight"] = weights["head.weight"][:3].clone()
        save_file(weights, part / "model.safetensors", {"format": "pt"})
    elif kind == "no processor":
        for file in part.glob("*"):
            if file.name not in ("config.json", "model.safetensors"):
                file.unlink()
    elif kind == "broken tokenizer":
        (part / "tokenizer.json").write_text("{")
    return copy


BROKEN = [
    "missing folder", "no repository", "a file", "no config", "part without config", "broken config", "unknown type",
    "corrupt safetensors", "random safetensors", "no weights", "weights of another part", "some weights",
    "weights of another size", "no processor", "broken tokenizer",
]  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_a_bad_model_is_one_line(kind, run, film_file, tiny_bundle, tmp_path):
    model = broken_model(kind, tiny_bundle, tmp_path)
    ran = run("classify", film_file("film.png"), "--json", model=model)
    assert (ran.status, ran.out) == (2, "")
    one_line(ran, model)
    if model != "nano-of-mine" and kind not in ("missing folder", "a file", "no config"):
        assert "gaze_classifier" in ran.err


def test_a_repository_that_is_not_there_is_one_line(run, film_file, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    ran = run("classify", film_file("film.png"), model="nobody/nothing-of-this-name")
    assert (ran.status, ran.out) == (2, "")
    one_line(ran, "nobody/nothing-of-this-name")


@pytest.mark.parametrize("command", ["report", "scanpath", "classify"])
def test_the_part_that_is_missing_is_named(command, run, film_file, tiny_bundle, tmp_path):
    import shutil

    part = {"report": "gaze_vlm", "scanpath": "scanpath_predictor", "classify": "gaze_classifier"}[command]
    copy = copied(tiny_bundle, tmp_path)
    shutil.rmtree(copy / part)
    ran = run(command, film_file("film.png"), "--json", model=copy)
    assert (ran.status, ran.out) == (2, "")
    one_line(ran, copy, part)


def test_the_folder_of_one_model_serves_its_command(run, film_file, tiny_bundle):
    image = film_file("film.png", 1)
    (alone,) = run("classify", image, "--json", model=tiny_bundle / "gaze_classifier").json
    (together,) = run("classify", image, "--json").json
    assert alone["findings"] == together["findings"]
    ran = run("scanpath", image, "--json", model=tiny_bundle / "gaze_classifier")
    assert ran.status == 2
    one_line(ran, "a gaze_classifier, but a scanpath_predictor is needed")


# ---- demo, help, version


def test_demo_reads_two_real_films(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = run("demo", "--json")
    assert (ran.status, ran.err) == (0, "")
    assert [document["image"] for document in ran.json] == ["cardiomegaly_effusion.jpg", "normal.jpg"]
    for document in ran.json:
        check_reading(document)
        assert {path.name for path in (tmp_path / "gaze-vlm-demo" / Path(document["image"]).stem).iterdir()} == FILES


def test_demo_never_writes_over_an_earlier_one(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gaze-vlm-demo").mkdir()
    ran = run("demo")
    assert (ran.status, ran.err) == (0, "")
    assert "no medical device" in ran.out
    assert not list((tmp_path / "gaze-vlm-demo").iterdir())
    assert {path.name for path in (tmp_path / "gaze-vlm-demo-2").iterdir()} == {
        "cardiomegaly_effusion",
        "normal",
    }
    ran = run("demo", "--out", tmp_path / "gaze-vlm-demo-2")
    assert ran.status == 1
    assert len(ran.err.splitlines()) == 2
    assert ran.err.count("already there") == 2


def test_version(run):
    assert run("--version", model=None) == Ran(0, f"gaze-vlm {__version__}\n", "")


def test_help_lists_the_commands(run):
    ran = run("--help", model=None)
    assert (ran.status, ran.err) == (0, "")
    for command in ("demo", "report", "scanpath", "classify"):
        assert command in ran.out
        inner = run(command, "--help", model=None)
        assert (inner.status, inner.err) == (0, "")
        assert "--model" in inner.out
        assert "--json" in inner.out


def test_without_a_command_there_is_help(run):
    ran = run(model=None)
    assert ran.status == 2
    assert "Usage:" in ran.out + ran.err


@pytest.mark.parametrize("arguments", [("raport",), ("report", "a.png", "--jsn")])
def test_an_unknown_word_is_explained(arguments, run):
    ran = run(*arguments, model=None)
    assert (ran.status, ran.out) == (2, "")
    assert arguments[-1] in ran.err


def test_help_does_not_wait_for_torch():
    code = "import sys; sys.argv = ['gaze-vlm', '--help']; from gaze_vlm.cli import main\ntry: main()\nfinally: "
    ran = in_a_process("-c", code + "assert 'torch' not in sys.modules", command=[sys.executable])
    assert ran.status == 0, ran.err
