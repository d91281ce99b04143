"""Rows of the schema as what a ScanpathPredictor learns from: film, text and scanpath, or film and report."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import datasets
import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence

from ..data.matching import PAIRING, present_findings
from ..dictation import fixations_of_sentences, sentences_of
from ..findings import NO_FINDING
from ..models.processing_gaze_vlm import pad_fixations
from ..scanpath import Scanpath, ScanpathError
from .epochs import DrawnRows
from .rows import eight_bit, join_report, match_reports, parse_weights

logger = logging.getLogger(__name__)

TEXTS = ("report", "finding", "phrase", "sentence", "none")
_READ = ["image_id", "report", "transcript", "findings", "boxes", "prompt", "scanpath", "source"]


# ---- texts


def parse_texts(text: str) -> dict[str, float]:
    """`report:1,finding:1,none:0.5` as weights of text conditions (`rows.parse_weights`)."""
    return parse_weights(text, TEXTS, "text condition")


def text_room(config) -> int | None:
    """Tokens of text that the language model takes beside the queries; None where it sets no limit."""
    context = getattr(config.text_config, "max_position_embeddings", None)
    if context is None:
        return None
    return context - (config.num_query_tokens if config.language_model_input == "queries_and_text" else 0)


# ---- items


class FilmsWithText(DrawnRows, torch.utils.data.Dataset):
    """What the data sets of both stages share: films that are read when needed, token ids, reproducible draws.

    `ScanpathTrainer` sets the epoch.

    Args:
        films: rows of the schema, of which the column `image` is read.
        processor: a `ScanpathPredictorProcessor`.
        config: of the model that is to be trained.
    """

    def __init__(self, films: datasets.Dataset, processor, config, seed: int = 0):
        super().__init__(seed)
        self.films = films.select_columns(["image"])
        self.processor, self.config = processor, config

    def pixel_values(self, film: int) -> torch.Tensor:
        """(3, H, W) float of a row's film; of an even grey one where the row has none."""
        image = self.films[film]["image"]
        return self._grey if image is None else self._processed(eight_bit(image))

    @cached_property
    def _grey(self) -> torch.Tensor:
        return self._processed(grey_film())

    def _processed(self, image: Image.Image) -> torch.Tensor:
        return self.processor.image_processor(image, return_tensors="pt")["pixel_values"][0]

    def token_ids(self, text: str) -> list[int]:
        """Cut to `config.text_max_length`, where that is set; none for an empty text."""
        cut = self.config.text_max_length
        return self.processor.tokenizer(text, truncation=cut is not None, max_length=cut)["input_ids"] if text else []

    def check_texts(self, texts: Sequence[tuple[str, str]]) -> None:
        """`texts` are places (for messages) and what stands there.

        Raises:
            ValueError: naming the first that is longer than the language model's context has room for.
        """
        room = text_room(self.config)
        if self.config.text_max_length is not None or room is None:
            return
        for start in range(0, len(texts), 1000):
            places, part = zip(*texts[start : start + 1000], strict=True)
            for place, ids in zip(places, self.processor.tokenizer(list(part))["input_ids"], strict=True):
                if len(ids) > room:
                    raise ValueError(
                        f"{place}: text of {len(ids)} tokens, the language model has room for {room}; "
                        "set text_max_length to cut it"
                    )


class Reading(NamedTuple):
    """What an item can become.

    Args:
        row: number of the row.
        scanpath: all of it.
        texts: condition -> the texts to choose from; that of `sentence` comes with `said`.
        said: the scanpath while the sentence was said.
        sentence: number of the sentence in the row's transcript.
    """

    row: int
    scanpath: Scanpath
    texts: dict[str, tuple[str, ...]]
    said: Scanpath | None = None
    sentence: int | None = None


@dataclass(frozen=True)
class Drawn:
    """An item as drawn in this epoch."""

    condition: str
    text: str
    scanpath: Scanpath


