"""MedGaze's experiments on ScanpathPredictor, each one command that can be stopped and started again.

    accelerate launch examples/scanpath_experiments.py language-model --output_dir runs/language-model \
        --preset medgaze --vision_tower timm/resnet50.a1_in1k --language_model facebook/opt-2.7b \
        --data egd_cxr=DIR --data reflacx=DIR --mimic_cxr DIR --one_split --text report:1 \
        --num_train_epochs 1000 --bf16
    accelerate launch examples/scanpath_experiments.py deterministic --output_dir runs/deterministic \
        --model runs/stage-1 --data egd_cxr=DIR --mimic_cxr DIR --text report:1 --num_train_epochs 1000 --bf16
    accelerate launch examples/scanpath_experiments.py readers --by source --output_dir runs/readers \
        --model runs/stage-1 --data egd_cxr=DIR --data reflacx=DIR --mimic_cxr DIR --one_split --text report:1 \
        --num_train_epochs 1000 --bf16
    python examples/scanpath_experiments.py first-stage --output_dir runs/first-stage --model runs/stage-1 \
        --data gazesearch=FILE --text finding:1 --encoder_learning_rate 1e-4 --duration_learning_rate 1e-4 \
        --num_train_epochs 8

- first-stage: what stage "report" has taught kept, and given up for new weights (frozen parts stay). curves.svg shows
  how fast stage "gaze" learns then.
- language-model: with the language model, and with its token embeddings alone.
- deterministic: Gaussian fixations, drawn as in the paper, and numbers without a distribution, nothing of which is
  drawn; both with the paper's L1.
- readers: trained on each reader and on all, tested on each and on all. --by source takes a data set as a reader:
  REFLACX does not tell which of its five read what, and EGD-CXR has one.

Data and model are chosen as in train_scanpath.py, settings are the same for all variants, each trains stage "gaze".
What is measured is the test split, or the validation split where there is none. --output_dir gets a folder a variant,
results.md and results.json; intervals are 95 % bootstrap intervals over patients (images where no patient is known).
"""

import copy
import json
import logging
import re
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import datasets
import numpy as np
from train_scanpath import ScriptArguments, last_checkpoint, prepare, refusing, run, select_rows, set_up_logging
from transformers import HfArgumentParser

from gaze_vlm import Scanpath, ScanpathPredictor
from gaze_vlm.metrics.cases import Case, Pairs
from gaze_vlm.metrics.scanpath import edit_distance, multimatch_mean4, scanmatch
from gaze_vlm.metrics.statistics import Interval, bootstrap
from gaze_vlm.metrics.tables.scanpaths import scanpath_table
from gaze_vlm.training.rows import rows_of
from gaze_vlm.training.scanpath_data import ScanpathRows
from gaze_vlm.training.scanpath_trainer import ScanpathTrainingArguments

logger = logging.getLogger("gaze_vlm.scanpath_experiments")

ALL = "all"
MATRICES = {
    "ScanMatch (14 x 14 bins, threshold 3.5, gap 0, no duration) ↑": scanmatch,
    "MultiMatch mean of 4 (no duration) ↑": multimatch_mean4,
    "string edit distance (5 x 5 grid, 224 px) ↓": edit_distance,
}


@dataclass
class ExperimentArguments(ScriptArguments):
    """What train_scanpath.py takes, and what a reader is."""

    by: str = field(
        default="reader",
        metadata={"help": "readers: the column that tells readers apart.", "choices": ("reader", "source")},
    )


@dataclass(frozen=True)
class Variant:
    """One training run.

    Args:
        only: the readers whose rows it trains on; all where it is empty.
        fresh: begins with new weights where --model was trained.
    """

    name: str
    script: ExperimentArguments
    only: tuple[str, ...] = ()
    fresh: bool = False

    @property
    def folder(self) -> str:
        return re.sub(r"[^\w.-]+", "-", self.name)


ESTIMATES = {"sample": "one draw", "mean": "the mean of the likeliest strategy", "consensus": "the consensus"}


