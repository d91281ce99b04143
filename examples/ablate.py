"""What gaze, gaze's tasks, the edges of the graph and the rank of LoRA bring to a GazeVLM's reports: one table each.

    accelerate launch examples/ablate.py --vary gaze edges --output_dir runs/ablate \
        --config examples/configs/gaze2report.yaml --dataset reflacx=DIR:phase_3 --mimic_cxr DIR \
        --llm meta-llama/Llama-2-7b-chat-hf --vision microsoft/swin-base-patch4-window7-224 --scanpath runs/stage-2
    accelerate launch examples/ablate.py --vary lora_r --ranks 4 8 16 --output_dir runs/ablate \
        --config examples/configs/gaze2report.yaml --dataset reflacx=DIR:phase_3 --mimic_cxr DIR \
        --llm meta-llama/Llama-2-7b-chat-hf --vision microsoft/swin-base-patch4-window7-224 --scanpath runs/stage-2
    accelerate launch examples/ablate.py --vary tasks --output_dir runs/ablate-gazex \
        --config examples/configs/gazex.yaml --llm Qwen/Qwen2-1.5B-Instruct --vision google/siglip-base-patch16-224 \
        --dataset reflacx=DIR mimic_cxr=DIR medical_cxr_vqa=DIR ms_cxr=DIR --mimic_cxr DIR

On open data, which is NOT paired, so that gaze cannot be expected to matter; on a CPU:

    accelerate launch --cpu examples/ablate.py --vary gaze --config examples/configs/nano.yaml \
        --output_dir runs/ablate-nano

- gaze: one model, trained with --gaze, is shown a reader's gaze, predicted gaze, none and another patient's.
- edges: trained with all edges, without each kind, without any, and with fixations as nodes.
- lora_r: trained with each of --ranks, at the same --lora_alpha.
- tasks: trained with GazeX's three gaze tasks, without each of them and without all: out of each stage of --stages
  that has them, or out of --tasks.

All else is as in sft.py, and the same for all variants. What is measured are the reports of the test split, or of the
validation split where there is none, by the main process alone; with --stages data and gaze are the last one's. A
command that was stopped goes on when it is given again, and one for other tables may follow in the same folder: what
is trained and written there stays. The model trained with the options as given is the folder "model"; one that sft.py
has trained with them may be put there (with its model-stages). The tables are printed; results.md and results.json
hold numbers only, written reports stand in each model's predictions-*.json.
"""

import copy
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import datasets
import numpy as np
import torch
import yaml
from accelerate import PartialState
from peft.utils import CONFIG_NAME
from scanpath_experiments import claim, write
from sft import (
    ScriptArguments,
    eval_gaze_of,
    parse,
    prepare,
    run,
    select_rows,
    settings_of,
    sft_rows,
    train_stages,
)
from sft_model import four_bit
from sft_stages import DONE, Stage, read_stages, without
from train_scanpath import last_checkpoint, refusing
from transformers import AutoConfig, AutoProcessor

from gaze_vlm import GazeVLM
from gaze_vlm.data.matching import PAIRING
from gaze_vlm.findings import FINDINGS
from gaze_vlm.labeler import label
from gaze_vlm.metrics.baselines import NORMAL_TEMPLATE, NearestNeighbour
from gaze_vlm.metrics.cases import Case, Pairs
from gaze_vlm.metrics.reports import label_matrix, macro_f1, micro_f1
from gaze_vlm.metrics.tables import Metric, ScoreTable, drawn, score
from gaze_vlm.models.modeling_vision_tower import patch_tokens
from gaze_vlm.tasks import GAZE_TASKS
from gaze_vlm.training.adapters import load_adapter
from gaze_vlm.training.sft_data import GazeVLMCollator, SftRows
from gaze_vlm.training.sft_trainer import GazeSFTConfig, prompts_of

logger = logging.getLogger("gaze_vlm.ablate")