class ScanpathRows(FilmsWithText):
    """Stage "gaze": rows with a scanpath, one item a row.

    Texts: `report` (findings and impression), `finding` (the row's prompt, else one of its present findings), `phrase`
    (that of one of its boxes), `sentence` (one of the transcript, with the fixations that belong to it by
    `dictation.fixations_of_sentences`; a row is then one item a sentence), `none`. Of the conditions that a row
    offers one is drawn by weight; all but `sentence` go with the whole scanpath.

    A row without an image gets an even grey film. Fixations off the film are left out. When `config.start_at_center`
    every scanpath, that of a sentence too, gets a fixation of 0.3 s at the centre in front (`Scanpath.with_centre`).
    It is made up: trials of GazeSearch began there, with a fixation that it leaves out, other readers began anywhere.
    Scanpaths of more than `config.max_fixations`, this one among them, are cut. Log lines count all that.

    Args:
        rows: of the schema.
        processor, config: see `FilmsWithText`.
        text: condition -> weight.

    Raises:
        ValueError: naming the row that has no fixation, offers none of the texts, or holds one that is too long.
    """

    def __init__(self, rows: datasets.Dataset, processor, config, *, text: dict[str, float], seed: int = 0):
        super().__init__(rows, processor, config, seed)
        self.rows, self.text = rows, text
        self.counts: Counter[str] = Counter()
        self.readings = [
            reading for number, row in enumerate(rows.select_columns(_READ)) for reading in self._readings(number, row)
        ]
        places = (self._place(reading.row) for reading in self.readings)
        texts = [
            (place, text)
            for place, reading in zip(places, self.readings, strict=True)
            for texts in reading.texts.values()
            for text in texts
        ]
        self.check_texts(list(dict.fromkeys(texts)))
        self._log()

    def __len__(self) -> int:
        return len(self.readings)

    def draw(self, item: int) -> Drawn:
        """Text condition, text and scanpath of an item in this epoch."""
        reading, rng = self.readings[item], self.rng(item)
        (condition,) = rng.choices(list(reading.texts), [self.text[name] for name in reading.texts])
        scanpath = reading.said if condition == "sentence" else reading.scanpath
        return Drawn(condition, rng.choice(reading.texts[condition]), scanpath)

    def __getitem__(self, item: int) -> dict:
        drawn = self.draw(item)
        return {
            "pixel_values": self.pixel_values(self.readings[item].row),
            "input_ids": self.token_ids(drawn.text),
            "fixations": torch.from_numpy(drawn.scanpath.to_array()),
        }

    @cached_property
    def _names(self) -> list[str | None]:
        return list(self.rows["image_id"])

    def _place(self, row: int) -> str:
        return f"row {row} (image {self._names[row]})"

    def _readings(self, number: int, row: dict) -> Iterator[Reading]:
        """One, or one a sentence."""
        try:
            recorded = Scanpath.from_records(row["scanpath"] or {"x": [], "y": [], "duration": []})
        except ScanpathError as error:
            raise ValueError(f"{self._place(number)}: {error}") from None
        scanpath = recorded.drop_outside()
        if not len(scanpath):
            raise ValueError(f"{self._place(number)} has no fixation{' on the film' * (len(recorded) > 0)}")
        self.counts["off the film"] += len(recorded) - len(scanpath)
        texts = {name: offered for name in self.text if (offered := texts_of(row, name))}
        said = list(self._sentences(row, scanpath)) if "sentence" in self.text else []
        if not texts and not said:
            raise ValueError(f"{self._place(number)} offers none of the texts asked for: {', '.join(self.text)}")
        whole = self._as_learned(scanpath) if texts else scanpath
        self.counts.update([*texts, *(["sentence"] if said else [])])
        if not said:
            yield Reading(number, whole, texts)
        for place, sentence, path in said:
            yield Reading(number, whole, texts | {"sentence": (sentence,)}, self._as_learned(path), place)

    def _sentences(self, row: dict, scanpath: Scanpath) -> Iterator[tuple[int, str, Scanpath]]:
        sentences = sentences_of(row["transcript"] or ())
        paths = fixations_of_sentences(scanpath, sentences)
        for place, (sentence, path) in enumerate(zip(sentences, paths, strict=True)):
            if len(path):
                yield place, sentence["text"], path
            else:
                self.counts["silent"] += 1

    def _as_learned(self, scanpath: Scanpath) -> Scanpath:
        """With the centre in front, where the model starts there, and cut."""
        if self.config.start_at_center:
            scanpath = scanpath.with_centre()
        self.counts["cut"] += len(scanpath) > self.config.max_fixations
        return scanpath[: self.config.max_fixations]

    def _log(self) -> None:
        offered = ", ".join(f"{name} {self.counts[name]}" for name in self.text)
        logger.info("%d items of %d rows; rows that offer each text: %s", len(self), len(self.rows), offered)
        for name, sentence in (
            ("cut", f"%d scanpaths of more than {self.config.max_fixations} fixations cut to as many"),
            ("off the film", "%d fixations off the film left out"),
            ("silent", "%d sentences left out, for no fixation belongs to them"),
        ):
            if self.counts[name]:
                logger.info(sentence, self.counts[name])


