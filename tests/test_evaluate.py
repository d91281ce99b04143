"""examples/evaluate.py on models whose gaze is known."""

import csv
import importlib.util
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from gaze_vlm.metrics import baselines, scanpath
from gaze_vlm.scanpath import Scanpath

pytest.importorskip("datasets", reason='needs datasets: pip install "gaze2report[train]"')

SCRIPT = Path(__file__).parents[1] / "examples" / "evaluate.py"
BOX = {"x": 0.5, "y": 0.0, "w": 0.25, "h": 0.5}
# image, patient, boxes of RSNA, boxes of NIH: film k is of an even grey k
FILMS = (
    ("1_0.png", "1", [BOX], []),
    ("1_1.png", "1", [BOX, {"x": 0.0, "y": 0.0, "w": 0.25, "h": 0.25}], []),
    ("2_0.png", "2", [BOX], [BOX | {"label": "Cardiomegaly"}, BOX | {"label": "Cardiomegaly", "y": 0.25}]),
    ("3_0.png", "3", [], [BOX | {"label": "Infiltrate"}]),
    ("4_0.png", "4", [], []),
)
COLUMNS = ("image", "patient", "age", "sex", "view", "labels", "rsna_class", "rsna_boxes", "nih_boxes", "split")
# film -> seconds in BOX of 1 second, of the point estimate and of the samples
POINT = {0: 0.25, 1: 0.5, 2: 1.0, 3: 0.0, 4: 1.0, 128: 0.75}


