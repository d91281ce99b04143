"""NIH ChestX-ray14: frontal films, labels mined from reports, some boxes."""

import csv
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from ..findings import NO_FINDING, to_canonical
from .builder import DataError, ReleaseBuilder, naming
from .schema import row

NIH_LABELS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia",
    "Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax",
)  # fmt: skip
BOX_NAMES = {"Infiltrate": "Infiltration"}  # the box file's own spelling
SPLITS = ("train", "validation", "test")


class NihCxr(ReleaseBuilder):
    """NIH ChestX-ray14 (Wang et al., CVPR 2017).

    Labels of the NIH Clinical Center, boxes of NIH and of the RSNA challenge.

    Two layouts are read: the one published by the NIH Clinical Center (`Data_Entry_2017*.csv`, `BBox_List_2017.csv`,
    `train_val_list.txt`, `test_list.txt`, images in `images*/`), and a compact one: `manifest.csv` (image, patient,
    age, sex, view, labels, rsna_class, rsna_boxes, nih_boxes, split) with `images/` beside it.

    The published lists have no validation split: patients of `train_val_list.txt` whose number ends in 9 are it.
    Images of archives that are not unpacked are left out.
    """

    homepage = "https://nihcc.app.box.com/v/ChestXray-NIHCC"
    licence = "NIH Clinical Center: no restrictions on use; credit the NIH Clinical Center and cite Wang et al. 2017"
    citation = (
        "@inproceedings{wang2017chestxray8, title={ChestX-ray8: Hospital-scale Chest X-ray Database and Benchmarks on "
        "Weakly-Supervised Classification and Localization of Common Thorax Diseases}, author={Wang, Xiaosong and "
        "Peng, Yifan and Lu, Le and Lu, Zhiyong and Bagheri, Mohammadhadi and Summers, Ronald M}, "
        "booktitle={CVPR}, year={2017}}"
    )

    def raw_files(self) -> list[Path]:
        manifest = self.root / "manifest.csv"
        if manifest.exists():
            return [manifest]
        entries = sorted(self.root.glob("Data_Entry_2017*.csv"))
        if not entries:
            raise DataError(f"{self.root}: neither manifest.csv nor Data_Entry_2017*.csv is there")
        others = [self.root / name for name in ("train_val_list.txt", "test_list.txt", "BBox_List_2017.csv")]
        for file in others:
            if not file.exists():
                raise DataError(f"{file}: missing")
        return [entries[0], *others, *sorted({path.parent for path in self._images.values()})]

    @cached_property
    def _images(self) -> dict[str, Path]:
        """The published images that are there, by name."""
        return {path.name: path for path in self.root.glob("images*/**/*.png")}

    def split_names(self) -> list[str]:
        return list(dict.fromkeys(split for split, _ in self._entries))

    def rows(self, split: str) -> Iterator[dict]:
        for name, entry in self._entries:
            if name == split:
                yield entry

    @cached_property
    def _entries(self) -> list[tuple[str, dict]]:
        files = self.raw_files()
        entries = self._compact(files[0]) if files[0].name == "manifest.csv" else self._published(*files[:4])
        return sorted(entries, key=lambda entry: SPLITS.index(entry[0]))

    def _compact(self, manifest: Path) -> list[tuple[str, dict]]:
        entries = []
        for place, line in _lines(manifest):
            with naming(place):
                boxes = [_box(box, "Lung Opacity", "RSNA") for box in json.loads(line["rsna_boxes"])]
                boxes += [_box(box, box["label"], "NIH") for box in json.loads(line["nih_boxes"])]
                path, split = self.root / "images" / line["image"], line["split"]
                if split not in SPLITS:
                    raise ValueError(f"split is {split!r}, known: {', '.join(SPLITS)}")
                entries.append((split, self._row(path, line["patient"], line["view"], line["labels"], boxes, split)))
        return entries

    def _published(self, entries: Path, train_val: Path, test: Path, boxes: Path) -> list[tuple[str, dict]]:
        splits: dict[str, str] = {}
        for names, split in ((train_val, "train"), (test, "test")):
            with naming(names):
                splits |= dict.fromkeys(names.read_text().split(), split)
        by_image: dict[str, list[dict]] = {}
        for place, line in _lines(boxes):
            with naming(place):
                image, label, numbers = line["Image Index"], line["Finding Label"], [*line.values()][2:6]
                if image in self._images:
                    # in the released 1024 x 1024 images, whatever the original size was
                    sides = {key: float(number) / 1024 for key, number in zip("xywh", numbers, strict=True)}
                    by_image.setdefault(image, []).append(_box(sides, label, "NIH"))
        found = []
        for place, line in _lines(entries):
            with naming(place):
                image, patient = line["Image Index"], line["Patient ID"]
                if image not in self._images:
                    continue
                if image not in splits:
                    raise ValueError(f"{image} stands in neither list")
                split = splits[image]
                if int(patient) % 10 == 9 and split == "train":
                    split = "validation"
                path, annotated = self._images[image], by_image.get(image, [])
                entry = self._row(path, patient, line["View Position"], line["Finding Labels"], annotated, split)
                found.append((split, entry))
        if not found:
            raise DataError(f"{self.root}: no image of {entries.name} is in its images folders")
        return found

    def _row(self, path: Path, patient: str, view: str, labels: str, boxes: list[dict], split: str) -> dict:
        names = labels.split("|")
        unknown = set(names) - {*NIH_LABELS, NO_FINDING}
        if unknown:
            raise ValueError(f"unknown label {', '.join(sorted(unknown))}")
        if not path.exists():
            raise DataError(f"{path}: missing")
        return row(
            image=str(path),
            image_id=path.stem,
            patient_id=str(patient),
            view=view,
            findings=[
                {"name": to_canonical(name), "certainty": float(name in names)} for name in (*NIH_LABELS, NO_FINDING)
            ],
            boxes=boxes,
            split=split,
            source="nih_cxr",
            licence=self.licence,
        )


def _lines(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Place (for messages) and columns of each line of a CSV file."""
    with naming(file), file.open(newline="", encoding="utf-8-sig") as opened:
        reader = csv.DictReader(opened)
        for line in reader:
            yield f"{file}: line {reader.line_num}", line


def _box(box: dict, name: str, annotator: str) -> dict:
    corners = [box["x"], box["y"], box["x"] + box["w"], box["y"] + box["h"]]
    x1, y1, x2, y2 = (min(1.0, max(0.0, corner)) for corner in corners)
    if not (x1 < x2 and y1 < y2):
        raise ValueError(f"box {', '.join(f'{corner:g}' for corner in corners)} has no area in the image")
    return {"name": to_canonical(BOX_NAMES.get(name, name)), "box": [x1, y1, x2, y2], "annotator": annotator}