def variants_of(what: str, script: ExperimentArguments, rows: dict[str, datasets.Dataset]) -> list[Variant]:
    if what == "language-model":
        if script.model or script.no_language_model:
            raise ValueError("language-model trains new models, with the language model and without: no --model")
        without = replace(script, no_language_model=True)
        return [Variant("with language model", script), Variant("token embeddings alone", without)]
    if what == "first-stage":
        if not script.model:
            raise ValueError('first-stage needs --model, the result of stage "report"')
        return [Variant("after stage 1", script), Variant("without stage 1", script, fresh=True)]
    if what == "deterministic":
        chosen = {"Gaussian": ("normal", "sample"), "deterministic": ("none", "mean")}
        paper = [*script.config, "regression_loss=l1", "noise_rank=0"]
        return [
            Variant(name, replace(script, config=[*paper, f"distribution={kind}", f"point_estimate={estimate}"]))
            for name, (kind, estimate) in chosen.items()
        ]
    names = sorted({*rows["train"][script.by]} - {None})
    if len(names) < 2:
        raise ValueError(f"readers: the rows to train on are of {len(names)} {script.by}, two are needed")
    if len(names) > len(rows["train"]) / 2:
        raise ValueError(f"readers: {len(names)} different values of {script.by} in {len(rows['train'])} rows")
    variants = [*(Variant(name, script, (name,)) for name in names), Variant(ALL, script)]
    if len({variant.folder for variant in variants}) < len(variants):
        raise ValueError(f"readers: two values of {script.by}, or one and {ALL!r}, are alike as names of folders")
    return variants


# ---- one variant


def predictions_of(variant: Variant, training: ScanpathTrainingArguments, rows: dict[str, datasets.Dataset]) -> dict:
    """What the variant has learned from, and its scanpath beside the reader's for each item of the test split; whether
    both begin with a fixation at the centre that is put in front, and what the point estimate is.

    It is trained unless its folder holds the result, from the last checkpoint there if it was stopped.
    """
    folder = Path(training.output_dir, variant.folder)
    done = folder / "predictions.json"
    if done.is_file():
        return json.loads(done.read_text())
    logger.info("--- %s", variant.name)
    training = copy.copy(training)
    training.output_dir = str(folder)
    training.resume_from_checkpoint = last_checkpoint(folder)
    by, only = variant.script.by, variant.only
    with refusing():
        rows = {split: rows_of(part, only, by) if only and split != "test" else part for split, part in rows.items()}
        trainer, items = prepare(variant.script, training, rows)
    if variant.fresh:
        renew(trainer.model)
    run(trainer, items)
    predicted = trainer.predict(items["test"])
    items["train"].set_epoch(0)  # what is drawn for an item changes with it
    known = {
        "centred": trainer.model.config.start_at_center,
        "point_estimate": trainer.model.config.point_estimate,
        "training": [
            about(items["train"], number) | {"recorded": items["train"].draw(number).scanpath.to_records()}
            for number in range(len(items["train"]))
        ],
        "test": [
            about(items["test"], number) | {"recorded": recorded.to_records(), "predicted": path.to_records()}
            for number, (path, recorded) in enumerate(zip(predicted.predictions, predicted.label_ids, strict=True))
        ],
    }
    if trainer.is_world_process_zero():
        part = done.with_suffix(".part")
        part.write_text(json.dumps(known))
        part.replace(done)
    trainer.accelerator.wait_for_everyone()
    return known


def renew(model: ScanpathPredictor) -> None:
    """New weights, but for a vision tower and for a language model that is frozen."""
    kept = ("vision_tower.", "language_model.") if model.config.freeze_language_model else ("vision_tower.",)
    fresh = ScanpathPredictor(model.config).to(model.device).state_dict()
    model.load_state_dict(
        {name: value if name.startswith(kept) else fresh[name] for name, value in model.state_dict().items()}
    )


def about(items: ScanpathRows, number: int) -> dict[str, str | None]:
    """What identifies an item: its row, and which sentence it is, by its number and the text that is read."""
    row = items.rows.select_columns(["image_id", "patient_id", "prompt", "reader", "source"])
    reading, sentence = items.readings[number], None
    if reading.sentence is not None:
        sentence = f"sentence {reading.sentence}: {items.draw(number).text}"
    return row[reading.row] | {"sentence": sentence}


def case_of(record: dict, path: str, centred: bool = False) -> Case:
    """One side of a record as a case; where it is `centred`, without the made-up fixation in front, which
    `scanpath_table` puts there again without scoring its duration."""
    group = record["patient_id"] or record["image_id"]
    name = " / ".join(filter(None, (record["image_id"], record["prompt"], record["sentence"])))
    value = Scanpath.from_records(record[path])
    if centred:
        value = Scanpath(value.x[1:], value.y[1:], value.duration[1:], value.onset[1:] - value.duration[0])
    return Case(name or None, value, group=group, finding=record["prompt"], centred=centred)


# ---- results


