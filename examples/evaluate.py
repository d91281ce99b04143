"""Measure models on open data, each number beside its baselines.

    python examples/evaluate.py classify --nih DIR
    python examples/evaluate.py report --nih DIR
    python examples/evaluate.py scanpath --gazesearch FILE [--config image-disjoint]
    python examples/evaluate.py boxes --nih DIR
    python examples/evaluate.py attention --nih DIR
    python examples/evaluate.py ground --nih DIR
    python examples/evaluate.py vqa --nih DIR
    python examples/evaluate.py trajectory --nih DIR
    python examples/evaluate.py evidence --nih DIR
    python examples/evaluate.py labeler --iu FILE
    python examples/evaluate.py compose --iu FILE
    python examples/evaluate.py compose --nih DIR

DIR and FILE are releases as `gaze_vlm.data` reads them. The validation split is measured (`--split`), with the
embedded nano or `--model`. Intervals are 95 % bootstrap intervals over patients or images, p values permutation tests.
`--json` and `--markdown` print the same numbers for programs and pages. Predictions of other systems are scored by
`gaze-vlm score`, with the same tables.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from evaluate_evidence import evaluate_evidence
from evaluate_tasks import evaluate_ground, evaluate_trajectory, evaluate_vqa
from open_films import Boxed, boxed_films, canonical, films_of
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from gaze_vlm import Scanpath
from gaze_vlm.cli_score import show
from gaze_vlm.data import IuXray, load
from gaze_vlm.data.mesh import labeler_against_mesh
from gaze_vlm.findings import FINDINGS, FINER_FINDINGS, REGIONS, implied
from gaze_vlm.labeler import label
from gaze_vlm.metrics.baselines import NORMAL_TEMPLATE, CentrePrior, NearestNeighbour, blank_like, noise_like
from gaze_vlm.metrics.cases import Case, Pairs
from gaze_vlm.metrics.grounding import dwell_in_boxes, iou_union
from gaze_vlm.metrics.reports import keyword_recall, label_matrix, macro_f1, micro_f1
from gaze_vlm.metrics.tables import Metric, Score, ScoreTable, drawn, score
from gaze_vlm.metrics.tables.attention import attention_scores
from gaze_vlm.metrics.tables.findings import MIN_POSITIVES, classify_table
from gaze_vlm.metrics.tables.scanpaths import scanpath_table, spread_table
from gaze_vlm.metrics.text import rouge_l
from gaze_vlm.models.modeling_vision_tower import patch_tokens
from gaze_vlm.pipelines import ReadingPipeline, grey_film
from gaze_vlm.report_composer import ReportComposer, choose_regions
from gaze_vlm.report_composer import text as join

SAMPLES = 20  # scanpaths drawn a case, where their mean or their spread is measured


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


def evaluate_attention(models: ReadingPipeline, arguments) -> ScoreTable:
    """Does the classifier attend, for a finding, to where radiologists drew its boxes?"""
    every = boxed_films(arguments.nih, arguments.split)
    found = models.attend([case.film for case in every])
    known = [(case, maps[case.finding]) for case, (_, maps) in zip(every, found, strict=True) if case.finding in maps]
    if not known:
        raise SystemExit(
            f"evaluate.py: {len(every)} boxes in {arguments.split}, none of a finding that the model knows"
        )
    cases, maps = zip(*known, strict=True)
    patients = [case.patient for case in cases]
    reference = [case.boxes for case in cases]
    protocol = (
        f"{len({case.film.path for case in cases})} films of {len(set(patients))} patients; a case is a finding of a "
        f"film with the boxes of one source; left out, being of no label of the model: {len(every) - len(cases)}",
        drawn(Pairs([], [Case(None, None, group=who) for who in patients]), 1000),
    )
    return ScoreTable(tuple(attention_scores({models.name: [np.stack(maps)]}, reference, groups=patients)), protocol)


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


def evaluate_compose(models: ReadingPipeline, arguments) -> ScoreTable:
    """Composed reports: of Indiana's labels against its reports, or of NIH's films against their own findings."""
    return compose_labels(arguments) if arguments.iu else compose_films(models, arguments)


def compose_labels(arguments) -> ScoreTable:
    """Reports composed by templates from the MeSH labels of a report, against that report."""
    rows = [row for row in load("iu_xray", arguments.iu)[arguments.split] if row["findings"] is not None]
    texts = [" ".join(filter(None, (row["report"]["findings"], row["report"]["impression"]))) for row in rows]
    rows, texts = zip(*[pair for pair in zip(rows, texts, strict=True) if pair[1]], strict=True)
    given = [frozenset(finding["name"] for finding in row["findings"]) for row in rows]
    composer, vocabulary = ReportComposer(), (*FINDINGS, *FINER_FINDINGS)
    records = [
        [{"name": n, "probability": 1.0, "present": n in names, "regions": choose_regions(n)} for n in vocabulary]
        for names in given
    ]
    systems = {
        "composed, templates": [join(composer.compose(listed)) for listed in records],
        "keywords alone": [keyword_text(composer.keywords(listed)) for listed in records],
        "normal template": [NORMAL_TEMPLATE] * len(rows),
    }
    names = [name for name in FINDINGS if name != "No Finding" and any(name in labels for labels in given)]
    truth, has_any = label_matrix(given, names), np.array([bool(labels - {"No Finding"}) for labels in given])

    def labels(reports):
        return np.stack([label_matrix([label(report).positive() for report in reports], names), truth], axis=1)

    metrics = [
        Metric(f"{title}, {which}", True, lambda reports, of=of, kept=kept: np.where(kept, of(reports, texts), np.nan))
        for title, of in (("clinical keyword recall (gaze_vlm's terms)", keyword_recall), ("ROUGE-L", rouge_l))
        for which, kept in (("all reports", True), ("those with a finding", has_any))
    ]
    metrics += [
        Metric(
            f"{kind} F1 of {len(names)} given labels", True, labels, lambda cases, of=of: of(cases[:, 0], cases[:, 1])
        )
        for kind, of in (("macro", macro_f1), ("micro", micro_f1))
    ]
    protocol = (
        f"{len(rows)} indexed reports with text, {arguments.split}; references: findings and impression",
        f"composed from the MeSH labels, which name a finding of ours in {has_any.sum()} reports, and no place; the "
        "other reports are composed as normal",
    )
    return ScoreTable(tuple(score(systems, metrics, resamples=1000)), protocol)


def keyword_text(keywords) -> str:
    """ "Pleural effusion, cardiomegaly.", each with its region where it has one."""
    named = [f"{k.finding.lower()} {k.region}" if k.region else k.finding.lower() for k in keywords]
    return f"{', '.join(named or ['no finding'])}.".capitalize()


def compose_films(models: ReadingPipeline, arguments) -> ScoreTable:
    """Does every sentence lead back to what the classifier gave, and is there nothing else in the reports?"""
    films, _, patients = films_of(arguments.nih, arguments.split)
    systems = {
        f"composed, sentences of {models.name}": list(models.compose(films)),
        "composed, templates": list(models.compose(films, writer="template")),
        f"whole drafts of {models.name}, reconciled": list(models.read(films)),
    }
    counts = {name: np.array([trace(reading) for reading in readings]) for name, readings in systems.items()}
    shares = [
        ("share of the sentences about a finding that lead to its record, confidence and region", True, 1),
        ("share of the sentences about a finding that the language model wrote", None, 2),
    ]
    metrics = [
        Metric(title, better, lambda rows: rows, lambda rows, i=i: rows[:, i].sum() / max(rows[:, 0].sum(), 1))
        for title, better, i in shares
    ]
    errors = [("findings a report that were not given", 3), ("given findings a report that are not said", 4)]
    errors += [("sides a report that the regions do not have", 5)]
    metrics += [Metric(title, False, lambda rows, i=i: rows[:, i].astype(float)) for title, i in errors]
    protocol = [f"{len(films)} films, {arguments.split}"]
    for name, rows in counts.items():
        about, traced, by_model, added, left_out, sides = rows.sum(axis=0)
        protocol.append(
            f"{name}: {about} sentences about a finding, {traced} traceable, {by_model} of the language model; "
            f"findings not given: {added}, not said: {left_out}, wrong sides: {sides}"
        )
    return ScoreTable(tuple(score(counts, metrics, groups=patients, resamples=1000)), tuple(protocol))


def trace(reading) -> tuple[int, int, int, int, int, int]:
    """Sentences about a finding, those traceable, those of a model; findings added and left out; wrong sides."""
    listed = {record["name"]: record for record in reading.findings if record["present"]}
    about = [sentence for sentence in reading.sentences if sentence.finding]
    traced = [sentence for sentence in about if leads_back(sentence, listed)]
    given = {FINER_FINDINGS.get(name) or name for name in listed}
    given |= set() if given - {"Support Devices"} else {"No Finding"}
    said = label(reading.report)
    wrong = sum(not sides_are_given(mention, listed) for mention in said.mentions if mention.status == "present")
    found = said.positive()
    models = sum(sentence.source == "model" for sentence in about)
    return len(about), len(traced), models, len(found - given), len(given - found), wrong


def leads_back(sentence, listed: dict) -> bool:
    """Is the sentence's record there, with its confidence and its region, and does it name the finding?"""
    record = listed.get(sentence.finding)
    if record is None or sentence.confidence != record["probability"]:
        return False
    regions = {region["name"] for region in record["regions"]}
    named = {mention.finding for mention in label(sentence.text).mentions if mention.status == "present"}
    is_named = (FINER_FINDINGS.get(sentence.finding) or sentence.finding) in named
    return is_named and (sentence.region is None or sentence.region in regions)


