"""Train a ScanpathPredictor in MedGaze's two stages: films to reports, then films and text to scanpaths.

    accelerate launch examples/train_scanpath.py --stage report --output_dir runs/stage-1 --preset medgaze \
        --vision_tower timm/resnet50.a1_in1k --language_model facebook/opt-2.7b --image_size 256 \
        --data mimic_cxr=DIR:frontal --data egd_cxr=DIR --data reflacx=DIR --mimic_cxr DIR --one_split \
        --num_train_epochs 10 --bf16
    accelerate launch examples/train_scanpath.py --stage gaze --output_dir runs/stage-2 --model runs/stage-1 \
        --data egd_cxr=DIR --data reflacx=DIR --mimic_cxr DIR --one_split --text report:1 \
        --num_train_epochs 1000 --bf16

The first stage must not train on patients whom the second one validates or tests on. These releases share films and
split them each in its own way (EGD-CXR shuffles patients itself, REFLACX follows MIMIC-CXR): several of them at once
are refused unless --one_split puts a patient's rows in the most held-out split that has any. With it and with all of
the second stage's sources among the first one's, what is held out in the second stage is held out in the first.

The same on open data, which is NOT paired: films and reports of different patients meet by finding in the first stage,
scanpaths without films in the second.

    python examples/train_scanpath.py --stage report --output_dir runs/open-1 --preset nano \
        --films nih_cxr=DIR --data iu_xray=FILE
    python examples/train_scanpath.py --stage gaze --output_dir runs/open-2 --model runs/open-1 \
        --data gazesearch=FILE --text finding:1,none:0.2 --encoder_learning_rate 1e-4 --duration_learning_rate 1e-4

DIR and FILE are releases as `gaze_vlm.data` reads them, or folders that `gaze-vlm data` wrote. Everything that
transformers' TrainingArguments know can be set: --resume_from_checkpoint (a checkpoint, or "last"),
--gradient_checkpointing, --bf16, --report_to tensorboard. Defaults are the paper's where it tells. The best model, its
processor and metrics.json end up in --output_dir. Settings of several GPUs stand in examples/accelerate.
"""

import json
import logging
import math
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path

import datasets
import torch
from accelerate import PartialState
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    HfArgumentParser,
    set_seed,
)

from gaze_vlm import ScanpathPredictor, ScanpathPredictorConfig, ScanpathPredictorProcessor
from gaze_vlm.models.modeling_vision_tower import patch_tokens
from gaze_vlm.training.compose import film_processor
from gaze_vlm.training.rows import check_apart, load_rows, rows_of, with_reports
from gaze_vlm.training.scanpath_data import (
    FilmsWithText,
    MatchedReportRows,
    ReportRows,
    ScanpathRows,
    grey_film,
    parse_texts,
)
from gaze_vlm.training.scanpath_trainer import ScanpathTrainer, ScanpathTrainingArguments

logger = logging.getLogger("gaze_vlm.train_scanpath")


@dataclass
class ScriptArguments:
    """Data and model; how it is trained stands in `ScanpathTrainingArguments`."""

    data: list[str] = field(
        default_factory=list,
        metadata={"help": "NAME=DIR[:CONFIG], or a folder that gaze-vlm data wrote; repeatable.", "action": "extend"},
    )
    films: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Stage report: films of OTHER patients, put beside the reports of --data by finding: matched, NOT "
            "paired. As --data.",
            "action": "extend",
        },
    )
    mimic_cxr: str | None = field(
        default=None, metadata={"help": "MIMIC-CXR folder, to join films and reports by their ids."}
    )
    one_split: bool = field(
        default=False,
        metadata={
            "help": "Rows of a patient who stands in several splits go to the most held-out one: test, then "
            "validation, then train."
        },
    )
    readers: list[str] = field(
        default_factory=list,
        metadata={"help": "Train and choose the model on rows of these readers only.", "action": "extend"},
    )
    test_readers: list[str] = field(
        default_factory=list, metadata={"help": "Test on rows of these readers only.", "action": "extend"}
    )
    text: str = field(
        default="report:1,finding:1,none:0.5",
        metadata={"help": "Stage gaze: text conditions and weights: report, finding, phrase, sentence, none."},
    )
    preset: str = field(
        default="medgaze",
        metadata={"help": "Sizes of a new model.", "choices": ("medgaze", "medgaze_plus", "nano")},
    )
    model: str | None = field(
        default=None, metadata={"help": "Go on from this model (folder or repository) instead of a new one."}
    )
    vision_tower: str | None = field(
        default=None, metadata={"help": "Pretrained vision tower (folder or repository); a new one if not given."}
    )
    language_model: str | None = field(
        default=None,
        metadata={"help": "Pretrained language model, frozen; if not given a new one, which is trained too."},
    )
    no_language_model: bool = field(
        default=False, metadata={"help": "Token embeddings alone (of --language_model, if given)."}
    )
    tokenizer: str | None = field(
        default=None, metadata={"help": "Tokenizer; by default that of --language_model, else nano's."}
    )
    image_size: int | None = field(default=None, metadata={"help": "Pixels a side of a film."})
    config: list[str] = field(
        default_factory=list,
        metadata={"help": "KEY=VALUE of ScanpathPredictorConfig, such as distribution=none.", "action": "extend"},
    )


