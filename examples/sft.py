"""Fine-tune a GazeVLM (Gaze2Report) with TRL's SFTTrainer: film and gaze to report, answers to questions.

REFLACX with recorded gaze, the language model by LoRA, graph and projector in full:

    accelerate launch examples/sft.py --config examples/configs/gaze2report.yaml --output_dir runs/gaze2report \
        --llm meta-llama/Llama-2-7b-chat-hf --vision microsoft/swin-base-patch4-window7-224 --scanpath runs/stage-2 \
        --dataset reflacx=DIR:phase_3 --mimic_cxr DIR

On open data, which is NOT paired: films and reports of different patients meet by finding; minutes on a CPU, with the
releases in data/ (see examples/README.md):

    accelerate launch --cpu examples/sft.py --config examples/configs/nano.yaml

--config is a YAML file with the same names as the options, which override it. Settings of one GPU, several, FSDP,
DeepSpeed and CPU stand in examples/accelerate. Everything that TRL's SFTConfig knows can be set:
--resume_from_checkpoint (a checkpoint, or "last"), --gradient_accumulation_steps, --save_total_limit, --push_to_hub.
A new model is first written beside --output_dir, with -base behind its name; with --use_peft what is trained is an
adapter on top of it (gaze_vlm.training.adapters loads and merges it; only the adapter is pushed). Without --llm a new
small language model is trained in full. Evaluation uses no findings as context, and the gaze of --eval_gaze.
"""

import json
import logging
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path

import datasets
import torch
import yaml
from accelerate import PartialState
from peft import LoraConfig, PeftConfig
from peft.utils import CONFIG_NAME
from train_scanpath import check_resumed, config_options, last_checkpoint, refusing
from transformers import AutoConfig, AutoProcessor, BitsAndBytesConfig, set_seed
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config
from trl import TrlParser

from gaze_vlm import GazeVLM, GazeVLMConfig, GazeVLMProcessor, ScanpathPredictor
from gaze_vlm.tasks import TASKS
from gaze_vlm.training.adapters import TRAINED_IN_FULL, lora_config
from gaze_vlm.training.compose import (
    compose,
    film_processor,
    film_side,
    load_language_model,
    load_tower,
    new_language_model,
)
from gaze_vlm.training.rows import SECTIONS, check_apart, load_rows, parse_weights
from gaze_vlm.training.sft_data import CONTEXT, GAZE, VIEWS, SftRows, predict_scanpaths
from gaze_vlm.training.sft_trainer import GazeSFTConfig, GazeSFTTrainer, text_metrics

logger = logging.getLogger("gaze_vlm.sft")
PARTS_FILE = "parts.json"  # in the folder of a new model: what it was made of
WHOLE = ("vision_tower", "scanpath_predictor", *TRAINED_IN_FULL)  # what is never in 4 bit
NEW = ("llm", "vision", "scanpath", "image_size", "model_config")