def sides_are_given(mention, listed: dict) -> bool:
    """Are the sides that a mention names among those of the regions of the findings it can mean?"""
    records = [record for name, record in listed.items() if (FINER_FINDINGS.get(name) or name) == mention.finding]
    known = {REGIONS[region["name"]].side for record in records for region in record["regions"]} & {"left", "right"}
    named = {"left", "right"} if mention.side == "both" else {mention.side} - {None}
    return not known or named <= known


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


TABLES = {
    "classify": evaluate_classify,
    "attention": evaluate_attention,
    "report": evaluate_report,
    "compose": evaluate_compose,
    "evidence": evaluate_evidence,
    "ground": evaluate_ground,
    "vqa": evaluate_vqa,
    "scanpath": evaluate_scanpath,
    "boxes": evaluate_boxes,
    "trajectory": evaluate_trajectory,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=(*TABLES, "labeler"))
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
    if arguments.what == "compose" and (arguments.iu is None) == (arguments.nih is None):
        parser.error("compose needs --iu or --nih, one of them")
    if arguments.what != "compose" and getattr(arguments, needed) is None:
        parser.error(f"{arguments.what} needs --{needed}")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if arguments.what == "labeler":
        evaluate_labeler(arguments)
        return
    table = TABLES[arguments.what](ReadingPipeline(arguments.model), arguments)
    show(table, arguments.what, arguments.json, arguments.markdown)


if __name__ == "__main__":
    main()
