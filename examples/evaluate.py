"""Measure models on open data, each number beside its baselines.

    python examples/evaluate.py classify --nih DIR
    python examples/evaluate.py report --nih DIR
    python examples/evaluate.py scanpath --gazesearch FILE [--config image-disjoint]
    python examples/evaluate.py boxes --nih DIR
    python examples/evaluate.py labeler --iu FILE

DIR and FILE are releases as `gaze_vlm.data` reads them. The validation split is measured (`--split`), with the
embedded nano or `--model`. Intervals are 95 % bootstrap intervals over patients or images, p values permutation tests.
`--json` and `--markdown` print the same numbers for programs and pages. Predictions of other systems are scored by
`gaze-vlm score`, with the same tables.
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from datasets import Image
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from gaze_vlm import Scanpath
from gaze_vlm.cli_score import show
from gaze_vlm.data import IuXray, load
from gaze_vlm.data.matching import present_findings
from gaze_vlm.data.mesh import labeler_against_mesh
from gaze_vlm.findings import FINDINGS, FINER_FINDINGS, implied
from gaze_vlm.images import Film, read_film
from gaze_vlm.labeler import label
from gaze_vlm.metrics.baselines import NORMAL_TEMPLATE, CentrePrior, NearestNeighbour, blank_like, noise_like
from gaze_vlm.metrics.cases import Case, Pairs
from gaze_vlm.metrics.grounding import dwell_in_boxes, iou_union
from gaze_vlm.metrics.reports import label_matrix, macro_f1
from gaze_vlm.metrics.tables import Metric, Score, ScoreTable, drawn, score
from gaze_vlm.metrics.tables.findings import MIN_POSITIVES, classify_table
from gaze_vlm.metrics.tables.scanpaths import scanpath_table, spread_table
from gaze_vlm.models.modeling_vision_tower import patch_tokens
from gaze_vlm.pipelines import ReadingPipeline, grey_film

SAMPLES = 20  # scanpaths drawn a case, where their mean or their spread is measured


def films_of(root: Path, split: str):
    """Films of a split, the findings labelled there in NIH's words, and their patients."""
    rows = load("nih_cxr", root)[split].cast_column("image", Image(decode=False))
    films = [read_film(image["path"]) for image in rows["image"]]
    return films, [present_findings(row) for row in rows], list(rows["patient_id"])


def canonical(names) -> frozenset[str]:
    """NIH's findings in CheXpert's words; what those have no word for is left out."""
    return frozenset(FINER_FINDINGS.get(name, name) for name in names) & set(FINDINGS)


def evaluate_classify(models: ReadingPipeline, arguments) -> ScoreTable:
    films, labels, patients = films_of(arguments.nih, arguments.split)
    _, known, _ = films_of(arguments.nih, "train")
    found = models.classify(films)
    names = {name for row in labels for name in row}
    predictions = [Case(None, {f["name"]: f["probability"] for f in row if f["name"] in names}) for row in found]
    references = [Case(None, dict.fromkeys(row, 1.0), group=who) for row, who in zip(labels, patients, strict=True)]
    training = [Case(None, dict.fromkeys(row, 1.0)) for row in known]
    return classify_table(Pairs(predictions, references), training=training, name=models.name, resamples=500)


@torch.no_grad()
def features_of(models: ReadingPipeline, films) -> np.ndarray:
    model, processor = models.classifier
    batches = (films[start : start + 16] for start in range(0, len(films), 16))
    images = (processor.image_processor([film.to_pil() for film in batch], return_tensors="pt") for batch in batches)
    return torch.cat(
        [patch_tokens(model.vision_tower, image["pixel_values"]).mean((1, 2)) for image in images]
    ).numpy()


