"""`pipeline("scanpath-prediction")` and `pipeline("gaze-report")` of transformers."""

import subprocess
import sys

import pytest
import torch
from PIL import Image
from transformers import pipeline

import gaze_vlm  # noqa: F401
from gaze_vlm import Scanpath, read_film
from gaze_vlm.tasks import report_messages

GAZE = {"x": [0.25, 0.75], "y": [0.5, 0.5], "onset": [0.0, 0.5], "duration": [0.5, 0.25]}


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    for number in range(3):
        pixels = torch.randint(0, 256, (90, 70), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    return [str(folder / f"{number}.png") for number in range(3)]


@pytest.fixture(scope="module")
def predict(tiny_bundle):
    return pipeline("scanpath-prediction", model=str(tiny_bundle / "scanpath_predictor"))


@pytest.fixture(scope="module")
def report(tiny_bundle):
    return pipeline("gaze-report", model=str(tiny_bundle / "gaze_vlm"), max_new_tokens=8)


def close(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        torch.allclose(torch.tensor(one[name]), torch.tensor(other[name]), atol=1e-5) for name in one
    )


@pytest.mark.parametrize("batch_size", [1, 2])
def test_scanpaths_do_not_depend_on_the_batch(predict, films, batch_size):
    items = [{"image": films[0], "text": "effusion"}, films[1], {"image": films[2], "text": "a mass on the left"}]
    alone = [predict(item)["scanpaths"] for item in items]
    together = predict(items, batch_size=batch_size)
    assert [len(one["scanpaths"]) for one in together] == [1, 1, 1]
    assert all(close(one["scanpaths"][0], path[0]) for one, path in zip(together, alone, strict=True))
    assert not close(predict(films[0], text="effusion")["scanpaths"][0], predict(films[0])["scanpaths"][0])


def test_samples_follow_the_seed(predict, films):
    one, again, other = (predict(films[0], num_samples=3, seed=seed)["scanpaths"] for seed in (1, 1, 2))
    assert len(one) == 3
    assert one == again
    assert one != other
    [drawn, _] = predict(films[:2], num_samples=3, seed=1, batch_size=2)
    assert all(close(a, b) for a, b in zip(drawn["scanpaths"], one, strict=True))


@pytest.mark.parametrize("kind", ["path", "Film", "PIL"])
def test_films_come_as_paths_films_or_images(predict, films, kind):
    made = {"path": str, "Film": read_film, "PIL": lambda path: Image.open(path).convert("L")}[kind]
    assert close(predict(made(films[0]))["scanpaths"][0], predict(films[0])["scanpaths"][0])


def test_a_report_says_what_gaze_went_into_it(report, films):
    predicted = report(films[0])
    assert predicted["gaze"] == "predicted"
    expected = report.model.predict_gaze(report.preprocess(films[0])["pixel_values"])[0][0]
    assert torch.allclose(torch.tensor(predicted["scanpath"]["x"]), expected[: len(predicted["scanpath"]["x"]), 0])
    for gaze in (GAZE, Scanpath.from_records(GAZE), Scanpath.from_records(GAZE).to_array()):
        given = report(films[0], gaze=gaze)
        assert (given["gaze"], given["scanpath"]) == ("given", GAZE)
    report.model.config.gaze = "none"
    try:
        none = report(films[0])
    finally:
        report.model.config.gaze = "predicted"
    assert (none["gaze"], none["scanpath"]) == ("none", None)


def test_reports_of_a_batch_are_those_of_single_films(report, films):
    items = [films[0], {"image": films[1], "gaze": GAZE, "findings": ["Cardiomegaly"]}, films[2]]
    together = list(report((item for item in items), batch_size=2))
    assert together == [report(item) for item in items]
    assert [one["gaze"] for one in together] == ["predicted", "given", "predicted"]


def test_image_text_to_text_works_with_a_gaze_vlm(tiny_bundle, films):
    write = pipeline("image-text-to-text", model=str(tiny_bundle / "gaze_vlm"))
    messages = report_messages()
    messages[0]["content"][0]["image"] = films[0]
    [said] = write(text=messages, max_new_tokens=4)
    assert said["generated_text"][-1]["role"] == "assistant"


@pytest.mark.parametrize(
    ("item", "error", "message"),
    [
        ("missing.png", ValueError, "missing.png"),
        (7, TypeError, "a film must be a path, a PIL image or a Film, got int"),
        ({"text": "effusion"}, ValueError, "an item must have an image"),
        ({"image": "missing.png", "gaze": 1}, ValueError, "of image, text at most; got image, gaze"),
    ],
)
def test_what_is_no_film_is_refused(predict, item, error, message):
    with pytest.raises(error, match=message):
        predict(item)


def test_the_pipelines_wait_until_transformers_has_its_own():
    code = """
import sys, gaze_vlm
assert "transformers.pipelines" not in sys.modules
import gaze_vlm.task_pipelines
from transformers.pipelines import PIPELINE_REGISTRY
assert PIPELINE_REGISTRY.check_task("gaze-report")[1]["impl"] is gaze_vlm.task_pipelines.GazeReportPipeline
assert {"gaze-report", "scanpath-prediction"} <= set(PIPELINE_REGISTRY.get_supported_tasks())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
