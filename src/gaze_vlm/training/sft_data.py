"""Rows of the schema as conversations that a GazeVLM is fine-tuned on: films, gaze, question, answer."""

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import datasets
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from ..data.matching import PAIRING, present_findings
from ..findings import NO_FINDING
from ..keyframes import KeyFrame
from ..models.processing_gaze_vlm import pad_fixations
from ..report_composer import REPORTED
from ..scanpath import Scanpath, ScanpathError
from ..tasks import GAZE_TASKS, report_messages
from ..visualize import draw_key_frame
from .epochs import DrawnRows
from .label_questions import label_questions
from .rows import SECTIONS, eight_bit, has_image, join_report, match_reports
from .task_samples import Draw, Sample, draws_of, question

logger = logging.getLogger(__name__)

GAZE = ("given", "predicted", "shuffled", "none")
CONTEXT = ("indication", "comparison", "findings")
VIEWS = ("image", "study")
FRONTAL = {"PA": 0, "AP": 1}
_READ = ["image_id", "patient_id", "study_id", "view", "report", "findings", "boxes", "transcript", "prompt"]
_READ += ["scanpath", "question", "answer"]


class Item(NamedTuple):
    """What is asked, and what is to be answered.

    Args:
        task: a name of `tasks.TASKS`.
        row: number of the row that question and answer come from.
        films: numbers of the rows whose films are shown; None: drawn anew in each epoch.
        answer: of a report, the text that is learned; None for the other tasks.
        ask: of the other tasks, what draws question and answer; None for reports.
    """

    task: str
    row: int
    films: tuple[int, ...] | None
    answer: str | None = None
    ask: Draw | None = None