def evaluate_report(models: ReadingPipeline, arguments) -> ScoreTable:
    """Findings that the labeler reads in the reports, against NIH's labels; does the model look at the film at all?"""
    films, labels, patients = films_of(arguments.nih, arguments.split)
    training, known, _ = films_of(arguments.nih, "train")
    reference = [canonical(row) for row in labels]
    readings = list(models.read(films))
    nearest = NearestNeighbour().fit(features_of(models, training)).predict(features_of(models, films))
    rng = np.random.default_rng(0)
    systems = {
        models.name: written(readings),
        "normal template": [label(NORMAL_TEMPLATE).positive()] * len(films),
        "findings of the nearest training film": [canonical(known[index]) for index in nearest],
        f"{models.name} on blank films": written(models.read([blank_like(film) for film in films])),
        f"{models.name} on noise": written(models.read([noise_like(film, rng) for film in films])),
    }
    metrics = []
    for title, close in (("", frozenset), (", parents implied", implied)):
        names = [name for name in FINDINGS if sum(name in close(case) for case in reference) >= MIN_POSITIVES]
        truth = label_matrix([close(case) for case in reference], names)
        metrics.append(
            Metric(
                f"macro F1 over {len(names)} findings{title}",
                True,
                lambda sets, close=close, names=names, truth=truth: np.stack(
                    [label_matrix([close(case) for case in sets], names), truth], axis=1
                ),
                lambda cases: macro_f1(cases[:, 0], cases[:, 1]),
            )
        )
    agreeing = sum(
        {f["name"] for f in reading.findings if f["present"]} & set(FINDINGS) == found & set(FINDINGS)
        for reading, found in zip(readings, systems[models.name], strict=True)
    )
    sources = [sentence.source for reading in readings for sentence in reading.sentences]
    protocol = (
        f"{len(films)} films; findings with at least {MIN_POSITIVES} labelled films",
        f"reports that agree with the listed findings: {agreeing}; sentences of the language model: "
        f"{sources.count('model')} of {len(sources)}; different reports: {len({r.report for r in readings})}",
    )
    return ScoreTable(tuple(score(systems, metrics, groups=patients, resamples=1000)), protocol)


def written(readings) -> list[frozenset[str]]:
    return [label(reading.report).positive() for reading in readings]


def evaluate_scanpath(models: ReadingPipeline, arguments) -> ScoreTable:
    """Scanpaths of a finding on a grey film, for GazeSearch comes without films; and how alike several of them are."""
    data = load("gazesearch", arguments.gazesearch, arguments.config)

    def cases(split):
        rows = data[split]
        return [
            Case(None, Scanpath.from_records(record), group=image, finding=finding, centred=True)
            for record, image, finding in zip(rows["scanpath"], rows["image_id"], rows["prompt"], strict=True)
        ]

    references, training = cases(arguments.split), cases("train")
    findings = [case.finding for case in references]
    grey = [grey_film()]
    point = {name: models.predict_scanpaths(grey, name)[0][0] for name in sorted(set(findings))}
    samples = {
        name: models.predict_scanpaths(grey, name, SAMPLES + findings.count(name), seed=seed)[0]
        for seed, name in enumerate(point)
    }
    one_a_case = {name: iter(paths[SAMPLES:]) for name, paths in samples.items()}
    table = scanpath_table(
        Pairs([Case(None, point[name]) for name in findings], references),
        training=training,
        versus={f"{models.name}, one sample a case": [Case(None, next(one_a_case[name])) for name in findings]},
        name=f"{models.name}, point estimate",
        maps=arguments.maps,
    )
    several = {name: paths[:SAMPLES] for name, paths in samples.items()}
    spread = spread_table({f"{models.name}, {SAMPLES} samples": several}, references)
    split = f"GazeSearch, {arguments.config} split, {arguments.split}"
    return ScoreTable((*table.scores, *spread.scores), (split, *table.protocol, *spread.protocol))


class Boxed(NamedTuple):
    """A film and its boxes of one finding."""

    film: Film
    patient: str
    finding: str
    by_rsna: bool
    boxes: list


def boxed_films(root: Path, split: str) -> list[Boxed]:
    rows = load("nih_cxr", root)[split].cast_column("image", Image(decode=False))
    cases = []
    for row in rows:
        by_finding: dict[tuple, list] = {}
        for box in row["boxes"] or ():
            by_finding.setdefault((box["name"], box["annotator"] == "RSNA"), []).append(box["box"])
        film = read_film(row["image"]["path"]) if by_finding else None
        cases += [Boxed(film, row["patient_id"], *key, boxes) for key, boxes in by_finding.items()]
    return cases


def evaluate_boxes(models: ReadingPipeline, arguments) -> ScoreTable:
    """Does predicted gaze dwell in the boxes of the finding it looks for, and more than gaze on another film?"""
    every = boxed_films(arguments.nih, arguments.split)
    selections = {"lung opacities of RSNA": [case for case in every if case.by_rsna], "all findings": every}
    scores: list[Score] = []
    protocol = [
        "share of the fixation time in the boxes of a finding whose name is the text; a case is a film and a finding; "
        f"samples: the mean of {SAMPLES}",
        "another patient's film: mean over all other patients' films with boxes, read with the same text",
    ]
    for title, cases in selections.items():
        films, patients = {case.film.path for case in cases}, {case.patient for case in cases}
        if len(patients) < 2:
            protocol.append(f"{title}: left out, for {len(patients)} patients have boxes")
            continue
        scores += dwell_scores(models, cases, title)
        groups = Pairs([], [Case(None, None, group=case.patient) for case in cases])
        protocol.append(f"{title}: {len(films)} films of {len(patients)} patients; {drawn(groups, 1000)}")
    return ScoreTable(tuple(scores), tuple(protocol))


