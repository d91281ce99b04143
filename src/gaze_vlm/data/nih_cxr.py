"""NIH ChestX-ray14: frontal films, labels mined from reports, some boxes."""

import csv
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from ..findings import NO_FINDING, to_canonical
from .builder import DataError, ReleaseBuilder
from .schema import row

NIH_LABELS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia",
    "Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax",
)  # fmt: skip
BOX_NAMES = {"Infiltrate": "Infiltration"}  # the box file's own spelling


class NihCxr(ReleaseBuilder):
    """NIH ChestX-ray14 (Wang et al., CVPR 2017), labels of the NIH Clinical Center, boxes of NIH and of the RSNA challenge.

    Two layouts are read: the one published by the NIH Clinical Center (`Data_Entry_2017*.csv`, `BBox_List_2017.csv`,
    `train_val_list.txt`, `test_list.txt`, images in `images*/`), and a compact one: `manifest.csv` (image, patient, age,
    sex, view, labels, rsna_class, rsna_boxes, nih_boxes, split) with `images/` beside it.

    The published lists have no validation split: patients of `train_val_list.txt` whose number ends in 9 are it.
    """

    homepage = "https://nihcc.app.box.com/v/ChestXray-NIHCC"
    licence = "NIH Clinical Center: no restrictions on use; credit the NIH Clinical Center and cite Wang et al. 2017"
    citation = (
        "@inproceedings{wang2017chestxray8, title={ChestX-ray8: Hospital-scale Chest X-ray Database and Benchmarks on "
        "Weakly-Supervised Classification and Localization of Common Thorax Diseases}, author={Wang, Xiaosong and Peng, "
        "Yifan and Lu, Le and Lu, Zhiyong and Bagheri, Mohammadhadi and Summers, Ronald M}, booktitle={CVPR}, year={2017}}"
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
        return [entries[0], *others]

    def split_names(self) -> list[str]:
        return list(dict.fromkeys(split for split, _ in self._entries))

    def rows(self, split: str) -> Iterator[dict]:
        for name, entry in self._entries:
            if name == split:
                yield entry

    @cached_property
    def _entries(self) -> list[tuple[str, dict]]:
        files = self.raw_files()
        entries = self._compact(files[0]) if files[0].name == "manifest.csv" else self._published(*files)
        return sorted(entries, key=lambda entry: ("train", "validation", "test").index(entry[0]))

    def _compact(self, manifest: Path) -> list[tuple[str, dict]]:
        entries = []
        with manifest.open(newline="") as file:
            for line in csv.DictReader(file):
                boxes = [_box(box, "Lung Opacity", "RSNA") for box in json.loads(line["rsna_boxes"])]
                boxes += [_box(box, box["label"], "NIH") for box in json.loads(line["nih_boxes"])]
                path = self.root / "images" / line["image"]
                entry = self._row(path, line["patient"], line["view"], line["labels"].split("|"), boxes, line["split"])
                entries.append((line["split"], entry))
        return entries

    def _published(self, entries: Path, train_val: Path, test: Path, boxes: Path) -> list[tuple[str, dict]]:
        splits = dict.fromkeys(train_val.read_text().split(), "train") | dict.fromkeys(test.read_text().split(), "test")
        paths = {path.name: path for path in self.root.glob("images*/**/*.png")}
        with entries.open(newline="") as file:
            lines = [line for line in csv.DictReader(file) if line["Image Index"] in paths]
        if not lines:
            raise DataError(f"{self.root}: no image of {entries.name} is in its images folders")
        sizes = {
            line["Image Index"]: (int(line["OriginalImage[Width"]), int(line["Height]"])) for line in lines
        }
        by_image: dict[str, list[dict]] = {}
        with boxes.open(newline="") as file:
            for image, label, x, y, w, h in (line[:6] for line in csv.reader(file) if line[0] in sizes):
                side = 1024  # boxes are in the released 1024 x 1024 images, whatever the original size was
                relative = {key: float(value) / side for key, value in zip("xywh", (x, y, w, h), strict=True)}
                by_image.setdefault(image, []).append(_box(relative, label, "NIH"))
        found = []
        for line in lines:
            image = line["Image Index"]
            split = splits.get(image)
            if split is None:
                raise DataError(f"{entries}: {image} stands in neither list")
            if split == "train" and int(line["Patient ID"]) % 10 == 9:
                split = "validation"
            labels = line["Finding Labels"].split("|")
            entry = self._row(
                paths[image], line["Patient ID"], line["View Position"], labels, by_image.get(image, []), split
            )
            found.append((split, entry))
        return found

    def _row(self, path: Path, patient: str, view: str, labels: list[str], boxes: list[dict], split: str) -> dict:
        unknown = set(labels) - {*NIH_LABELS, NO_FINDING}
        if unknown:
            raise DataError(f"{path.name}: unknown label {', '.join(sorted(unknown))}")
        if not path.exists():
            raise DataError(f"{path}: missing")
        return row(
            image=str(path),
            image_id=path.stem,
            patient_id=str(patient),
            view=view,
            findings=[
                {"name": to_canonical(name), "certainty": float(name in labels)} for name in (*NIH_LABELS, NO_FINDING)
            ],
            boxes=boxes,
            split=split,
            source="nih_cxr",
            licence=self.licence,
        )


def _box(box: dict, name: str, annotator: str) -> dict:
    corners = [box["x"], box["y"], box["x"] + box["w"], box["y"] + box["h"]]
    return {"name": to_canonical(BOX_NAMES.get(name, name)), "box": [min(1.0, max(0.0, c)) for c in corners], "annotator": annotator}
