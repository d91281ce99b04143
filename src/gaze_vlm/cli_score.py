"""The command gaze-vlm score: predictions against references, beside their baselines."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import chain, count
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .terminal import complain, console, print_json, shown, waiting

app = typer.Typer(no_args_is_help=True, help="Score predictions against references, baselines beside them.")

Predictions = Annotated[Path, typer.Argument(help="JSON, JSON lines or CSV.", show_default=False)]
References = Annotated[Path, typer.Argument(help="The same cases as the readers have them.", show_default=False)]
Split = Annotated[str | None, typer.Option(help="Only references of this split.", show_default=False)]
Common = Annotated[bool, typer.Option("--common", help="Leave out cases that stand in one file only.")]
Train = Annotated[
    Path | None,
    typer.Option(
        help="References of other cases, for the baselines that learn (a file with splits: its train split).",
        show_default=False,
    ),
]


class UncertainAs(StrEnum):
    negative = "negative"
    positive = "positive"


Uncertain = Annotated[UncertainAs, typer.Option(help="What a finding that is only possible counts as.")]
Versus = Annotated[
    list[Path] | None, typer.Option(help="Predictions of another system; may be repeated.", show_default=False)
]
Resamples = Annotated[int, typer.Option(min=100, max=100_000, help="Bootstrap resamples and permutations.")]
Seed = Annotated[int, typer.Option(help="Of resampling and of baselines that draw.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")]


class Prepared(StrEnum):
    plain = "plain"
    r2gen_iu = "r2gen_iu"
    r2gen_mimic = "r2gen_mimic"


@dataclass(frozen=True)
class Given:
    """What a call's files hold.

    Args:
        name: what the system in question is called.
        pairs: its predictions beside the references.
        versus: other systems' predictions of the same cases.
        training: cases to learn from.
        notes: what has to be known of all that, in sentences.
    """

    name: str
    pairs: Any
    versus: dict[str, list]
    training: list
    notes: tuple[str, ...]


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """What the files hold, or what is not installed, is said in one line: status 2."""
    try:
        yield
    except (ValueError, ImportError, FileNotFoundError) as error:
        complain(str(error))
        raise typer.Exit(2) from None


def system_name(path: Path, taken: Collection[str] = ()) -> str:
    """A file's stem, or its path where another system has that stem."""
    names = chain([path.stem, str(path)], (f"{path} ({number})" for number in count(2)))
    return next(name for name in names if name not in taken)


def load(
    read: Callable,
    predictions: Path,
    references: Path,
    *,
    split: str | None,
    common: bool,
    train: Path | None,
    versus: list[Path] | None,
) -> Given:
    """All cases that a table is made of."""
    from .metrics.cases import CaseError, paired

    given, truth = read(predictions), read(references)
    try:
        pairs = paired(given, truth, split=split, common=common)
    except CaseError as error:
        raise CaseError(f"{predictions} against {references}: {error}") from None
    name, others, notes = system_name(predictions), {}, []
    for path in versus or ():
        known = read(path)
        try:
            other = paired(known, pairs.references, common=True)
        except CaseError as error:
            raise CaseError(f"{path}: {error}") from None
        if len(other.references) < len(pairs.references):
            missing = {case.id for case in pairs.references} - {case.id for case in other.references}
            raise CaseError(f"{path}: no prediction for {min(missing)!r}, one of {len(missing)} missing cases")
        rival = system_name(path, [name, *others])
        others[rival] = other.predictions
        notes += [f"{rival}: {sentence}" for sentence in other.left_out]
    training, where = training_cases(read, train, references, truth, split)
    return Given(name, pairs, others, training, (*notes, *about_training(pairs, training, where)))


def training_cases(
    read: Callable, train: Path | None, references: Path, truth: list, split: str | None
) -> tuple[list, str]:
    """Cases to learn from and where they are from: `train`, or the references' train split when another is scored."""
    from .metrics.cases import CaseError

    cases = truth if train is None else read(train)
    where = str(references if train is None else train)
    if any(case.split for case in cases):
        cases, where = [case for case in cases if case.split == "train"], f"the train split of {where}"
    if train is None and split in (None, "train"):
        return [], ""
    if train is not None and not cases:
        raise CaseError(f"{train}: it names splits, and none is train")
    return cases, where