def dwell_scores(models: ReadingPipeline, cases: list[Boxed], title: str) -> list[Score]:
    """Scores of each case's share of gaze in its boxes: (1 + SAMPLES,) numbers, the point estimate's in front."""
    owners = {case.film.path: (case.film, case.patient) for case in cases}
    films, patients = [film for film, _ in owners.values()], np.array([patient for _, patient in owners.values()])
    place = {path: number for number, path in enumerate(owners)}

    def gaze(films, text):
        """Of each film the point estimate and samples."""
        point, samples = models.predict_scanpaths(films, text), models.predict_scanpaths(films, text, SAMPLES, seed=0)
        return [[*one, *several] for one, several in zip(point, samples, strict=True)]

    def dwell(paths, boxes):
        flat = [path for of_film in paths for path in of_film]
        return dwell_in_boxes(flat, [boxes] * len(flat)).reshape(len(paths), -1)

    texts = sorted({case.finding for case in cases})
    on_films = {name: gaze(films, name.lower()) for name in texts}
    on_grey = {name: gaze([grey_film()], name.lower()) for name in texts}
    centre = CentrePrior().predict([""] * 1000, np.random.default_rng(0))
    own, other, grey, prior = [], [], [], []
    for case in cases:
        shares = dwell(on_films[case.finding], case.boxes)
        own.append(shares[place[case.film.path]])
        other.append(shares[patients != case.patient].mean(axis=0))
        grey.append(dwell(on_grey[case.finding], case.boxes)[0])
        prior.append(np.full(1 + SAMPLES, dwell([centre], case.boxes).mean()))
    area = iou_union([[(0, 0, 1, 1)]] * len(cases), [case.boxes for case in cases])
    systems = {
        f"{models.name}, the film itself": own,
        f"{models.name}, another patient's film": other,
        f"{models.name}, grey film": grey,
        "centre prior": prior,
        "uniform gaze (the boxes' area)": np.tile(area[:, None], 1 + SAMPLES),
    }
    metrics = [
        Metric(f"gaze in boxes, {title}: point estimate", True, lambda shares: np.array(shares)[:, 0]),
        Metric(f"gaze in boxes, {title}: samples", True, lambda shares: np.array(shares)[:, 1:].mean(axis=1)),
    ]
    return score(systems, metrics, groups=[case.patient for case in cases])


def evaluate_labeler(arguments) -> None:
    """The labeler against the MeSH terms of the Indiana reports, of all splits."""
    builder = IuXray(arguments.iu)
    rows = [row for split in builder.split_names() for row in builder.rows(split)]
    rows = [row for row in rows if row["findings"] is not None and any(row["report"].values())]
    texts = ["\n\n".join(filter(None, (row["report"]["findings"], row["report"]["impression"]))) for row in rows]
    kept = [(text, builder.terms[row["study_id"]]) for text, row in zip(texts, rows, strict=True) if text]
    scores = labeler_against_mesh(*zip(*kept, strict=True))
    if arguments.json:
        print(json.dumps(scores))
        return
    lines = [["finding", "precision", "recall", "F1", "reports with it"]]
    lines += [
        [n, *(f"{s[key]:.3f}" for key in ("precision", "recall", "f1")), str(s["support"])] for n, s in scores.items()
    ]
    if arguments.markdown:
        for line in (lines[0], ["---"] * 5, *lines[1:]):
            print(f"| {' | '.join(line)} |")
        return
    table = Table(*lines[0])
    for line in lines[1:]:
        table.add_row(*line)
    Console().print(table)
    print(f"{len(kept)} indexed reports with text; uncertain findings as negative")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("classify", "report", "scanpath", "boxes", "labeler"))
    parser.add_argument("--nih", type=Path, help="NIH ChestX-ray14 folder")
    parser.add_argument("--gazesearch", type=Path, help="GazeSearch JSON")
    parser.add_argument("--config", default="official", help="GazeSearch's split: official or image-disjoint")
    parser.add_argument("--maps", action="store_true", help="score heat maps of scanpaths too")
    parser.add_argument("--iu", type=Path, help="Indiana reports, NLMCXR_reports*.tgz")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--model", help="folder or Hub repository; the embedded nano by default")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--markdown", action="store_true", help="a Markdown table, as in the README")
    arguments = parser.parse_args()
    needed = {"scanpath": "gazesearch", "labeler": "iu"}.get(arguments.what, "nih")
    if getattr(arguments, needed) is None:
        parser.error(f"{arguments.what} needs --{needed}")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if arguments.what == "labeler":
        evaluate_labeler(arguments)
        return
    table = globals()[f"evaluate_{arguments.what}"](ReadingPipeline(arguments.model), arguments)
    show(table, arguments.what, arguments.json, arguments.markdown)


if __name__ == "__main__":
    main()