@pytest.fixture(scope="module")
def evaluate(tmp_path_factory):
    spec = importlib.util.spec_from_file_location("evaluate_example", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.load = partial(module.load, cache_dir=tmp_path_factory.mktemp("cache"))
    return module


@pytest.fixture
def nih(tmp_path):
    (tmp_path / "images").mkdir()
    with open(tmp_path / "manifest.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for number, (image, patient, rsna, by_nih) in enumerate(FILMS):
            Image.fromarray(np.full((32, 32), number, np.uint8)).save(tmp_path / "images" / image)
            boxes = json.dumps(rsna), json.dumps(by_nih)
            writer.writerow([image, patient, 50, "F", "PA", "No Finding", "", *boxes, "validation"])
    return tmp_path


class KnownGaze:
    """Looks into BOX for some time and then away; a sample's time is half the point estimate's."""

    name = "known"

    def __init__(self):
        self.texts = set()

    def predict_scanpaths(self, films, text, num_samples=1, seed=None):
        self.texts.add(text)
        paths = []
        for film in films:
            inside = POINT[int(film.pixels[0, 0])] / (1 if seed is None else 2)
            path = Scanpath.from_relative([0.6, 0.9], [0.3, 0.9], [inside, 1 - inside])
            paths.append([path] * num_samples)
        return paths


def estimates(table, metric):
    """System -> cases and estimate."""
    known = [score for score in table.scores if score.metric.startswith(f"gaze in boxes, {metric}")]
    return {score.system: (score.n, score.interval.estimate) for score in known}


def test_gaze_in_boxes_on_the_film_on_others_and_without_any(evaluate, nih):
    models = KnownGaze()
    table = evaluate.evaluate_boxes(models, SimpleNamespace(nih=nih, split="validation"))
    assert models.texts == {"lung opacity", "cardiomegaly", "infiltration"}
    # of RSNA: films 0 and 1 of patient 1, film 2 of patient 2; another patient's film is never one's own
    own, other = np.mean([0.25, 0.5, 1.0]), np.mean([1.0, 1.0, (0.25 + 0.5) / 2])
    for part, share in (("point estimate", 1), ("samples", 0.5)):
        known = estimates(table, f"lung opacities of RSNA: {part}")
        assert known["known, the film itself"] == (3, pytest.approx(own * share))
        assert known["known, another patient's film"] == (3, pytest.approx(other * share))
        assert known["known, grey film"] == (3, pytest.approx(0.75 * share))
        assert known["uniform gaze (the boxes' area)"] == (3, pytest.approx(np.mean([1 / 8, 3 / 16, 1 / 8])))
        assert 0.15 < known["centre prior"][1] < 0.35
    # all: film 2 for cardiomegaly too, film 3 for its infiltrate
    own = np.mean([0.25, 0.5, 1.0, 1.0, 0.0])
    other = np.mean([0.5, 0.5, 0.25, 0.25, (0.25 + 0.5 + 1.0) / 3])
    known = estimates(table, "all findings: point estimate")
    assert known["known, the film itself"] == (5, pytest.approx(own))
    assert known["known, another patient's film"] == (5, pytest.approx(other))
    said = "\n".join(table.protocol)
    assert "lung opacities of RSNA: 3 films of 2 patients; intervals: 1000 bootstrap resamples of 2 groups" in said
    assert "all findings: 4 films of 3 patients" in said


def test_boxes_of_one_patient_are_left_out_and_it_is_said(evaluate, nih):
    lines = (nih / "manifest.csv").read_text().splitlines()
    (nih / "manifest.csv").write_text("\n".join([lines[0], *lines[3:]]))
    table = evaluate.evaluate_boxes(KnownGaze(), SimpleNamespace(nih=nih, split="validation"))
    assert "lung opacities of RSNA: left out, for 1 patients have boxes" in table.protocol
    assert estimates(table, "all findings: point")["known, the film itself"][0] == 3
    assert not estimates(table, "lung")


class OfItsOwn:
    """Of each finding one point estimate, and samples that differ."""

    name = "own"

    def predict_scanpaths(self, films, text, num_samples=1, seed=None):
        assert len(films) == 1 and (films[0].pixels == 128).all()
        rng = np.random.default_rng([len(text), seed or 0])
        return [[Scanpath.from_relative(*rng.random((2, 6)), rng.random(6)) for _ in range(num_samples)]]


@pytest.fixture
def gazesearch(tmp_path):
    rng, records = np.random.default_rng(0), []
    for number in range(60):
        # of the official split all images are in train; of the other, none
        split = ("train", "train", "valid")[number % 3]
        x, y = rng.integers(0, 224, (2, 6)).tolist()
        task, name = ("edema", "lung opacity")[number % 2], f"{number // 3:04d}.jpg"
        records.append({"name": name, "task": task, "X": x, "Y": y, "T": rng.random(6).tolist(), "split": split})
    file = tmp_path / "gazesearch.json"
    file.write_text(json.dumps(records))
    return file


@pytest.mark.parametrize("config", ["official", "image-disjoint"])
def test_scanpath_rows_and_baselines_fitted_on_the_same_split(evaluate, gazesearch, config, monkeypatch):
    learned = []
    fit = baselines.RandomHuman.fit
    monkeypatch.setattr(baselines.RandomHuman, "fit", lambda self, *known: learned.append(known) or fit(self, *known))
    arguments = SimpleNamespace(gazesearch=gazesearch, split="validation", config=config, maps=False)
    table = evaluate.evaluate_scanpath(OfItsOwn(), arguments)
    data = evaluate.load("gazesearch", gazesearch, config)
    ((paths, findings),) = learned
    assert findings == list(data["train"]["prompt"])
    assert paths == [Scanpath.from_records(record).with_centre() for record in data["train"]["scanpath"]]
    assert table.protocol[0] == f"GazeSearch, {config} split, validation"
    systems = {known.system for known in table.scores}
    assert {
        "own, point estimate",
        "own, one sample a case",
        "own, 20 samples",
        "searched path of the finding",
    } < systems
    searched = list(data["validation"]["prompt"])
    point = {name: OfItsOwn().predict_scanpaths([evaluate.grey_film()], name)[0][0] for name in set(searched)}
    references = [Scanpath.from_records(record).with_centre() for record in data["validation"]["scanpath"]]
    (score,) = [s for s in table.scores if s.metric.startswith("scaled time") and s.system == "own, point estimate"]
    expected = scanpath.time_delay_similarity([point[name] for name in searched], references).mean()
    assert score.interval.estimate == pytest.approx(expected)
    (workload,) = [s for s in table.scores if s.metric.startswith("workload") and s.system == "own, point estimate"]
    assert workload.interval.low < workload.interval.estimate < workload.interval.high
