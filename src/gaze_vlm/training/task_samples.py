"""What the tasks ask of a row of the schema, and what the answer is: GazeX's mixture out of any release."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..dictation import sentences_of
from ..keyframes import KeyFrame, key_frames
from ..scanpath import Scanpath
from ..tasks import (
    Box,
    Parsed,
    ground_messages,
    keyframe_messages,
    next_messages,
    order_messages,
    parse_boxes,
    parse_order,
    parse_text,
    parse_trajectory,
    trajectory_messages,
    vqa_messages,
    write_boxes,
)

MAX_FRAMES = 4  # key-frame images a sample
MAX_STEPS = 16  # of a trajectory
MAX_SENTENCES = 6  # to put in order
NO_PHRASE = {"chest"}


@dataclass(frozen=True)
class Sample:
    """A question with its answer.

    Args:
        messages: with the answer as the last one.
        value: what the answer means: what `parse` gives for it.
        parse: reads an answer to this question, any text.
        frames: key frames of the row's gaze that are shown, an image each; None: the films themselves are shown.
    """

    messages: list[dict]
    value: Any
    parse: Callable[[str], Parsed]
    frames: tuple[KeyFrame, ...] | None = None

    @property
    def answer(self) -> str:
        return self.messages[-1]["content"][0]["text"]


Draw = Callable[[random.Random, int], Sample]
"""(random numbers, films shown) -> sample."""


def draws_of(task: str, row: dict) -> list[Draw]:
    """What can be asked of a row for a task other than `report`: samples to be drawn, none if the row lacks what it
    needs.

    - `vqa`: its question, with its answer.
    - `ground`: each phrase that boxes ground, else each finding or region that they name.
    - `keyframe`: each dictated sentence that has key frames.
    - `trajectory`: its key frames in their order, the longest `MAX_STEPS` of them; with the finding that was looked
      for if one was. Those of sentences if it was dictated, else of time windows.
    - `order`: up to `MAX_FRAMES` key frames or `MAX_SENTENCES` sentences, shuffled; or sentences so far, to go on.

    Raises:
        ScanpathError: if the row's scanpath is none.
    """
    return list(_DRAWS[task](row))


def _asked(row: dict) -> Iterator[Draw]:
    if row["question"] and row["answer"]:
        yield partial(question, row["question"], row["answer"])


def question(asked: str, answer: str, rng: random.Random, views: int) -> Sample:
    """A `Draw` once its first two arguments are given."""
    return Sample(vqa_messages(asked, answer, views=views), answer, parse_text)


def _grounded(row: dict) -> Iterator[Draw]:
    phrases: dict[str, list[Box]] = {}
    for box in row["boxes"] or ():
        name = (box["phrase"] or box["name"] or "").strip()
        cut = [min(max(float(edge), 0.0), 1.0) for edge in box["box"]]
        if name and name not in NO_PHRASE and _has_area(cut):
            phrases.setdefault(name if box["phrase"] else name.lower(), []).append(tuple(cut))
    for phrase, boxes in phrases.items():
        yield partial(grounding, phrase, boxes)


def _has_area(box: Sequence[float]) -> bool:
    """Is it wide enough to be written?"""
    try:
        return bool(write_boxes([box]))
    except ValueError:
        return False


def grounding(phrase: str, boxes: Sequence[Box], rng: random.Random, views: int) -> Sample:
    """A `Draw` once its first two arguments are given; boxes from the top down."""
    messages = ground_messages(phrase, sorted(boxes, key=lambda box: (box[1], box[0])), views=views)
    return _exact(messages, parse_boxes)


def _exact(messages: list[dict], parse: Callable[[str], Parsed], frames=None) -> Sample:
    """The value as it is written, in whole thousandths."""
    return Sample(messages, parse(messages[-1]["content"][0]["text"]).value, parse, frames)


def _looked_at(row: dict) -> tuple[list[KeyFrame], list[dict]]:
    """Key frames and sentences of a reading."""
    if not row["scanpath"]:
        return [], []
    spoken = sentences_of(row["transcript"] or ())
    return key_frames(Scanpath.from_records(row["scanpath"]), spoken or None), spoken


def _longest(frames: Sequence[KeyFrame], most: int) -> tuple[KeyFrame, ...]:
    """The `most` frames of the longest dwell, in their order."""
    kept = set(sorted(range(len(frames)), key=lambda number: -frames[number].dwell)[:most])
    return tuple(frame for number, frame in enumerate(frames) if number in kept)


def _described(row: dict) -> Iterator[Draw]:
    frames, spoken = _looked_at(row)
    for number, sentence in enumerate(spoken):
        its = _longest([frame for frame in frames if frame.sentence == number], MAX_FRAMES)
        if its and parse_text(sentence["text"]).value:
            yield partial(_description, sentence["text"], its)


def _description(sentence: str, frames: tuple[KeyFrame, ...], rng: random.Random, views: int) -> Sample:
    return _exact(keyframe_messages(sentence, frames=len(frames)), parse_text, frames)


def _mimicked(row: dict) -> Iterator[Draw]:
    frames, _ = _looked_at(row)
    if frames:
        steps = [(frame.x, frame.y, frame.dwell) for frame in _longest(frames, MAX_STEPS)]
        yield partial(trajectory, steps, row["prompt"])


def trajectory(steps, finding: str | None, rng: random.Random, views: int) -> Sample:
    """A `Draw` once its first two arguments are given."""
    return _exact(trajectory_messages(steps, finding=finding, views=views), parse_trajectory)


def _ordered(row: dict) -> Iterator[Draw]:
    frames, spoken = _looked_at(row)
    said = (parse_text(one["text"]).value for one in spoken)
    sentences = list(dict.fromkeys(text for text in said if text))  # one said twice has no place of its own
    forms: list[Draw] = []
    if len(frames) > 1:
        forms.append(partial(_frames_in_order, _longest(frames, MAX_FRAMES)))
    if len(sentences) > 1:
        forms += [partial(_sentences_in_order, sentences), partial(_next_sentence, sentences)]
    if forms:
        yield lambda rng, views: rng.choice(forms)(rng, views)


def _shuffled(count: int, rng: random.Random) -> tuple[list[int], list[int]]:
    """What stands in each place, and the order in which to take the places to have all in order again."""
    places = rng.sample(range(count), count)
    return places, sorted(range(count), key=places.__getitem__)


def _frames_in_order(frames: Sequence[KeyFrame], rng: random.Random, views: int) -> Sample:
    places, order = _shuffled(len(frames), rng)
    shown = tuple(frames[number] for number in places)
    return Sample(order_messages(len(frames), order), order, partial(parse_order, count=len(frames)), shown)


def _sentences_in_order(sentences: Sequence[str], rng: random.Random, views: int) -> Sample:
    first = rng.randrange(max(1, len(sentences) - MAX_SENTENCES + 1))
    kept = sentences[first : first + MAX_SENTENCES]
    places, order = _shuffled(len(kept), rng)
    messages = order_messages([kept[number] for number in places], order, views=views)
    return Sample(messages, order, partial(parse_order, count=len(kept)))


def _next_sentence(sentences: Sequence[str], rng: random.Random, views: int) -> Sample:
    number = rng.randrange(len(sentences))
    said = sentences[max(0, number - MAX_SENTENCES) : number]
    return _exact(next_messages(said, sentences[number], views=views), parse_text)


_DRAWS: dict[str, Callable[[dict], Iterator[Draw]]] = {
    "vqa": _asked,
    "ground": _grounded,
    "keyframe": _described,
    "trajectory": _mimicked,
    "order": _ordered,
}
