"""Tasks: a film and what is known of it -> chat messages.

Messages are plain (`{"role", "content": [{"type": "image"}, {"type": "text", "text": ...}]}`), as every chat template
of transformers and TRL's trainers take them.
"""

from collections.abc import Sequence

TASKS = ("report", "vqa")

REPORT_INSTRUCTION = "Write the report of this chest X-ray."


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
            text += f" {name}: {' '.join(value.split()).rstrip('.')}."
    if findings is not None:
        text += f" Findings: {', '.join(findings).lower() or 'none'}."
    return _messages(text, views, report)


def vqa_messages(question: str, answer: str | None = None, *, views: int = 1) -> list[dict]:
    """Messages that ask a question about a film; `answer` for training."""
    return _messages(" ".join(question.split()), views, answer)


def _messages(text: str, views: int, answer: str | None) -> list[dict]:
    content = [*({"type": "image"} for _ in range(views)), {"type": "text", "text": text}]
    messages = [{"role": "user", "content": content}]
    if answer is not None:
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return messages