def compared(known: dict[str, dict]) -> tuple[list[str], dict]:
    """Variants beside one another and beside baselines: Markdown and plain values."""
    (first, records), *others = ((name, of_variant["test"]) for name, of_variant in known.items())
    centred = known[first]["centred"]
    table = scanpath_table(
        Pairs(
            [case_of(record, "predicted") for record in records],
            [case_of(record, "recorded", centred) for record in records],
        ),
        training=[case_of(record, "recorded", centred) for record in known[first]["training"]],
        versus={name: [case_of(record, "predicted") for record in theirs] for name, theirs in others},
        name=first,
        maps=True,
    )
    return [table.to_markdown()], table.to_dict()


def matrix(known: dict[str, dict], by: str) -> tuple[list[str], dict]:
    """Trained on (rows) against tested on (columns): Markdown and plain values."""
    some = next(iter(known.values()))["test"]
    tested = {name: [i for i, record in enumerate(some) if name in (ALL, record[by])] for name in known}
    lines, scores = [], []
    for title, metric in MATRICES.items():
        lines += [f"**{title}**", "", f"| trained on | {' | '.join(f'on {name}' for name in tested)} |"]
        lines.append("| --- " * (len(tested) + 1) + "|")
        for trained, theirs in known.items():
            cells = [f"{trained} ({len(theirs['training'])})"]
            values = metric(
                *([case_of(one, side).value for one in theirs["test"]] for side in ("predicted", "recorded"))
            )
            for name, members in tested.items():
                groups = [case_of(theirs["test"][i], "recorded").group or i for i in members]
                interval, defined = interval_of(values[members], groups)
                cells.append("{:.3f} [{:.3f}, {:.3f}]".format(*interval) if defined else "-")
                plain = {key: value if np.isfinite(value) else None for key, value in interval._asdict().items()}
                scores.append(
                    {
                        "metric": title,
                        "trained_on": trained,
                        "tested_on": name,
                        "n": defined,
                        "undefined": len(members) - defined,
                        "interval": plain,
                    }
                )
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    tests = ", ".join(f"{name} {len(members)}" for name, members in tested.items())
    lines += [f"- tested on: {tests} items; in brackets behind a name: items trained on"]
    return lines, {"scores": scores}


CURVES = {"eval_loss": "loss on validation", "eval_scanmatch": "ScanMatch on validation"}
COLOURS = ("#2563eb", "#d97706", "#059669", "#be185d")


def curves(folder: Path, variants: Sequence[Variant]) -> tuple[list[str], str]:
    """How the variants learned, epoch by epoch: a table in Markdown, and a picture as SVG."""
    logs = {one.name: json.loads((folder / one.folder / "trainer_state.json").read_text()) for one in variants}
    measured = {name: [entry for entry in log["log_history"] if "eval_loss" in entry] for name, log in logs.items()}
    lines, panels = [], []
    for place, (key, title) in enumerate(CURVES.items()):
        series = {name: [(one["epoch"], one[key]) for one in entries] for name, entries in measured.items()}
        lines += [f"| {title} after epoch | {' | '.join(series)} |", "| --- " * (len(series) + 1) + "|"]
        for points in zip(*series.values(), strict=False):
            lines.append(f"| {points[0][0]:g} | {' | '.join(f'{value:.4f}' for _, value in points)} |")
        lines.append("")
        panels.append(panel(title, series, left=60 + 400 * place))
    body = "".join(panels)
    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 820 300" font-family="sans-serif" font-size="13">'
    return lines, f'{svg}<rect width="820" height="300" fill="white"/>{body}</svg>\n'


