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
from argparse import RawDescriptionHelpFormatter
from dataclasses import dataclass, field, fields
from pathlib import Path

import datasets
import torch
from accelerate import PartialState
from train_scanpath import last_checkpoint, refusing
from transformers import AutoConfig, AutoProcessor, BitsAndBytesConfig, set_seed
from trl import TrlParser

from gaze_vlm import GazeVLM, GazeVLMConfig, GazeVLMProcessor, ScanpathPredictor
from gaze_vlm.tasks import TASKS
from gaze_vlm.training.adapters import TRAINED_IN_FULL, lora_config
from gaze_vlm.training.compose import compose, film_processor, film_side, load_language_model, load_tower
from gaze_vlm.training.compose import new_language_model as small_language_model
from gaze_vlm.training.rows import SECTIONS, check_apart, load_rows, parse_weights
from gaze_vlm.training.sft_data import CONTEXT, GAZE, VIEWS, SftRows, predict_scanpaths
from gaze_vlm.training.sft_trainer import GazeSFTConfig, GazeSFTTrainer, text_metrics

logger = logging.getLogger("gaze_vlm.sft")
WHOLE = ("vision_tower", "scanpath_predictor", *TRAINED_IN_FULL)  # what is never in 4 bit
NEW = ("llm", "vision", "scanpath", "image_size", "model_config")


@dataclass
class ScriptArguments:
    """Data and model; how it is trained stands in `GazeSFTConfig`."""

    dataset: list[str] = field(
        default_factory=list,
        metadata={"help": "NAME=DIR[:CONFIG], or folders that gaze-vlm data wrote; several one after the other."},
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
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on the first so many rows."})
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


def model_options(script: ScriptArguments) -> dict:
    """`--model_config`; values are JSON, or else text."""
    known, options = {one.name: one for one in fields(GazeVLMConfig)}, {}
    for entry in script.model_config:
        key, _, value = entry.partition("=")
        if key not in known:
            raise ValueError(f"--model_config {entry}: GazeVLMConfig has no {key!r}")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
        if isinstance(known[key].default, float) and isinstance(options[key], int):
            options[key] = float(options[key])
    return options


def load_model(script: ScriptArguments, training: GazeSFTConfig) -> tuple[GazeVLM, GazeVLMProcessor]:
    """`--model`, or a new one out of its parts, which is written beside --output_dir first."""
    place = script.model
    if place is None:
        place = f"{training.output_dir.rstrip('/')}-base"
        with PartialState().main_process_first():
            if not Path(place, "config.json").is_file():
                write_base(script, place)
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


def write_base(script: ScriptArguments, place: str) -> None:
    if script.vision is None:
        raise ValueError("--vision: a new model needs a vision tower (or give --model)")
    dtype = getattr(torch, script.dtype)
    causal, tokenizer = load_language_model(script.llm, dtype) if script.llm else small_language_model()
    predictor = images = None
    if script.scanpath:
        predictor = ScanpathPredictor.from_pretrained(script.scanpath, dtype=dtype)
        images = AutoProcessor.from_pretrained(script.scanpath).image_processor
    side = script.image_size or film_side(script.vision)
    model, processor = compose(
        load_tower(script.vision, dtype),
        film_processor(script.vision, side),
        causal,
        tokenizer,
        predictor,
        images,
        **model_options(script),
    )
    processor.save_pretrained(place)
    model.save_pretrained(place)  # its config.json is the last to appear


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
        if script.max_eval_samples is not None:
            rows = rows.select(range(min(script.max_eval_samples, len(rows))))
            if films is None and predicted is not None:
                predicted = predicted[: len(rows)]
    return SftRows(
        rows,
        tasks=tasks or parse_weights(script.tasks, TASKS, "task"),
        gaze=gaze,
        films=films,
        predicted=predicted,
        context=context,
        sections=script.sections,
        views=script.views,
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
    model, processor = load_model(script, training)

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


def run(trainer: GazeSFTTrainer) -> None:
    """Train, save, measure, and push when asked."""
    metrics = {"train": trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint).metrics}
    if trainer.eval_dataset is not None:
        metrics["validation"] = trainer.evaluate()
    trainer.save_model()
    trainer.save_state()
    trainer.create_model_card()
    if trainer.is_world_process_zero():
        Path(trainer.args.output_dir, "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    if trainer.args.push_to_hub:
        trainer.push_to_hub()


def main(arguments: list[str] | None = None) -> None:
    parser = TrlParser(
        (ScriptArguments, GazeSFTConfig), description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    with refusing():
        script, training = parser.parse_args_and_config(arguments)
        logging.basicConfig(format="%(message)s")
        logging.getLogger("gaze_vlm").setLevel(logging.INFO if training.should_log else logging.WARNING)
        datasets.disable_progress_bars()
        if training.resume_from_checkpoint == "last":
            training.resume_from_checkpoint = last_checkpoint(training.output_dir)
        resumed = training.resume_from_checkpoint
        if resumed is not None and not Path(resumed, "trainer_state.json").is_file():
            raise ValueError(f"{resumed}: no checkpoint to resume from")
        with training.main_process_first(desc="data"):
            rows, films = select_rows(script)
        trainer = prepare(script, training, rows, films)
    run(trainer)


if __name__ == "__main__":
    main()
