"""Train a GazeClassifier (Eyes on the Image): with gaze, with boxes, with both, with neither.

    accelerate launch examples/train_classifier.py --output_dir runs/classifier --preset gaze_token \
        --vision_tower timm/convnext_tiny.fb_in22k --text_tower emilyalsentzer/Bio_ClinicalBERT --image_size 384 \
        --data reflacx=DIR:phase_3 --data egd_cxr=DIR --mimic_cxr DIR --one_split --supervision both --bf16
    accelerate launch examples/train_classifier.py --output_dir runs/gaze-tells --seeds 5 \
        --supervision both gaze boxes none --vision_tower timm/convnext_tiny.fb_in22k --image_size 384 \
        --data reflacx=DIR:phase_3 --data egd_cxr=DIR --mimic_cxr DIR --one_split --bf16

The same on open data, where radiologists' BOXES, which 138 films have, stand for gaze; on a CPU:

    accelerate launch --cpu examples/train_classifier.py --output_dir runs/boxes-tell --supervision boxes none \
        --data nih_cxr=DIR --model runs/nano/imagenet --image_size 224

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
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from classifier_table import Run, table
from scanpath_experiments import claim, write
from train_scanpath import check_resumed, config_options, last_checkpoint, refusing, set_up_logging
from transformers import AutoConfig, AutoModel, AutoTokenizer, HfArgumentParser, set_seed

from gaze_vlm import GazeClassifier, GazeClassifierConfig, GazeClassifierProcessor
from gaze_vlm.loading import NANO
from gaze_vlm.models.modeling_vision_tower import patch_tokens
from gaze_vlm.training.averaging import AveragedWeights
from gaze_vlm.training.calibration import THRESHOLDS
from gaze_vlm.training.classifier_data import ClassifierRows, taught_findings
from gaze_vlm.training.classifier_trainer import (
    ClassifierTrainer,
    ClassifierTrainingArguments,
    calibrate,
    classifier_scores,
)
from gaze_vlm.training.compose import film_processor, film_side, load_tower
from gaze_vlm.training.rows import load_rows
from gaze_vlm.training.scanpath_data import grey_film

logger = logging.getLogger("gaze_vlm.train_classifier")

KINDS = {"gaze": ("gaze",), "boxes": ("boxes",), "both": ("gaze", "boxes"), "none": ()}
PRESETS = ("plain", "contrastive", "gaze_token")


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
    preset: str | None = field(
        default=None,
        metadata={
            "help": "A new model: version 1 (contrastive, the default) or 2 (gaze_token) of the paper, or one without "
            "texts and gaze token (plain).",
            "choices": PRESETS,
        },
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
    given = [f"--{name}" for name in ("preset", "vision_tower", "text_tower") if getattr(script, name)]
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
    check_size(model, processor)
    return model, processor


def new_model(script: ScriptArguments, labels: list[str]) -> tuple[GazeClassifier, GazeClassifierProcessor]:
    preset = script.preset or "contrastive"
    if preset == "plain" and script.text_tower:
        raise ValueError("--text_tower: --preset plain has no texts")
    tokenizer = AutoTokenizer.from_pretrained(script.text_tower or str(NANO / "gaze_classifier"))
    options: dict = {"id2label": dict(enumerate(labels))}
    if script.vision_tower:
        config = AutoConfig.from_pretrained(script.vision_tower)
        options["vision_config"] = getattr(config, "vision_config", config)
    if script.text_tower:
        options["text_config"] = AutoConfig.from_pretrained(script.text_tower)
    elif preset != "plain":
        options["text_config"] = small_bert(tokenizer)
    make = GazeClassifierConfig if preset == "plain" else getattr(GazeClassifierConfig, preset)
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
    check_size(model, processor)
    return model, processor


@torch.no_grad()
def check_size(model: GazeClassifier, processor: GazeClassifierProcessor) -> None:
    """A tower that takes no films of the processor's size says so now."""
    pixels = processor.image_processor(grey_film(), return_tensors="pt")["pixel_values"]
    patch_tokens(model.eval().vision_tower, pixels)


def small_bert(tokenizer) -> dict:
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512}
    return {"model_type": "bert", "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, **sizes}


# ---- one model


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
        files = (AveragedWeights.FILE,) if training.average_decay else ()
        training.resume_from_checkpoint = last_checkpoint(one.folder, files)
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
        for kind in script.supervision:  # of a later run, too: not after hours
            check_taught(kind, items["train"])
        frequency = items["train"].prevalence
        if script.balance:
            share = frequency.clip(1e-3, 1 - 1e-3)  # of a finding that all have, or none
            weights = ((1 - share) / share) ** script.balance
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
    found = {split: trainer.predict(items[split]).predictions for split in ("validation", "test") if split in items}
    if "validation" in found:
        metrics["calibration"] = calibrate(model.config, found["validation"], script.thresholds, frequency)
    for split, said in found.items():
        scores = classifier_scores(said, items[split].boxes, model.config)
        metrics[split] = {f"{split}_{name}": value for name, value in scores.items()}
        if trainer.is_world_process_zero():
            np.savez(one.folder / f"predictions-{split}.npz", **said._asdict())
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


def settings_of(script: ScriptArguments, training: ClassifierTrainingArguments) -> dict:
    names = [name for name in ClassifierTrainingArguments.__annotations__ if not name.startswith("save_")]
    names += ["max_steps", "gradient_accumulation_steps", "optim", "adam_beta1", "adam_beta2", "max_grad_norm"]
    names += ["seed", "data_seed", "bf16", "fp16", "world_size"]
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
        if not (is_compared(script) and one.is_done):
            train(one, script, training, rows, labels)
    split = next((name for name in ("test", "validation") if name in rows), None)
    if not is_compared(script) or split is None or not training.should_save:
        return
    config = AutoConfig.from_pretrained(runs[0].folder)
    processor = GazeClassifierProcessor.from_pretrained(runs[0].folder)
    known, seen = (
        ClassifierRows(rows[name], processor, config, present_from=script.present_from) for name in ("train", split)
    )
    results = table(runs, seen, known.prevalence, split)
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
