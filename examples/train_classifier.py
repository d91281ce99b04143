"""Train a GazeClassifier (Eyes on the Image): with gaze, with boxes, with both, with neither.

    accelerate launch examples/train_classifier.py --output_dir runs/classifier --preset gaze_token \
        --vision_tower timm/convnext_tiny.fb_in22k --text_tower emilyalsentzer/Bio_ClinicalBERT --image_size 384 \
        --data reflacx=DIR:phase_3 --data egd_cxr=DIR --mimic_cxr DIR --one_split --supervision both --bf16
    accelerate launch examples/train_classifier.py --output_dir runs/gaze-tells --seeds 5 \
        --supervision both gaze boxes none --vision_tower timm/convnext_tiny.fb_in22k --image_size 384 \
        --data reflacx=DIR:phase_3 --data egd_cxr=DIR --mimic_cxr DIR --one_split --bf16

The same on open data, where radiologists' BOXES, which 138 films have, stand for gaze; on a CPU:

    accelerate launch --cpu examples/train_classifier.py --output_dir runs/boxes-tell --supervision boxes none \
        --data nih_cxr=DIR --preset plain --model runs/nano/imagenet --image_size 224

Labels are what the training rows teach, or --findings. The tower comes from --vision_tower, or all of a classifier
from --model; new weights otherwise. After training temperature and thresholds are chosen on the validation split and
stored in the checkpoint; what is measured is the test split, or the validation split where there is none, and then
these choices flatter. Several kinds of --supervision, or --seeds above 1, train a model each, in folders of their own,
and end in one table, results.md, with 95 % bootstrap intervals over patients and paired differences from the first
kind; a command that was stopped goes on when it is given again. Settings of several GPUs stand in examples/accelerate.
"""

import copy
import json
import logging
import math
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import datasets
import numpy as np
import torch
from scanpath_experiments import claim, write
from train_scanpath import check_resumed, config_options, last_checkpoint, refusing, set_up_logging
from transformers import AutoConfig, AutoModel, AutoTokenizer, HfArgumentParser, set_seed

from gaze_vlm import GazeClassifier, GazeClassifierConfig, GazeClassifierProcessor
from gaze_vlm.metrics.cases import Case, Pairs
from gaze_vlm.metrics.classification import auroc, average_precision, calibration_error, threshold_scores
from gaze_vlm.metrics.grounding import map_iou, map_peaks, pointing_game
from gaze_vlm.metrics.tables import Metric, ScoreTable, drawn, score
from gaze_vlm.models.modeling_vision_tower import patch_tokens
from gaze_vlm.pipelines import NANO
from gaze_vlm.training.calibration import THRESHOLDS
from gaze_vlm.training.classifier_data import ClassifierRows, taught_findings
from gaze_vlm.training.classifier_trainer import (
    MIN_POSITIVES,
    ClassifierTrainer,
    ClassifierTrainingArguments,
    Predictions,
    boxed_cases,
    calibrate,
)
from gaze_vlm.training.compose import film_processor, film_side, load_tower
from gaze_vlm.training.rows import load_rows
from gaze_vlm.training.scanpath_data import grey_film

logger = logging.getLogger("gaze_vlm.train_classifier")

KINDS = {"gaze": ("gaze",), "boxes": ("boxes",), "both": ("gaze", "boxes"), "none": ()}
PRESETS = ("plain", "contrastive", "gaze_token")
RESAMPLES = 1000


