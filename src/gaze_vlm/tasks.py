"""Tasks: a film and what is known of it -> chat messages, and a model's answer -> what it means.

Messages are plain (`{"role", "content": [{"type": "image"}, {"type": "text", "text": ...}]}`), as every chat template
of transformers and TRL's trainers take them. `report`, `vqa` and `ground` are what readers are asked for; `keyframe`,
`trajectory` and `order` are our reading of the three ways in which GazeX (arXiv 2604.14316) teaches with gaze, whose
formats the paper does not give.

Places are written in thousandths of the image, `<box>x1,y1,x2,y2</box>`; a trajectory is
`<gaze>x,y,t;x,y,t</gaze>`, t the dwell in hundredths of a second. A parser takes any text whatever and never raises:
what is not exactly an answer is none, with the reason.
"""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

TASKS = ("report", "vqa", "ground", "keyframe", "trajectory", "order")
GAZE_TASKS = ("keyframe", "trajectory", "order")
"""Tasks whose answer is the reader's gaze or what was said along it: gaze is no input to them."""

REPORT_INSTRUCTION = "Write the report of this chest X-ray."
PLACES, TICKS = 1000, 100  # steps of an image's side, and of a second
MAX_STEPS = 64  # of a trajectory, or of things to put in order
NOTHING = "none"

Box = tuple[float, float, float, float]
Step = tuple[float, float, float]


class Parsed(NamedTuple):
    """What an answer means.

    Args:
        value: None if it is no answer.
        reason: why it is none, in one sentence; None if it is one.
    """

    value: Any
    reason: str | None = None


# ---- asked by readers


def report_messages(
    findings: Sequence[str] | None = None,
    report: str | None = None,
    *,
    views: int = 1,
    indication: str | None = None,
    comparison: str | None = None,
) -> list[dict]:
    """Messages that ask for a report.

    Args:
        findings: names of findings that are known to be present, to write about; empty: it is known that there are
            none; None: nothing is known, the film must do.
        report: the answer, for training.
        views: films of the study, in the order in which their pixels are given.
        indication, comparison: what the request says, in its own words; None or empty: nothing.
    """
    text = REPORT_INSTRUCTION
    for name, value in (("Indication", indication), ("Comparison", comparison)):
        if value and value.strip():
            text += f" {name}: {_line(value).rstrip('.')}."
    if findings is not None:
        text += f" Findings: {', '.join(findings).lower() or NOTHING}."
    return _messages(text, views, report)


def vqa_messages(question: str, answer: str | None = None, *, views: int = 1) -> list[dict]:
    """Messages that ask a question about a film; `answer` for training."""
    return _messages(_line(question), views, answer)


def ground_messages(phrase: str, boxes: Sequence[Box] | None = None, *, views: int = 1) -> list[dict]:
    """Messages that ask where on the (first) film a phrase is.

    Args:
        phrase: such as "lung opacity", or a sentence of a report.
        boxes: the answer: (x1, y1, x2, y2) in 0..1 from the top left; empty: nowhere.
    """
    text = f"Where is this: {_line(phrase).rstrip('.')}?"
    return _messages(text, views, None if boxes is None else write_boxes(boxes))


# ---- taught with gaze


def keyframe_messages(sentence: str | None = None, *, frames: int = 1) -> list[dict]:
    """Messages that show key frames (`keyframes.KeyFrame`) and ask what was said there: Fine-grained Visual
    Perception.

    Args:
        sentence: the answer.
        frames: key-frame images, in the order in which they were looked at.
    """
    text = "What does the radiologist say who looks here?"
    return _messages(text, frames, None if sentence is None else _line(sentence))


def trajectory_messages(
    steps: Sequence[Step] | None = None, *, finding: str | None = None, views: int = 1
) -> list[dict]:
    """Messages that ask where a radiologist looks: Gaze Trajectory Mimicking.

    Args:
        steps: the answer: clusters of fixations in the order of the first visit, x and y in 0..1 from the top left,
            dwell in seconds.
        finding: what is looked for; None: the film is read.
    """
    text = "Where does a radiologist look"
    text += f" for {_line(finding).lower().rstrip('.')}?" if finding and finding.strip() else "?"
    return _messages(text, views, None if steps is None else write_trajectory(steps))


def order_messages(shown: int | Sequence[str], order: Sequence[int] | None = None, *, views: int = 1) -> list[dict]:
    """Messages that ask in which order key frames were looked at, or sentences were said: Sequential Dependency
    Awareness.

    Args:
        shown: how many key-frame images are shown, in any order; or sentences in any order, beside the film.
        order: the answer: numbers from 0 of what is shown, the first to be looked at (or said) first.
    """
    if isinstance(shown, int):
        text, images = "In which order were these places looked at?", shown
    else:
        listed = " ".join(f"{number}. {_line(sentence)}" for number, sentence in enumerate(shown, start=1))
        text, images = f"In which order does a radiologist say this? {listed}", views
    return _messages(text, images, None if order is None else write_order(order))


def next_messages(said: Sequence[str], sentence: str | None = None, *, views: int = 1) -> list[dict]:
    """Messages that ask what comes next in a reading: the other form of the task `order`.

    Args:
        said: the sentences so far; empty: the reading begins.
        sentence: the answer.
    """
    text = f"What does the radiologist say next? So far: {' '.join(map(_line, said)) or NOTHING}"
    return _messages(text, views, None if sentence is None else _line(sentence))


