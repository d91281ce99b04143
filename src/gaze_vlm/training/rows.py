"""Rows to train on: of several releases, of some readers, with a report."""

import inspect
import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, combinations_with_replacement, product
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
from PIL import Image

from ..data import BUILDERS, DataError
from ..data.builder import SPLITS
from ..data.export import RECORD
from ..data.matching import FindingMatcher, present_findings, report_findings, report_text
from ..data.schema import SCHEMA

logger = logging.getLogger(__name__)


Splits = Mapping[str, datasets.Dataset]


def load_rows(
    sources: Iterable[str], mimic_cxr: str | Path | None = None, *, one_split: bool = False
) -> datasets.DatasetDict:
    """Rows of several data sets, split by split one after the other.

    Args:
        sources: `NAME=DIR` or `NAME=DIR:CONFIG`, a key of `gaze_vlm.data.BUILDERS` and a release as published; or a
            folder that `gaze-vlm data` wrote.
        mimic_cxr: folder of MIMIC-CXR, from which releases that take it join films and reports.
        one_split: all rows of a patient who stands in several splits go to the most held-out one of them (test before
            validation before train); the column `split` says so.

    Raises:
        DataError: naming the source; or the patient who stands in different splits of two sources (`check_apart`),
            for releases of the same films are split each in its own way.
    """
    sources = list(sources)
    loaded: list[Splits] = [_load(source, mimic_cxr) for source in sources]
    if not loaded:
        raise DataError("no data given")
    if one_split:
        loaded = _in_one_split(loaded)
    if len(loaded) > 1:
        fix = "one_split (--one_split) puts all rows of such a patient in the most held-out split"
        check_apart(sources, loaded, fix)
    splits = [split for split in SPLITS if any(split in one for one in loaded)]
    return datasets.DatasetDict(
        {split: datasets.concatenate_datasets([one[split] for one in loaded if split in one]) for split in splits}
    )


def check_apart(sources: Sequence[str], loaded: Sequence[Splits], fix: str, *, within: bool = False) -> None:
    """No patient stands in one split of one source and in another split of another, with `within` nor in the same.

    What a single source shares between its splits is its builder's to tell (`ReleaseBuilder.checks`).

    Args:
        sources: names for the message.
        loaded: split -> rows of each source.
        fix: what to do about it, for the message.

    Raises:
        DataError: naming the first such patient, how many there are, and the two sources.
    """
    homes: dict[str, dict[str, list[str]]] = {}  # patient -> split -> sources
    for source, splits in zip(sources, _patients(loaded), strict=True):
        for split, names in splits.items():
            for name in {*names} - {None}:
                homes.setdefault(name, {}).setdefault(split, []).append(source)
    shared = {
        name: (one, first, other, second)
        for name, known in sorted(homes.items())
        for one, other in (combinations_with_replacement if within else combinations)(known, 2)
        for first, second in product(known[one], known[other])
        if first != second
    }
    if shared:
        name, (one, first, other, second) = next(iter(shared.items()))
        where = "both" if within else "different splits"
        raise DataError(
            f"{len(shared):,} patients (images, where no patient is known) stand in {where}: "
            f"{name} in {one} of {first} and in {other} of {second}; {fix}"
        )


def _patients(loaded: Sequence[Splits]) -> list[dict[str, list[str | None]]]:
    """Whose each row is: its patient's, or that of its image in another source; else its study's or its image's."""
    columns = ("image_id", "patient_id", "study_id")
    ids = [
        {split: list(zip(*(rows[name][:] for name in columns), strict=True)) for split, rows in one.items()}
        for one in loaded
    ]
    known = {image: patient for one in ids for rows in one.values() for image, patient, _ in rows if image and patient}
    return [
        {
            split: [patient or known.get(image) or study or image for image, patient, study in rows]
            for split, rows in one.items()
        }
        for one in ids
    ]


def _in_one_split(loaded: Sequence[Splits]) -> list[Splits]:
    patients, home = _patients(loaded), {}
    for split in SPLITS:  # from the least held-out to the most
        home |= {name: split for one in patients for name in one.get(split, ()) if name is not None}
    moved, whose, result = 0, set(), []
    for one, theirs in zip(loaded, patients, strict=True):
        parts: dict[str, list[datasets.Dataset]] = {split: [] for split in SPLITS}
        for split, rows in one.items():
            splits = [home.get(name, split) for name in theirs[split]]
            leaving = {name for name, new in zip(theirs[split], splits, strict=True) if new != split}
            if not leaving:
                parts[split].append(rows)
                continue
            moved, whose = moved + sum(new != split for new in splits), whose | leaving
            said = datasets.Dataset.from_dict({"split": splits}, features=datasets.Features(split=SCHEMA["split"]))
            rows = datasets.concatenate_datasets([rows.remove_columns("split"), said], axis=1)
            for new in dict.fromkeys(splits):
                kept = rows.select([number for number, at in enumerate(splits) if at == new])
                parts[new].append(kept.select_columns(list(SCHEMA)))
        result.append({split: datasets.concatenate_datasets(rows) for split, rows in parts.items() if rows})
    if moved:
        logger.info("%d rows of %d patients moved to the most held-out split they stand in", moved, len(whose))
    return result


