"""The embedded checkpoint on real films, as every command loads it by default."""

import json
import os
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gaze_vlm import ReadingPipeline, read_film
from gaze_vlm.findings import FINDINGS, NO_FINDING
from gaze_vlm.labeler import label, sentences

NANO = Path(str(resources.files("gaze_vlm") / "nano"))
FILMS = Path(str(resources.files("gaze_vlm") / "films"))
CANONICAL = {*FINDINGS, "Emphysema", "Hernia"}
SEARCHED = [name.lower() for name in FINDINGS if name != NO_FINDING]  # the 13 prompts of GazeSearch


@pytest.fixture(scope="module")
def models() -> ReadingPipeline:
    return ReadingPipeline()


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """The two real films, and the same mirrored, cut, darkened and as other files: twelve that all look different."""
    folder, made = tmp_path_factory.mktemp("films"), []
    for name in ("normal", "cardiomegaly_effusion"):
        made.append(FILMS / f"{name}.jpg")
        with Image.open(made[-1]) as opened:
            film = opened.convert("L")
        width, height = film.size
        variants = {
            "mirrored.png": film.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
            "cut.png": film.crop((width // 6, height // 8, width - width // 10, height)),
            "dark.jpg": film.point(lambda value: value * 0.6),
            "small.jpg": film.resize((width // 2, height // 2)),
            "wide.png": film.resize((width, height * 3 // 4)),
        }
        for variant, image in variants.items():
            made.append(folder / f"{name}_{variant}")
            image.save(made[-1])
    return [read_film(path) for path in made]


@pytest.fixture(scope="module")
def readings(models, films):
    return list(models.read(films))


def present(reading) -> set[str]:
    return {finding["name"] for finding in reading.findings if finding["present"]}


def test_all_parts_together_have_at_most_40_mb():
    files = [path for path in NANO.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 40e6
    assert {path.name for path in NANO.iterdir() if path.is_dir()} == {
        "gaze_classifier",
        "scanpath_predictor",
        "gaze_vlm",
    }
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".jinja", ".md", ".txt"}, "nothing that runs"


def test_weights_are_in_half_precision():
    from safetensors import safe_open

    for part in ("gaze_classifier", "scanpath_predictor", "gaze_vlm"):
        with safe_open(NANO / part / "model.safetensors", "pt") as weights:
            kinds = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118 (no mapping)
        assert "F16" in kinds
        assert "F32" not in kinds


def test_the_card_says_first_that_the_data_are_not_paired():
    card = (NANO / "README.md").read_text().split("---", 2)[-1]
    paragraphs = [part for part in card.split("\n\n") if part.strip() and not part.strip().startswith("#")]
    assert re.search(r"not\s+paired|different\s+patients|matched\s+by\s+finding", paragraphs[0], re.IGNORECASE)
    assert re.search(r"no(t a)?\s+medical\s+device", card, re.IGNORECASE)


@pytest.mark.parametrize(
    ("auto_class", "part", "expected"),
    [
        ("AutoModel", "gaze_classifier", "GazeClassifier"),
        ("AutoModel", "scanpath_predictor", "ScanpathPredictor"),
        ("AutoModel", "gaze_vlm", "GazeVLM"),
        ("AutoModelForImageTextToText", "gaze_vlm", "GazeVLM"),
        ("AutoModelForCausalLM", "gaze_vlm", "GazeVLM"),
        ("AutoProcessor", "gaze_classifier", "GazeClassifierProcessor"),
        ("AutoProcessor", "scanpath_predictor", "ScanpathPredictorProcessor"),
        ("AutoProcessor", "gaze_vlm", "GazeVLMProcessor"),
    ],
)
def test_auto_classes_give_ours_with_all_weights(auto_class, part, expected):
    import transformers

    auto = getattr(transformers, auto_class)
    if auto_class == "AutoProcessor":
        assert type(auto.from_pretrained(NANO / part)).__name__ == expected
        return
    model, info = auto.from_pretrained(NANO / part, output_loading_info=True)
    assert type(model).__name__ == expected
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info


def test_the_normal_film_reads_normal_and_the_other_does_not(readings, films):
    normal, abnormal = (reading for reading in readings if Path(reading.film.path).parent == FILMS)
    assert present(normal) == {NO_FINDING}
    assert present(abnormal) & {"Cardiomegaly", "Pleural Effusion"}
    assert normal.report != abnormal.report
    assert label(normal.report).positive() == {NO_FINDING}


def test_every_report_agrees_with_its_findings(readings):
    for reading in readings:
        assert label(reading.report).positive() == present(reading) & CANONICAL, reading.report


def test_every_report_is_fluent(readings):
    for reading in readings:
        text = reading.report
        assert text.endswith("."), text
        assert len(text.split()) >= 5, text
        said = [text[start:end] for start, end in sentences(text)]
        assert " ".join(said) == text
        assert len(set(said)) == len(said), "nothing is said twice"
        for sentence in said:
            assert re.fullmatch(r"[A-Z(].*\w[)%]?\.", sentence), sentence
            assert not re.search(r"XX|[<>]|\b(\w+) \1\b", sentence), sentence
            assert not re.search(r"\b(is|are|and|or|of|with|the|a)\.$", sentence), sentence


def test_the_language_model_writes_and_not_the_templates_alone(readings):
    sources = [sentence.source for reading in readings for sentence in reading.sentences]
    assert sources.count("model") >= len(sources) / 3


def test_a_batch_reads_like_single_films(models, readings, films):
    for film, reading in zip(films, readings, strict=True):
        (alone,) = models.read([film])
        assert alone.report == reading.report
        assert present(alone) == present(reading)
        np.testing.assert_allclose(alone.scanpath.to_array(), reading.scanpath.to_array(), atol=1e-3)
        for one, other in zip(alone.findings, reading.findings, strict=True):
            assert one["probability"] == pytest.approx(other["probability"], abs=1e-3)


def test_another_model_object_reads_the_same(readings, films):
    again = list(ReadingPipeline().read(films[:2]))
    assert [reading.report for reading in again] == [reading.report for reading in readings[:2]]


def test_recorded_gaze_goes_through(models, films, readings):
    (reading,) = models.read(films[:1], [readings[1].scanpath])
    assert reading.gaze == "given"
    assert label(reading.report).positive() == present(reading) & CANONICAL


@pytest.mark.parametrize("text", [None, *SEARCHED])
def test_scanpaths_are_those_of_a_reader(text, models, films):
    for (path,) in models.predict_scanpaths(films[:2], text):
        assert 2 <= len(path) <= 7
        assert path.inside.all()
        assert (path.x[0], path.y[0]) == (0.5, 0.5), "the centre, where every trial of GazeSearch began"
        assert 0.5 < path.total_duration < 6
        assert path.duration.min() >= 0.03


def test_what_is_looked_for_decides_where_one_looks(models, films):
    heart, lungs = (models.predict_scanpaths(films[:1], text)[0][0] for text in ("cardiomegaly", "pneumothorax"))
    assert heart != lungs
    assert heart.y[1:].mean() > lungs.y[1:].mean(), "the heart lies below the apices"


def test_sampled_scanpaths_are_reproducible_and_different(models, films):
    first, again = (models.predict_scanpaths(films[:1], "edema", num_samples=8, seed=2)[0] for _ in range(2))
    assert first == again
    assert len({path.to_array().tobytes() for path in first}) == 8


def test_demo_offline_in_a_process_of_its_own(tmp_path):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "no cache")}
    ran = subprocess.run(
        [sys.executable, "-m", "gaze_vlm.cli", "demo", "--json", "--out", tmp_path / "out"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    abnormal, normal = json.loads(ran.stdout)
    assert abnormal["model"] == normal["model"] == "nano"
    assert abnormal["report"] != normal["report"]
    assert len(list((tmp_path / "out").glob("*/*"))) == 12
