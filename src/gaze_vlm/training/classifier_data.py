"""Rows of the schema as what a GazeClassifier learns from: films with judged findings, gaze, boxes and transcripts."""

import logging
from collections import Counter
from collections.abc import Collection, Sequence
from random import Random

import datasets
import numpy as np
import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence

from ..findings import FINDINGS, FINER_FINDINGS, NO_FINDING, PARENTS, REGIONS, implied, is_known
from ..metrics._numbers import ratio
from ..models.processing_gaze_vlm import pad_fixations
from ..scanpath import Scanpath, ScanpathError
from .epochs import DrawnRows
from .rows import eight_bit, has_image
from .views import View

logger = logging.getLogger(__name__)

SUPERVISION = ("gaze", "boxes")
VOCABULARY = frozenset((*FINDINGS, *FINER_FINDINGS))
_PLACES = frozenset(("chest", *REGIONS))  # what boxes may be named after that are no finding's
_ABOVE = {name: implied([name]) - {name} for name in (*FINDINGS, *FINER_FINDINGS)}
# Finding -> all kinds of it; in an order in which kinds that have kinds come first
_KINDS = {
    name: [kind for kind, above in _ABOVE.items() if name in above]
    for name in ("Consolidation", "Lung Lesion", "Pleural Other", "Enlarged Cardiomediastinum", "Lung Opacity")
}
_READ = ["image_id", "patient_id", "transcript", "findings", "boxes", "scanpath"]


# ---- labels


def taught_findings(rows: datasets.Dataset, present_from: float = 0.5) -> list[str]:
    """Findings that are judged present in some row and absent in some other, in the vocabulary's order."""
    judged: dict[str, set[float]] = {}
    for findings in rows["findings"]:
        for name, present in _judged(findings, present_from).items():
            judged.setdefault(name, set()).add(present)
    return [name for name in (*FINDINGS, *FINER_FINDINGS) if len(judged.get(name, ())) == 2]


def targets(findings: Sequence[dict] | None, labels: Sequence[str], present_from: float = 0.5) -> list[float]:
    """What is known of each label: 1 present, 0 absent, NaN unknown.

    What a row judges itself counts. A finding that it does not judge is present where a kind of it is
    (`findings.implied`), absent where all kinds of it are, absent where it is a kind of what is absent, and absent
    (but for devices) where there is no finding.

    Args:
        findings: of a row, `{"name", "certainty"}` each; None where nobody judged any.
        labels: names of `FINDINGS` and `FINER_FINDINGS`.
        present_from: certainty from which a finding counts as present; below it is absent.
    """
    judged = _judged(findings, present_from)
    nothing = judged.get(NO_FINDING) == 1
    known = {
        name: 0.0
        for name, above in _ABOVE.items()
        if any(judged.get(one) == 0 for one in above) or (nothing and name != "Support Devices")
    } | judged
    for name, kinds in _KINDS.items():
        told = [known.get(kind) for kind in kinds]
        if name not in known and (1.0 in told or None not in told):
            known[name] = float(1.0 in told)
    return [known.get(name, float("nan")) for name in labels]


def _judged(findings: Sequence[dict] | None, present_from: float) -> dict[str, float]:
    """1 or 0 of each finding that a row judges itself; one that is listed several times is present if any entry is."""
    judged: dict[str, float] = {}
    for one in findings or ():
        if one["name"] not in VOCABULARY:
            continue
        judged[one["name"]] = max(judged.get(one["name"], 0.0), float(one["certainty"] >= present_from))
    return judged


# ---- items