VARIED = ("gaze", "edges", "lora_r", "tasks")
SOURCES = {"given": "reader's gaze", "predicted": "predicted gaze", "none": "no gaze", "shuffled": "another's gaze"}
EDGES = {
    "all edges": [],
    "without saccades": ['graph_edges=["feature", "grid"]'],
    "without feature edges": ['graph_edges=["grid", "saccade"]'],
    "without the grid": ['graph_edges=["feature", "saccade"]'],
    "no edges": ["graph_edges=[]"],
    "fixations as nodes": ["fixation_nodes=true"],
}
RESAMPLES = 1000


@dataclass
class AblationArguments(ScriptArguments):
    """What sft.py takes, and what is varied."""

    vary: list[str] = field(default_factory=list, metadata={"help": f"A table each: {', '.join(VARIED)}."})
    ranks: list[int] = field(default_factory=lambda: [4, 8, 16], metadata={"help": "lora_r: ranks to train with."})


@dataclass(frozen=True)
class Variant:
    """A model, by its folder, and the gaze that it is measured with, which is `script.eval_gaze`; trained in
    `stages`, or else by `script`."""

    name: str
    script: AblationArguments
    folder: str = "model"
    stages: tuple[Stage, ...] = ()


def variants_of(
    what: str, script: AblationArguments, missing: dict[str, str], stages: tuple[Stage, ...] = ()
) -> list[Variant]:
    """The first is what the others are compared with."""
    if what == "gaze":
        gaze = {name: replace(script, eval_gaze=one) for one, name in SOURCES.items() if one not in missing}
        return [Variant(name, one, stages=stages) for name, one in gaze.items()]
    for one in eval_gaze_of(script):
        if one in missing:
            raise ValueError(f"--eval_gaze {one}: {missing[one]}")
    if what == "tasks":
        return variants_without_tasks(script, stages)
    if what == "edges":
        own = [entry for entry in script.model_config if entry.startswith(("graph_edges", "fixation_nodes"))]
        if own or script.model:
            raise ValueError(f"{own[0] if own else '--model'}: --vary edges trains new models, with edges of its own")
        changes = {name: {"model_config": script.model_config + fields} for name, fields in EDGES.items()}
    else:
        if not script.use_peft or not all(stage.script.use_peft for stage in stages):
            raise ValueError("--vary lora_r: only LoRA has a rank; add --use_peft")
        if len(set(script.ranks)) < max(2, len(script.ranks)) or min(script.ranks) < 1:
            raise ValueError(f"--ranks: at least two different ones from 1 on, got {script.ranks}")
        changes = {f"r = {rank}": {"lora_r": rank} for rank in script.ranks}
    variants = []
    for name, change in changes.items():
        folder = "model" if replace(script, **change) == script else "-".join(name.replace("=", "").split())
        its = tuple(replace(stage, script=replace(stage.script, **change)) for stage in stages)
        variants.append(Variant(name, replace(script, **change), folder, its))
    return variants


def variants_without_tasks(script: AblationArguments, stages: tuple[Stage, ...]) -> list[Variant]:
    mixture = stages or (Stage("", script, {}),)
    variants = [Variant("all gaze tasks", script, stages=stages)]
    for left_out in (*((task,) for task in GAZE_TASKS), GAZE_TASKS):
        its, name = without(mixture, left_out), f"without {left_out[0] if len(left_out) == 1 else 'gaze tasks'}"
        if its == mixture:
            place = "in no stage" if stages else "not in --tasks"
            raise ValueError(f"--vary tasks: {left_out[0]} is {place}, so it cannot be left out")
        if not its:
            raise ValueError("--vary tasks: there is nothing but gaze tasks to train on")
        folder = "-".join(name.split())
        variants.append(Variant(name, script, folder, its) if stages else Variant(name, its[0].script, folder))
    return variants