@dataclass
class ScriptArguments:
    """Data and model; how it is trained stands in `GazeSFTConfig`."""

    dataset: list[str] = field(
        default_factory=list,
        metadata={"help": "NAME=DIR[:CONFIG], or a folder that gaze-vlm data wrote; several behind one --dataset."},
    )
    films: list[str] = field(
        default_factory=list,
        metadata={"help": "Films of OTHER patients, put beside the reports of --dataset by finding: NOT paired."},
    )
    mimic_cxr: str | None = field(
        default=None, metadata={"help": "MIMIC-CXR folder, to join films and reports by their ids."}
    )
    one_split: bool = field(
        default=False,
        metadata={"help": "Put all rows of a patient whom releases split differently in the most held-out split."},
    )
    tasks: str = field(default="report:1", metadata={"help": f"{', '.join(TASKS)}: times an epoch each is seen."})
    gaze: str = field(
        default="given:2,predicted:1,none:1",
        metadata={"help": f"Training: where gaze comes from, with weights: {', '.join(GAZE)}."},
    )
    eval_gaze: str | None = field(
        default=None, metadata={"help": "The same in evaluation; by default what weighs most in --gaze."}
    )
    context: str | None = field(
        default="indication:0.5,comparison:0.5",
        metadata={"help": f"What stands in the request, with the share of samples that get it: {', '.join(CONTEXT)}."},
    )
    sections: list[str] = field(
        default_factory=lambda: list(SECTIONS), metadata={"help": "Sections of the report to write."}
    )
    views: str = field(default="image", metadata={"help": "image, or study: its films together.", "choices": VIEWS})
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Evaluate on the first so many of each task."}
    )
    model: str | None = field(default=None, metadata={"help": "A GazeVLM to go on from (folder or repository)."})
    llm: str | None = field(default=None, metadata={"help": "Language model of a new GazeVLM (folder or repository)."})
    vision: str | None = field(default=None, metadata={"help": "Its vision tower (folder or repository)."})
    scanpath: str | None = field(
        default=None, metadata={"help": "Its scanpath predictor, for predicted gaze (folder or repository)."}
    )
    image_size: int | None = field(
        default=None, metadata={"help": "Pixels a side of a film; the tower's own if left."}
    )
    model_config: list[str] = field(
        default_factory=list, metadata={"help": "KEY=VALUE of GazeVLMConfig, such as graph_convolution=gatv2."}
    )
    dtype: str = field(
        default="float32",
        metadata={"help": "Of the weights while training.", "choices": ("float32", "bfloat16", "float16")},
    )
    load_in_4bit: bool = field(default=False, metadata={"help": "Language model in 4 bit (bitsandbytes; LoRA only)."})
    use_peft: bool = field(
        default=False, metadata={"help": "LoRA on the language model; graph and projector in full."}
    )
    lora_r: int = field(default=16, metadata={"help": "Rank of LoRA."})
    lora_alpha: int = field(default=16, metadata={"help": "Alpha of LoRA."})
    lora_dropout: float = field(default=0.1, metadata={"help": "Dropout of LoRA."})
    lora_target_modules: list[str] = field(
        default_factory=list, metadata={"help": "Layers that LoRA adapts, such as q_proj v_proj; all linear if left."}
    )


# ---- the model


def load_model(script: ScriptArguments, training: GazeSFTConfig) -> tuple[GazeVLM, GazeVLMProcessor]:
    """`--model`, or a new one out of its parts, which is written beside --output_dir first."""
    place = script.model
    if place is None:
        place = f"{training.output_dir.rstrip('/')}-base"
        with PartialState().main_process_first():
            write_base(script, training, Path(place))
    else:
        given = [f"--{name}" for name in NEW if getattr(script, name)]
        if given:
            raise ValueError(f"{', '.join(given)}: what --model says already")
        config = AutoConfig.from_pretrained(place)
        if not isinstance(config, GazeVLMConfig):
            raise ValueError(f"{place}: a {config.model_type}, not a {GazeVLMConfig.model_type}")
    options = {"dtype": getattr(torch, script.dtype)}
    if script.load_in_4bit:
        options["quantization_config"] = four_bit(script)
    return GazeVLM.from_pretrained(place, **options), AutoProcessor.from_pretrained(place)


@contextmanager
def whole_weights(training: GazeSFTConfig) -> Iterator[None]:
    """Under DeepSpeed ZeRO-3 a model would be loaded in parts, and could neither be composed nor predict gaze."""
    if training.deepspeed_plugin is None:
        yield
        return
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(training.deepspeed_plugin.dschf)


