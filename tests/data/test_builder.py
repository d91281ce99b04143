"""What holds for every release: the schema, the splits, the cache, the refusals."""

import importlib
import io
import linecache
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from datasets import Features

from gaze_vlm.data import BUILDERS, DataError, load
from gaze_vlm.data.schema import SCHEMA, row
from gaze_vlm.findings import FINDINGS, FINER_FINDINGS
from gaze_vlm.scanpath import Scanpath


def rows_of(dataset, *without: str):
    for split, rows in dataset.items():
        for item in rows.remove_columns(list(without)):
            yield split, item


def test_rows_obey_the_schema(release, load_release):
    name, root = release
    dataset = load_release(name, root)
    for split, rows in dataset.items():
        assert isinstance(rows.features, Features)
        assert rows.features == SCHEMA
        assert len(rows) > 0, split
    for split, item in rows_of(dataset):
        assert item["split"] == split
        assert item["source"] == name
        assert item["licence"]
        assert split in ("train", "validation", "test")


def test_values_are_in_their_units_and_vocabulary(release, load_release):
    for _, item in rows_of(load_release(*release)):
        for finding in item["findings"] or []:
            assert finding["name"] in (*FINDINGS, *FINER_FINDINGS)
            assert finding["certainty"] in (0.0, 1.0)
        for box in item["boxes"] or []:
            x1, y1, x2, y2 = box["box"]
            assert 0 <= x1 < x2 <= 1
            assert 0 <= y1 < y2 <= 1
            assert box["name"] in (*FINDINGS, *FINER_FINDINGS)
            assert box["annotator"]
        if item["scanpath"] is not None:
            scanpath = Scanpath.from_records(item["scanpath"])
            assert len(scanpath) > 0
            assert scanpath.inside.all()


def test_what_a_release_does_not_know_is_none(release, load_release):
    name, root = release
    known = {
        "nih_cxr": {"image", "image_id", "patient_id", "view", "findings", "boxes"},
        "gazesearch": {"image_id", "findings", "prompt", "scanpath"},
        "iu_xray": {"study_id", "report"},
    }[name]
    for _, item in rows_of(load_release(name, root)):
        for column, value in item.items():
            if column in known | {"split", "source", "licence"}:
                assert value is not None, column
            else:
                assert value is None, column


def test_no_patient_image_or_study_is_in_two_splits(release, load_release):
    name, root = release
    homes: dict[str, set[str]] = {}
    column = {"nih_cxr": "patient_id", "iu_xray": "study_id", "gazesearch": None}[name]
    if column is None:
        pytest.skip("the official split of GazeSearch shares images, its docstring says so")
    for split, item in rows_of(load_release(name, root), *(c for c in ("image",) if name == "nih_cxr")):
        homes.setdefault(item[column], set()).add(split)
    assert len({split for splits in homes.values() for split in splits}) > 1
    assert all(len(splits) == 1 for splits in homes.values())


def test_an_unchanged_release_is_not_built_again(release, tmp_path, monkeypatch):
    name, root = release
    first = load(name, root, tmp_path / "cache")

    def build_again(self, split):
        raise AssertionError("built again")

    monkeypatch.setattr(BUILDERS[name], "rows", build_again)
    again = load(name, root, tmp_path / "cache")
    assert {split: len(rows) for split, rows in again.items()} == {split: len(rows) for split, rows in first.items()}