def about_training(pairs, training: list, where: str) -> list[str]:
    """Where training cases are from, and whether what is scored stands among them."""
    if not training:
        return []
    scored, known = ({case.group or case.id for case in cases} - {None} for cases in (pairs.references, training))
    seen = scored & known
    said = f"training: {len(training)} cases, {where}"
    return [f"{said}; {len(seen)} of the {len(scored)} scored patients or images are in it too" if seen else said]


def show(table, what: str, as_json: bool, markdown: bool, notes: Sequence[str] = ()) -> None:
    """Print a ScoreTable, `notes` added to its protocol."""
    table = replace(table, protocol=(*table.protocol, *notes))
    if as_json:
        print_json({"what": what} | table.to_dict())
        return
    if markdown:
        for line in table.to_markdown().split("\n"):
            console.print(shown(line), soft_wrap=True)
        return
    # a file or a pipe has no width to keep to
    wide = console if console.is_terminal else Console(width=200)
    header, rows = table.rows()
    while rows:
        last = next((i for i, row in enumerate(rows) if i and row[0]), len(rows))
        metric, arrow = rows[0][:2]
        drawn = Table(title=shown(f"{metric} {arrow}".strip()), title_justify="left", title_style="bold", box=None)
        drawn.header_style, drawn.min_width = "dim", 60
        for name in header[2:]:
            drawn.add_column(shown(name))
        for row in rows[:last]:
            drawn.add_row(*(shown(cell) for cell in row[2:]))
        wide.print(drawn)
        rows = rows[last:]
    for sentence in table.protocol:
        wide.print(shown(sentence), style="dim")


@app.command()
def scanpath(
    predictions: Predictions,
    references: References,
    maps: Annotated[bool, typer.Option("--maps", help="Score heat maps too.")] = False,
    agreement: Annotated[
        bool, typer.Option("--agreement", help="Instead: agreement with readers and among them (ICC, cosine, DTW).")
    ] = False,
    split: Split = None,
    common: Common = False,
    train: Train = None,
    versus: Versus = None,
    resamples: Resamples = 1000,
    seed: Seed = 0,
    as_json: Json = False,
    markdown: Markdown = False,
) -> None:
    """Scanpaths against readers' scanpaths; GazeSearch's JSON is read as released, the centre put in front."""
    from .metrics.cases import read_scanpaths
    from .metrics.tables.agreement import agreement_table
    from .metrics.tables.scanpaths import scanpath_table

    with refusing(), waiting("Scoring", as_json):
        if agreement and maps:
            raise ValueError("--maps adds to the usual table, and --agreement prints another one: ask for either")
        files = {"split": split, "common": common, "train": train, "versus": versus}
        given = load(read_scanpaths, predictions, references, **files)
        known = {"training": given.training, "versus": given.versus, "name": given.name}
        known |= {"resamples": resamples, "seed": seed}
        table = agreement_table(given.pairs, **known) if agreement else scanpath_table(given.pairs, maps=maps, **known)
    show(table, "agreement" if agreement else "scanpath", as_json, markdown, given.notes)


@app.command()
def report(
    predictions: Predictions,
    references: References,
    uncertain: Uncertain = UncertainAs.negative,
    preparation: Annotated[Prepared, typer.Option(help="Of the texts whose words are compared.")] = Prepared.plain,
    meteor: Annotated[bool, typer.Option("--meteor", help="METEOR too (needs Java).")] = False,
    by_finding: Annotated[bool, typer.Option("--by-finding", help="Each finding's scores and errors too.")] = False,
    split: Split = None,
    common: Common = False,
    train: Train = None,
    versus: Versus = None,
    resamples: Resamples = 1000,
    seed: Seed = 0,
    as_json: Json = False,
    markdown: Markdown = False,
) -> None:
    """Reports against readers' reports: the findings they name, and their words."""
    from .metrics.cases import read_reports
    from .metrics.tables.reports import report_table

    with refusing(), waiting("Scoring", as_json):
        files = {"split": split, "common": common, "train": train, "versus": versus}
        given = load(read_reports, predictions, references, **files)
        options = {"uncertain": uncertain.value, "preparation": preparation.value, "with_meteor": meteor}
        options |= {"by_finding": by_finding, "resamples": resamples, "seed": seed}
        table = report_table(given.pairs, training=given.training, versus=given.versus, name=given.name, **options)
    show(table, "report", as_json, markdown, given.notes)