@dataclass
class ScriptArguments:
    """Data and model; how it is trained stands in `ClassifierTrainingArguments`."""

    data: list[str] = field(
        default_factory=list,
        metadata={"help": "NAME=DIR[:CONFIG], or a folder that gaze-vlm data wrote; repeatable.", "action": "extend"},
    )
    mimic_cxr: str | None = field(
        default=None, metadata={"help": "MIMIC-CXR folder, to join films and reports by their ids."}
    )
    one_split: bool = field(
        default=False,
        metadata={"help": "Rows of a patient who stands in several splits go to the most held-out one."},
    )
    supervision: list[str] = field(
        default_factory=lambda: ["both"],
        metadata={"help": "What teaches attention: gaze, boxes, both or none; several are compared."},
    )
    seeds: int = field(default=1, metadata={"help": "Models a kind of supervision: --seed and those behind it."})
    findings: list[str] = field(
        default_factory=list, metadata={"help": "Labels; by default what the training rows teach."}
    )
    present_from: float = field(default=0.5, metadata={"help": "Certainty from which a finding counts as present."})
    preset: str = field(
        default="contrastive",
        metadata={"help": "Version of a new model: 1, 2, or without texts and gaze token.", "choices": PRESETS},
    )
    model: str | None = field(default=None, metadata={"help": "Go on from this GazeClassifier."})
    vision_tower: str | None = field(
        default=None, metadata={"help": "Pretrained vision tower (folder or repository); a new one if not given."}
    )
    text_tower: str | None = field(
        default=None, metadata={"help": "Pretrained text encoder with its tokenizer; a small new one if not given."}
    )
    image_size: int | None = field(default=None, metadata={"help": "Pixels a side of a film."})
    config: list[str] = field(
        default_factory=list, metadata={"help": "KEY=VALUE of GazeClassifierConfig.", "action": "extend"}
    )
    balance: float = field(
        default=0.0,
        metadata={"help": "Positives weigh (absent / present) to this power in the loss: 0 not, 1 as all negatives."},
    )
    thresholds: str = field(
        default="f1",
        metadata={"help": "On validation: best F1, or called as often as in training.", "choices": THRESHOLDS},
    )


# ---- the model


def load_model(script: ScriptArguments, labels: list[str]) -> tuple[GazeClassifier, GazeClassifierProcessor]:
    if script.model is None:
        return new_model(script, labels)
    given = [f"--{name}" for name in ("vision_tower", "text_tower") if getattr(script, name)]
    if given:
        raise ValueError(f"{', '.join(given)}: what --model says already")
    config = AutoConfig.from_pretrained(script.model)
    if not isinstance(config, GazeClassifierConfig):
        raise ValueError(f"{script.model}: a {config.model_type}, not a {GazeClassifierConfig.model_type}")
    own = [config.id2label[number] for number in range(config.num_labels)]
    if script.findings and script.findings != own:
        raise ValueError(f"--findings: --model has {', '.join(own)}")
    options = {**config.to_dict(), **config_options(script.config, GazeClassifierConfig)}
    config = GazeClassifierConfig(**{**options, "thresholds": None, "temperature": 1.0})  # chosen anew
    try:
        model = GazeClassifier.from_pretrained(script.model, config=config, dtype=torch.float32)
    except RuntimeError:
        raise ValueError(f"{script.model}: its weights do not fit --config {' '.join(script.config)}") from None
    processor = GazeClassifierProcessor.from_pretrained(script.model)
    if script.image_size:
        processor.image_processor.size = {"height": script.image_size, "width": script.image_size}
    return model, processor


def new_model(script: ScriptArguments, labels: list[str]) -> tuple[GazeClassifier, GazeClassifierProcessor]:
    tokenizer = AutoTokenizer.from_pretrained(script.text_tower or str(NANO / "gaze_classifier"))
    options: dict = {"id2label": dict(enumerate(labels))}
    if script.vision_tower:
        config = AutoConfig.from_pretrained(script.vision_tower)
        options["vision_config"] = getattr(config, "vision_config", config)
    if script.text_tower:
        options["text_config"] = AutoConfig.from_pretrained(script.text_tower)
    elif script.preset != "plain":
        options["text_config"] = small_bert(tokenizer)
    make = GazeClassifierConfig if script.preset == "plain" else getattr(GazeClassifierConfig, script.preset)
    config = make(**{**options, **config_options(script.config, GazeClassifierConfig)})
    side = script.image_size or (film_side(script.vision_tower) if script.vision_tower else 224)
    if not script.vision_tower and hasattr(config.vision_config, "image_size"):
        config.vision_config.image_size = side
    model = GazeClassifier(config)
    if script.vision_tower:
        model.vision_tower = load_tower(script.vision_tower)
    if script.text_tower:
        model.text_tower = AutoModel.from_pretrained(script.text_tower, dtype=torch.float32)
    processor = GazeClassifierProcessor(film_processor(script.vision_tower, side), tokenizer)
    with torch.no_grad():  # a tower that takes no films of this size says so now
        pixels = processor.image_processor(grey_film(), return_tensors="pt")["pixel_values"]
        patch_tokens(model.eval().vision_tower, pixels)
    return model, processor


