"""Stages of a training, for sft.py and ablate.py: what a file says of them, and which are done."""

import argparse
import copy
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from sft_model import NEW
from transformers import HfArgumentParser

from gaze_vlm.tasks import TASKS
from gaze_vlm.training.rows import parse_weights
from gaze_vlm.training.sft_data import CONTEXT, GAZE
from gaze_vlm.training.sft_trainer import GazeSFTConfig

WEIGHED = {
    "tasks": (TASKS, "task"),
    "gaze": (GAZE, "source of gaze"),
    "eval_gaze": (GAZE, "source of gaze"),
    "context": (CONTEXT, "context"),
}
COMMON = (
    "stages",
    "output_dir",
    "resume_from_checkpoint",
    "push_to_hub",
    "load_in_4bit",
    "model",
    *NEW,
    "vary",
    "ranks",
)
DONE = "metrics.json"  # what sft.py writes last


@dataclass(frozen=True)
class Stage:
    """One run of several.

    Args:
        name: of its folder.
        script: `ScriptArguments`: its data.
        options: of its `GazeSFTConfig`, as they were given.
    """

    name: str
    script: Any
    options: dict

    def training(self, folder: str | Path, **options) -> GazeSFTConfig:
        """How it is trained, with `options` over its own; to be made right before, as it resets accelerate's state."""
        return GazeSFTConfig(**copy.deepcopy(self.options) | {"output_dir": str(folder)} | options)


# ---- what a file says


def weights_as_text(weights: dict | Any) -> Any:
    """A mapping of YAML as the command line has it: name:weight,name:weight."""
    if not isinstance(weights, dict):
        return weights
    return ",".join(f"{name}:{weight}" for name, weight in weights.items())


def read_stages(script, options: dict) -> list[Stage]:
    """The stages of `script.stages`: a list of mappings, each a `name` and options over those of the whole run.

    Args:
        script: `ScriptArguments` of the whole run.
        options: of `GazeSFTConfig`, as they were given.

    Raises:
        ValueError: naming file, stage and key.
    """
    file = Path(script.stages)
    try:
        listed = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: {error}") from None
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"{file}: no list of stages")
    if script.load_in_4bit:
        raise ValueError(
            "--load_in_4bit: a stage's adapter is not merged into weights in 4 bit; train without --stages"
        )
    stages: list[Stage] = []
    for number, entries in enumerate(listed, start=1):
        name = entries.get("name") if isinstance(entries, dict) else None
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(f"{file}: stage {number}: name: a text of letters, digits, _ . and -, got {name!r}")
        if name in {stage.name for stage in stages}:
            raise ValueError(f"{file}: stage {number}: name: {name!r} is the name of another stage")
        own = {key: value for key, value in entries.items() if key != "name"}
        stages.append(_stage(f"{file}: stage {name!r}", name, own, script, options))
    return stages


