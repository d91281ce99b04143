"""Data sets as Hugging Face dataset builders over releases on disk, in one schema. Nothing is downloaded."""

from pathlib import Path

try:
    import datasets
except ImportError as error:
    raise ImportError('gaze_vlm.data needs the package datasets: pip install "gaze2report[train]"') from error

from .builder import DataError, ReleaseBuilder
from .gazesearch import GazeSearch
from .iu_xray import IuXray
from .nih_cxr import NihCxr

BUILDERS: dict[str, type[ReleaseBuilder]] = {"gazesearch": GazeSearch, "iu_xray": IuXray, "nih_cxr": NihCxr}


def load(name: str, root: str | Path, cache_dir: str | Path | None = None) -> datasets.DatasetDict:
    """All splits of a release.

    Args:
        name: a key of `BUILDERS`.
        root: folder (or file) of the release as published.
        cache_dir: for the Arrow files; `datasets`' own cache by default.

    Raises:
        DataError: naming the file and what is wrong with it.
    """
    if name not in BUILDERS:
        raise DataError(f"unknown data set {name!r}; known: {', '.join(sorted(BUILDERS))}")
    builder = BUILDERS[name](root, cache_dir=cache_dir)
    builder.download_and_prepare()
    return builder.as_dataset()


__all__ = ["BUILDERS", "DataError", "GazeSearch", "IuXray", "NihCxr", "ReleaseBuilder", "load"]