class SftRows(DrawnRows):
    """Conversations of rows, reproducibly drawn.

    What is drawn for an item depends on `seed`, the epoch and the item's place, and on nothing else: neither on the
    process nor on the order in which items are asked for. `GazeSFTTrainer` sets the epoch. With `training` False
    nothing changes from epoch to epoch.

    Args:
        rows: of the schema, with films, unless `films` brings them.
        tasks: task -> how often its items are seen in an epoch: 1 each once, 0.2 a fifth of them, drawn anew in each
            epoch, 2 each twice. Outside training each once. `report` needs a report, the others what
            `task_samples.draws_of` says, of rows that come with their own film. GazeX's `keyframe`, `trajectory` and
            `order` are given no gaze: it would be the answer.
        gaze: where gaze comes from -> weight. One is drawn for an item among those that it offers: `given` (some of
            its films were read with an eye tracker), `predicted` (by `predicted`), `shuffled` (a scanpath of another
            patient, recorded where any was, else predicted: a check that gaze matters), `none`. An item that offers
            nothing that was asked for has none.
        films: rows of OTHER patients with films and findings, for rows without; each report is put beside a film of
            like findings (`rows.match_reports`). The other tasks are then asked of `films`.
        predicted: fixations (n, 4) of each film (of `films`, else `rows`), see `predict_scanpaths`.
        context: what stands in the request for a report -> share of items that get it: `indication`, `comparison`,
            `findings`. The last are those that the row is labelled with, or those of a matched report: for models
            that are told what a classifier found. Never give them where findings are measured.
        sections: of the report that are to be written.
        views: "image": one film an item; "study": all films of a study together, frontal ones first, at most
            `max_views`.
        ask_labels: whether `vqa` also asks what labels answer (`label_questions`).
        max_items: only the first so many items of each task.

    Raises:
        ValueError: if no item is left, or nothing offers the gaze that is asked for; naming the row whose scanpath is
            none.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        *,
        tasks: Mapping[str, float],
        gaze: Mapping[str, float],
        films: datasets.Dataset | None = None,
        predicted: Sequence[np.ndarray] | None = None,
        context: Mapping[str, float] | None = None,
        sections: Sequence[str] = SECTIONS,
        views: str = "image",
        max_views: int = 2,
        ask_labels: bool = False,
        max_items: int | None = None,
        training: bool = True,
        seed: int = 0,
    ):
        if films is not None and views == "study":
            raise ValueError("films of other patients make no study: views must be image")
        self.tasks, self.gaze, self.context = dict(tasks), dict(gaze), dict(context or {})
        super().__init__(seed)
        self.training, self.predicted = training, predicted
        self.rows = list(rows.select_columns(_READ))
        source = rows if films is None else films
        self.films = source.select_columns(["image"])
        shown = self.rows if films is None else list(films.select_columns(_READ))
        self.patients = [row["patient_id"] or row["image_id"] for row in shown]
        self.given = [self._scanpath(number, row) for number, row in enumerate(shown)]
        recorded = any(path is not None for path in self.given)
        # what is shuffled
        self.pool = (
            self.given if recorded or predicted is None else [path if len(path) else None for path in predicted]
        )
        self.shown = shown
        imaged = has_image(source)
        self.matched = None
        if films is not None:
            if not all(imaged):
                raise ValueError(f"film {imaged.index(False)}: there is no image")
            self.matched = match_reports(films, rows)
            self._findings = dict(zip(self.matched.numbers, self.matched.findings, strict=True))
        studies = self._studies(imaged, views, max_views)
        items = list(self._reports(studies, sections) if films is None else self._matched_reports())
        items += self._asked(studies)
        if ask_labels and "vqa" in self.tasks:
            items += self._label_questions(source, studies, seed)
        self.items = {task: [item for item in items if item.task == task][:max_items] for task in self.tasks}
        self._places: tuple[int, list[Item]] | None = None
        self._check()

    # ---- what there is

    def _scanpath(self, number: int, row: dict) -> np.ndarray | None:
        """(n, 4) on the film; None where nobody's gaze is known."""
        if not row["scanpath"]:
            return None
        try:
            recorded = Scanpath.from_records(row["scanpath"]).drop_outside()
        except ScanpathError as error:
            raise ValueError(f"row {number} (image {row['image_id']}): {error}") from None
        return recorded.to_array() if len(recorded) else None

    def _studies(self, imaged: list[bool], views: str, max_views: int) -> list[tuple[list[int], tuple[int, ...]]]:
        """Numbers of the rows that belong together, and of their films in the order in which they are shown.

        A film that several rows are about is shown once, as one with gaze if there is one.
        """
        studies: dict[str, list[int]] = {}
        for number, row in enumerate(self.shown):
            if imaged[number]:
                alone = views == "image" or row["study_id"] is None
                studies.setdefault(f"row {number}" if alone else f"study {row['study_id']}", []).append(number)
        ordered = [
            sorted(numbers, key=lambda number: FRONTAL.get(self.shown[number]["view"] or "", len(FRONTAL)))
            for numbers in studies.values()
        ]
        return [(numbers, self._films_of(numbers)[:max_views]) for numbers in ordered]

    def _films_of(self, numbers: list[int]) -> tuple[int, ...]:
        films: dict[str, int] = {}
        for number in numbers:
            name = self.shown[number]["image_id"] or f"row {number}"
            if name not in films or (self.given[films[name]] is None and self.given[number] is not None):
                films[name] = number
        return tuple(films.values())

    def _reports(self, studies, sections) -> Iterator[Item]:
        """A report once for its films, not for each row that carries it; where gaze is given and a film stands alone,
        once for each of its readers."""
        reports: dict[tuple, list[Item]] = {}
        for numbers, films in studies:
            texts = {number: join_report(self.rows[number]["report"], sections) for number in numbers}
            reported = next((number for number in numbers if texts[number]), None)
            if reported is not None:
                names = tuple(self.shown[film]["image_id"] or f"row {film}" for film in films)
                reports.setdefault((names, texts[reported]), []).append(
                    Item("report", reported, films, texts[reported])
                )
        for items in reports.values():
            read = [item for item in items if any(self.given[film] is not None for film in item.films)]
            yield from (read if "given" in self.gaze and read else items[:1])

    def _matched_reports(self) -> Iterator[Item]:
        for number, text in zip(self.matched.numbers, self.matched.texts, strict=True):
            yield Item("report", number, None, text)

    def _asked(self, studies) -> Iterator[Item]:
        """What is no report; a place is on one film, a question about a study is about all of them."""
        for task in (task for task in self.tasks if task != "report"):
            for numbers, films in studies:
                for number in sorted(numbers):
                    about = films if task == "vqa" else (number,)
                    yield from (Item(task, number, about, ask=ask) for ask in draws_of(task, self.shown[number]))

    def _label_questions(self, rows: datasets.Dataset, studies, seed: int) -> Iterator[Item]:
        shown, asked = {number: films for numbers, films in studies for number in numbers}, set()
        for one in label_questions(rows.select_columns(["findings", "view"]), seed):
            if one.row not in shown:
                continue
            about = (
                *(self.shown[film]["image_id"] or f"row {film}" for film in shown[one.row]),
                one.question,
                one.answer,
            )
            if about not in asked:  # not for each reader of a film again
                asked.add(about)
                yield Item("vqa", one.row, shown[one.row], ask=partial(question, one.question, one.answer))

    def _check(self) -> None:
        for task in self.tasks:
            if not self.items[task]:
                raise ValueError(f"no row can be used for the task {task}: nothing has what it needs")
        shared = {who for who, path in zip(self.patients, self.pool, strict=True) if path is not None}
        known = {
            "given": any(path is not None for path in self.given),
            "shuffled": len(shared) > 1,
            "predicted": self.predicted is not None,
            "none": True,
        }
        for source in self.gaze:
            if not known[source]:
                raise ValueError(f"gaze: nothing offers {source!r}: {_REASONS[source]}")
        counts = ", ".join(f"{task} {len(items)}" for task, items in self.items.items())
        gazed = sum(path is not None for path in self.given)
        logger.info("items: %s; %d of %d films come with gaze", counts, gazed, len(self.given))
        if self.matched is not None:
            logger.info("films and reports are %s", PAIRING)

    # ---- what is drawn

    def set_epoch(self, epoch: int) -> None:
        """Draw anew, when training."""
        super().set_epoch(epoch if self.training else 0)

    def __len__(self) -> int:
        return sum(self._count(task) for task in self.tasks)

    def _count(self, task: str) -> int:
        return max(1, round(self.tasks[task] * len(self.items[task]))) if self.training else len(self.items[task])

    def item(self, place: int) -> Item:
        """The item that stands in a place of this epoch."""
        epoch = int(self._epoch)
        if self._places is None or self._places[0] != epoch:
            places = []
            for task in self.tasks:
                known, count = self.items[task], self._count(task)
                times, rest = divmod(count, len(known))
                places += known * times + self.rng(task).sample(known, rest)
            self._places = epoch, places
        return self._places[1][place]

    def draw(self, place: int) -> dict:
        """`prompt` and `completion` (messages), `images` (PIL), `fixations` (one (n, 4) array an image, None without
        gaze) and `gaze` (where they come from)."""
        item, rng = self.item(place), self.rng(place)
        films, findings = item.films, None
        if films is None:
            findings = self._findings[item.row]
            films = (self.matched.matcher.draw(findings, rng)["film"],)
        if item.task == "report":
            messages, frames = self._report_messages(item, rng, len(films), findings), None
        else:
            sample = item.ask(rng, len(films))
            messages, frames = sample.messages, sample.frames
        if frames is None:
            images = [eight_bit(self.films[film]["image"]) for film in films]
        else:
            images = self._frames(item.row, frames)
        source, fixations = ("none", [None] * len(images)) if item.task in GAZE_TASKS else self._gaze(films, rng)
        return {
            "prompt": messages[:-1],
            "completion": messages[-1:],
            "images": images,
            "fixations": fixations,
            "gaze": source,
        }

    def _frames(self, number: int, frames: Sequence[KeyFrame]) -> list[Image.Image]:
        film, scanpath = self.films[number]["image"], Scanpath.from_records(self.shown[number]["scanpath"])
        return [draw_key_frame(eight_bit(film).convert("L"), scanpath, frame).convert("RGB") for frame in frames]

    def sample(self, place: int) -> Sample:
        """What `draw` asks, with what its answer means; not for reports."""
        item, rng = self.item(place), self.rng(place)
        return item.ask(rng, len(item.films))

    def _report_messages(self, item: Item, rng: random.Random, views: int, findings) -> list[dict]:
        row = self.rows[item.row]
        told = {name for name in CONTEXT if rng.random() < self.context.get(name, 0)}
        report = row["report"] or {}
        known = None
        if "findings" in told:
            if findings is None and row["findings"] is not None:
                findings = present_findings(row)
            if findings is not None:
                known = [name for name in REPORTED if name in findings and name != NO_FINDING]
        return report_messages(
            known,
            item.answer,
            views=views,
            indication=report.get("indication") if "indication" in told else None,
            comparison=report.get("comparison") if "comparison" in told else None,
        )

    def _gaze(self, films: tuple[int, ...], rng: random.Random) -> tuple[str, list[np.ndarray | None]]:
        known = {"given": self.given, "shuffled": self.pool}
        offered = [one for one in self.gaze if one not in known or any(known[one][f] is not None for f in films)]
        if not offered:
            return "none", [None] * len(films)
        (source,) = rng.choices(offered, [self.gaze[one] for one in offered])
        if source == "given":
            return source, [self.given[film] for film in films]
        if source == "predicted":
            return source, [self.predicted[film] for film in films]
        if source == "shuffled":
            return source, [None if self.pool[film] is None else self._of_another(film, rng) for film in films]
        return source, [None] * len(films)

    def _of_another(self, film: int, rng: random.Random) -> np.ndarray:
        while True:
            other = rng.randrange(len(self.pool))
            if self.pool[other] is not None and self.patients[other] != self.patients[film]:
                return self.pool[other]

    # ---- as a data set

    def dataset(self) -> datasets.Dataset:
        """What `draw` gives, as TRL's trainers take it; drawn when asked for."""
        places = datasets.Dataset.from_dict({"place": range(len(self))})
        places.set_transform(self._columns)
        return places

    def _columns(self, batch: dict) -> dict[str, list]:
        drawn = [self.draw(place) for place in batch["place"]]
        return {name: [one[name] for one in drawn] for name in drawn[0]}