def panel(title: str, series: dict[str, list[tuple[float, float]]], *, left: int) -> str:
    """One plot of 320 x 200 as SVG."""
    epochs, values = (np.array([point[i] for line in series.values() for point in line]) for i in range(2))
    low, span = values.min(), np.ptp(values) or 1.0
    first, last = epochs.min(), epochs.max() + (np.ptp(epochs) == 0)

    def at(epoch: float, value: float) -> str:
        return f"{left + 320 * (epoch - first) / (last - first):.1f},{240 - 200 * (value - low) / span:.1f}"

    parts = [
        f'<text x="{left}" y="24">{title}</text>',
        f'<rect x="{left}" y="40" width="320" height="200" fill="none" stroke="#999"/>',
        f'<text x="{left - 6}" y="48" text-anchor="end">{values.max():.3g}</text>',
        f'<text x="{left - 6}" y="240" text-anchor="end">{low:.3g}</text>',
        f'<text x="{left}" y="256">epoch {first:g}</text>',
        f'<text x="{left + 320}" y="256" text-anchor="end">{last:g}</text>',
    ]
    for number, (name, points) in enumerate(series.items()):
        line, x = COLOURS[number % len(COLOURS)], left + 160 * number
        path = " ".join(at(*point) for point in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{line}" stroke-width="2"/>')
        parts.append(f'<text x="{x}" y="280" fill="{line}">{name}</text>')
    return "".join(parts)


def interval_of(values: np.ndarray, groups: Sequence) -> tuple[Interval, int]:
    """95 % interval of the mean over the cases that have a value, and how many those are."""
    defined = np.flatnonzero(~np.isnan(values))
    if not len(defined):
        return Interval(np.nan, np.nan, np.nan), 0
    return bootstrap(values[defined], groups=[groups[i] for i in defined], resamples=1000), len(defined)


def settings_of(what: str, script: ExperimentArguments, training: ScanpathTrainingArguments) -> dict:
    """What must be the same when an experiment goes on."""
    names = [*ScanpathTrainingArguments.__annotations__, "num_train_epochs", "max_steps", "seed", "bf16", "fp16"]
    names += ["gradient_accumulation_steps", "warmup_steps", "optim", "adam_beta1", "data_seed", "eval_steps"]
    names += ["world_size"]
    return {"experiment": what, **asdict(script), **{name: getattr(training, name) for name in names}}


def claim(folder: Path, settings: dict, training: ScanpathTrainingArguments) -> None:
    """`folder` belongs to these settings.

    Raises:
        ValueError: where it holds an experiment with others.
    """
    file, text = folder / "settings.json", json.dumps(settings, indent=2, default=str) + "\n"
    if file.is_file() and file.read_text() != text:
        known = json.loads(file.read_text())
        other = [name for name, value in json.loads(text).items() if known.get(name) != value]
        raise ValueError(f"{folder}: holds an experiment with another {', '.join(other)}; choose another folder")
    if training.should_save and not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        part.write_text(text)
        part.replace(file)


def write(folder: Path, what: str, settings: dict, lines: Sequence[str], values: dict, notes: Sequence[str]) -> None:
    head = [f"# {what}", "", *lines, *(f"- {note}" for note in notes), "", "```json"]
    (folder / "results.md").write_text("\n".join([*head, json.dumps(settings, indent=2, default=str), "```", ""]))
    document = {"experiment": what, "settings": settings, "notes": [*notes], **values}
    (folder / "results.json").write_text(json.dumps(document, indent=2, default=str) + "\n")


def main(arguments: list[str] | None = None) -> None:
    parser = HfArgumentParser(
        (ExperimentArguments, ScanpathTrainingArguments),
        description=__doc__,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("first-stage", "language-model", "deterministic", "readers"))
    with refusing():
        script, training, chosen = parser.parse_args_into_dataclasses(arguments)
        set_up_logging(training)
        if training.stage != "gaze":
            raise ValueError("experiments train stage gaze")
        if chosen.what == "first-stage" and training.eval_strategy == "no":
            raise ValueError("first-stage shows how fast a model learns, which --eval_strategy no does not measure")
        folder, settings = Path(training.output_dir), settings_of(chosen.what, script, training)
        with training.main_process_first(desc="data"):
            rows = select_rows(script)
        notes = ["recorded scanpaths are cut to the model's number of fixations"]
        if "train" not in rows:
            raise ValueError("there is no train split")
        if rows.keys().isdisjoint({"validation", "test"}):
            raise ValueError("there is neither a test nor a validation split to measure on")
        if "test" not in rows:
            notes.append(
                "there is no test split: measured is the validation split, by which the best epoch was chosen"
            )
            rows["test"] = rows["validation"]
        variants = variants_of(chosen.what, script, rows)
        with training.main_process_first(desc="settings"):
            claim(folder, settings, training)
    known = {variant.name: predictions_of(variant, training, rows) for variant in variants}
    estimates = ", ".join(f"{ESTIMATES[theirs['point_estimate']]} ({name})" for name, theirs in known.items())
    notes.insert(0, f"predicted scanpaths: {estimates}")
    if any(theirs["centred"] for theirs in known.values()):
        notes.append("every scanpath begins with a fixation at the centre, which is put in front of recorded ones")
    if training.should_save:
        lines, values = matrix(known, script.by) if chosen.what == "readers" else compared(known)
        if chosen.what == "first-stage":
            learned, picture = curves(folder, variants)
            lines = [*learned, *lines]
            (folder / "curves.svg").write_text(picture)
        write(folder, chosen.what, settings, lines, values, notes)
        print(folder / "results.md")


if __name__ == "__main__":
    main()
