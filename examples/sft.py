"""Fine-tune a GazeVLM (Gaze2Report, GazeX) with TRL's SFTTrainer: any mixture of tasks, in stages.

REFLACX with recorded gaze, the language model by LoRA, graph and projector in full:

    accelerate launch examples/sft.py --config examples/configs/gaze2report.yaml --output_dir runs/gaze2report \
        --llm meta-llama/Llama-2-7b-chat-hf --vision microsoft/swin-base-patch4-window7-224 --scanpath runs/stage-2 \
        --dataset reflacx=DIR:phase_3 --mimic_cxr DIR

GazeX: what gaze teaches first, then reports, questions and boxes; a file for the stages:

    accelerate launch examples/sft.py --config examples/configs/gazex.yaml --output_dir runs/gazex \
        --llm Qwen/Qwen2-1.5B-Instruct --vision google/siglip-base-patch16-224 \
        --dataset reflacx=DIR mimic_cxr=DIR medical_cxr_vqa=DIR ms_cxr=DIR --mimic_cxr DIR

On open data, which is NOT paired: films and reports of different patients meet by finding; minutes on a CPU, with the
releases in data/ (see examples/README.md):

    accelerate launch --cpu examples/sft.py --config examples/configs/nano.yaml

--config is a YAML file with the same names as the options, which override it. Settings of one GPU, several, FSDP,
DeepSpeed and CPU stand in examples/accelerate. Everything that TRL's SFTConfig knows can be set:
--resume_from_checkpoint (a checkpoint, or "last"), --gradient_accumulation_steps, --save_total_limit, --push_to_hub.
A new model is first written beside --output_dir, with -base behind its name; with --use_peft what is trained is an
adapter on top of it (gaze_vlm.training.adapters loads and merges it; only the adapter is pushed). Without --llm a new
small language model is trained in full. Evaluation uses no findings as context, and the gaze of --eval_gaze.

--stages is a YAML list of runs in order, each a name and the options that differ for it (which go before those of the
command line); each begins from what the one before left, with an optimiser and a schedule of its own. The last one
writes to --output_dir, those before to OUTPUT_DIR-stages/1-NAME, ... with their adapter merged for the next. What is
finished is not trained again; --resume_from_checkpoint last goes on in the stage that was stopped.
"""

import gc
import json
import logging
import shutil
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import datasets
import yaml
from peft import LoraConfig, PeftConfig, PeftModel
from peft.utils import CONFIG_NAME
from sft_model import MERGED, NEW, load_model, start_of, whole_weights
from sft_stages import WEIGHED, Stage, count_done, folders_of, read_stages, record, weights_as_text
from train_scanpath import check_resumed, last_checkpoint, refusing
from transformers import set_seed
from trl import TrlParser

from gaze_vlm import GazeVLM
from gaze_vlm.hub import add_code
from gaze_vlm.tasks import TASKS
from gaze_vlm.training.adapters import lora_config
from gaze_vlm.training.rows import SECTIONS, check_apart, load_rows, parse_weights
from gaze_vlm.training.sft_data import CONTEXT, GAZE, VIEWS, SftRows, predict_scanpaths
from gaze_vlm.training.sft_trainer import GazeSFTConfig, GazeSFTTrainer, text_metrics
from gaze_vlm.training.task_scores import task_scores

logger = logging.getLogger("gaze_vlm.sft")


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
    stages: str | None = field(
        default=None, metadata={"help": "A YAML file: a list of runs, each a name and options that differ for it."}
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


# ---- the data


def select_rows(script: ScriptArguments) -> tuple[dict, dict | None]:
    """Split -> rows of `--dataset`, and of `--films`."""
    rows = load_rows(script.dataset, script.mimic_cxr, one_split=script.one_split)
    if not script.films:
        return rows, None
    films = load_rows(script.films, script.mimic_cxr, one_split=script.one_split)
    check_apart(["--dataset", "--films"], [rows, films], "films must be of other patients than reports", within=True)
    return rows, films


def eval_gaze_of(script: ScriptArguments) -> dict[str, float]:
    if script.eval_gaze:
        return parse_weights(script.eval_gaze, *WEIGHED["eval_gaze"])
    gaze = parse_weights(script.gaze, *WEIGHED["gaze"])
    return {max(gaze, key=gaze.get): 1.0}


def sft_rows(
    script: ScriptArguments, rows, films, model: GazeVLM, processor, *, training: bool, seed: int, tasks=None
) -> SftRows:
    """The conversations of a split."""
    context = parse_weights(script.context, *WEIGHED["context"]) if script.context else {}
    gaze = parse_weights(script.gaze, *WEIGHED["gaze"]) if training else eval_gaze_of(script)
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
        tasks=tasks or parse_weights(script.tasks, *WEIGHED["tasks"]),
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
    splits = splits_of(training, rows, films)
    with whole_weights(training):
        model, processor = load_model(script, training)
    learned = {*parse_weights(script.tasks, *WEIGHED["tasks"]), *(model.config.tasks if script.model else ())}
    model.config.tasks = [task for task in TASKS if task in learned]
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
        eval_rows=of("validation", False) if "validation" in splits else None,
        processing_class=processor,
        peft_config=adapter,
        compute_metrics=text_metrics(processor) if training.predict_with_generate else None,
    )
    trainer.data_collator([trainer.train_dataset[0]])  # what fits into no batch says so now
    return trainer