# ---- the model


def config_options(entries: list[str], kind: type, option: str = "--config") -> dict:
    """KEY=VALUE of a configuration; values are JSON, or else text."""
    known, options = {one.name: one for one in fields(kind)}, {}
    for entry in entries:
        key, _, value = entry.partition("=")
        if key not in known:
            raise ValueError(f"{option} {entry}: {kind.__name__} has no {key!r}")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
        if isinstance(known[key].default, float) and isinstance(options[key], int):
            options[key] = float(options[key])
    return options


def load_model(script: ScriptArguments) -> tuple[ScanpathPredictor, ScanpathPredictorProcessor]:
    """`--model` with its processor, or a new one with the pretrained parts that are named."""
    if script.model is None:
        return new_model(script)
    new = ("vision_tower", "language_model", "no_language_model", "tokenizer", "image_size")
    given = [f"--{name}" for name in new if getattr(script, name)]
    if given:
        raise ValueError(f"{', '.join(given)}: what --model says already")
    config = AutoConfig.from_pretrained(script.model)
    if not isinstance(config, ScanpathPredictorConfig):
        raise ValueError(f"{script.model}: a {config.model_type}, not a {ScanpathPredictorConfig.model_type}")
    config = ScanpathPredictorConfig(
        **{**config.to_dict(), **config_options(script.config, ScanpathPredictorConfig)}
    )  # checked anew
    try:  # in float32, whatever it was saved in: AdamW's steps are lost in half precision, or overflow
        model = ScanpathPredictor.from_pretrained(script.model, config=config, dtype=torch.float32)
    except RuntimeError:
        raise ValueError(f"{script.model}: its weights do not fit --config {' '.join(script.config)}") from None
    return model, ScanpathPredictorProcessor.from_pretrained(script.model)


def new_model(script: ScriptArguments) -> tuple[ScanpathPredictor, ScanpathPredictorProcessor]:
    tokenizer = AutoTokenizer.from_pretrained(
        script.tokenizer or script.language_model or str(files("gaze_vlm") / "nano" / "scanpath_predictor")
    )
    tokenizer.padding_side = "right"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    options: dict = {"freeze_language_model": script.language_model is not None}
    if script.vision_tower:
        config = AutoConfig.from_pretrained(script.vision_tower)
        options["vision_config"] = getattr(config, "vision_config", config)
    if script.language_model:
        options["text_config"] = AutoConfig.from_pretrained(script.language_model)
    config = getattr(ScanpathPredictorConfig, script.preset)(
        **{**options, **config_options(script.config, ScanpathPredictorConfig)}
    )
    if script.no_language_model:
        config.text_config.num_hidden_layers = 0
    if not script.language_model:
        config.text_config.vocab_size = len(tokenizer)
        config.text_config.pad_token_id = tokenizer.pad_token_id
    if script.image_size and not script.vision_tower and hasattr(config.vision_config, "image_size"):
        config.vision_config.image_size = script.image_size
    model = ScanpathPredictor(config)
    if script.vision_tower:
        model.vision_tower = AutoModel.from_pretrained(
            script.vision_tower, config=config.vision_config, dtype=torch.float32
        )
    if script.language_model:
        model.language_model = AutoModelForCausalLM.from_pretrained(
            script.language_model, config=config.text_config, dtype=torch.float32
        )
    model.freeze()
    side = script.image_size or getattr(config.vision_config, "image_size", 224)
    processor = ScanpathPredictorProcessor(film_processor(script.vision_tower, side), tokenizer)
    with torch.no_grad():  # a tower that takes no films of this size says so now
        pixels = processor.image_processor(grey_film(), return_tensors="pt")["pixel_values"]
        patch_tokens(model.eval().vision_tower, pixels)
    return model, processor


# ---- the data


def select_rows(script: ScriptArguments) -> dict[str, datasets.Dataset]:
    """Split -> rows of `--data`, of the readers that are asked for."""
    rows = load_rows(script.data, script.mimic_cxr, one_split=script.one_split)
    if script.test_readers and "test" not in rows:
        raise ValueError("--test_readers: there is no test split")
    wanted = {split: script.test_readers if split == "test" else script.readers for split in rows}
    return {split: rows_of(part, wanted[split]) if wanted[split] else part for split, part in rows.items()}