@app.command()
def classify(
    predictions: Predictions,
    references: References,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Probability from which a finding is called.")] = 0.5,
    uncertain: Uncertain = UncertainAs.negative,
    split: Split = None,
    common: Common = False,
    train: Train = None,
    versus: Versus = None,
    resamples: Resamples = 1000,
    seed: Seed = 0,
    as_json: Json = False,
    markdown: Markdown = False,
) -> None:
    """Findings' probabilities against labels."""
    from .metrics.cases import read_findings
    from .metrics.tables.findings import classify_table

    with refusing(), waiting("Scoring", as_json):
        files = {"split": split, "common": common, "train": train, "versus": versus}
        given = load(read_findings, predictions, references, **files)
        options = {"threshold": threshold, "uncertain": uncertain.value, "resamples": resamples, "seed": seed}
        table = classify_table(given.pairs, training=given.training, versus=given.versus, name=given.name, **options)
    show(table, "classify", as_json, markdown, given.notes)


@app.command()
def ground(
    predictions: Predictions,
    references: References,
    split: Split = None,
    common: Common = False,
    train: Train = None,
    versus: Versus = None,
    resamples: Resamples = 1000,
    seed: Seed = 0,
    as_json: Json = False,
    markdown: Markdown = False,
) -> None:
    """Boxes of phrases against readers' boxes."""
    from .metrics.cases import read_boxes
    from .metrics.tables.boxes import ground_table

    with refusing(), waiting("Scoring", as_json):
        files = {"split": split, "common": common, "train": train, "versus": versus}
        given = load(read_boxes, predictions, references, **files)
        options = {"resamples": resamples, "seed": seed}
        table = ground_table(given.pairs, training=given.training, versus=given.versus, name=given.name, **options)
    show(table, "ground", as_json, markdown, given.notes)


@app.command()
def vqa(
    predictions: Predictions,
    references: References,
    split: Split = None,
    common: Common = False,
    train: Train = None,
    versus: Versus = None,
    resamples: Resamples = 1000,
    seed: Seed = 0,
    as_json: Json = False,
    markdown: Markdown = False,
) -> None:
    """Answers to questions against reference answers."""
    from .metrics.cases import read_answers
    from .metrics.tables.answers import vqa_table

    with refusing(), waiting("Scoring", as_json):
        files = {"split": split, "common": common, "train": train, "versus": versus}
        given = load(read_answers, predictions, references, **files)
        options = {"resamples": resamples, "seed": seed}
        table = vqa_table(given.pairs, training=given.training, versus=given.versus, name=given.name, **options)
    show(table, "vqa", as_json, markdown, given.notes)


@app.command()
def leaks(
    file: Annotated[Path, typer.Argument(help="Cases with their split; GazeSearch's JSON too.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Which images and patients stand in more than one split; status 1 when one does."""
    from .metrics.cases import read_members
    from .metrics.leaks import shared_between_splits

    with refusing():
        found = {kind: shared_between_splits(splits) for kind, splits in read_members(file).items()}
    if as_json:
        print_json(
            {
                kind: {
                    "distinct": leak.distinct,
                    "shared": [{"split": a, "other": b, "ids": ids} for (a, b), ids in leak.shared.items() if ids],
                }
                for kind, leak in found.items()
            }
        )
    else:
        for kind, leak in found.items():
            console.print(shown(f"{kind}:"), style="bold")
            for line in str(leak).splitlines():
                console.print(shown(line))
    if any(leak.ids for leak in found.values()):
        raise typer.Exit(1)
