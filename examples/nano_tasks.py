"""What nano's GazeVLM learns from: reports, questions that labels answer, where an opacity is, where readers look.

Films and labels are NIH's. Reports are the Indiana ones and scanpaths GazeSearch's, both of OTHER patients: put beside
a film of like findings, or, for scanpaths, bent into a film's boxes (SYNTHETIC). Boxes are radiologists' for what they
marked, and those of the classifier's own attention for all else.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import Trainer

from gaze_vlm import ReportComposer, Scanpath
from gaze_vlm.data.matching import FindingMatcher, report_findings
from gaze_vlm.findings import FINER_FINDINGS, NO_FINDING
from gaze_vlm.keyframes import key_frames
from gaze_vlm.models.processing_gaze_vlm import pad_fixations
from gaze_vlm.report_composer import REPORTED, choose_regions
from gaze_vlm.report_composer import text as join
from gaze_vlm.tasks import PLACES, TICKS, report_messages
from gaze_vlm.training.label_questions import label_questions
from gaze_vlm.training.synthetic_gaze import bend_into_boxes
from gaze_vlm.training.task_samples import grounding, question, trajectory

MAX_LENGTH = 256
PASSES = 4  # in which a batch goes through the model
PREDICTED, READ = 0.5, 0.2  # shares of samples with predicted gaze, of reports with a reader's; the rest has none
GROUNDED, FOLLOWED = 4800, 2400  # samples an epoch
MARKED, BENT, ASKED_FOR = 0.75, 0.4, 0.7  # shares: of radiologists' boxes, of bent scanpaths, of a named finding
GLANCE = 0.15  # seconds: paths of a search are short, and nearly every fixation of theirs is a step

STEP = 20  # thousandths and hundredths of a second: a small language model has a token for each multiple

Boxed = Sequence[tuple[int, list[tuple[list[float], str]]]]
"""(number of a view, [(box, finding)])."""


@dataclass(frozen=True)
class Views:
    """What is seen of films.

    Args:
        tokens: (views, rows, columns, C) half precision; the first `len(names)` are the films as they are.
        predicted: the scanpath (n, 4) that is predicted on each view.
        asked: (view, finding) -> the one that is predicted for the finding, of what is boxed.
        names: findings of each film.
        of_film: numbers of each film's views.
        boxed, looks: views with radiologists' boxes, and with the classifier's.
    """

    tokens: torch.Tensor
    predicted: list[np.ndarray]
    asked: dict[tuple[int, str], np.ndarray]
    names: list[list[str]]
    of_film: list[list[int]]
    boxed: Boxed
    looks: Boxed


class Lessons(torch.utils.data.Dataset):
    """Samples of all tasks, one after the other, drawn anew in each epoch.

    A report is put beside a film MATCHED BY FINDING (of another patient); template reports are of the films' own
    labels, for the corpus is rich in normal reports and lacks combinations of findings. Gaze is what the predictor
    says, none, or for reports that of a reader who looked for one of the findings on ANOTHER film: so predicted,
    missing and given gaze are all something that the model has seen.

    Args:
        texts: reports.
        labels: findings that films are labelled with.
        rows: NIH's training films.
        readers: finding -> scanpaths (n, 4) of those who looked for it.
    """

    def __init__(
        self, texts: list[str], labels: Sequence[str], rows, views: Views, readers: dict, processor, seed: int
    ):
        self.views, self.labels, self.readers, self.processor, self.seed = views, labels, readers, processor, seed
        self.rows = rows.select_columns(["findings", "view"])
        # a report that speaks only of what no film is labelled with has no like film
        kept = [(text, found) for text in texts if (found := report_findings(text)) & set(labels)]
        self.texts, self.findings = zip(*kept, strict=True)
        self.templated = [film for film, names in enumerate(views.names) if NO_FINDING not in names]
        self.matcher = FindingMatcher(views.names, set(labels) & set(REPORTED))
        self.films_of = FindingMatcher(views.names, labels)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Other films are asked about what most films lack."""
        self.rng = random.Random(f"{self.seed} {epoch}")
        asked = [(self.ask, one) for one in label_questions(self.rows, self.seed + epoch)]
        reports = [(self.report, number) for number in range(len(self.texts))]
        templates = [(self.template, film) for film in self.templated]
        self.items = [
            *reports,
            *templates,
            *asked,
            *[(self.ground, None)] * GROUNDED,
            *[(self.follow, None)] * FOLLOWED,
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict:
        draw, what = self.items[index]
        return draw(what)

    # ---- reports

    def report(self, number: int) -> dict:
        film = self.matcher.draw(self.findings[number], self.rng)["film"]
        return self.reported(film, self.findings[number], self.texts[number])

    def template(self, film: int) -> dict:
        present = set(self.views.names[film]) & set(REPORTED)
        records = [
            {
                "name": name,
                "probability": self.rng.uniform(0.5, 1) if name in present else 0.0,
                "present": name in present,
                "regions": choose_regions(name),
            }
            for name in REPORTED
            if name in self.labels
        ]
        return self.reported(film, present, join(ReportComposer().compose(records)))

    def reported(self, film: int, present: set[str], text: str) -> dict:
        known = [name for name in REPORTED if name in present and name != NO_FINDING]
        if self.rng.random() < 0.3:
            known = None
        chance, looked_for = self.rng.random(), sorted(present & self.readers.keys())
        gaze = self.views.predicted[film] if chance < PREDICTED else None
        if chance > 1 - READ and looked_for:
            gaze = self.rng.choice(self.readers[self.rng.choice(looked_for)])
        return self.item(report_messages(known, text), film, gaze)

    # ---- the other tasks

    def ask(self, asked) -> dict:
        sample = question(asked.question, asked.answer, self.rng, 1)
        view = self.rng.choice(self.views.of_film[asked.row])
        gaze = self.views.predicted[view] if self.rng.random() < PREDICTED else None
        return self.item(sample.messages, view, gaze)

    def ground(self, _) -> dict:
        view, boxes, finding = self.marked()
        sample = grounding(finding.lower(), [coarse(box) for box, name in boxes if name == finding], self.rng, 1)
        gaze = self.views.asked[view, finding] if self.rng.random() < PREDICTED else None
        return self.item(sample.messages, view, gaze)

    def follow(self, _) -> dict:
        named = self.rng.random() < ASKED_FOR
        if self.rng.random() < BENT:
            view, boxes, marked = self.marked()
            finding = marked if marked in self.readers else FINER_FINDINGS.get(marked) or "Lung Opacity"
            path = bend_into_boxes(self.reader(finding), [box for box, name in boxes if name == marked or not named])
        else:
            finding = self.rng.choice(sorted(self.readers))
            path = self.reader(finding)
            view = self.rng.choice(self.views.of_film[self.films_of.draw({finding}, self.rng)["film"]])
        frames = key_frames(path, min_dwell=GLANCE)
        steps = [(*rounded((frame.x, frame.y), PLACES), *rounded((frame.dwell,), TICKS)) for frame in frames]
        return self.item(trajectory(steps, finding if named else None, self.rng, 1).messages, view, None)

    def marked(self) -> tuple[int, list[tuple], str]:
        """A view, its boxes, and a finding that is among them."""
        view, boxes = self.rng.choice(self.views.boxed if self.rng.random() < MARKED else self.views.looks)
        return view, boxes, self.rng.choice(boxes)[1]

    def reader(self, finding: str) -> Scanpath:
        """A scanpath that has a key frame, before and after bending."""
        while True:
            path = Scanpath.from_array(self.rng.choice(self.readers[finding]))
            if path.inside.all() and path.duration.max() >= GLANCE:
                return path

    def item(self, messages: list[dict], view: int, gaze) -> dict:
        """Token ids of the request with its image placeholders, and of the answer with its end."""
        tokenizer = self.processor.tokenizer
        prompt = self.processor.apply_chat_template(messages[:-1], add_generation_prompt=True)
        return {
            "prompt": tokenizer(self.processor.expand_image_tokens(prompt))["input_ids"],
            "answer": tokenizer(messages[-1]["content"][0]["text"] + tokenizer.eos_token)["input_ids"],
            "patch_tokens": self.views.tokens[view],
            "fixations": gaze,
        }


def rounded(values: Sequence[float], steps: int) -> list[float]:
    """Multiples of STEP / `steps`."""
    return [round(value * steps / STEP) * STEP / steps for value in values]


def coarse(box: Sequence[float]) -> tuple[float, ...]:
    """A box on the grid of `rounded` places, at least one step wide and high."""
    x1, y1, x2, y2 = rounded(box, PLACES)
    least = STEP / PLACES
    x1, y1 = min(x1, 1 - least), min(y1, 1 - least)
    return x1, y1, max(x2, x1 + least), max(y2, y1 + least)


def collate(items: list[dict], pad: int) -> dict[str, torch.Tensor]:
    rows = [(item["prompt"] + item["answer"])[:MAX_LENGTH] for item in items]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    labels = ids.masked_fill(ids == pad, -100)
    for row, item in zip(labels, items, strict=True):
        row[: len(item["prompt"])] = -100
    fixations, mask = pad_fixations([item["fixations"] for item in items])
    return {
        "input_ids": ids,
        "attention_mask": (ids != pad).long(),
        "labels": labels,
        "patch_tokens": torch.stack([item["patch_tokens"] for item in items]).float(),
        "fixations": fixations,
        "fixation_mask": mask,
    }


class SampleTrainer(Trainer):
    """The loss is a mean over samples: "yes" counts for as much as a report.

    Batches are drawn from all tasks: of batches of one task each, which would pad less, grounding learns nothing.
    """

    def compute_loss(self, model, inputs, return_outputs=False, **_):
        """Samples of like length go through the model together, which pads half as much."""
        lengths = inputs["attention_mask"].sum(1)
        losses = []
        for rows in lengths.argsort().chunk(PASSES):
            part = {name: values[rows] for name, values in inputs.items()}
            for name in ("input_ids", "attention_mask", "labels"):
                part[name] = part[name][:, : lengths[rows].max()]
            labels = part.pop("labels")[:, 1:]
            logits = model(**part).logits[:, :-1].transpose(1, 2)
            of_tokens = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
            losses.append(of_tokens.sum(1) / (labels != -100).sum(1))
        loss = torch.cat(losses).mean()
        return (loss, {"losses": losses}) if return_outputs else loss