_REASONS = {
    "given": "no film comes with fixations",
    "shuffled": "fixations of at least two patients are needed, recorded or predicted",
    "predicted": "there is no scanpath predictor",
}


@torch.no_grad()
def predict_scanpaths(model, image_processor, rows: datasets.Dataset, batch_size: int = 16) -> list[np.ndarray]:
    """What a GazeVLM's own predictor says of each row's film: fixations (n, 4), none for a row without a film.

    Several processes share the films; each gets all that is predicted.
    """
    films, state = rows.select_columns(["image"]), PartialState()
    numbers = [number for number, there in enumerate(has_image(rows)) if there]
    own = numbers[state.process_index :: state.num_processes]
    found = []
    was_training = model.training
    model.eval()
    for start in range(0, len(own), batch_size):
        its = own[start : start + batch_size]
        images = [eight_bit(films[number]["image"]) for number in its]
        pixels = image_processor(images, return_tensors="pt")["pixel_values"].to(model.device)
        fixations, mask = model.predict_gaze(pixels)
        for number, path, kept in zip(its, fixations.float().cpu(), mask.cpu(), strict=True):
            found.append((number, path[kept].numpy()))
    model.train(was_training)
    predicted = [np.zeros((0, 4), np.float32)] * len(rows)
    for number, path in gather_object(found):
        predicted[number] = path
    return predicted