def write_base(script: ScriptArguments, training: GazeSFTConfig, place: Path) -> None:
    """A new model, unless it stands there; it appears at once, and whole."""
    parts = {name: getattr(script, name) for name in (*NEW, "dtype")} | {"seed": training.seed}
    if place.exists():
        file = place / PARTS_FILE
        known = json.loads(file.read_text()) if file.is_file() else {}
        other = [name for name, value in parts.items() if name not in known or known[name] != value]
        if other:
            raise ValueError(f"{place}: made of another {', '.join(other)}; choose another --output_dir, or delete it")
        return
    if script.vision is None:
        raise ValueError("--vision: a new model needs a vision tower (or give --model)")
    dtype = getattr(torch, script.dtype)
    causal, tokenizer = load_language_model(script.llm, dtype) if script.llm else new_language_model()
    predictor = images = None
    if script.scanpath:
        predictor = ScanpathPredictor.from_pretrained(script.scanpath, dtype=dtype)
        images = AutoProcessor.from_pretrained(script.scanpath).image_processor
    tower = load_tower(script.vision, dtype)
    films = film_processor(script.vision, script.image_size or film_side(script.vision))
    options = config_options(script.model_config, GazeVLMConfig, "--model_config")
    model, processor = compose(tower, films, causal, tokenizer, predictor, images, **options)
    partial = place.with_name(f"{place.name}.partial")
    model.save_pretrained(partial)
    processor.save_pretrained(partial)
    (partial / PARTS_FILE).write_text(json.dumps(parts, indent=2) + "\n")
    partial.rename(place)


def four_bit(script: ScriptArguments) -> BitsAndBytesConfig:
    if not script.use_peft:
        raise ValueError("--load_in_4bit: weights in 4 bit cannot be trained; add --use_peft")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=["lm_head", *(f"model.{part}" for part in WHOLE)],
    )


# ---- the data


def select_rows(script: ScriptArguments) -> tuple[dict, dict | None]:
    """Split -> rows of `--dataset`, and of `--films`."""
    rows = load_rows(script.dataset, script.mimic_cxr, one_split=script.one_split)
    if not script.films:
        return rows, None
    films = load_rows(script.films, script.mimic_cxr, one_split=script.one_split)
    check_apart(["--dataset", "--films"], [rows, films], "films must be of other patients than reports")
    return rows, films


def eval_gaze_of(script: ScriptArguments) -> dict[str, float]:
    if script.eval_gaze:
        return parse_weights(script.eval_gaze, GAZE, "source of gaze")
    gaze = parse_weights(script.gaze, GAZE, "source of gaze")
    return {max(gaze, key=gaze.get): 1.0}


def sft_rows(
    script: ScriptArguments, rows, films, model: GazeVLM, processor, *, training: bool, seed: int, tasks=None
) -> SftRows:
    """The conversations of a split."""
    context = parse_weights(script.context, CONTEXT, "context") if script.context else {}
    gaze = parse_weights(script.gaze, GAZE, "source of gaze") if training else eval_gaze_of(script)
    predicted, shown = None, rows if films is None else films
    predicts = model is not None and model.model.scanpath_predictor is not None
    if "predicted" in gaze and not predicts:
        raise ValueError("--gaze predicted: the model has no scanpath predictor; give --scanpath")
    if "predicted" in gaze or ("shuffled" in gaze and predicts and not any(shown["scanpath"])):
        predicted = predict_scanpaths(model, processor.image_processor, shown)
    if not training:
        context.pop("findings", None)  # they would be the answer
    return SftRows(
        rows,
        tasks=tasks or parse_weights(script.tasks, TASKS, "task"),
        gaze=gaze,
        films=films,
        predicted=predicted,
        context=context,
        sections=script.sections,
        views=script.views,
        max_items=None if training else script.max_eval_samples,
        training=training,
        seed=seed,
    )


# ---- training


