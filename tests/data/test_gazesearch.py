"""GazeSearch's one JSON."""

import json

import numpy as np
import pytest

from gaze_vlm.data.gazesearch import CENTRE_DURATION, with_centre
from gaze_vlm.scanpath import Scanpath


def test_rows(tmp_path, make, load_release):
    dataset = load_release("gazesearch", make.gazesearch(tmp_path / "gazesearch"))
    assert dataset.num_rows == {"train": 1, "validation": 1, "test": 1}
    (item,) = dataset["train"]
    assert item["image_id"] == "570e2641-afb84e9f-3dc49429-7cdd3e3f-4f5d1514"
    assert item["prompt"] == "pleural effusion"
    assert item["findings"] == [{"name": "Pleural Effusion", "certainty": 1.0}]
    assert item["scanpath"]["x"] == pytest.approx([56 / 224, 0.5, 223 / 224])
    assert item["scanpath"]["y"] == pytest.approx([0.0, 0.75, 0.125])
    assert item["scanpath"]["duration"] == pytest.approx([0.25, 0.5, 0.0])
    assert item["scanpath"]["onset"] == pytest.approx([0.0, 0.25, 0.75])
    assert [finding["name"] for finding in dataset["test"][0]["findings"]] == ["Support Devices"]


def test_the_file_itself_is_a_root(tmp_path, make, load_release):
    (file,) = make.gazesearch(tmp_path / "gazesearch").glob("*.json")
    assert load_release("gazesearch", file).num_rows == {"train": 1, "validation": 1, "test": 1}


def test_two_json_files_are_one_too_many(tmp_path, make, refused):
    root = make.gazesearch(tmp_path / "gazesearch")
    (root / "another.json").write_text("[]")
    refused("gazesearch", root, root, "expected one JSON", "found 2")


@pytest.mark.parametrize(
    "text",
    ['[{"name": ', "", "\x00\x01", "[" * 100_000, '"text"', "5", "{}", "[[]]", "[]", "null"],
    ids=["cut", "empty", "binary", "nested", "string", "number", "object", "lists", "nothing in it", "null"],
)
def test_a_broken_json_is_named(text, tmp_path, refused):
    file = tmp_path / "gaze.json"
    file.write_text(text)
    refused("gazesearch", file, file)


def test_bytes_that_are_no_text_are_named(tmp_path, refused):
    file = tmp_path / "gaze.json"
    file.write_bytes(b"\xff\xfe\x00")
    refused("gazesearch", file, file, "not valid JSON")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "broken heart"}, ["record 1", "broken heart"]),
        ({"task": None}, ["record 1"]),
        ({"name": None}, ["record 1"]),
        ({"X": [1, 2]}, ["record 1", "one length"]),
        ({"X": [1, "left", 2]}, ["record 1", "not a number"]),
        ({"X": None}, ["record 1"]),
        ({"T": [0.1, -0.2, 0.3]}, ["record 1", "fixation 1", "below zero"]),
        ({"T": [0.1, float("nan"), 0.3]}, ["record 1", "fixation 1", "nan"]),
        ({"X": [1, 2, 500]}, ["record 1", "fixation 2"]),
        ({"X": [], "Y": [], "T": []}, ["record 1", "no fixation"]),
        ({"split": "holdout"}, ["record 1", "holdout"]),
        ({"split": None}, ["record 1"]),
    ],
)
def test_a_faulty_record_is_named_by_file_and_number(changes, words, tmp_path, make, refused):
    root = make.gazesearch(tmp_path / "gaze", [make.gazesearch_record(), make.gazesearch_record(**changes)])
    (file,) = root.glob("*.json")
    refused("gazesearch", root, file, *words)


def test_a_record_without_a_key_names_what_is_needed(tmp_path, make, refused):
    record = make.gazesearch_record()
    del record["T"]
    root = make.gazesearch(tmp_path / "gaze", [record])
    (file,) = root.glob("*.json")
    refused("gazesearch", root, file, "record 0", "it needs T, X, Y, name, split, task")


def test_one_record_that_stands_alone_is_no_release(tmp_path, make, refused):
    file = tmp_path / "gaze.json"
    file.write_text(json.dumps(make.gazesearch_record()))
    refused("gazesearch", file, file, "list")


def test_with_centre_puts_the_centre_in_front_and_moves_the_rest():
    path = Scanpath.from_pixels([0, 224], [112, 56], [0.2, 0.4], image_size=(224, 224))
    moved = with_centre(path)
    assert moved.image_size == (224, 224)
    np.testing.assert_allclose(
        moved.to_array(),
        [
            [0.5, 0.5, 0.0, CENTRE_DURATION],
            [0.0, 0.5, CENTRE_DURATION, 0.2],
            [1.0, 0.25, CENTRE_DURATION + 0.2, 0.4],
        ],
        atol=1e-6,
    )
    assert len(path) == 2, "the scanpath itself stays"


def test_with_centre_of_nothing_is_the_centre():
    moved = with_centre(Scanpath([], [], [], []))
    np.testing.assert_allclose(moved.to_array(), [[0.5, 0.5, 0.0, CENTRE_DURATION]], atol=1e-6)