# ---- answers, as text


def write_boxes(boxes: Sequence[Box]) -> str:
    """Boxes one behind the other; "none" if there is none. What lies off the image is cut.

    Raises:
        ValueError: naming a box that has no area, as written in whole thousandths.
    """
    written = "".join(f"<box>{','.join(map(_place, box))}</box>" for box in boxes) or NOTHING
    if (parsed := parse_boxes(written)).value is None:
        raise ValueError(parsed.reason)
    return written


def write_trajectory(steps: Sequence[Step]) -> str:
    """x, y and dwell of each step. What lies off the image is moved to its edge.

    Raises:
        ValueError: if there is no step.
    """
    if not steps:
        raise ValueError("a trajectory has at least one step")
    written = (f"{_place(x)},{_place(y)},{max(0, round(seconds * TICKS))}" for x, y, seconds in steps)
    return f"<gaze>{';'.join(written)}</gaze>"


def write_order(order: Sequence[int]) -> str:
    """Numbers from 1, such as "2, 1, 3"."""
    return ", ".join(str(number + 1) for number in order)


# ---- answers, as values

_BOX = re.compile(r"<box>(\d{1,4}),(\d{1,4}),(\d{1,4}),(\d{1,4})</box>", re.ASCII)
_STEP = re.compile(r"(\d{1,4}),(\d{1,4}),(\d{1,6})", re.ASCII)
_NUMBER = re.compile(r"\d{1,2}", re.ASCII)


def parse_text(answer: str) -> Parsed:
    """A report, sentence or answer to a question: any text with a word in it, in one line."""
    text = _line(answer)
    return Parsed(text) if re.search(r"\w", text) else Parsed(None, "there is no word in it")


def parse_boxes(answer: str) -> Parsed:
    """A list of boxes (x1, y1, x2, y2) in 0..1, x1 < x2 and y1 < y2; an empty list for "none"."""
    text = _joined(answer)
    if text.lower().removesuffix(".").rstrip() == NOTHING:
        return Parsed([])
    found, end = [], 0
    for match in _BOX.finditer(text):
        if match.start() != end:
            break
        found.append(tuple(int(number) / PLACES for number in match.groups()))
        end = match.end()
    if end != len(text) or not found:
        return Parsed(None, f"no box at {text[end : end + 40]!r}")
    for x1, y1, x2, y2 in found:
        problem = "lies off the image" if max(x1, y1, x2, y2) > 1 else "has no area"
        if x1 >= x2 or y1 >= y2 or max(x2, y2) > 1:
            numbers = ",".join(str(round(edge * PLACES)) for edge in (x1, y1, x2, y2))
            return Parsed(None, f"<box>{numbers}</box> {problem}")
    return Parsed(found)


def parse_trajectory(answer: str) -> Parsed:
    """A list of steps: x and y in 0..1, dwell in seconds; at most `MAX_STEPS`."""
    text = _joined(answer)
    inner = re.fullmatch(r"<gaze>(.*)</gaze>", text)
    if not inner:
        return Parsed(None, f"no <gaze>...</gaze> but {text[:40]!r}")
    written = inner[1].split(";")
    if len(written) > MAX_STEPS:
        return Parsed(None, f"{len(written)} steps are more than {MAX_STEPS}")
    steps = []
    for number, step in enumerate(written, start=1):
        match = _STEP.fullmatch(step)
        if not match:
            return Parsed(None, f"step {number} is no x,y,t but {step[:40]!r}")
        x, y, ticks = map(int, match.groups())
        if max(x, y) > PLACES:
            return Parsed(None, f"step {number} lies off the image: {step}")
        steps.append((x / PLACES, y / PLACES, ticks / TICKS))
    return Parsed(steps)


def parse_order(answer: str, count: int) -> Parsed:
    """A permutation of 0..count-1, as `order_messages` takes it."""
    numbers = [part.strip().removesuffix(".") for part in answer.split(",", MAX_STEPS)]
    if not all(_NUMBER.fullmatch(number) for number in numbers):
        return Parsed(None, f"no numbers between commas but {_line(answer)[:40]!r}")
    order = [int(number) - 1 for number in numbers]
    if sorted(order) != list(range(count)):
        return Parsed(None, f"{_line(answer)[:40]!r} does not name each of 1 to {count} once")
    return Parsed(order)


# ---- parts of it all


def _messages(text: str, views: int, answer: str | None) -> list[dict]:
    content = [*({"type": "image"} for _ in range(views)), {"type": "text", "text": text}]
    messages = [{"role": "user", "content": content}]
    if answer is not None:
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return messages


def _joined(answer: str) -> str:
    """Without the blanks around marks that tokenizers put there; those within a number or a word stay."""
    return re.sub(r"\s*([,;<>/])\s*", r"\1", answer.strip())


def _line(text: str) -> str:
    return " ".join(text.split())


def _place(value: float) -> str:
    if math.isnan(value):
        raise ValueError("a place is no number")
    return str(round(min(max(value, 0.0), 1.0) * PLACES))