class GazeVLMCollator(DataCollatorForVisionLanguageModeling):
    """TRL's collator of films and texts, and the gaze on each film: `fixations` (N, F, 4) and `fixation_mask` (N, F),
    one row an image; all False for an image without gaze. Labels are those of the answer.

    Raises:
        ValueError: if a sample has more or fewer scanpaths than films, or `max_length` cuts off an image or all of an
            answer.
    """

    def torch_call(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        scanpaths = []
        for number, example in enumerate(examples):
            if len(example["fixations"]) != len(example["images"]):
                raise ValueError(
                    f"sample {number}: {len(example['images'])} images, {len(example['fixations'])} scanpaths; each "
                    "image needs one, or None"
                )
            scanpaths += example["fixations"]
        examples = [{name: example[name] for name in ("prompt", "completion", "images")} for example in examples]
        counts = [len(example["images"]) for example in examples]
        batch = dict(super().torch_call(examples))
        shown = (batch["input_ids"] == self.processor.image_token_id).sum(1).tolist()
        for number, (tokens, count) in enumerate(zip(shown, counts, strict=True)):
            if tokens != count * self.processor.num_image_tokens:
                raise ValueError(
                    f"sample {number}: max_length={self.max_length} cuts its {count} images of "
                    f"{self.processor.num_image_tokens} tokens each down to {tokens} tokens; raise it, or leave it out"
                )
        for number, answered in enumerate((batch["labels"] != -100).any(1).tolist()):
            if not answered:
                raise ValueError(
                    f"sample {number}: max_length={self.max_length} leaves nothing of its answer; raise it, or leave "
                    "it out"
                )
        batch["fixations"], batch["fixation_mask"] = pad_fixations(scanpaths)
        return batch
