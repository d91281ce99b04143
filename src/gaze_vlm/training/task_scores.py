"""How well a GazeVLM does each of its tasks: answers are written, read, and scored."""

import numpy as np
import torch

from ..generation import generate_texts
from ..metrics.tasks import TASK_METRICS, score_values
from ..tasks import parse_text
from .sft_data import SftRows


@torch.no_grad()
def task_scores(
    model, processor, rows: SftRows, *, batch_size: int = 8, max_new_tokens: int = 128
) -> dict[str, dict[str, float]]:
    """Of each task `metric` (its name), `score` (the mean, higher is better), `n`, and `malformed`: the share of
    answers that are none, which score 0.

    Args:
        model, processor: a GazeVLM and its `GazeVLMProcessor`.
        rows: what is asked, with `training` False so that it is the same each time.
    """
    found: dict[str, list[tuple]] = {}
    for start in range(0, len(rows), batch_size):
        places = range(start, min(start + batch_size, len(rows)))
        drawn = [rows.draw(place) for place in places]
        answers = generate_texts(
            model,
            processor,
            [one["prompt"] for one in drawn],
            [one["images"] for one in drawn],
            [path for one in drawn for path in one["fixations"]],
            gaze="given",
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
        for place, answer in zip(places, answers, strict=True):
            item = rows.item(place)
            if item.task == "report":
                parse, value = parse_text, parse_text(item.answer).value
            else:
                sample = rows.sample(place)
                parse, value = sample.parse, sample.value
            found.setdefault(item.task, []).append((parse(answer).value, value))
    return {task: _summed(task, *zip(*pairs, strict=True)) for task, pairs in found.items()}


def _summed(task: str, predicted: tuple, reference: tuple) -> dict[str, float]:
    scores = score_values(TASK_METRICS[task].score, predicted, reference)
    return {
        "metric": TASK_METRICS[task].name,
        "score": float(np.nanmean(scores)) if not np.isnan(scores).all() else float("nan"),
        "n": len(reference),
        "malformed": sum(value is None for value in predicted) / len(predicted),
    }
