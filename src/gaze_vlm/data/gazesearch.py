"""GazeSearch: radiologists' scanpaths, one finding searched for in each."""

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from ..findings import to_findings
from ..scanpath import Scanpath
from .builder import DataError, ReleaseBuilder, naming
from .schema import row

FRAME = 224  # both sides: images were squashed to 224 x 224
CENTRE_DURATION = 0.3  # seconds of the fixation that `with_centre` puts first; the release has no time for it
SPLITS = {"train": "train", "valid": "validation", "test": "test"}


def with_centre(scanpath: Scanpath) -> Scanpath:
    """The scanpath with the fixation at the image's centre in front, with which every GazeSearch trial began.

    The release leaves it out and its README adds it before scoring, so sequences of at most 6 become at most 7. Its
    duration is not recorded: `CENTRE_DURATION` stands in, and the other onsets move by it.
    """
    first = Scanpath.from_relative([0.5], [0.5], [CENTRE_DURATION]).to_array()
    rest = scanpath.to_array()
    rest[:, 2] += CENTRE_DURATION
    return Scanpath.from_array(np.concatenate([first, rest]), scanpath.image_size)


class GazeSearch(ReleaseBuilder):
    """GazeSearch (WACV 2025): scanpaths of at most 6 fixations, each for one finding; no images.

    `root` is the released JSON, or a folder that holds it. The split is the official one, and it shares images: most
    test and validation images stand in train too, with other findings.
    """

    homepage = "https://github.com/UARK-AICV/GazeSearch"
    licence = "MIT, Copyright (c) 2024 AICV@University of Arkansas"
    citation = (
        "@inproceedings{pham2025gazesearch, title={GazeSearch: Radiology Findings Search Benchmark}, author={Pham, "
        "Trong Thang and Nguyen, Tien-Phat and Ikebe, Yuki and Awasthi, Akash and Deng, Zhigang and Wu, Carol C and "
        "Nguyen, Hien and Le, Ngan}, booktitle={WACV}, year={2025}}"
    )

    def raw_files(self) -> list[Path]:
        files = [self.root] if self.root.is_file() else sorted(self.root.glob("*.json"))
        if len(files) != 1:
            raise DataError(f"{self.root}: expected one JSON of GazeSearch, found {len(files)}")
        return files

    def split_names(self) -> list[str]:
        present = {record["split"] for record in self._records}
        return [name for raw, name in SPLITS.items() if raw in present]

    def rows(self, split: str) -> Iterator[dict]:
        file = self.raw_files()[0]
        for number, record in enumerate(self._records):
            if SPLITS.get(record["split"]) != split:
                continue
            with naming(f"{file}: record {number}"):
                scanpath = Scanpath.from_pixels(record["X"], record["Y"], record["T"], image_size=(FRAME, FRAME))
                findings = to_findings(record["task"], "gazesearch")
                image_id = Path(record["name"]).stem
                if not len(scanpath):
                    raise ValueError("no fixation")
                if not scanpath.inside.all():
                    raise ValueError(f"fixation {scanpath.inside.argmin()} lies off the {FRAME} x {FRAME} image")
            yield row(
                image_id=image_id,
                findings=[{"name": name, "certainty": 1.0} for name in findings],
                prompt=record["task"],
                scanpath=scanpath.to_records(),
                split=split,
                source="gazesearch",
                licence=self.licence,
            )

    @cached_property
    def _records(self) -> list[dict]:
        file = self.raw_files()[0]
        try:
            records = json.loads(file.read_text())
        except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, or lists nested without end
            raise DataError(f"{file}: not valid JSON ({error})") from None
        wanted = {"name", "task", "X", "Y", "T", "split"}
        if not isinstance(records, list) or not records:
            raise DataError(f"{file}: not a list of scanpaths")
        for number, record in enumerate(records):
            if not isinstance(record, dict) or not wanted <= record.keys():
                raise DataError(
                    f"{file}: record {number} is not a GazeSearch scanpath (it needs {', '.join(sorted(wanted))})"
                )
            if record["split"] not in SPLITS:
                raise DataError(f"{file}: record {number}: split is {record['split']!r}, known: {', '.join(SPLITS)}")
        return records
