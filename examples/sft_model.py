"""The model of sft.py: --model, or a new one out of parts; and what a stage leaves for the next. `script` is its
`ScriptArguments`."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import PartialState
from peft.utils import CONFIG_NAME
from train_scanpath import config_options
from transformers import AutoConfig, AutoProcessor, BitsAndBytesConfig
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from gaze_vlm import GazeVLM, GazeVLMConfig, GazeVLMProcessor, ScanpathPredictor
from gaze_vlm.training.adapters import TRAINED_IN_FULL, merge_adapter
from gaze_vlm.training.compose import (
    compose,
    film_processor,
    film_side,
    load_language_model,
    load_tower,
    new_language_model,
)
from gaze_vlm.training.sft_trainer import GazeSFTConfig

NEW = ("llm", "vision", "scanpath", "image_size", "model_config")  # what a new model is made of
PARTS_FILE = "parts.json"  # in its folder: what it was made of
WHOLE = ("vision_tower", "scanpath_predictor", *TRAINED_IN_FULL)  # what is never in 4 bit
MERGED = "merged"  # in the folder of a stage: its adapter in its base


def load_model(script, training: GazeSFTConfig) -> tuple[GazeVLM, GazeVLMProcessor]:
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
        if Path(place, CONFIG_NAME).is_file():
            raise ValueError(f"{place}: an adapter; merge it into its base first (gaze_vlm.training.adapters)")
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


def write_base(script, training: GazeSFTConfig, place: Path) -> None:
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
    with at_once(place) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        (folder / PARTS_FILE).write_text(json.dumps(parts, indent=2) + "\n")


def four_bit(script) -> BitsAndBytesConfig:
    if not script.use_peft:
        raise ValueError("--load_in_4bit: weights in 4 bit cannot be trained; add --use_peft")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=["lm_head", *(f"model.{part}" for part in WHOLE)],
    )


def start_of(folder: Path, script, training: GazeSFTConfig) -> str:
    """Where the model lies that a finished stage left; an adapter is merged into its base first."""
    if not (folder / CONFIG_NAME).is_file():
        return str(folder)
    if not (folder / MERGED).exists():
        with at_once(folder / MERGED) as place, whole_weights(training):
            model = merge_adapter(folder, dtype=getattr(torch, script.dtype))
            model.config.tasks = AutoConfig.from_pretrained(folder).tasks
            model.save_pretrained(place)
            AutoProcessor.from_pretrained(folder).save_pretrained(place)
    return str(folder / MERGED)


@contextmanager
def at_once(place: Path) -> Iterator[Path]:
    """A folder to write to, which is found at `place` when it is whole."""
    partial = place.with_name(f"{place.name}.partial")
    yield partial
    partial.rename(place)
