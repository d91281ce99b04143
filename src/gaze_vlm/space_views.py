"""What the Space shows, as HTML. Whatever a film, a model or a person says enters it as text."""

import base64
import io
import json
from collections.abc import Sequence
from html import escape
from typing import Any

from PIL import Image

from .images import Film
from .pipelines import Reading
from .scanpath import Scanpath
from .visualize import draw_scanpath

NOTICE = "Research demonstration. Not a medical device."
_SEEN = 6  # findings that are listed while the report is being written


def header(model: str) -> str:
    """What this is, and is not."""
    return f"""<div class="head"><div class="title"><h1>Radiologists look before they write</h1>
<p class="notice" role="note">{NOTICE}</p></div>
<p>Drop a chest X-ray: see where a radiologist would look, what the film may show, and on which gaze and which region
each sentence of the report rests.</p>
<p class="soft">Models: {escape(model)}. Send no film of a person who could be recognised. Nobody else can open what
you send; it is removed after half an hour, and not logged.</p></div>"""


def empty() -> str:
    """Before anything is read."""
    return _panel("Choose a film or an example: it is read at once.")


def refused(sentence: str) -> str:
    """Why something was not done."""
    return f"<div class='reading'><p class='refused' role='alert'>{escape(sentence)}</p></div>"


def film(image: Film, size: int = 640) -> str:
    """The film alone."""
    picture = image.to_pil("L")
    picture.thumbnail((size, size), Image.Resampling.LANCZOS)
    return _figure(picture, f"The film, {image.size[0]} × {image.size[1]} pixels")


def progress(findings: Sequence[dict[str, Any]] = (), draft: str | None = None, written: bool = False) -> str:
    """How far a reading is: the likeliest findings, and the draft of the report as it is being written."""
    if draft is None:
        return _panel("Looking for findings …")
    parts = ["<h3>Findings of the classifier</h3>", _findings(findings)]
    parts += ["<h3>Draft of the report <span class='unchecked'>not checked yet</span></h3>"]
    parts += [f"<p class='draft{'' if written else ' writing'}'>{escape(draft)}</p>"]
    return _panel("Checking the draft against the findings …" if written else "Writing …", *parts)


def read(reading: Reading, draft: str, seconds: float) -> str:
    """What came of a reading, in a line; and the draft, for who wants to see what was changed."""
    gaze = {"given": "your gaze", "predicted": "predicted gaze", "none": "no gaze"}[reading.gaze]
    evidence = reading.evidence
    flags = len(evidence.flags)
    agree = (
        f"{_plural(flags, 'thing')} that {'does' if flags == 1 else 'do'} not agree" if flags else "no disagreement"
    )
    line = f"Read in {seconds:.1f} s with {gaze}: {_plural(len(evidence.sentences), 'sentence')}, {agree}."
    before = (
        f"<details><summary>The draft, before it was checked</summary><p class='draft'>{escape(draft)}</p></details>"
    )
    return _panel(line, before)


def viewer(reading: Reading) -> str:
    """The evidence page in a frame that can run its own script, save files, and nothing else; and both as files."""
    page = reading.evidence.to_html(reading.film.to_pil("L"))
    title = "Evidence: the film with its scanpath, and the report sentence by sentence"
    files = [
        ("evidence.html", "text/html", page, "Download the page (HTML)"),
        ("evidence.json", "application/json", reading.evidence.to_json() + "\n", "Download the evidence (JSON)"),
    ]
    links = "".join(
        f'<a class="save" download="{name}" href="{_data(text.encode(), kind)}">{label}</a>'
        for name, kind, text, label in files
    )
    frame = f'<iframe title="{title}" sandbox="allow-scripts allow-downloads" srcdoc="{escape(page)}"></iframe>'
    return f'<div class="evidence">{frame}<p class="saves">{links}</p></div>'


def document(reading: Reading) -> dict[str, Any]:
    """evidence.json as an object."""
    return json.loads(reading.evidence.to_json())