def small_bert(tokenizer) -> dict:
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512}
    return {"model_type": "bert", "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, **sizes}


# ---- one model


@dataclass(frozen=True)
class Run:
    """One kind of supervision with one seed, and where it is trained."""

    kind: str
    seed: int
    folder: Path

    @property
    def is_done(self) -> bool:
        return (self.folder / "metrics.json").is_file()


def is_compared(script: ScriptArguments) -> bool:
    return len(script.supervision) * script.seeds > 1


def runs_of(script: ScriptArguments, training: ClassifierTrainingArguments) -> list[Run]:
    for kind in script.supervision:
        if kind not in KINDS:
            raise ValueError(f"--supervision {kind}: known are {', '.join(KINDS)}")
    if len(set(script.supervision)) < len(script.supervision) or script.seeds < 1:
        raise ValueError("--supervision: each kind once; --seeds: at least 1")
    out, seeds = Path(training.output_dir), range(training.seed, training.seed + script.seeds)
    if not is_compared(script):
        return [Run(script.supervision[0], training.seed, out)]
    return [Run(kind, seed, out / kind / f"seed-{seed}") for kind in script.supervision for seed in seeds]


def train(one: Run, script: ScriptArguments, training: ClassifierTrainingArguments, rows, labels) -> None:
    """Train, calibrate, measure and save; from the last checkpoint if it was stopped."""
    logger.info("--- supervision %s, seed %d", one.kind, one.seed)
    training = copy.copy(training)
    training.output_dir, training.seed, training.run_name = str(one.folder), one.seed, one.folder.name
    if training.resume_from_checkpoint == "last" or is_compared(script):
        training.resume_from_checkpoint = last_checkpoint(one.folder)
    with refusing():
        set_seed(one.seed)
        model, processor = load_model(script, labels)
        options = {"present_from": script.present_from, "seed": one.seed}
        items = {}
        for split, part in rows.items():
            logger.info("%s:", split)
            kinds = KINDS[one.kind] if split == "train" else ()
            items[split] = ClassifierRows(
                part, processor, model.config, supervision=kinds, augment=split == "train", **options
            )
        check_taught(one.kind, items["train"])
        frequency = items["train"].prevalence
        if script.balance:
            weights = ((1 - frequency) / frequency.clip(1e-3, 1 - 1e-3)) ** script.balance
            model.config.positive_weights = [float(weight) for weight in np.nan_to_num(weights, nan=1.0)]
        if training.resume_from_checkpoint is not None:
            check_resumed(training.resume_from_checkpoint, model.config)
        trainer = ClassifierTrainer(
            model,
            training,
            processing_class=processor,
            train_dataset=items["train"],
            eval_dataset=items.get("validation"),
        )
    metrics = {"train": trainer.train(resume_from_checkpoint=training.resume_from_checkpoint).metrics}
    if "validation" in items:
        found = trainer.predict(items["validation"], metric_key_prefix="validation")
        metrics["calibration"] = calibrate(model.config, found.predictions, script.thresholds, frequency)
    for split in ("validation", "test"):
        if split in items:
            found = trainer.predict(items[split], metric_key_prefix=split)
            metrics[split] = found.metrics
            if trainer.is_world_process_zero():
                np.savez(one.folder / f"predictions-{split}.npz", **found.predictions._asdict())
    trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        finite = {
            part: {name: None if math.isnan(value) else value for name, value in known.items()}
            for part, known in metrics.items()
        }
        (one.folder / "metrics.json").write_text(json.dumps(finite, indent=2) + "\n")


def check_taught(kind: str, items: ClassifierRows) -> None:
    there = {"gaze": any(path is not None for path in items.scanpaths), "boxes": any(items.boxes)}
    missing = [name for name in KINDS[kind] if not there[name]]
    if missing:
        raise ValueError(f"--supervision {kind}: no training row has {' or '.join(missing)}")


# ---- results


def table(runs: Sequence[Run], script: ScriptArguments, rows: datasets.Dataset, split: str, known) -> ScoreTable:
    """Kinds of supervision against one another, over all seeds, beside what needs no model."""
    config = AutoConfig.from_pretrained(runs[0].folder)
    items = ClassifierRows(
        rows, GazeClassifierProcessor.from_pretrained(runs[0].folder), config, present_from=script.present_from
    )
    said = {kind: [load_predictions(one, split) for one in runs if one.kind == kind] for kind in script.supervision}
    truth = np.array(items.targets)
    truth = np.where(np.isnan(truth), -1, truth)
    counts = (truth == 1).sum(axis=0)
    enough = np.flatnonzero((counts >= MIN_POSITIVES) & (truth == 0).any(axis=0))
    thresholds = {one: AutoConfig.from_pretrained(one.folder).thresholds for one in runs}
    chosen = {kind: [thresholds[one] for one in runs if one.kind == kind] for kind in script.supervision}
    systems = {name_of(kind): probabilities(kind, said, runs) for kind in script.supervision}
    systems["label frequency"] = np.broadcast_to(known, (len(truth), script.seeds, len(known)))
    cutoffs = {name_of(kind): values for kind, values in chosen.items()} | {"label frequency": [[0.5] * len(known)]}

    def both(name_and_scores) -> np.ndarray:
        """(n, 2 seeds + 1, C): the labels, of each seed the probabilities, and what is called."""
        scores, cut = name_and_scores
        called = scores >= np.array([values or [0.5] * truth.shape[1] for values in cut])
        return np.concatenate([truth[:, None], scores, called], axis=1)

    def mean_of(measure, called: bool = False):
        def statistic(cases: np.ndarray) -> float:
            half = script.seeds * called + 1
            labels, scores = cases[:, 0], cases[:, half : half + script.seeds]
            values = []
            for number in enough:
                there = labels[:, number] >= 0
                seen = scores[there, :, number]
                values.append(measure(np.broadcast_to(labels[there, None, number] == 1, seen.shape), seen))
            return float(np.nanmean(values))

        return statistic

    measured = [
        Metric("AUROC, mean", True, both, mean_of(auroc)),
        Metric("AUPRC (average precision), mean", True, both, mean_of(average_precision)),
        Metric("F1, mean, own thresholds", True, both, mean_of(lambda y, p: threshold_scores(y, p, 0.5).f1, True)),
        Metric("expected calibration error (15 bins), mean", False, both, mean_of(calibration_error)),
    ]
    options = {"resamples": RESAMPLES}
    paired = {name: (scores, cutoffs[name]) for name, scores in systems.items()}
    scores = score(paired, measured, groups=items.patients, **options)
    notes = [
        f"{len(items)} films of the {split} split; means over seeds and over the {len(enough)} findings with at least "
        f"{MIN_POSITIVES} positives: {', '.join(items.labels[number] for number in enough)}",
        drawn(Pairs([], [Case(None, None, group=who) for who in items.patients]), RESAMPLES),
    ]
    if any(items.boxes):
        more, note = attention_scores(said, items)
        scores += more
        notes += note
    if split == "validation":
        notes.append("temperature and thresholds were chosen on these very films, which flatters F1 and calibration")
    notes += [spread_note(kind, runs, split) for kind in script.supervision if script.seeds > 1]
    return ScoreTable(tuple(scores), tuple(notes))


def name_of(kind: str) -> str:
    return {"none": "no supervision"}.get(kind, f"supervised by {'gaze and boxes' if kind == 'both' else kind}")


def load_predictions(one: Run, split: str) -> Predictions:
    with np.load(one.folder / f"predictions-{split}.npz") as stored:
        return Predictions(**stored)


def probabilities(kind: str, said: dict[str, list[Predictions]], runs: Sequence[Run]) -> np.ndarray:
    """(n, seeds, C)."""
    of_kind = [one for one in runs if one.kind == kind]
    temperatures = [AutoConfig.from_pretrained(one.folder).temperature for one in of_kind]
    logits = [one.logits.astype(np.float64) / warmth for one, warmth in zip(said[kind], temperatures, strict=True)]
    return np.stack([1 / (1 + np.exp(-one)) for one in logits], axis=1)


def attention_scores(said: dict[str, list[Predictions]], items: ClassifierRows) -> tuple[list, list[str]]:
    """Where each finding's attention lies against the boxes that radiologists drew for it."""
    cases = {kind: [boxed_cases(one.attention, items.boxes) for one in seeds] for kind, seeds in said.items()}
    first = next(iter(cases.values()))[0]
    reference, groups = [case[1] for case in first], [items.patients[case[2]] for case in first]
    systems = {
        name_of(kind): [np.stack([case[0] for case in seed]) for seed in seeds] for kind, seeds in cases.items()
    }
    shape = first[0][0].shape
    y, x = np.meshgrid(*((np.arange(size) + 0.5) / size - 0.5 for size in shape), indexing="ij")
    systems["centre of the film"] = [np.broadcast_to(np.exp(-(x**2 + y**2) / (2 * 0.25**2)), (len(first), *shape))]
    systems["even attention"] = [np.ones((len(first), *shape))]

    def each(measure):
        return lambda seeds: np.stack([measure(maps) for maps in seeds], axis=1).mean(axis=1)

    measured = [
        Metric("pointing game, no tolerance", True, each(lambda maps: pointing_game(map_peaks(maps), reference))),
        Metric("attention IoU (cells from half of the peak on)", True, each(lambda maps: map_iou(maps, reference))),
    ]
    note = f"attention: {len(first)} findings with boxes on {len({case[2] for case in first})} films; "
    note += drawn(Pairs([], [Case(None, None, group=who) for who in groups]), RESAMPLES)
    return score(systems, measured, groups=groups, resamples=RESAMPLES), [note]


def spread_note(kind: str, runs: Sequence[Run], split: str) -> str:
    values = [
        json.loads((one.folder / "metrics.json").read_text())[split][f"{split}_auroc"]
        for one in runs
        if one.kind == kind
    ]
    return f"{name_of(kind)}: mean AUROC of {len(values)} seeds {min(values):.3f} to {max(values):.3f}"


def settings_of(script: ScriptArguments, training: ClassifierTrainingArguments) -> dict:
    names = ["learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "num_train_epochs", "max_steps"]
    names += ["per_device_train_batch_size", "gradient_accumulation_steps", "average_decay", "seed", "bf16", "fp16"]
    return asdict(script) | {name: getattr(training, name) for name in names}


def main(arguments: list[str] | None = None) -> None:
    parser = HfArgumentParser(
        (ScriptArguments, ClassifierTrainingArguments),
        description=__doc__,
        formatter_class=RawDescriptionHelpFormatter,
    )
    with refusing():
        script, training = parser.parse_args_into_dataclasses(arguments)
        set_up_logging(training)
        runs = runs_of(script, training)
        with training.main_process_first(desc="data"):
            rows = load_rows(script.data, script.mimic_cxr, one_split=script.one_split)
        if "train" not in rows:
            raise ValueError("there is no train split")
        labels = script.findings or taught_findings(rows["train"], script.present_from)
        if not labels:
            raise ValueError("no finding is present in some training row and absent in another")
        if is_compared(script):
            with training.main_process_first(desc="settings"):
                claim(Path(training.output_dir), settings_of(script, training), training)
    for one in runs:
        if not one.is_done:
            train(one, script, training, rows, labels)
    split = next((name for name in ("test", "validation") if name in rows), None)
    if not is_compared(script) or split is None or not training.should_save:
        return
    config = AutoConfig.from_pretrained(runs[0].folder)
    processor = GazeClassifierProcessor.from_pretrained(runs[0].folder)
    known = ClassifierRows(rows["train"], processor, config, present_from=script.present_from).prevalence
    results = table(runs, script, rows[split], split, known)
    write(
        Path(training.output_dir),
        "classifier",
        settings_of(script, training),
        [results.to_markdown()],
        results.to_dict(),
        [],
    )
    print(Path(training.output_dir, "results.md"))


if __name__ == "__main__":
    main()
