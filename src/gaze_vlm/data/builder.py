"""What every builder of this package shares.

A root folder given by the user, one schema, a cache that notices changes.
"""

import csv
import hashlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
from datasets.exceptions import DatasetGenerationError

from . import schema
from .schema import SCHEMA


class DataError(ValueError):
    """A raw release that is not as published; the message names the file and what is wrong."""


@contextmanager
def naming(place: object) -> Iterator[None]:
    """Whatever a broken file makes Python raise becomes a DataError that names `place` (a file, or a line of it)."""
    try:
        yield
    except DataError:
        raise
    except KeyError as error:
        raise DataError(f"{place}: {error} is missing") from None
    except (ValueError, TypeError, AttributeError, RecursionError, csv.Error) as error:
        raise DataError(f"{place}: {' '.join(str(error).split())}") from None


class ReleaseBuilder(datasets.GeneratorBasedBuilder):
    """A dataset builder over a release on disk. Subclasses give `raw_files`, `split_names` and `rows`.

    Use it directly: `NihCxr(root).download_and_prepare()`, or through `gaze_vlm.data.load`.

    Args:
        root: folder (or file) of the release; nothing is ever downloaded.
        cache_dir: where the Arrow files go; `datasets`' own cache by default. The cache key holds the builder's code
            and the raw index files' names, sizes and times, so a change of either builds anew.
    """

    VERSION = datasets.Version("1.0.0")
    citation = ""
    homepage = ""
    licence = ""

    def __init__(self, root: str | Path, cache_dir: str | Path | None = None, **kwargs):
        self.root = Path(root).expanduser().resolve()
        if not self.root.exists():
            raise DataError(f"{root}: no such file or folder")
        code = inspect.getsource(inspect.getmodule(type(self))) + inspect.getsource(schema)
        fingerprint = hashlib.sha256(code.encode())
        for file in self.raw_files():
            status = file.stat()
            fingerprint.update(f"{file} {status.st_size} {status.st_mtime_ns}".encode())
        super().__init__(cache_dir=cache_dir and str(cache_dir), hash=fingerprint.hexdigest()[:16], **kwargs)

    def raw_files(self) -> list[Path]:
        """The index files the rows come from; of images their folders, which change when one is added.

        Raises:
            DataError: if the release is not there in any layout this builder reads.
        """
        raise NotImplementedError

    def split_names(self) -> list[str]:
        """Splits of the release, in the words of the release."""
        raise NotImplementedError

    def rows(self, split: str) -> Iterator[dict]:
        """Rows of `schema.SCHEMA`."""
        raise NotImplementedError

    def download_and_prepare(self, *args, **kwargs) -> None:
        """As every builder's.

        Raises:
            DataError: naming the file and what is wrong with it.
        """
        try:
            super().download_and_prepare(*args, **kwargs)
        except DatasetGenerationError as error:
            if isinstance(error.__cause__, DataError):
                raise error.__cause__ from None
            raise

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description=inspect.getdoc(type(self)) or "",
            features=SCHEMA,
            homepage=self.homepage,
            license=self.licence,
            citation=self.citation,
        )

    def _split_generators(self, dl_manager):
        return [datasets.SplitGenerator(name, gen_kwargs={"split": name}) for name in self.split_names()]

    def _generate_examples(self, split: str):
        yield from enumerate(self.rows(split))