def _stage(where: str, name: str, entries: dict, script, options: dict) -> Stage:
    kinds = (type(script), GazeSFTConfig)
    parser = HfArgumentParser(kinds, exit_on_error=False)
    hints = {key: hint for kind in kinds for key, hint in get_type_hints(kind).items()}
    own, known = {}, {one.name for kind in kinds for one in fields(kind) if one.init}
    for key, value in entries.items():
        if key not in known:
            raise ValueError(f"{where}: {key}: there is no such option")
        if key in COMMON:
            raise ValueError(f"{where}: {key}: is the same for all stages; give it as an option or in --config")
        try:
            own[key] = _typed(parser, key, value, hints[key])
            if key in WEIGHED and (own[key] or key in ("tasks", "gaze")):
                parse_weights(own[key], *WEIGHED[key])
        except ValueError as error:
            raise ValueError(f"{where}: {key}: {error}") from None
    of_script = {one.name for one in fields(script)}
    changed = {key: value for key, value in own.items() if key in of_script}
    rest = {key: value for key, value in own.items() if key not in of_script}
    stage = Stage(name, replace(script, stages=None, **changed), options | rest)
    try:
        stage.training(options["output_dir"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return stage


def _typed(parser: HfArgumentParser, key: str, value, hint):
    """A value of YAML as the command line would have it, which knows neither null nor an empty list."""
    if (value is None and type(None) in get_args(hint)) or (value == [] and get_origin(hint) is list):
        return value
    if key in WEIGHED:
        value = weights_as_text(value)
    words = [
        one if isinstance(one, str) else json.dumps(one, default=str)
        for one in (value if isinstance(value, list) else [value])
    ]
    try:
        found, rest = parser.parse_known_args([f"--{key}", *words])
    except argparse.ArgumentError as error:
        raise ValueError(error.message) from None
    if rest:
        raise ValueError(f"one value is wanted, got {value!r}")
    return getattr(found, key)


def without(stages: Sequence[Stage], tasks: Sequence[str]) -> tuple[Stage, ...]:
    """The stages without some tasks; a stage of nothing else is left out."""
    kept = []
    for stage in stages:
        weights = parse_weights(stage.script.tasks, *WEIGHED["tasks"])
        rest = {task: weight for task, weight in weights.items() if task not in tasks}
        if rest == weights:
            kept.append(stage)
        elif rest:
            kept.append(replace(stage, script=replace(stage.script, tasks=weights_as_text(rest))))
    return tuple(kept)


# ---- what is done


def folders_of(stages: Sequence[Stage], output_dir: str) -> list[Path]:
    """The last stage's is --output_dir; those before stand beside it, as what is pushed is all that lies in it."""
    beside = beside_of(output_dir)
    return [*(beside / title for title in titles_of(stages)[:-1]), Path(output_dir)]


def beside_of(output_dir: str) -> Path:
    return Path(f"{output_dir.rstrip('/')}-stages")


def titles_of(stages: Sequence[Stage]) -> list[str]:
    return [f"{number}-{stage.name}" for number, stage in enumerate(stages, start=1)]


def count_done(stages: Sequence[Stage], output_dir: str, settings: Sequence[dict], begun: Sequence[bool]) -> int:
    """How many stages, from the first on, are finished.

    Args:
        settings: of each stage.
        begun: whether it goes on from a checkpoint if it is not finished.

    Raises:
        ValueError: where what is finished, or goes on, was trained with other settings, or by other stages.
    """
    titles, folders, beside = titles_of(stages), folders_of(stages, output_dir), beside_of(output_dir)
    known = _known(beside)
    done = [(folder / DONE).is_file() for folder in folders]
    for title in known.keys() - titles:
        if (beside / title / DONE).is_file() or done[-1]:
            raise ValueError(f"{beside}: holds the stage {title}, which is no stage now; choose another --output_dir")
    for number, (title, folder) in enumerate(zip(titles, folders, strict=True)):
        if done[number] and title not in known:
            raise ValueError(f"{folder}: holds what these stages did not train; choose another --output_dir")
        if (done[number] or begun[number]) and title in known:
            now = _plain(settings[number])
            other = [name for name, value in now.items() if known[title].get(name) != value]
            if other:
                raise ValueError(
                    f"{folder}: stage {title} was trained with another {', '.join(other)}; choose another --output_dir"
                )
        if begun[number] and not done[number] and title not in known:
            raise ValueError(
                f"{folder}: holds a checkpoint that these stages did not make; choose another --output_dir"
            )
        if (done[number] or begun[number]) and not all(done[:number]):
            raise ValueError(
                f"{folder}: stage {title} is finished or begun, but one before it is not; choose another --output_dir"
            )
    return sum(done)


def record(stages: Sequence[Stage], output_dir: str, settings: Sequence[dict], number: int) -> None:
    """What stage `number` is now trained with; what followed it is forgotten."""
    beside, titles = beside_of(output_dir), titles_of(stages)
    known = _known(beside)
    known = {title: known[title] for title in titles[:number]} | {titles[number]: _plain(settings[number])}
    beside.mkdir(parents=True, exist_ok=True)
    part = beside / "settings.part"
    part.write_text(json.dumps(known, indent=2) + "\n")
    part.replace(beside / "settings.json")


def _known(beside: Path) -> dict[str, dict]:
    file = beside / "settings.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def _plain(settings: dict) -> dict:
    return json.loads(json.dumps(settings, default=str))
