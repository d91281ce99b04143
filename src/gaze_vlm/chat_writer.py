"""Sentences by any chat model: keywords go out as JSON lines, sentences come back as JSON lines.

The paper (Eyes on the Image, arXiv 2508.13068) publishes no prompt; this one is ours. What comes back is taken apart
here and checked by `ReportComposer.compose`, sentence by sentence; nothing of it reaches a report unchecked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from . import json_schema as schema
from .report_sentences import Keyword

KEYWORD_SCHEMA: dict[str, Any] = schema.object(
    "A line of the prompt: what one sentence has to say.",
    number=schema.index("Its place in the list, from 1.", 1),
    finding=schema.text("What is seen, such as 'Pleural Effusion'."),
    confidence=schema.number("How sure the image classifier is.", minimum=0, maximum=1),
    region=schema.or_null(schema.text("The part of the thorax where it was seen; null: not known.")),
    side=schema.choice("The patient's side; null: none, or not known.", "left", "right", "both", None),
)
ANSWER_SCHEMA: dict[str, Any] = schema.object(
    "A line of the answer.",
    number=schema.index("Of the keyword that the sentence is about.", 1),
    sentence=schema.text("One sentence that asserts the finding of the keyword.", pattern=r"\S"),
)

PROMPT = """\
Write sentences for the report of a frontal chest X-ray.

Each line below is one keyword, the most certain first, as a JSON object: "number" counts them, "finding" is what is \
seen, "confidence" how sure the image classifier is (0 to 1), "region" the part of the thorax where it was seen or \
null, "side" the patient's side ("left", "right", "both") or null.

- Give every keyword one sentence that states it plainly as present, without doubt, grade or measurement.
- Name the side and the region where the keyword has them, and no other.
- Mention nothing but the finding of the keyword. Do not compare with earlier films.

Answer with one JSON object a line, and nothing else: {"number": 1, "sentence": "..."}

Keywords:
"""

_OBJECT = re.compile(r"\{[^{}]*\}")
_TOKENS = 64  # of an answer, a keyword


class ChatWriter:
    """A writer for `ReportComposer.compose`: keywords -> a sentence each, None where the answer has none.

    Args:
        chat: a text-generation pipeline of transformers whose tokenizer has a chat template (decoded greedily), or any
            callable that takes chat messages (`[{"role", "content"}]`, content a text) and returns the answer's text.
        name: what it is called where its sentences are accounted for.
    """

    def __init__(self, chat: Callable[..., Any], name: str = "chat model"):
        from transformers import TextGenerationPipeline

        self.chat, self.name = chat, name
        self.is_pipeline = isinstance(chat, TextGenerationPipeline)
        if self.is_pipeline and not chat.tokenizer.chat_template:
            raise ValueError(f"{name}: its tokenizer has no chat template")

    @classmethod
    def from_pretrained(cls, name: str, **options: Any) -> ChatWriter:
        """The writer of a local folder's or a Hub repository's chat model.

        Args:
            options: of `transformers.pipeline`, such as `device` and `dtype`.

        Raises:
            ValueError: in one line, for what cannot be loaded or has no chat template.
        """
        from transformers import pipeline

        try:
            chat = pipeline("text-generation", model=name, **options)
        except Exception as error:  # whatever transformers, the Hub's client or a broken file raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"{name}: no chat model that can be loaded ({reason})") from error
        return cls(chat, re.split(r"[\\/]", name.rstrip("\\/"))[-1])

    def __call__(self, keywords: Sequence[Keyword]) -> list[str | None]:
        messages = [{"role": "user", "content": prompt(keywords)}]
        if not self.is_pipeline:
            return parse(self.chat(messages), len(keywords))
        options = {"max_new_tokens": _TOKENS * len(keywords), "do_sample": False, "return_full_text": False}
        (answer,) = self.chat(messages, **options)
        return parse(answer["generated_text"], len(keywords))


def prompt(keywords: Sequence[Keyword]) -> str:
    """The request for a sentence a keyword, which stand in it as JSON lines of `KEYWORD_SCHEMA`."""
    lines = [
        {"number": n, "finding": k.finding, "confidence": round(k.confidence, 2), "region": k.region, "side": k.side}
        for n, k in enumerate(keywords, start=1)
    ]
    return PROMPT + "\n".join(map(json.dumps, lines))


def parse(answer: str, count: int) -> list[str | None]:
    """The sentence of each of `count` keywords, None where there is none to be had.

    Lenient about what stands around the JSON objects, strict about them: one that departs from `ANSWER_SCHEMA` or
    names no keyword is passed over, and of a number that comes twice the last one counts: a model may think first.
    """
    if not isinstance(answer, str):
        raise ValueError(f"a chat model must answer with a text, got {answer!r:.80}")
    found: dict[int, str] = {}
    for match in _OBJECT.finditer(answer):
        try:
            line = json.loads(match.group())
            schema.check(line, ANSWER_SCHEMA, "answer")
        except (ValueError, RecursionError):
            continue
        found[line["number"]] = line["sentence"]
    return [found.get(number) for number in range(1, count + 1)]
