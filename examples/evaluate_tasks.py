"""GazeVLM's tasks besides reports, as evaluate.py measures them on NIH's films: boxes, answers, trajectories."""

import numpy as np
from open_films import Boxed, boxed_films, films_of

from gaze_vlm import Scanpath
from gaze_vlm.data import load
from gaze_vlm.findings import REGIONS
from gaze_vlm.images import Film
from gaze_vlm.metrics.baselines import blank_like, noise_like
from gaze_vlm.metrics.cases import Case, Pairs
from gaze_vlm.metrics.grounding import dwell_in_boxes, iou_union
from gaze_vlm.metrics.tables import Metric, ScoreTable, drawn, score
from gaze_vlm.metrics.tables.answers import vqa_table
from gaze_vlm.metrics.tables.boxes import ground_table
from gaze_vlm.pipelines import ReadingPipeline
from gaze_vlm.tasks import ground_messages, parse_boxes, parse_trajectory, trajectory_messages
from gaze_vlm.training.label_questions import label_questions

LUNGS = np.array([REGIONS[side].box for side in ("right lung", "left lung")])


def without_looking(films: list[Film]) -> dict[str, list[Film]]:
    """The same requests about films on which there is nothing."""
    rng = np.random.default_rng(0)
    return {"blank films": [blank_like(film) for film in films], "noise": [noise_like(film, rng) for film in films]}


def of_rsna(cases: list[Boxed]) -> list[Boxed]:
    return [case for case in cases if case.by_rsna]


def evaluate_ground(models: ReadingPipeline, arguments) -> ScoreTable:
    """Are the boxes of "lung opacity" where RSNA's radiologists drew theirs?"""
    cases, known = (of_rsna(boxed_films(arguments.nih, split)) for split in (arguments.split, "train"))
    films, phrase = [case.film for case in cases], "lung opacity"
    unseeing = ReadingPipeline(arguments.model, predict_gaze=False)

    def boxes_on(films, models=models) -> list[Case]:
        return values(models.ground(films, phrase))

    def values(parsed) -> list[Case]:
        return [Case(None, np.array(one.value or []).reshape(-1, 4)) for one in parsed]

    def with_gaze_of_another() -> list[Case]:
        """The gaze of the next film of another patient."""
        paths = [paths[0] for paths in models.predict_scanpaths(films, phrase)]
        order = range(len(cases))
        others = [next(n for n in (*order[k:], *order) if cases[n].patient != cases[k].patient) for k in order]
        answers = models.answers("ground", films, ground_messages(phrase), [paths[number] for number in others])
        return values(map(parse_boxes, answers))

    references = [Case(None, np.array(case.boxes), group=case.patient) for case in cases]
    systems = {f"{models.name} on {what}": boxes_on(shown) for what, shown in without_looking(films).items()}
    systems |= {f"{models.name} without gaze": boxes_on(films, unseeing)}
    systems |= {f"{models.name} with gaze on another patient's film": with_gaze_of_another()}
    systems |= {"both lungs": [Case(None, LUNGS)] * len(cases)}
    training = [Case(None, np.array(case.boxes)) for case in known]
    table = ground_table(
        Pairs(boxes_on(films), references), training=training, versus=systems, name=f"{models.name}, the film itself"
    )
    said = f"{len(set(map(id, films)))} films of {len({case.patient for case in cases})} patients, {phrase!r}"
    return ScoreTable(table.scores, (said, *table.protocol))


def evaluate_vqa(models: ReadingPipeline, arguments) -> ScoreTable:
    """Questions that NIH's labels answer; half of those about a finding are answered by yes."""
    films, _, patients = films_of(arguments.nih, arguments.split)
    asked = label_questions(load("nih_cxr", arguments.nih)[arguments.split])
    known = label_questions(load("nih_cxr", arguments.nih)["train"])

    def answers(films) -> list[Case]:
        by_question: dict[str, list[int]] = {}
        for number, one in enumerate(asked):
            by_question.setdefault(one.question, []).append(number)
        found: dict[int, str] = {}
        for question, numbers in by_question.items():
            found |= zip(numbers, models.ask([films[asked[n].row] for n in numbers], question), strict=True)
        return [Case(None, found[number]) for number in range(len(asked))]

    references = [Case(None, one.answer, group=patients[one.row], finding=one.question_type) for one in asked]
    return vqa_table(
        Pairs(answers(films), references),
        training=[Case(None, one.answer, finding=one.question_type) for one in known],
        versus={f"{models.name} on {what}": answers(shown) for what, shown in without_looking(films).items()},
        name=f"{models.name}, the film itself",
    )


def evaluate_trajectory(models: ReadingPipeline, arguments) -> ScoreTable:
    """Does the GazeVLM's own trajectory for "lung opacity" dwell in RSNA's boxes, and more than on other films?"""
    cases = of_rsna(boxed_films(arguments.nih, arguments.split))
    films, patients = [case.film for case in cases], np.array([case.patient for case in cases])
    messages = trajectory_messages(finding="lung opacity")
    unread = 0

    def paths_on(films) -> list[Scanpath]:
        nonlocal unread
        parsed = [parse_trajectory(answer).value for answer in models.answers("trajectory", films, messages)]
        unread += sum(steps is None for steps in parsed)
        return [Scanpath.from_relative(*np.array(steps or np.zeros((0, 3))).T) for steps in parsed]

    def dwell(paths) -> np.ndarray:
        """(films, boxes of cases): share of each path in each case's boxes."""
        return np.stack([np.nan_to_num(dwell_in_boxes(paths, [case.boxes] * len(paths))) for case in cases], axis=1)

    on_films = dwell(paths_on(films))
    others = [on_films[patients != case.patient, number].mean() for number, case in enumerate(cases)]
    systems = {
        f"{models.name}, the film itself": np.diagonal(on_films),
        f"{models.name}, another patient's film": np.array(others),
        **{
            f"{models.name} on {what}": np.diagonal(dwell(paths_on(shown)))
            for what, shown in without_looking(films).items()
        },
        "uniform gaze (the boxes' area)": iou_union([[(0, 0, 1, 1)]] * len(cases), [case.boxes for case in cases]),
    }
    metric = Metric("share of the trajectory's dwell in the boxes of lung opacities", True, lambda shares: shares)
    protocol = (
        f"{len(cases)} films of {len(set(patients))} patients; answers that are no trajectory, which dwell nowhere: "
        f"{unread} of {3 * len(cases)}",
        drawn(Pairs([], [Case(None, None, group=who) for who in patients]), 1000),
    )
    return ScoreTable(tuple(score(systems, [metric], groups=list(patients))), protocol)
