"""Rows to train on: of several releases, of some readers, with a report."""

import inspect
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import datasets

from ..data import BUILDERS, DataError
from ..data.builder import SPLITS
from ..data.export import RECORD
from ..data.schema import SCHEMA

logger = logging.getLogger(__name__)


def load_rows(sources: Iterable[str], mimic_cxr: str | Path | None = None) -> datasets.DatasetDict:
    """Rows of several data sets, split by split one after the other.

    Args:
        sources: `NAME=DIR` or `NAME=DIR:CONFIG`, a key of `gaze_vlm.data.BUILDERS` and a release as published; or a
            folder that `gaze-vlm data` wrote.
        mimic_cxr: folder of MIMIC-CXR, from which releases that take it join films and reports.

    Raises:
        DataError: naming the source.
    """
    loaded = [_load(source, mimic_cxr) for source in sources]
    if not loaded:
        raise DataError("no data given")
    splits = [split for split in SPLITS if any(split in one for one in loaded)]
    return datasets.DatasetDict(
        {split: datasets.concatenate_datasets([one[split] for one in loaded if split in one]) for split in splits}
    )


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


def with_reports(rows: datasets.Dataset) -> datasets.Dataset:
    """The rows that have an image and a report (findings or impression); a log line counts the others."""
    columns = rows.select_columns(["image", "report"]).with_format("arrow")
    imaged = [there for batch in columns.iter(1000) for there in batch["image"].is_valid().to_pylist()]
    kept = [i for i, report in enumerate(rows["report"]) if imaged[i] and join_report(report)]
    if len(kept) < len(rows):
        logger.info("%d of %d rows left out: no image, or no report", len(rows) - len(kept), len(rows))
    return rows.select(kept)


def join_report(report: dict | None) -> str:
    """Findings and impression of the column `report` as one text with single blanks."""
    parts = (report[name] for name in ("findings", "impression")) if report else ()
    return " ".join(" ".join(filter(None, parts)).split())
