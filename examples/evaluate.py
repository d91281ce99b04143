"""Measure models on open data, each number beside its baselines.

    python examples/evaluate.py classify --nih DIR
    python examples/evaluate.py report --nih DIR
    python examples/evaluate.py scanpath --gazesearch FILE

DIR and FILE are releases as `gaze_vlm.data` reads them. The validation split is measured (`--split`), with the
embedded nano or `--model`. Intervals are 95 % bootstrap intervals over patients or images, estimate first. `--json`
and `--markdown` print the same numbers for programs and pages.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from datasets import Image
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from gaze_vlm import Scanpath
from gaze_vlm.data import load
from gaze_vlm.data.gazesearch import with_centre
from gaze_vlm.data.matching import present_findings
from gaze_vlm.findings import FINDINGS, FINER_FINDINGS, implied
from gaze_vlm.images import read_film
from gaze_vlm.labeler import label
from gaze_vlm.metrics.baselines import (
    NORMAL_TEMPLATE,
    CentrePrior,
    FindingMean,
    FindingMedoid,
    NearestNeighbour,
    RandomHuman,
    Uniform,
)
from gaze_vlm.metrics.classification import auroc
from gaze_vlm.metrics.reports import label_matrix, macro_f1
from gaze_vlm.metrics.scanpath import multimatch_mean4, scanmatch
from gaze_vlm.metrics.statistics import bootstrap, paired_bootstrap
from gaze_vlm.models.modeling_vision_tower import patch_tokens
from gaze_vlm.pipelines import ReadingPipeline, grey_film

MIN_POSITIVES = 5


def films_of(root: Path, split: str):
    """Films of a split, the findings labelled there in NIH's words, and their patients."""
    rows = load("nih_cxr", root)[split].cast_column("image", Image(decode=False))
    films = [read_film(image["path"]) for image in rows["image"]]
    return films, [present_findings(row) for row in rows], list(rows["patient_id"])


def canonical(names) -> frozenset[str]:
    """NIH's findings in CheXpert's words; what those have no word for is left out."""
    return frozenset(FINER_FINDINGS.get(name, name) for name in names) & set(FINDINGS)


def evaluate_classify(models: ReadingPipeline, arguments) -> list[dict]:
    films, labels, patients = films_of(arguments.nih, arguments.split)
    found = models.classify(films)
    names = sorted({name for row in labels for name in row})
    scores = np.array([[next(f["probability"] for f in row if f["name"] == name) for name in names] for row in found])
    truth = label_matrix(labels, names)
    positives = truth.sum(0)
    rows = [
        {"finding": name, "positives": int(count), "AUROC": float(value)}
        for name, count, value in zip(names, positives, auroc(truth, scores), strict=True)
    ]
    enough = positives >= MIN_POSITIVES

    def mean_auroc(cases) -> float:
        return float(np.nanmean(auroc(cases[..., 0] > 0, cases[..., 1])[enough]))

    interval = bootstrap(np.stack([truth, scores], axis=-1), mean_auroc, groups=patients, resamples=500)
    rows.append(
        {
            "finding": f"mean over findings with at least {MIN_POSITIVES} positives",
            "positives": int(positives[enough].sum()),
            "AUROC": interval.estimate,
            "95 % interval": [interval.low, interval.high],
        }
    )
    rows.append({"finding": "baseline: label frequency", "positives": int(positives.sum()), "AUROC": 0.5})
    return rows


@torch.no_grad()
def features_of(models: ReadingPipeline, films) -> np.ndarray:
    model, processor = models.classifier
    batches = (films[start : start + 16] for start in range(0, len(films), 16))
    images = (processor.image_processor([film.to_pil() for film in batch], return_tensors="pt") for batch in batches)
    return torch.cat(
        [patch_tokens(model.vision_tower, image["pixel_values"]).mean((1, 2)) for image in images]
    ).numpy()