def prepare(script: ScriptArguments, training: GazeSFTConfig, rows, films=None) -> GazeSFTTrainer:
    """The trainer with its model and rows."""
    set_seed(training.seed)
    if "train" not in rows or (films is not None and "train" not in films):
        raise ValueError("there is no train split")
    evaluated = "validation" in rows and (films is None or "validation" in films)
    if training.eval_strategy != "no" and not evaluated:
        raise ValueError("there is no validation split: --eval_strategy no")
    with whole_weights(training):
        model, processor = load_model(script, training)
    if not script.load_in_4bit:
        model.to(training.device)

    def of(split: str, is_training: bool) -> SftRows:
        its_films = None if films is None else films[split]
        return sft_rows(script, rows[split], its_films, model, processor, training=is_training, seed=training.seed)

    adapter = None
    if script.use_peft:
        adapter = lora_config(
            model,
            r=script.lora_r,
            alpha=script.lora_alpha,
            dropout=script.lora_dropout,
            target_modules=script.lora_target_modules or None,
            train_vision_tower=not training.freeze_vision_tower,
        )
    if training.resume_from_checkpoint is not None:
        check_checkpoint(Path(training.resume_from_checkpoint), model, adapter)
    trainer = GazeSFTTrainer(
        model,
        training,
        train_rows=of("train", True),
        eval_rows=of("validation", False) if evaluated and training.eval_strategy != "no" else None,
        processing_class=processor,
        peft_config=adapter,
        compute_metrics=text_metrics(processor) if training.predict_with_generate else None,
    )
    trainer.data_collator([trainer.train_dataset[0]])  # what fits into no batch says so now
    return trainer


def check_checkpoint(checkpoint: Path, model: GazeVLM, adapter: LoraConfig | None) -> None:
    """
    Raises:
        ValueError: naming what was trained otherwise, or if there is no checkpoint.
    """
    if not (checkpoint / "trainer_state.json").is_file():
        raise ValueError(f"{checkpoint}: no checkpoint to resume from")
    if (checkpoint / CONFIG_NAME).is_file() != (adapter is not None):
        raise ValueError(f"{checkpoint}: trained with{'out' * (adapter is not None)} --use_peft")
    if adapter is None:
        return check_resumed(checkpoint, model.config)
    known = PeftConfig.from_pretrained(checkpoint)
    other = [name for name in ("r", "lora_alpha", "target_modules") if getattr(known, name) != getattr(adapter, name)]
    if other:
        raise ValueError(f"{checkpoint}: trained with another {', '.join(other)}; resume with what it began with")


def run(trainer: GazeSFTTrainer) -> None:
    """Train, save, measure, and push when asked."""
    metrics = {"train": trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint).metrics}
    if trainer.eval_dataset is not None:
        metrics["validation"] = trainer.evaluate()
    trainer.save_model(_internal_call=True)  # which pushes nothing yet
    if not trainer.args.push_to_hub:
        trainer.save_state()  # it names folders of this machine
    trainer.create_model_card()
    if trainer.is_world_process_zero():
        Path(trainer.args.output_dir, "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    if trainer.args.push_to_hub:
        trainer.push_to_hub()


def parse(kinds: tuple[type, ...], description: str, arguments: list[str] | None) -> tuple:
    """Options of the command line over those of --config."""
    arguments = sys.argv[1:] if arguments is None else arguments
    several = [f"--{one.name}" for kind in kinds for one in fields(kind) if str(one.type).startswith("list")]
    for name in several:
        if arguments.count(name) > 1:  # of which argparse would silently take the last
            raise ValueError(f"{name} is given twice; several values stand behind one {name}")
    parser = TrlParser(kinds, description=description, formatter_class=RawDescriptionHelpFormatter)
    try:
        return parser.parse_args_and_config(arguments)
    except yaml.YAMLError as error:
        raise ValueError(f"--config: {error}") from None


def main(arguments: list[str] | None = None) -> None:
    with refusing():
        script, training = parse((ScriptArguments, GazeSFTConfig), __doc__, arguments)
        logging.basicConfig(format="%(message)s")
        logging.getLogger("gaze_vlm").setLevel(logging.INFO if training.should_log else logging.WARNING)
        datasets.disable_progress_bars()
        if training.resume_from_checkpoint == "last":
            training.resume_from_checkpoint = last_checkpoint(training.output_dir)
        with training.main_process_first(desc="data"):
            rows, films = select_rows(script)
        trainer = prepare(script, training, rows, films)
    run(trainer)


if __name__ == "__main__":
    main()