def missing_gaze(script: AblationArguments, items: SftRows) -> dict[str, str]:
    """Source of gaze -> why there is none."""
    missing, predicts = {}, bool(script.scanpath)
    gazed = {who for who, path in zip(items.patients, items.given, strict=True) if path is not None}
    if not gazed:
        missing["given"] = "no film comes with fixations"
    if script.model:
        predicts = getattr(AutoConfig.from_pretrained(script.model), "scanpath_config", None) is not None
    if len(gazed) == 1 or not (gazed or predicts):
        missing["shuffled"] = "fixations of at least two patients are needed, recorded or predicted"
    if not predicts:
        missing["predicted"] = "there is no scanpath predictor"
    return missing


# ---- one variant


def train(variant: Variant, training: GazeSFTConfig, rows, films) -> None:
    """From the last checkpoint if it was stopped; not at all if it is done."""
    folder = Path(training.output_dir, variant.folder)
    if (folder / DONE).is_file():
        return
    logger.info("--- training: %s", variant.name)
    if variant.stages:
        return train_stages(variant.stages, str(folder), resume=True)
    training = copy.copy(training)
    training.output_dir, training.resume_from_checkpoint = str(folder), last_checkpoint(folder)
    with refusing():
        trainer = prepare(variant.script, training, rows, films)
    run(trainer)


def trained(variant: Variant, folder: Path) -> tuple[GazeVLM, AutoProcessor]:
    """LoRA is not merged, which would round weights in 4 bit."""
    script, options = variant.script, {"dtype": getattr(torch, variant.script.dtype)}
    if script.load_in_4bit:
        options["quantization_config"] = four_bit(script)
    adapted = (folder / CONFIG_NAME).is_file()
    model = load_adapter(folder, **options).get_base_model() if adapted else GazeVLM.from_pretrained(folder, **options)
    if not script.load_in_4bit:
        model.to(PartialState().device)
    return model.eval(), AutoProcessor.from_pretrained(folder)


def items_of(script: AblationArguments, rows, films, split: str, seed: int, model=None, processor=None) -> SftRows:
    """The reports of a split beside their films; a model is needed where its gaze is."""
    its_films = None if films is None else films[split]
    tasks = {"report": 1.0}
    return sft_rows(script, rows[split], its_films, model, processor, training=False, seed=seed, tasks=tasks)


