"""What was said, and what was looked at meanwhile: sentences with their times, and their fixations."""

import math
from collections.abc import Sequence
from typing import Literal

from .scanpath import Scanpath


def sentences_of(transcript: Sequence[dict]) -> list[dict]:
    """A dictation's sentences, in its own order.

    Args:
        transcript: as in the schema, `{"text", "start", "end"}` a piece, seconds: words with the full stop as a word
            of its own (REFLACX), or phrases that bring theirs along (EGD-CXR).

    Returns:
        `{"text", "start", "end"}` a sentence: from the start of its first word to the end of its last, stops and
        commas that were dictated as words not counted. A sentence ends with the piece that ends in a full stop, so a
        phrase that holds two stays whole; what follows the last stop is a sentence too, stops without words are none.
    """
    sentences: list[list[dict]] = [[]]
    for piece in transcript:
        sentences[-1].append(piece)
        if piece["text"].rstrip().endswith("."):
            sentences.append([])
    found = []
    for pieces in sentences:
        words = [piece for piece in pieces if piece["text"].strip(" .,")]
        if words:
            found.append({"text": _joined(pieces), "start": words[0]["start"], "end": words[-1]["end"]})
    return found


def fixations_of_sentences(
    scanpath: Scanpath,
    sentences: Sequence[dict],
    *,
    lookback: float = 5.0,
    not_before: Literal["start", "end"] = "start",
) -> list[Scanpath]:
    """The fixations that belong to each sentence, cut to its window; a fixation can belong to several.

    Readers look before they speak, so a window opens `lookback` seconds before its sentence and shuts when the
    sentence ends. It opens no earlier than the previous sentence did, which is the rule of Bigolin Lanfredi et al.
    (Frontiers in Radiology 2023) together with their 5 seconds.

    Args:
        scanpath: on the clock of the sentences.
        sentences: of `sentences_of`.
        lookback: seconds, not negative. 0 takes what is seen while the sentence is spoken, `math.inf` everything since
            the previous sentence (for the first one, since the reading began).
        not_before: the "start" of the previous sentence, or its "end": then no moment belongs to two sentences.

    Returns:
        One scanpath a sentence, maybe empty; times stay those of `scanpath`.
    """
    return [scanpath.between(*window) for window in windows_of_sentences(sentences, lookback, not_before)]


def windows_of_sentences(
    sentences: Sequence[dict], lookback: float = 5.0, not_before: Literal["start", "end"] = "start"
) -> list[tuple[float, float]]:
    """The (start, end) in seconds of each sentence's window; arguments as in `fixations_of_sentences`."""
    if not lookback >= 0:
        raise ValueError(f"lookback must be seconds, not negative, got {lookback}")
    if not_before not in ("start", "end"):
        raise ValueError(f'not_before must be "start" or "end", got {not_before!r}')
    earliest, windows = -math.inf, []
    for number, sentence in enumerate(sentences):
        if not (math.isfinite(sentence["start"]) and math.isfinite(sentence["end"])):
            raise ValueError(f"sentence {number} must have start and end in seconds, got {sentence}")
        start = max(sentence["start"] - lookback, min(earliest, sentence["start"]))
        windows.append((start, sentence["end"]))
        earliest = sentence[not_before]
    return windows


def _joined(pieces: Sequence[dict]) -> str:
    """Text of the pieces; full stops and commas stand at the word before them."""
    text = ""
    for piece in pieces:
        word = piece["text"].strip()
        text += word if not text or word.startswith((".", ",")) else f" {word}"
    return text