def _load(source: str, mimic_cxr: str | Path | None) -> dict[str, datasets.Dataset]:
    name, equals, place = source.partition("=")
    if not equals:
        return _load_export(Path(source).expanduser())
    if name not in BUILDERS:
        raise DataError(f"{source}: unknown data set {name!r}; known: {', '.join(sorted(BUILDERS))}")
    kind, config = BUILDERS[name], None
    root, colon, last = place.rpartition(":")
    if colon and not Path(place).expanduser().exists():
        place, config = root, last
    takes = "mimic_cxr" in inspect.signature(kind.set_options).parameters
    builder = kind(place, config, **({"mimic_cxr": str(mimic_cxr)} if takes and mimic_cxr else {}))
    builder.download_and_prepare()
    return builder.as_dataset()


def _load_export(folder: Path) -> dict[str, datasets.Dataset]:
    if not (folder / RECORD).is_file():
        raise DataError(f"{folder}: neither NAME=DIR nor a folder that gaze-vlm data wrote")
    files = {split: [str(path) for path in sorted(folder.glob(f"data/{split}-*.parquet"))] for split in SPLITS}
    files = {split: paths for split, paths in files.items() if paths}
    return datasets.load_dataset("parquet", data_files=files, features=SCHEMA)


def rows_of(rows: datasets.Dataset, names: Sequence[str], column: str = "reader") -> datasets.Dataset:
    """The rows of some readers, or of some of another column's values.

    Raises:
        ValueError: naming a reader who has none.
    """
    known = set(rows[column])
    for name in names:
        if name not in known:
            listed = ", ".join(sorted(known - {None})[:8])
            raise ValueError(f"no row is of {column} {name!r}; known: {listed or 'none'}{', ...' * (len(known) > 8)}")
    return rows.filter(lambda value: value in names, input_columns=column)


def has_image(rows: datasets.Dataset) -> list[bool]:
    """Whether each row has an image; none is read for that."""
    columns = rows.select_columns(["image"]).with_format("arrow")
    return [there for batch in columns.iter(1000) for there in batch["image"].is_valid().to_pylist()]


def with_reports(rows: datasets.Dataset) -> datasets.Dataset:
    """The rows that have an image and a report (findings or impression); a log line counts the others."""
    imaged = has_image(rows)
    kept = [i for i, report in enumerate(rows["report"]) if imaged[i] and join_report(report)]
    if len(kept) < len(rows):
        logger.info("%d of %d rows left out: no image, or no report", len(rows) - len(kept), len(rows))
    return rows.select(kept)


SECTIONS = ("findings", "impression")


def join_report(report: dict | None, sections: Sequence[str] = SECTIONS) -> str:
    """Sections of the column `report` as one text with single blanks."""
    parts = (report[name] for name in sections) if report else ()
    return " ".join(" ".join(filter(None, parts)).split())


def parse_weights(text: str, known: Sequence[str], what: str) -> dict[str, float]:
    """`report:1,finding:1,none:0.5` as weights of `known` names; a name alone weighs 1, weights of zero are left out.

    Raises:
        ValueError: naming what is no such name (`what` they are) or no weight, or if all are zero.
    """
    weights = {}
    for part in text.split(","):
        name, _, weight = part.strip().partition(":")
        if name not in known:
            raise ValueError(f"{part.strip()!r} is no {what} with its weight; known: {', '.join(known)}")
        try:
            weights[name] = float(weight or 1)
        except ValueError:
            raise ValueError(f"{part.strip()!r}: the weight is no number") from None
        if not 0 <= weights[name] < float("inf"):
            raise ValueError(f"{part.strip()!r}: a weight is a finite number from 0 on")
    if not any(weights.values()):
        raise ValueError(f"{text!r}: every weight is zero")
    return {name: weight for name, weight in weights.items() if weight}


class MatchedReports(NamedTuple):
    """Reports that can stand beside films of DIFFERENT patients, and what finds the films."""

    numbers: tuple[int, ...]  # of the reports among all rows
    texts: tuple[str, ...]
    findings: tuple[frozenset[str], ...]  # of each report, as far as some film is labelled with them
    matcher: FindingMatcher  # of the films


_LEAST_WORDS = 5  # of a report that is put beside a film by its findings


def match_reports(films: datasets.Dataset, reports: datasets.Dataset) -> MatchedReports:
    """Each report with what is needed to draw a film of like findings (`data.matching`, which see for what can be
    learned so). Reports lose the sentences that say more than one film can show; those of fewer than five words are
    left out then, and those that speak only of findings that no film is labelled with.

    Raises:
        ValueError: naming a film whose findings nobody judged; if no report is left.
    """
    labels = films["findings"]
    if None in labels:
        number = list(labels).index(None)
        raise ValueError(f"film {number} (image {films['image_id'][number]}): nobody judged its findings")
    present = [present_findings({"findings": findings}) for findings in labels]
    known = frozenset().union(*present)
    texts = [report_text({"report": report}) if report else "" for report in reports["report"]]
    kept = [
        (number, text, found)
        for number, text in enumerate(texts)
        if len(text.split()) >= _LEAST_WORDS and (found := report_findings(text) & known)
    ]
    if not kept:
        raise ValueError("no report speaks of a finding that a film is labelled with")
    return MatchedReports(*zip(*kept, strict=True), FindingMatcher(present, known))


def eight_bit(image: Image.Image) -> Image.Image:
    """In "RGB"; 16-bit grey is stretched linearly from its own minimum..maximum, as `images.read_film` does."""
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, dtype=np.float64)
        low, span = values.min(), np.ptp(values) or 1
        image = Image.fromarray(np.rint((values - low) / span * 255).astype(np.uint8))
    return image.convert("RGB")