def evaluate_report(models: ReadingPipeline, arguments) -> list[dict]:
    films, labels, patients = films_of(arguments.nih, arguments.split)
    training, known, _ = films_of(arguments.nih, "train")
    reference = [canonical(row) for row in labels]
    readings = list(models.read(films))
    written = [label(reading.report).positive() for reading in readings]
    nearest = NearestNeighbour().fit(features_of(models, training)).predict(features_of(models, films))
    systems = {
        models.name: written,
        "normal template": [label(NORMAL_TEMPLATE).positive()] * len(films),
        "findings of the nearest training film": [canonical(known[index]) for index in nearest],
    }
    rows = []
    for system, sets in systems.items():
        row = {"system": system}
        for column, close in (("macro F1", frozenset), ("macro F1, parents implied", implied)):
            names = [name for name in FINDINGS if sum(name in close(case) for case in reference) >= MIN_POSITIVES]
            truth, ours, theirs = (
                label_matrix([close(case) for case in cases], names) for cases in (reference, written, sets)
            )
            row[column] = macro_f1(theirs, truth)
            if sets is not written:
                both = [np.stack([truth, matrix], -1) for matrix in (ours, theirs)]
                gain = paired_bootstrap(
                    *both, lambda cases: macro_f1(cases[..., 1], cases[..., 0]), groups=patients, resamples=1000
                )
                row[f"{models.name}'s gain in {column}"] = [gain.estimate, gain.low, gain.high]
        rows.append(row)
    agreeing = sum(
        {f["name"] for f in reading.findings if f["present"]} & set(FINDINGS) == found & set(FINDINGS)
        for reading, found in zip(readings, written, strict=True)
    )
    sources = [sentence.source for reading in readings for sentence in reading.sentences]
    rows.append(
        {
            "system": f"{len(films)} films; reports that agree with the listed findings: {agreeing}; sentences of the "
            f"language model: {sources.count('model')} of {len(sources)}; different reports: "
            f"{len({reading.report for reading in readings})}"
        }
    )
    return rows


def evaluate_scanpath(models: ReadingPipeline, arguments) -> list[dict]:
    data = load("gazesearch", arguments.gazesearch)

    def paths(split):
        rows = data[split]
        return [with_centre(Scanpath.from_records(record)) for record in rows["scanpath"]], list(rows["prompt"])

    training, training_findings = paths("train")
    references, findings = paths(arguments.split)
    images = list(data[arguments.split]["image_id"])
    grey = [grey_film()]
    point = {name: models.predict_scanpaths(grey, name)[0][0] for name in sorted(set(findings))}
    drawn = {name: iter(models.predict_scanpaths(grey, name, findings.count(name) + 1, seed=0)[0]) for name in point}
    systems = {f"{models.name}, point estimate": [point[name] for name in findings]}
    systems[f"{models.name}, one sample a case"] = [next(drawn[name]) for name in findings]
    for baseline in (CentrePrior(), RandomHuman(), FindingMean(), FindingMedoid(), Uniform()):
        fitted = baseline.fit(training, training_findings)
        systems[type(baseline).__name__] = fitted.predict(findings, np.random.default_rng(0))
    rows, first = [], None
    for system, predictions in systems.items():
        scores = (scanmatch(predictions, references), multimatch_mean4(predictions, references))
        row = {
            "system": system,
            "ScanMatch": float(scores[0].mean()),
            "MultiMatch mean4": float(np.nanmean(scores[1])),
        }
        if first is None:
            first = scores
        else:
            for metric, ours, theirs in zip(("ScanMatch", "MultiMatch"), first, scores, strict=True):
                gain = paired_bootstrap(ours, theirs, np.nanmean, groups=images)
                row[f"point estimate's gain in {metric}"] = [gain.estimate, gain.low, gain.high]
        rows.append(row)
    return rows


def show(rows: list[dict], markdown: bool) -> None:
    def text(value) -> str:
        if isinstance(value, float):
            return f"{value:.3f}"
        return f"[{', '.join(f'{v:.3f}' for v in value)}]" if isinstance(value, list) else str(value)

    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[text(row.get(name, "")) for name in columns] for row in rows]
    if markdown:
        for line in (columns, ["---"] * len(columns), *cells):
            print(f"| {' | '.join(line)} |")
        return
    table = Table(*columns)
    for line in cells:
        table.add_row(*line)
    Console(width=200).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("classify", "report", "scanpath"))
    parser.add_argument("--nih", type=Path, help="NIH ChestX-ray14 folder")
    parser.add_argument("--gazesearch", type=Path, help="GazeSearch JSON")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--model", help="folder or Hub repository; the embedded nano by default")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--markdown", action="store_true", help="a Markdown table, as in the README")
    arguments = parser.parse_args()
    needed = "gazesearch" if arguments.what == "scanpath" else "nih"
    if getattr(arguments, needed) is None:
        parser.error(f"{arguments.what} needs --{needed}")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    rows = globals()[f"evaluate_{arguments.what}"](ReadingPipeline(arguments.model), arguments)
    if arguments.json:
        print(json.dumps(rows))
    else:
        show(rows, arguments.markdown)


if __name__ == "__main__":
    main()
