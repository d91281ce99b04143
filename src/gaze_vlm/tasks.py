"""Tasks: a film and what is known of it -> chat messages.

Messages are plain (`{"role", "content": [{"type": "image"}, {"type": "text", "text": ...}]}`), as every chat template
of transformers and TRL's trainers take them.
"""

from collections.abc import Sequence

TASKS = ("report",)

REPORT_INSTRUCTION = "Write the report of this chest X-ray."


def report_messages(findings: Sequence[str] | None = None, report: str | None = None) -> list[dict]:
    """Messages that ask for a report.

    Args:
        findings: names of findings that are known to be present, to write about; empty: it is known that there are
            none;
            None: nothing is known, the film must do.
        report: the answer, for training.
    """
    text = REPORT_INSTRUCTION
    if findings is not None:
        text += f" Findings: {', '.join(findings).lower() or 'none'}."
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    if report is not None:
        messages.append({"role": "assistant", "content": [{"type": "text", "text": report}]})
    return messages