def changed_raw_file(name: str, root: Path) -> None:
    """One more row in a raw file, and a time later than any clock's resolution."""
    if name == "nih_cxr" and (root / "manifest.csv").exists():
        file = root / "manifest.csv"
        lines = file.read_text().splitlines()
        file.write_text("\n".join([*lines, lines[2]]) + "\n")
    elif name == "nih_cxr":
        file = root / "Data_Entry_2017_v2020.csv"
        lines = file.read_text().splitlines()
        file.write_text("\n".join([*lines, lines[1]]) + "\n")
    elif name == "gazesearch":
        file = next(root.glob("*.json"))
        text = file.read_text()
        file.write_text(text[:-1] + ", " + text[1:])
    elif (root / "ecgen-radiology").exists():
        file = root / "ecgen-radiology" / "21.xml"
        file.write_text((root / "ecgen-radiology" / "1.xml").read_text().replace("CXR1", "CXR21"))
    else:
        file = next(root.glob("*.tgz"))
        with tarfile.open(file) as archive:
            texts = {member.name: archive.extractfile(member).read() for member in archive}
        texts["ecgen-radiology/21.xml"] = texts["ecgen-radiology/1.xml"].replace(b"CXR1", b"CXR21")
        with tarfile.open(file, "w:gz") as archive:
            for path, text in texts.items():
                member = tarfile.TarInfo(path)
                member.size = len(text)
                archive.addfile(member, io.BytesIO(text))


def test_a_changed_raw_file_is_built_again(release, load_release):
    name, root = release
    before = sum(map(len, load_release(name, root).values()))
    changed_raw_file(name, root)
    assert sum(map(len, load_release(name, root).values())) > before


def test_a_raw_file_of_the_same_size_and_another_time_is_built_again(tmp_path, load_release, make):
    root = make.gazesearch(tmp_path / "release")
    file = next(root.glob("*.json"))
    assert load_release("gazesearch", root)["train"][0]["prompt"] == "pleural effusion"
    text = file.read_text()
    file.write_text(text.replace("pleural effusion", "pleural other   "))
    assert len(text) == file.stat().st_size
    os.utime(file, ns=(1, 1))
    assert load_release("gazesearch", root)["train"][0]["prompt"].strip() == "pleural other"


BUILDER = """
from gaze_vlm.data import ReleaseBuilder
from gaze_vlm.data.schema import row

def view_of(file):
    return "PA"

class Views(ReleaseBuilder):
    def raw_files(self):
        return [self.root]

    def split_names(self):
        return ["train"]

    def rows(self, split):
        yield row(view=view_of(self.root))
"""


def test_changed_code_of_a_builder_is_built_again(tmp_path, monkeypatch):
    """A helper beside the class is the builder's code too."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "raw.txt").write_text("raw")
    views = []
    for name, code in (("views", BUILDER), ("views", BUILDER.replace('"PA"', '"lateral"'))):
        (tmp_path / f"{name}.py").write_text(code)
        sys.modules.pop(name, None)
        importlib.invalidate_caches()
        linecache.clearcache()
        builder = importlib.import_module(name).Views(tmp_path / "raw.txt", cache_dir=tmp_path / "cache")
        builder.download_and_prepare()
        views += builder.as_dataset(split="train")["view"]
    assert views == ["PA", "lateral"]


def test_load_names_the_releases_it_knows(tmp_path):
    with pytest.raises(DataError, match="unknown data set 'mimic'; known: gazesearch, iu_xray, nih_cxr"):
        load("mimic", tmp_path)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_missing_root_is_named(name, tmp_path, refused):
    refused(name, tmp_path / "nowhere", tmp_path / "nowhere", "no such file or folder")


@pytest.mark.parametrize("name", BUILDERS)
def test_a_wrong_root_is_named(name, tmp_path, refused):
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "holiday.txt").write_text("sea")
    refused(name, tmp_path / "wrong", tmp_path / "wrong")


def test_the_user_s_home_is_understood(tmp_path, monkeypatch, make):
    make.gazesearch(tmp_path / "release")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load("gazesearch", "~/release", tmp_path / "cache").num_rows == {"train": 1, "validation": 1, "test": 1}


def test_a_row_has_the_columns_of_the_schema_and_no_other():
    assert row(view="PA") == dict.fromkeys(SCHEMA) | {"view": "PA"}
    with pytest.raises(KeyError, match="the schema has no column age, sex"):
        row(view="PA", sex="F", age=3)


def test_without_datasets_the_import_says_how_to_get_it():
    code = "import sys; sys.modules['datasets'] = None; import gaze_vlm.data"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 1
    assert 'gaze_vlm.data needs the package datasets: pip install "gaze2report[train]"' in ran.stderr