@torch.no_grad()
def measured(variant: Variant, training: GazeSFTConfig, rows, films, split: str) -> list[dict]:
    """Each case's ids, the gaze that it got, `nll` (mean over the tokens of its reference, in nats), the findings of
    the reference, the written report and its findings. They are kept in the variant's folder."""
    folder, script = Path(training.output_dir, variant.folder), variant.script
    file = folder / f"predictions-{'-'.join(eval_gaze_of(script))}.json"
    if file.is_file():
        return json.loads(file.read_text())
    logger.info("--- measuring: %s", variant.name)
    with refusing():
        model, processor = trained(variant, folder)
        items = items_of(script, rows, films, split, training.seed, model, processor)
    collator = GazeVLMCollator(processor, max_length=training.max_length, completion_only_loss=True)
    records = []
    for places in batches(items, training):
        shown = [items.draw(place) for place in places]
        batch = {name: value.to(model.device) for name, value in collator(shown).items()}
        prompts = prompts_of(batch, processor.tokenizer.pad_token_id)
        length = {"max_new_tokens": training.generation_max_new_tokens, "min_new_tokens": 1}
        tokens = model.generate(**prompts, **length, do_sample=False, num_beams=1)
        texts = processor.batch_decode(tokens[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True)
        for place, one, nll, text in zip(places, shown, answer_losses(model, batch), texts, strict=True):
            item = items.item(place)
            record = {name: items.rows[item.row][name] for name in ("image_id", "study_id", "patient_id")}
            record |= {"gaze": one["gaze"], "nll": nll, "reference": findings(item.answer)}
            records.append(record | {"written": text.strip(), "findings": findings(text)})
    return kept(file, records)


def answer_losses(model: GazeVLM, batch: dict[str, torch.Tensor]) -> list[float]:
    """Mean negative log-likelihood of each sample's labelled tokens, in nats; lower is better."""
    labels = batch["labels"][:, 1:]
    logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none")
    return (losses.sum(1) / (labels != -100).sum(1)).tolist()


@torch.no_grad()
def nearest_reports(variant: Variant, training: GazeSFTConfig, rows, films, split: str) -> dict:
    """The findings in the report of the training case whose films are nearest, for each case; and of how many."""
    folder, seed = Path(training.output_dir, variant.folder), training.seed
    if (folder / "nearest.json").is_file():
        return json.loads((folder / "nearest.json").read_text())
    logger.info("--- the nearest training cases")
    model, processor = trained(variant, folder)
    tower, script = model.model.vision_tower, replace(variant.script, eval_gaze="none")

    def features_of(items: SftRows) -> np.ndarray:
        """(n, C): mean patch features of each item's films."""
        features = []
        for places in batches(items, training):
            images = [items.draw(place)["images"] for place in places]
            pixels = processor.image_processor(list(chain(*images)), return_tensors="pt")["pixel_values"]
            means = patch_tokens(tower, pixels.to(model.device, tower.dtype)).float().mean((1, 2)).cpu()
            features += [its.mean(0).numpy() for its in means.split([len(one) for one in images])]
        return np.stack(features)

    known = items_of(replace(script, max_eval_samples=None), rows, films, "train", seed)
    nearest = NearestNeighbour().fit(features_of(known))
    places = nearest.predict(features_of(items_of(script, rows, films, split, seed)))
    found = [findings(known.item(int(place)).answer) for place in places]
    return kept(folder / "nearest.json", {"of": len(known), "findings": found})


def findings(text: str) -> list[str]:
    return sorted(label(text).positive() & set(FINDINGS))


def batches(items: SftRows, training: GazeSFTConfig) -> list[range]:
    size = training.per_device_eval_batch_size
    return [range(start, min(start + size, len(items))) for start in range(0, len(items), size)]


def kept(file: Path, value):
    """`value`, written whole or not at all."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(value))
    part.replace(file)
    return value


# ---- results


def table(
    variants: Sequence[Variant], training: GazeSFTConfig, rows, films, split: str, notes: Sequence[str]
) -> ScoreTable:
    """The variants, a report written without a look, and that of the training case that looks most alike."""
    known = {one.name: measured(one, training, rows, films, split) for one in variants}
    nearest = nearest_reports(variants[0], training, rows, films, split)
    cases = known[variants[0].name]
    systems = {name: [case["findings"] for case in theirs] for name, theirs in known.items()}
    systems["normal template"] = [findings(NORMAL_TEMPLATE)] * len(cases)
    systems["nearest training case's report"] = nearest["findings"]
    truth = label_matrix([case["reference"] for case in cases], FINDINGS)

    def f1(title: str, function) -> Metric:
        def both(found) -> np.ndarray:
            return np.stack([label_matrix(found, FINDINGS), truth], axis=1)

        return Metric(f"label F1, {title}", True, both, lambda pairs: function(pairs[:, 0], pairs[:, 1]))

    supported = truth.any(axis=0).sum()
    labelled = (
        f1(f"macro over the {supported} of 14 findings that references have", macro_f1),
        f1("micro, 14 findings", micro_f1),
    )
    nll = Metric("negative log-likelihood a token", False, lambda theirs: np.array([case["nll"] for case in theirs]))
    groups = [case["patient_id"] or case["study_id"] or case["image_id"] for case in cases]
    options = {"groups": groups, "resamples": RESAMPLES, "seed": training.seed}
    scores = *score(known, [nll], **options), *score(systems, labelled, **options)
    gazed = {name: sum(case["gaze"] != "none" for case in theirs) for name, theirs in known.items()}
    protocol = (
        *notes,
        f"{len(cases)} cases of the {split} split; of these shown with gaze: "
        + ", ".join(f"{name} {count}" for name, count in gazed.items()),
        f"nearest of {nearest['of']} training cases: by cosine of mean patch features of the vision tower",
        drawn(Pairs([], [Case(None, None, group=group) for group in groups]), RESAMPLES),
    )
    return ScoreTable(tuple(scores), protocol)


def notes_of(what: str, script: AblationArguments, training: GazeSFTConfig, missing: dict[str, str]) -> list[str]:
    """What a table does not say by itself."""
    names = [", ".join(Path(one.partition("=")[0]).name for one in given) for given in (script.dataset, script.films)]
    matched = "reports of {}, films of {}, {}: gaze cannot be expected to matter".format(*names, PAIRING)
    notes = [
        matched if script.films else f"{names[0]}: films and reports are paired",
        f"trained with gaze {script.gaze}, seed {training.seed}, once a model: intervals and p are over "
        "cases, not over trainings",
        "negative log-likelihood: of the reference's tokens, in nats, mean over cases; the baselines have none",
        f"written reports: greedy, at most {training.generation_max_new_tokens} tokens; findings read by gaze_vlm's "
        "labeler in them and in the references, uncertain ones as negative; a text without any is No Finding",
    ]
    if what == "gaze":
        notes += [f"{SOURCES[one]}: left out, {reason}" for one, reason in missing.items()]
    if what == "lora_r":
        notes.append(f"LoRA's alpha is {script.lora_alpha} at every rank")
    if what == "tasks":
        notes.append(
            "nothing makes up for a task that is left out: an epoch is shorter, a stage without tasks is left out"
        )
    return notes


def main(arguments: list[str] | None = None) -> None:
    with refusing():
        script, training, options = parse((AblationArguments, GazeSFTConfig), __doc__, arguments)
        logging.basicConfig(format="%(message)s")
        logging.getLogger("gaze_vlm").setLevel(logging.INFO if training.should_log else logging.WARNING)
        datasets.disable_progress_bars()
        if not script.vary or not set(script.vary) <= set(VARIED):
            raise ValueError(f"--vary: {', '.join(VARIED)}, or some of them; got {', '.join(script.vary) or 'none'}")
        if training.push_to_hub:
            raise ValueError("--push_to_hub: variants are not pushed")
        settings, stages = settings_of(script, training) | {"world_size": training.world_size}, ()
        if script.stages:
            stages = tuple(read_stages(script, options))
            settings["stages"] = yaml.safe_load(Path(script.stages).read_text())
            script, training = stages[-1].script, stages[-1].training(training.output_dir)
        with training.main_process_first(desc="data"):
            rows, films = select_rows(script)
        splits = [one for one in ("test", "validation", "train") if one in rows and (films is None or one in films)]
        if len(splits) < 2 or splits[-1] != "train":
            raise ValueError("a train split is needed, and one of test and validation to measure on")
        missing = missing_gaze(script, items_of(replace(script, eval_gaze="none"), rows, films, splits[0], 0))
        tables = {what: variants_of(what, script, missing, stages) for what in script.vary}
        with training.main_process_first(desc="settings"):
            claim(Path(training.output_dir), settings, training)
    for variant in chain(*tables.values()):
        train(variant, training, rows, films)
    if not training.should_save:
        return
    found = {
        what: table(variants, training, rows, films, splits[0], notes_of(what, script, training, missing))
        for what, variants in tables.items()
    }
    lines = [line for what, one in found.items() for line in (f"## {what}", "", one.to_markdown(), "")]
    values = {"tables": {what: one.to_dict() for what, one in found.items()}}
    write(Path(training.output_dir), "ablate", settings, lines, values, [])
    print("\n".join([*lines, str(Path(training.output_dir, "results.md"))]))


if __name__ == "__main__":
    main()