def found(image: Film, phrase: str, boxes: Sequence[Sequence[float]], reason: str | None) -> str:
    """The film with boxes around what a phrase names, and where they are in words."""
    named = [{"name": str(number), "box": list(box)} for number, box in enumerate(boxes, start=1)]
    if len(named) == 1:
        named[0]["name"] = phrase[:40]
    picture = draw_scanpath(image.to_pil("L"), Scanpath([], [], [], []), boxes=named, size=768)
    where = [
        f"{number}: {round(100 * x1)} to {round(100 * x2)}% across, {round(100 * y1)} to {round(100 * y2)}% down"
        for number, (x1, y1, x2, y2) in enumerate(boxes, start=1)
    ]
    nothing = "Nowhere, says the model." if reason is None else f"The model's answer is no place: {reason}."
    said = "; ".join(where) if where else nothing
    alt = f"The film with {_plural(len(boxes), 'box')} for {phrase}"
    caption = f"<strong>{escape(phrase)}</strong> {escape(said)}"
    return f"<div role='status'>{_figure(picture, alt, caption)}</div>"


def compared(readings: dict[str, Reading], waiting: str | None = None) -> str:
    """Readings of one film side by side; what not all of them say is marked."""
    said = {kind: [sentence.text for sentence in one.evidence.sentences] for kind, one in readings.items()}
    shared = set.intersection(*map(set, said.values())) if said else set()
    cards = []
    for kind, one in readings.items():
        text = " ".join(
            escape(sentence) if sentence in shared else f"<mark>{escape(sentence)}</mark>" for sentence in said[kind]
        )
        path = one.scanpath
        gaze = f"{_plural(len(path), 'fixation')}, {float(path.duration.sum()):.1f} s" if len(path) else "no fixation"
        picture = draw_scanpath(one.film.to_pil("L"), path, size=480)
        figure = _figure(picture, f"The film with {gaze}", gaze)
        cards.append(f"<article><h3>Gaze: {kind.lower()}</h3>{figure}<p>{text}</p></article>")
    if waiting:
        cards.append(
            f"<article aria-busy='true'><h3>Gaze: {waiting.lower()}</h3><p class='soft'>Reading …</p></article>"
        )
        return f"<div class='compared'>{''.join(cards)}</div>"
    differ = sum(sentence not in shared for sentences in said.values() for sentence in sentences)
    line = (
        "All say the same."
        if not differ
        else f"{_plural(differ, 'sentence')}, marked, {'is' if differ == 1 else 'are'} not in all reports."
    )
    return f"<p role='status'>{line}</p><div class='compared'>{''.join(cards)}</div>"


def thumbnail(image: Film, size: int = 112) -> str:
    """The film as a small square picture, as a data URI."""
    picture = image.to_pil("L")
    picture.thumbnail((size, size), Image.Resampling.LANCZOS)
    return _picture(picture)


def _findings(findings: Sequence[dict[str, Any]]) -> str:
    ranked = sorted(findings, key=lambda finding: -finding["probability"])[:_SEEN]
    rows = []
    for finding in ranked:
        percent = round(100 * finding["probability"])
        marked, state = ("listed", "present") if finding["present"] else ("", "not listed")
        rows.append(
            f"<li class='{marked}'><span>{escape(finding['name'])}</span>"
            f"<span class='track' aria-hidden='true'><span style='width:{percent}%'></span></span>"
            f"<span class='value'>{percent}%</span><span class='state'>{state}</span></li>"
        )
    return f"<ul class='findings'>{''.join(rows)}</ul>"


def _panel(line: str, *parts: str) -> str:
    return f"<div class='reading'><p class='step' role='status'>{escape(line)}</p>{''.join(parts)}</div>"


def _figure(picture: Image.Image, alt: str, caption: str = "") -> str:
    told = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure><img src="{_picture(picture)}" alt="{escape(alt)}">{told}</figure>'


def _picture(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "jpeg", quality=88)
    return _data(buffer.getvalue(), "image/jpeg")


def _data(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 'es' if noun.endswith('x') else 's'}"