def items_of(
    rows: dict[str, datasets.Dataset], script: ScriptArguments, training: ScanpathTrainingArguments, processor, config
) -> dict[str, FilmsWithText]:
    """Split -> what the stage learns from."""
    if training.stage == "gaze" and script.films:
        raise ValueError("--films: only stage report puts films and reports together by finding")
    films = load_rows(script.films, script.mimic_cxr, one_split=script.one_split) if script.films else None
    if films is not None:
        check_apart(["--data", "--films"], [rows, films], "films must be of other patients than reports", within=True)
    items: dict[str, FilmsWithText] = {}
    for split, part in rows.items():
        logger.info("%s:", split)
        if training.stage == "gaze":
            text = parse_texts(script.text)
            items[split] = ScanpathRows(part, processor, config, text=text, seed=training.seed)
        elif films is None:
            items[split] = ReportRows(with_reports(part), processor, config, seed=training.seed)
        elif split in films:
            items[split] = MatchedReportRows(films[split], part, processor, config, seed=training.seed)
        if split in items and not len(items[split]):
            raise ValueError(f"{split}: no row can be used")
    return items


# ---- training


def last_checkpoint(folder: str | Path, files: tuple[str, ...] = ()) -> str | None:
    """The last one that was written to its end, by every process, with `files`; a log line names those left out."""
    processes = range(PartialState().num_processes)
    found = {int(step): one for one in Path(folder).glob("checkpoint-*") if (step := one.name[11:]).isdecimal()}
    for _, checkpoint in sorted(found.items(), reverse=True):
        random = [checkpoint / f"rng_state_{process}.pth" for process in processes]
        drawn = (checkpoint / "rng_state.pth").is_file() or all(file.is_file() for file in random)
        if drawn and all((checkpoint / name).is_file() for name in ("trainer_state.json", *files)):
            return str(checkpoint)
        logger.warning("%s: left out, it was not written to its end by %d processes", checkpoint, len(processes))
    return None


def check_resumed(checkpoint: str | Path, config: ScanpathPredictorConfig) -> None:
    """
    Raises:
        ValueError: naming what the checkpoint's model has otherwise, or if there is none.
    """
    if not Path(checkpoint, "trainer_state.json").is_file():
        raise ValueError(f"{checkpoint}: no checkpoint to resume from")
    own, saved = (as_saved(one) for one in (config, AutoConfig.from_pretrained(checkpoint)))
    other = [name for name, value in own.items() if value != saved.get(name)]
    if other:
        raise ValueError(f"{checkpoint}: trained with another {', '.join(other)}; resume with what it began with")


def as_saved(config: ScanpathPredictorConfig) -> dict:
    """What a configuration says, as it stands in its file, without what saving adds."""

    def plain(settings):
        if not isinstance(settings, dict):
            return settings
        added = ("_name_or_path", "architectures", "dtype", "transformers_version")
        return {name: plain(value) for name, value in settings.items() if name not in added}

    return plain(json.loads(config.to_json_string(use_diff=False)))


def prepare(
    script: ScriptArguments, training: ScanpathTrainingArguments, rows: dict[str, datasets.Dataset]
) -> tuple[ScanpathTrainer, dict[str, FilmsWithText]]:
    """The trainer, and the items of each split."""
    set_seed(training.seed)
    if training.resume_from_checkpoint == "last":
        training.resume_from_checkpoint = last_checkpoint(training.output_dir)
    model, processor = load_model(script)
    if training.resume_from_checkpoint is not None:
        check_resumed(training.resume_from_checkpoint, model.config)
    items = items_of(rows, script, training, processor, model.config)
    if "train" not in items:
        raise ValueError("there is no train split")
    if training.eval_strategy != "no" and "validation" not in items:
        raise ValueError("there is no validation split: --eval_strategy no --load_best_model_at_end false")
    trainer = ScanpathTrainer(
        model,
        training,
        processing_class=processor,
        train_dataset=items["train"],
        eval_dataset=items.get("validation"),
    )
    return trainer, items


def run(trainer: ScanpathTrainer, items: dict) -> dict:
    """Train, save, and measure; what metrics.json holds."""
    metrics = {"train": trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint).metrics}
    trainer.save_model()
    trainer.save_state()
    for split in ("validation", "test"):
        if split in items:
            metrics[split] = trainer.evaluate(items[split], metric_key_prefix=split)
    metrics = {
        part: {name: None if math.isnan(value) else value for name, value in known.items()}
        for part, known in metrics.items()
    }
    if trainer.is_world_process_zero():
        Path(trainer.args.output_dir, "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    return metrics


@contextmanager
def refusing() -> Iterator[None]:
    """What is wrong with options, data or models is said in one line: status 2."""
    try:
        yield
    except (ValueError, OSError, ImportError, StrictDataclassError) as error:
        print(f"{Path(sys.argv[0]).name}: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None


def set_up_logging(training: ScanpathTrainingArguments) -> None:
    """What the package says, of one process only."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("gaze_vlm").setLevel(logging.INFO if training.should_log else logging.WARNING)
    datasets.disable_progress_bars()


def main(arguments: list[str] | None = None) -> None:
    parser = HfArgumentParser(
        (ScriptArguments, ScanpathTrainingArguments), description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    with refusing():
        script, training = parser.parse_args_into_dataclasses(arguments)
        set_up_logging(training)
        with training.main_process_first(desc="data"):
            rows = select_rows(script)
        trainer, items = prepare(script, training, rows)
    run(trainer, items)


if __name__ == "__main__":
    main()
