"""examples/evaluate.py on models whose gaze is known."""

import csv
import importlib.util
import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from gaze_vlm.findings import NO_FINDING
from gaze_vlm.metrics import baselines, scanpath
from gaze_vlm.report_composer import ComposedSentence, ReportComposer, choose_regions, text
from gaze_vlm.scanpath import Scanpath

pytest.importorskip("datasets", reason='needs datasets: pip install "gaze2report[train]"')

SCRIPT = Path(__file__).parents[1] / "examples" / "evaluate.py"
sys.path.append(str(SCRIPT.parent))  # it imports its neighbours; at the end, for there is a package `evaluate` too
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


# ---- composed reports

REPORTS = {
    9: ("Heart size is enlarged. No pneumothorax.", "Cardiomegaly.", ["Cardiomegaly/mild"]),
    19: ("The lungs are clear. The heart is normal.", "Normal chest.", ["normal"]),
    29: ("There is a left effusion.", "", ["Pleural Effusion/left", "Cardiomegaly"]),
    39: ("", "", ["normal"]),
    49: ("The lungs are clear.", "", ["No Indexing"]),
    1: ("There is an opacity.", "", ["Opacity/lung"]),
}


@pytest.fixture
def iu(tmp_path):
    for number, (findings, impression, terms) in REPORTS.items():
        sections = f'<AbstractText Label="FINDINGS">{findings}</AbstractText>'
        sections += f'<AbstractText Label="IMPRESSION">{impression}</AbstractText>'
        mesh = "".join(f"<major>{term}</major>" for term in terms)
        (tmp_path / f"{number}.xml").write_text(
            f'<eCitation><uId id="CXR{number}"/><Abstract>{sections}</Abstract><MeSH>{mesh}</MeSH></eCitation>'
        )
    return tmp_path


def test_composed_from_labels_against_reports(evaluate, iu):
    pytest.importorskip("pycocoevalcap", reason='ROUGE-L: pip install "gaze2report[eval]"')
    table = evaluate.evaluate_compose(None, SimpleNamespace(iu=iu, nih=None, split="validation"))
    assert {one.system for one in table.scores} == {"composed, templates", "keywords alone", "normal template"}
    assert table.scores[0].system == "composed, templates"
    f1 = {one.system: one.interval.estimate for one in table.scores if one.metric.startswith("macro F1 of 2")}
    assert f1["composed, templates"] == 1
    assert f1["keywords alone"] == 1
    assert f1["normal template"] == 0
    counted = {one.metric: (one.n, one.undefined) for one in table.scores}
    assert set(counted.values()) == {(3, 0), (2, 1)}, "three have text and an indexing, of two a finding"
    reference = "Heart size is enlarged. No pneumothorax. Cardiomegaly."
    keywords = [("keywords alone", "Cardiomegaly."), ("normal template", baselines.NORMAL_TEMPLATE)]
    for system, said in keywords:
        (recall,) = [s for s in table.scores if s.system == system and "recall" in s.metric and "with a" in s.metric]
        others = {"keywords alone": "Cardiomegaly, pleural effusion.", "normal template": baselines.NORMAL_TEMPLATE}
        by_hand = evaluate.keyword_recall([said, others[system]], [reference, "There is a left effusion."]).mean()
        assert recall.interval.estimate == pytest.approx(by_hand)
    assert "name a finding of ours in 2 reports" in table.protocol[1]


def test_keywords_alone(evaluate):
    composer = ReportComposer()
    regions = choose_regions("Pleural Effusion")[:1]
    findings = [
        {"name": "Pleural Effusion", "probability": 0.9, "present": True, "regions": regions},
        {"name": "Edema", "probability": 0.5, "present": True, "regions": choose_regions("Edema")},
    ]
    said = evaluate.keyword_text(composer.keywords(findings))
    assert said == "Pleural effusion right costophrenic angle, edema."
    assert evaluate.keyword_text([]) == "No finding."


def reading(findings, sentences):
    return SimpleNamespace(findings=findings, sentences=sentences, report=text(sentences))


def listed(name, probability=0.5, regions=None, present=True):
    regions = choose_regions(name)[:1] if regions is None else regions
    return {"name": name, "probability": probability, "present": present, "regions": regions}


FINDINGS = [listed("Pleural Effusion"), listed("Edema", 0.1, present=False)]  # on the right
FAULTS = {
    "none": (
        "There is a right pleural effusion.",
        "Pleural Effusion",
        0.5,
        "right costophrenic angle",
        (1, 1, 0, 0, 0, 0),
    ),
    "side": ("There is a left pleural effusion.", "Pleural Effusion", 0.5, None, (1, 1, 0, 0, 0, 1)),
    "confidence": ("There is a pleural effusion.", "Pleural Effusion", 0.4, None, (1, 0, 0, 0, 0, 0)),
    "region": ("There is a pleural effusion.", "Pleural Effusion", 0.5, "left lung", (1, 0, 0, 0, 0, 0)),
    "not given": ("There is an effusion and edema.", "Pleural Effusion", 0.5, None, (1, 1, 0, 1, 0, 0)),
    "not present": ("There is edema.", "Edema", 0.1, None, (1, 0, 0, 1, 1, 0)),
    "another": ("There is edema.", "Pleural Effusion", 0.5, None, (1, 0, 0, 1, 1, 0)),
    "not said": ("The film is rotated.", None, None, None, (0, 0, 0, 1, 1, 0)),
}


@pytest.mark.parametrize("case", FAULTS)
def test_what_does_not_lead_back_is_counted(case, evaluate):
    words, finding, confidence, region, expected = FAULTS[case]
    assert evaluate.trace(reading(FINDINGS, [ComposedSentence(words, finding, confidence, region)])) == expected


class Composes:
    """Composes by templates, with a sentence of its own for each film."""

    name = "known"

    def read(self, films):
        return self.compose(films)

    def compose(self, films, writer="model"):
        by_grey = [[listed("Cardiomegaly"), listed("Pleural Effusion")], [listed("Nodule")], [listed(NO_FINDING)]]
        for film in films:
            findings = by_grey[int(film.pixels[0, 0]) % 3]
            write = (lambda keywords: ["There is cardiomegaly.", None][: len(keywords)]) if writer == "model" else None
            yield reading(findings, ReportComposer().compose(findings, write))


def test_composed_films_are_counted(evaluate, nih):
    table = evaluate.evaluate_compose(Composes(), SimpleNamespace(nih=nih, iu=None, split="validation"))
    assert table.protocol == (
        "5 films, validation",
        "composed, sentences of known: 6 sentences about a finding, 6 traceable, 2 of the language model; "
        "findings not given: 0, not said: 0, wrong sides: 0",
        "composed, templates: 6 sentences about a finding, 6 traceable, 0 of the language model; findings not given: "
        "0, not said: 0, wrong sides: 0",
        "whole drafts of known, reconciled: 6 sentences about a finding, 6 traceable, 2 of the language model; "
        "findings not given: 0, not said: 0, wrong sides: 0",
    )
    shares = {one.system: one.interval.estimate for one in table.scores if "language model wrote" in one.metric}
    assert shares["composed, sentences of known"] == pytest.approx(2 / 6)
    assert shares["composed, templates"] == 0


def test_compose_takes_one_of_two_releases(evaluate, monkeypatch, capsys):
    for options in ([], ["--iu", "a", "--nih", "b"]):
        monkeypatch.setattr("sys.argv", ["evaluate.py", "compose", *options])
        with pytest.raises(SystemExit) as left:
            evaluate.main()
        assert left.value.code == 2
        assert "compose needs --iu or --nih, one of them" in capsys.readouterr().err