class ClassifierRows(DrawnRows, torch.utils.data.Dataset):
    """Rows with an image and a judged finding, one item a row; a log line counts what is left out.

    An item has `pixel_values` (3, H, W), `labels` (C,) and, as far as they are asked for, `fixations` (n, 4), `boxes`
    (k, 4), `box_labels` (k,) and `transcript`. With `augment` film, boxes and gaze go through one random view (crop
    and mirroring) that is drawn anew in each epoch, and the film through a random contrast and brightness.

    Boxes are of findings: those of a finding that is no label count for the next one above it that is, others are left
    out, as are those of regions and those of which a reader was less certain than `present_from`. They are cut to the
    film.

    Args:
        rows: of the schema.
        processor: a `GazeClassifierProcessor`; films are squashed to its size.
        config: of the model; its labels are names of `FINDINGS` and `FINER_FINDINGS`.
        supervision: "gaze", "boxes", both or neither.
        present_from: see `targets`.

    Raises:
        ValueError: for a label outside the vocabulary; naming the row with a finding or box outside of it, a box
            without area or outside the film, or gaze none of which lies on the film, as of another image size.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        processor,
        config,
        *,
        supervision: Collection[str] = (),
        augment: bool = False,
        present_from: float = 0.5,
        seed: int = 0,
    ):
        super().__init__(seed)
        self.labels = [config.id2label[number] for number in range(config.num_labels)]
        unknown = [name for name in self.labels if name not in VOCABULARY]
        if unknown:
            raise ValueError(f"label {unknown[0]!r} is no finding; allowed: {', '.join((*FINDINGS, *FINER_FINDINGS))}")
        for name in supervision:
            if name not in SUPERVISION:
                raise ValueError(f"supervision {name!r}; allowed: {', '.join(SUPERVISION)}")
        self.processor, self.augment = processor, augment
        self.reads_transcripts = config.transcript_input
        self.supervision, self.present_from = frozenset(supervision), present_from
        self.counts: Counter[str] = Counter()
        imaged = has_image(rows)
        kept, self.targets, self.boxes, self.scanpaths, self.transcripts = [], [], [], [], []
        self.patients, self.images = [], []
        for number, row in enumerate(rows.select_columns(_READ)):
            place = f"row {number} (image {row['image_id']})"
            label = targets(self._checked(row["findings"], place), self.labels, present_from)
            boxes, scanpath = self._boxes(row["boxes"] or (), place), self._scanpath(row["scanpath"], place)
            if not imaged[number] or np.isnan(label).all():
                self.counts["left out"] += 1
                continue
            kept.append(number)
            self.targets.append(label)
            self.boxes.append(boxes)
            self.scanpaths.append(scanpath)
            self.transcripts.append(" ".join(piece["text"].strip() for piece in row["transcript"] or ()))
            self.images.append(row["image_id"])
            self.patients.append(row["patient_id"] or row["image_id"])
        if not kept:
            raise ValueError(f"none of {len(rows)} rows has an image and a finding that is judged")
        self.films = rows.select(kept).select_columns(["image"])
        self._log(len(rows))

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, item: int) -> dict:
        rng = self.rng(item)
        flip = 0.0 if self.reads_transcripts else 0.5  # words know left from right
        view = View.random(rng, flip=flip) if self.augment else View()
        one = {"pixel_values": self._pixels(item, view, rng), "labels": torch.tensor(self.targets[item])}
        if "gaze" in self.supervision:
            path = self.scanpaths[item] and view.scanpath(self.scanpaths[item])
            one["fixations"] = path.to_array() if path and path.inside.any() else None  # a crop may leave none
        if "boxes" in self.supervision:
            seen = [(view.box_of(box), label) for box, label in self.boxes[item]]
            one["boxes"] = [(box, label) for box, label in seen if box is not None]
        if self.reads_transcripts:
            one["transcript"] = self.transcripts[item]
        return one

    def _pixels(self, item: int, view: View, rng: Random) -> torch.Tensor:
        film = view.image(eight_bit(self.films[item]["image"]), self.processor.image_processor.size["height"])
        if self.augment:
            grey = np.asarray(film, np.float32) / 127.5 - 1
            grey = (grey * rng.uniform(0.8, 1.25) + rng.uniform(-0.2, 0.2)).clip(-1, 1)
            film = Image.fromarray(np.rint((grey + 1) * 127.5).astype(np.uint8))
        return self.processor.image_processor(film, return_tensors="pt")["pixel_values"][0]

    def _checked(self, findings: Sequence[dict] | None, place: str) -> Sequence[dict] | None:
        for one in findings or ():
            if one["name"] not in VOCABULARY and not is_known(one["name"]):
                raise ValueError(f"{place}: finding {one['name']!r} is in no vocabulary of gaze_vlm.findings")
        return findings

    def _boxes(self, boxes: Sequence[dict], place: str) -> list[tuple[list[float], int]]:
        """Boxes on the film, with the number of their label."""
        kept = []
        for one in boxes:
            name, box = one["name"], one["box"]
            if name not in VOCABULARY | _PLACES and not is_known(name):
                raise ValueError(f"{place}: box of {name!r}, which is neither a finding nor a region")
            x1, y1, x2, y2 = np.clip(box, 0.0, 1.0).tolist()
            if not (x1 < x2 and y1 < y2 and -1 <= min(box) <= max(box) <= 2):
                shown = ", ".join(f"{edge:g}" for edge in box)
                raise ValueError(
                    f"{place}: box {shown} of {name} is no area on the film; x1, y1, x2, y2 are 0..1 of it"
                )
            label = name
            while label and label not in self.labels:
                label = FINER_FINDINGS.get(label) or PARENTS.get(label)
            sure = one["certainty"] is None or one["certainty"] >= self.present_from
            if label and sure:
                kept.append(([x1, y1, x2, y2], self.labels.index(label)))
        return kept

    def _scanpath(self, record: dict | None, place: str) -> Scanpath | None:
        if not record or not len(record["x"]):
            return None
        try:
            scanpath = Scanpath.from_records(record)
        except ScanpathError as error:
            raise ValueError(f"{place}: {error}") from None
        if not scanpath.inside.any():
            raise ValueError(
                f"{place}: none of its {len(scanpath)} fixations lies on the film (x to {scanpath.x.max():g}, y to "
                f"{scanpath.y.max():g}); they are 0..1 of it, as gaze on an image of another size is not"
            )
        return scanpath

    def _log(self, count: int) -> None:
        gazed, boxed = sum(path is not None for path in self.scanpaths), sum(map(bool, self.boxes))
        logger.info("%d of %d rows; with gaze: %d, with boxes of a label: %d", len(self), count, gazed, boxed)
        if self.counts["left out"]:
            logger.info("%d rows left out: no image, or no label is judged", self.counts["left out"])

    @property
    def prevalence(self) -> np.ndarray:
        """(C,) share of the rows that have each label, among those where it is known; NaN where none is."""
        labels = np.array(self.targets)
        return ratio(np.nansum(labels, axis=0), (~np.isnan(labels)).sum(axis=0))


class ClassifierCollator:
    """Items as a batch: `pixel_values`, `labels` (B, C); where the items have them `fixations` (B, F, 4) with
    `fixation_mask`, `boxes` (B, K, 4) with `box_labels` (B, K), -1 in the padding, and, if any has one, `transcript`
    (B, L) with its mask; where the model learns from them `finding_text` (C, L) with its mask, the same each time.

    Args:
        processor: a `GazeClassifierProcessor`.
        config: of the model.
        max_length: tokens of a transcript, which is cut behind them.
    """

    def __init__(self, processor, config, max_length: int = 128):
        self.tokenizer, self.max_length, self.texts = processor.tokenizer, max_length, {}
        if config.text_config is not None and config.text_loss_weight:
            names = [config.id2label[number].lower() for number in range(config.num_labels)]
            self.texts = self._tokens(names, "finding_text")

    def _tokens(self, texts: list[str], name: str) -> dict[str, torch.Tensor]:
        options = {"padding": True, "truncation": True, "max_length": self.max_length, "return_tensors": "pt"}
        tokens = self.tokenizer(texts, **options)
        return {name: tokens["input_ids"], f"{name}_mask": tokens["attention_mask"]}

    def __call__(self, items: Sequence[dict]) -> dict[str, torch.Tensor]:
        pixels = torch.stack([item["pixel_values"] for item in items])
        batch = {"pixel_values": pixels, "labels": torch.stack([item["labels"] for item in items]), **self.texts}
        if "fixations" in items[0]:
            batch["fixations"], batch["fixation_mask"] = pad_fixations([item["fixations"] for item in items])
        if "boxes" in items[0]:
            none = (torch.zeros(1, 4), torch.full((1,), -1))  # the batch has room for one at least
            pairs = [none, *(self._boxes_of(item["boxes"]) for item in items)]
            boxes, labels = zip(*pairs, strict=True)
            batch["boxes"] = pad_sequence(boxes, batch_first=True)[1:]
            batch["box_labels"] = pad_sequence(labels, batch_first=True, padding_value=-1)[1:]
        given = [item.get("transcript") or "" for item in items]
        if any(given):  # of nothing but empty texts a tokenizer may make no tokens at all
            batch |= self._tokens(given, "transcript")
            there = torch.tensor([bool(text) for text in given])[:, None]
            batch["transcript_mask"] = batch["transcript_mask"] * there
        return batch

    def _boxes_of(self, boxes: list[tuple[list[float], int]]) -> tuple[torch.Tensor, torch.Tensor]:
        return (
            torch.tensor([box for box, _ in boxes], dtype=torch.float32).reshape(-1, 4),
            torch.tensor([label for _, label in boxes], dtype=torch.int64),
        )