def texts_of(row: dict, condition: str) -> tuple[str, ...]:
    """The texts that a row offers for a condition; none for `sentence`, which needs the fixations too."""
    if condition == "report":
        found = [join_report(row["report"])]
    elif condition == "finding" and row["prompt"]:
        found = [row["prompt"]]
    elif condition == "finding":
        found = [name.lower() for name in sorted(present_findings({"findings": row["findings"] or ()}) - {NO_FINDING})]
    elif condition == "phrase":
        found = [box["phrase"] for box in row["boxes"] or () if box["phrase"]]
    else:
        return ("",) if condition == "none" else ()
    return tuple(dict.fromkeys(text.strip() for text in found if text.strip()))


class ReportRows(FilmsWithText):
    """Stage "report": rows with an image and a report (`with_reports`), one item a row.

    Raises:
        ValueError: naming the row without a report, or with one that is too long.
    """

    def __init__(self, rows: datasets.Dataset, processor, config, *, seed: int = 0):
        super().__init__(rows, processor, config, seed)
        self.texts = [join_report(report) for report in rows["report"]]
        self._names = list(rows["image_id"])
        empty = next((number for number, text in enumerate(self.texts) if not text), None)
        if empty is not None:
            raise ValueError(f"row {empty} (image {self._names[empty]}) has no report")
        self.check_texts([(f"row {i} (image {self._names[i]})", text) for i, text in enumerate(self.texts)])
        logger.info("%d films with their reports", len(self))

    def __len__(self) -> int:
        return len(self.texts)

    def film(self, item: int) -> int:
        """Number of the row whose film stands beside the item's report in this epoch."""
        return item

    def __getitem__(self, item: int) -> dict:
        film = self.film(item)
        ids = self.token_ids(self.texts[item])
        return {"pixel_values": self.pixel_values(film), "input_ids": ids, "labels": ids}


class MatchedReportRows(ReportRows):
    """Stage "report" where films and reports are of DIFFERENT patients: each report beside a film of like findings
    (`rows.match_reports`). Films are drawn anew in each epoch.

    Args:
        films: rows with an image and findings.
        reports: rows with a report.
    """

    def __init__(self, films: datasets.Dataset, reports: datasets.Dataset, processor, config, *, seed: int = 0):
        FilmsWithText.__init__(self, films, processor, config, seed)
        numbers, self.texts, self.findings, self.matcher = match_reports(films, reports)
        self.check_texts([(f"report {number}", text) for number, text in zip(numbers, self.texts, strict=True)])
        logger.info("%d of %d reports beside %d films, %s", len(self), len(reports), len(films), PAIRING)

    def film(self, item: int) -> int:
        return self.matcher.draw(self.findings[item], self.rng(item))["film"]


def grey_film(size: int = 64) -> Image.Image:
    """An even grey film, for when there is only a text."""
    return Image.new("RGB", (size, size), (128, 128, 128))


class ScanpathCollator:
    """Items of either stage as a batch, all padded on the right.

    `pixel_values` (B, 3, H, W); `input_ids`, `attention_mask` (B, L), L at least 1; of scanpaths `fixations`
    (B, F, 4) x, y in the image 0..1, onset and duration in seconds, and `fixation_mask` (B, F); of reports `labels`
    (B, L), -100 in the padding.
    """

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, items: Sequence[dict]) -> dict[str, torch.Tensor]:
        texts = [torch.tensor(item["input_ids"], dtype=torch.int64) for item in items]
        one = torch.zeros(1, dtype=torch.int64)  # the batch is at least as long as this
        ids = pad_sequence([*texts, one], batch_first=True, padding_value=self.pad_token_id)[:-1]
        mask = torch.arange(ids.shape[1]) < torch.tensor([len(text) for text in texts])[:, None]
        batch = {
            "pixel_values": torch.stack([item["pixel_values"] for item in items]),
            "input_ids": ids,
            "attention_mask": mask.long(),
        }
        if "labels" in items[0]:
            batch["labels"] = ids.masked_fill(~mask, -100)
        if "fixations" in items[0]:
            batch["fixations"], batch["fixation_mask"] = pad_fixations([item["fixations"] for item in items])
        return batch