def splits_of(training: GazeSFTConfig, rows, films) -> list[str]:
    """What is trained on, and what is evaluated on where that is asked for."""
    known = [split for split in ("train", "validation") if split in rows and (films is None or split in films)]
    if "train" not in known:
        raise ValueError("there is no train split")
    if training.eval_strategy == "no":
        return ["train"]
    if "validation" not in known:
        raise ValueError("there is no validation split: --eval_strategy no")
    return known


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
    if trainer.eval_dataset is not None and trainer.args.predict_with_generate and trainer.is_world_process_zero():
        model = trainer.accelerator.unwrap_model(trainer.model).eval()
        length = {"max_new_tokens": trainer.args.generation_max_new_tokens}
        metrics["tasks"] = task_scores(model, trainer.processing_class, trainer.eval_rows, **length)
    trainer.save_model(_internal_call=True)  # which pushes nothing yet
    if isinstance(trainer.model, PeftModel) and trainer.args.should_save:
        trainer.model.get_base_model().config.save_pretrained(trainer.args.output_dir)  # says the tasks it learned
    if not trainer.args.push_to_hub:
        trainer.save_state()  # it names folders of this machine
    trainer.create_model_card()
    if trainer.is_world_process_zero():
        Path(trainer.args.output_dir, "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
        if trainer.args.push_to_hub:
            add_code(trainer.args.output_dir)
    if trainer.args.push_to_hub:
        trainer.push_to_hub()


# ---- in stages


def train_stages(stages: Sequence[Stage], output_dir: str, *, resume: bool) -> None:
    """Each stage from what the one before left, unless it is finished; with `resume` from its last checkpoint."""
    with refusing():
        folders = folders_of(stages, output_dir)
        checkpoints = [last_checkpoint(folder) if resume else None for folder in folders]
        settings = [settings_of(stage.script, stage.training(output_dir)) for stage in stages]
        done = count_done(stages, output_dir, settings, [one is not None for one in checkpoints])
        for stage in stages[done + 1 :]:
            check_rows(stage, stage.training(output_dir))
    for number, stage in list(enumerate(stages))[done:]:
        logger.info("--- stage %s", stage.name)
        with refusing():
            pushed = {} if stage is stages[-1] else {"push_to_hub": False}
            training = stage.training(folders[number], resume_from_checkpoint=checkpoints[number], **pushed)
            script = stage.script
            with training.main_process_first(desc="stage"):
                if number:
                    start = start_of(folders[number - 1], stages[number - 1].script, training)
                    new = {name: getattr(ScriptArguments(), name) for name in NEW}
                    script = replace(script, model=start, **new)
                rows, films = select_rows(script)
            if training.should_save:
                record(stages, output_dir, settings, number)
                shutil.rmtree(folders[number] / MERGED, ignore_errors=True)
            trainer = prepare(script, training, rows, films)
        run(trainer)
        del trainer  # and with it a model, before there is another
        gc.collect()


def check_rows(stage: Stage, training: GazeSFTConfig) -> None:
    """That a stage which comes later has what its tasks need, before what comes first is trained."""
    script = replace(stage.script, gaze="none", eval_gaze="none")
    with training.main_process_first(desc="data"):
        rows, films = select_rows(script)
    for split in splits_of(training, rows, films):
        its_films = None if films is None else films[split]
        sft_rows(script, rows[split], its_films, None, None, training=split == "train", seed=training.seed)


def settings_of(script: ScriptArguments, training: GazeSFTConfig) -> dict:
    """What must be the same when a training goes on."""
    names = ["learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "optim", "num_train_epochs"]
    names += ["max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "bf16", "fp16"]
    names += ["seed", "data_seed", "max_length", "freeze_vision_tower", "generation_max_new_tokens"]
    names += ["load_best_model_at_end", "metric_for_best_model"]
    data_and_model = {one.name: getattr(script, one.name) for one in fields(ScriptArguments)}
    return data_and_model | {name: getattr(training, name) for name in names}


# ---- the command line


def parse(kinds: tuple[type, ...], description: str, arguments: list[str] | None) -> tuple:
    """Options of the command line over those of --config: an object of each kind, and those of the last as given."""
    arguments = sys.argv[1:] if arguments is None else arguments
    several = [f"--{one.name}" for kind in kinds for one in fields(kind) if str(one.type).startswith("list")]
    for name in several:
        if arguments.count(name) > 1:  # of which argparse would silently take the last
            raise ValueError(f"{name} is given twice; several values stand behind one {name}")
    parser = TrlParser(kinds, description=description, formatter_class=RawDescriptionHelpFormatter)
    try:
        script, training = parser.parse_args_and_config(arguments)
    except yaml.YAMLError as error:
        raise ValueError(f"--config: {error}") from None
    for name in WEIGHED:
        setattr(script, name, weights_as_text(getattr(script, name)))
    given = vars(parser.parse_known_args(arguments)[0])  # --config has become defaults
    return script, training, {one.name: given[one.name] for one in fields(training) if one.name in given}


def main(arguments: list[str] | None = None) -> None:
    with refusing():
        script, training, options = parse((ScriptArguments, GazeSFTConfig), __doc__, arguments)
        logging.basicConfig(format="%(message)s")
        logging.getLogger("gaze_vlm").setLevel(logging.INFO if training.should_log else logging.WARNING)
        datasets.disable_progress_bars()
        if script.stages:
            if training.resume_from_checkpoint not in (None, "last"):
                raise ValueError("--resume_from_checkpoint: with --stages it is last, or nothing")
            stages = read_stages(script, options)
            return train_stages(stages, training.output_dir, resume=training.resume_from_checkpoint is not None)
        if training.resume_from_checkpoint == "last":
            training.resume_from_checkpoint = last_checkpoint(training.output_dir)
        with training.main_process_first(desc="data"):
            rows, films = select_rows(script)
        trainer = prepare(script, training, rows, films)
    run(trainer)


if __name__ == "__main__":
    main()
