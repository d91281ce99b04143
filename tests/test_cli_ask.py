"""gaze-vlm ground and gaze-vlm ask, as a person types them."""

import json
import sys

import pytest
from PIL import Image

from gaze_vlm.findings import REGIONS

ANSWERS = {"two": "<box>100,200,300,400</box><box>500,0,900,1000</box>", "none": "none", "noise": "the the"}


@pytest.fixture
def run(taught, monkeypatch, capsys):
    """Status, stdout and stderr of `gaze-vlm ARGUMENTS --model TAUGHT`."""

    def call(*arguments, model=taught):
        from gaze_vlm.cli import main

        monkeypatch.setattr(sys, "argv", ["gaze-vlm", *map(str, arguments), "--model", str(model)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return left.value.code or 0, out, err

    return call


@pytest.fixture
def answering(monkeypatch):
    """Whatever is asked, the language model writes this."""

    def write(text):
        monkeypatch.setattr(
            "gaze_vlm.pipelines.generate_texts", lambda m, p, messages, images, **_: [text] * len(images)
        )

    return write


def test_a_question_is_answered(run, film_file, answering):
    status, out, _ = run("ask", film_file("a.png"), "Is there edema?", "--json")
    (document,) = json.loads(out)
    assert status == 0
    assert document.keys() == {"image", "model", "question", "answer"}
    assert document["question"] == "Is there edema?"
    assert isinstance(document["answer"], str)
    answering(" yes [bold] ")
    assert run("ask", film_file("a.png"), "Is there edema?") == (0, "yes [bold]\n", "")


@pytest.mark.parametrize(
    ("answer", "boxes"), [("two", [[0.1, 0.2, 0.3, 0.4], [0.5, 0, 0.9, 1]]), ("none", []), ("noise", [])]
)
def test_a_phrase_is_grounded(answer, boxes, run, film_file, answering, tmp_path):
    answering(ANSWERS[answer])
    status, out, _ = run("ground", film_file("a.png"), " lung  opacity", "--json", "--out", tmp_path / "out")
    (document,) = json.loads(out)
    assert status == 0
    assert document["boxes"] == [{"name": "lung opacity", "box": box} for box in boxes]
    assert (document["reason"] is None) == (answer != "noise")
    with Image.open(tmp_path / "out" / "a" / "ground.png") as picture:
        assert min(picture.size) > 100
    words = run("ground", film_file("a.png"), "lung opacity")[1]
    assert {"two": "left 0.100, top 0.200", "none": "nowhere", "noise": "no box at"}[answer] in words


def test_a_picture_is_not_overwritten_unasked(run, film_file, answering, tmp_path):
    answering(ANSWERS["two"])
    film, out = film_file("a.png"), tmp_path / "out"
    assert run("ground", film, "edema", "--out", out)[0] == 0
    status, _, err = run("ground", film, "edema", "--out", out)
    assert status == 1
    assert "ground.png: already there" in err
    assert run("ground", film, "edema", "--out", out, "--overwrite")[0] == 0


@pytest.mark.parametrize("command", ["ground", "ask"])
def test_what_cannot_be_asked_is_one_line(command, run, film_file, tiny_bundle, tmp_path):
    film = film_file("a.png")
    broken = tmp_path / "b.png"
    broken.write_text("no picture")
    for arguments, options, said in (
        ((film, "  "), {}, "the text is empty"),
        ((broken, "edema"), {}, str(broken)),
        ((film, "word " * 3000), {}, "the text is too long"),
        ((film, "edema"), {"model": tiny_bundle}, "was not taught the task"),
        ((film, "edema"), {"model": tmp_path / "nothing"}, "nothing"),
    ):
        status, out, err = run(command, *arguments, **options)
        assert (status, out) == (2, "")
        assert err.count("\n") == 1
        assert said in err


def test_nano_answers_and_grounds():
    from importlib.resources import files

    from gaze_vlm.images import read_film
    from gaze_vlm.pipelines import ReadingPipeline

    models = ReadingPipeline()
    films = [
        read_film(path) for path in sorted(files("gaze_vlm").joinpath("films").iterdir()) if path.suffix == ".jpg"
    ]
    assert set(models.ask(films, "Is there pleural effusion?")) <= {"yes", "no"}
    assert set(models.ask(films, "Is this a PA or an AP film?")) <= {"PA", "AP"}
    lungs = [REGIONS[side].box for side in ("right lung", "left lung")]
    for parsed in models.ground(films, "lung opacity"):
        assert parsed.reason is None
        for x1, y1, x2, y2 in parsed.value:
            centre = (x1 + x2) / 2, (y1 + y2) / 2
            assert any(a <= centre[0] <= c and b <= centre[1] <= d for a, b, c, d in lungs)
