import numpy as np
import pytest

pytest.importorskip("trl", reason='training needs trl: pip install "gaze2report[train]"')

from transformers import AutoProcessor

from gaze_vlm import GazeVLM
from gaze_vlm.training.sft_data import GazeVLMCollator, SftRows, predict_scanpaths

REPORT = {"findings": "Clear lungs.", "impression": "Normal.", "indication": "Cough.", "comparison": "None."}


def sft(rows, **options):
    return SftRows(rows, **({"tasks": {"report": 1}, "gaze": {"given": 1, "none": 1}} | options))


def said(sample) -> str:
    """The text of the request."""
    return sample["prompt"][0]["content"][-1]["text"]


def answer(sample) -> str:
    return sample["completion"][0]["content"][0]["text"]


@pytest.fixture
def vlm(tiny_bundle):
    return GazeVLM.from_pretrained(tiny_bundle / "gaze_vlm").eval()


@pytest.fixture
def vlm_processor(tiny_bundle):
    return AutoProcessor.from_pretrained(tiny_bundle / "gaze_vlm")


def test_a_row_becomes_a_conversation_with_its_film_and_gaze(make_rows, make_row):
    rows = make_rows(make_row(0, report=REPORT), make_row(1, fixations=2))
    sample = sft(rows, gaze={"given": 1}).draw(0)
    assert said(sample) == "Write the report of this chest X-ray."
    assert [part["type"] for part in sample["prompt"][0]["content"]] == ["image", "text"]
    assert answer(sample) == "Clear lungs. Normal."
    assert np.array_equal(np.asarray(sample["images"][0].convert("L")), np.asarray(rows[0]["image"].convert("L")))
    expected = np.stack([rows[0]["scanpath"][name] for name in ("x", "y", "onset", "duration")], axis=-1)
    np.testing.assert_allclose(sample["fixations"][0], expected, rtol=1e-6)
    assert answer(sft(rows, gaze={"given": 1}, sections=["impression"]).draw(0)) == "Normal."


def test_draws_depend_on_seed_epoch_and_place_only(make_rows):
    def drawn(**options):
        one = sft(make_rows(12), **options)
        one.set_epoch(options.get("epoch", 0))
        return [one.draw(place)["gaze"] for place in (5, 3, 0, 11, 7, 3)]

    def at(epoch, training=True):
        one = sft(make_rows(12), training=training)
        one.set_epoch(epoch)
        return [one.draw(place)["gaze"] for place in range(12)]

    assert drawn() == [at(0)[place] for place in (5, 3, 0, 11, 7, 3)]
    assert at(1) == at(1) != at(0)
    assert at(1, training=False) == at(0, training=False)
    assert drawn(seed=1) != drawn()


def test_tasks_are_seen_as_often_as_their_weights_say(make_rows, make_row):
    asked = [make_row(n, report=None, question=f"Question {n}?", answer="yes") for n in range(10)]
    rows = make_rows(*(make_row(n) for n in range(10, 14)), *asked)
    mixed = sft(rows, tasks={"report": 2, "vqa": 0.3})
    assert len(mixed) == 2 * 4 + 3
    seen = set()
    for epoch in range(12):
        mixed.set_epoch(epoch)
        texts = [said(mixed.draw(place)) for place in range(len(mixed))]
        assert texts.count("Write the report of this chest X-ray.") == 8
        questions = {text for text in texts if text.startswith("Question")}
        assert len(questions) == 3
        seen |= questions
    assert len(seen) == 10
    assert len(sft(rows, tasks={"report": 2, "vqa": 0.3}, training=False)) == 14
    assert answer(sft(rows, tasks={"vqa": 1}).draw(0)) == "yes"
    assert len(sft(rows, tasks={"report": 2, "vqa": 0.3}, training=False, max_items=3)) == 6


def test_sources_of_gaze_are_drawn_by_weight_among_those_offered(make_rows, make_row):
    rows = make_rows(*(make_row(n, scanpath=None) if n % 2 else make_row(n) for n in range(40)))
    predicted = [np.full((1, 4), n, np.float32) for n in range(40)]
    drawn = sft(rows, gaze={"given": 3, "predicted": 1}, predicted=predicted)
    counts = {}
    for epoch in range(10):
        drawn.set_epoch(epoch)
        for place in range(40):
            sample = drawn.draw(place)
            counts[place % 2, sample["gaze"]] = counts.get((place % 2, sample["gaze"]), 0) + 1
            if sample["gaze"] == "predicted":
                assert sample["fixations"][0][0, 0] == place
    assert counts[1, "predicted"] == 200 and (1, "given") not in counts
    assert 130 <= counts[0, "given"] <= 170
    only = sft(rows, gaze={"given": 1})
    assert [only.draw(place)["gaze"] for place in (0, 1)] == ["given", "none"]
    assert only.draw(1)["fixations"] == [None]


def test_shuffled_gaze_is_never_of_the_same_patient(make_rows, make_row):
    rows = make_rows(*(make_row(n, fixations=2 + n % 3, patient_id=f"p{n % 3}") for n in range(9)))
    shuffled = sft(rows, gaze={"shuffled": 1})
    for epoch in range(5):
        shuffled.set_epoch(epoch)
        for place in range(9):
            (path,) = shuffled.draw(place)["fixations"]
            assert len(path) != 2 + place % 3  # patients are told apart by how many fixations they have


def test_where_nothing_was_recorded_predicted_gaze_is_shuffled(make_rows, make_row):
    rows = make_rows(*(make_row(n, scanpath=None, patient_id=f"p{n // 2}") for n in range(6)))
    predicted = [np.full((1, 4), n, np.float32) for n in range(6)] + [np.zeros((0, 4), np.float32)] * 30
    rows = make_rows(*rows, *(make_row(n, scanpath=None, image=None) for n in range(30)))
    shuffled = sft(rows, gaze={"shuffled": 1}, predicted=predicted)
    for epoch in range(5):
        shuffled.set_epoch(epoch)
        for place in range(6):
            sample = shuffled.draw(place)
            assert sample["gaze"] == "shuffled" and len(sample["fixations"][0]) == 1
            assert sample["fixations"][0][0, 0] // 2 != place // 2


@pytest.mark.parametrize(
    ("gaze", "reason"),
    [("given", "no film comes with fixations"), ("predicted", "no scanpath predictor"), ("shuffled", "two patients")],
)
def test_gaze_that_nothing_offers_is_an_error(make_rows, make_row, gaze, reason):
    with pytest.raises(ValueError, match=f"'{gaze}': .*{reason}"):
        sft(make_rows(make_row(0, scanpath=None)), gaze={gaze: 1})


def test_a_task_that_no_row_has_is_an_error(make_rows):
    with pytest.raises(ValueError, match="task vqa"):
        sft(make_rows(2), tasks={"report": 1, "vqa": 1})


def test_a_broken_scanpath_names_its_row(make_rows, make_row):
    broken = {"x": [0.1], "y": [0.2], "onset": [0.0], "duration": [-1.0]}
    with pytest.raises(ValueError, match=r"row 1 \(image film-1\)"):
        sft(make_rows(make_row(0), make_row(1, scanpath=broken)))


def test_what_the_request_says(make_rows, make_row):
    rows = make_rows(make_row(0, report=REPORT))
    base = "Write the report of this chest X-ray."
    assert said(sft(rows, context={"indication": 1, "comparison": 1}).draw(0)) == (
        f"{base} Indication: Cough. Comparison: None."
    )
    assert said(sft(rows, context={"findings": 1}).draw(0)) == f"{base} Findings: cardiomegaly."
    assert said(sft(rows).draw(0)) == base
    some = sft(make_rows(*(make_row(n, report=REPORT) for n in range(60))), context={"indication": 0.5})
    told = ["Indication" in said(some.draw(place)) for place in range(60)]
    assert 15 <= sum(told) <= 45


def test_films_of_a_study_go_together_frontal_first(make_rows, make_row):
    rows = make_rows(
        make_row(0, study_id="s1", view="LATERAL", scanpath=None),
        make_row(1, study_id="s1", view="PA"),
        make_row(2, study_id="s2", view="AP"),
        make_row(3, study_id=None),
    )
    studies = sft(rows, views="study", gaze={"given": 1})
    assert len(studies) == 3
    first = studies.draw(0)
    for image, number in zip(first["images"], (1, 0), strict=True):
        assert image.tobytes() == rows[number]["image"].convert("RGB").tobytes()
    assert [path is None for path in first["fixations"]] == [False, True]
    assert [part["type"] for part in first["prompt"][0]["content"]] == ["image", "image", "text"]
    assert len(sft(rows, views="study", max_views=1).draw(0)["images"]) == 1
    assert len(sft(rows)) == 4


def test_a_film_of_several_readers_is_shown_once(make_rows, make_row):
    rows = make_rows(
        make_row(0, study_id="s1", view="PA", image_id="a", patient_id="p", scanpath=None),
        make_row(1, study_id="s1", view="PA", image_id="a", patient_id="p"),
        make_row(2, study_id="s1", view="LATERAL", image_id="b", patient_id="p", scanpath=None),
    )
    (item,) = sft(rows, views="study").items["report"]
    assert item.films == (1, 2)


def test_a_report_counts_once_and_with_given_gaze_once_a_reader(make_rows, make_row):
    report = make_row(0)["report"]
    film = {"image_id": "a", "patient_id": "p", "study_id": "s", "report": report}
    asked = [make_row(n, **film, scanpath=None, question=f"{n}?", answer="yes") for n in range(2, 6)]
    rows = make_rows(make_row(0, **film), make_row(1, **film), *asked, make_row(6, scanpath=None))
    tasks = {"report": 1, "vqa": 1}
    given, none = sft(rows, tasks=tasks, gaze={"given": 1, "none": 1}), sft(rows, tasks=tasks, gaze={"none": 1})
    assert [item.row for item in given.items["report"]] == [0, 1, 6]
    assert [item.row for item in none.items["report"]] == [0, 6]
    assert len(given.items["vqa"]) == len(none.items["vqa"]) == 4
    other = make_rows(make_row(0, **film), make_row(1, **film | {"report": make_row(5, report=REPORT)["report"]}))
    assert len(sft(other, gaze={"none": 1}).items["report"]) == len({str(report), str(REPORT)})


def test_labels_are_asked_once_of_a_film_of_several_readers(make_rows, make_row):
    findings = [{"name": "Pleural Effusion", "certainty": 1.0, "label": None, "grade": None}]
    film = {"image_id": "a", "patient_id": "p", "study_id": "s", "view": "PA", "findings": findings}
    rows = [make_row(number, **film) for number in range(3)]
    options = {"tasks": {"vqa": 1}, "gaze": {"none": 1}, "ask_labels": True}
    alone, read = (sft(make_rows(*rows[:count]), views="study", **options) for count in (1, 3))
    asked = [one.sample(place).messages[0] for one in (alone, read) for place in range(len(one))]
    assert len(alone) == len(read) == len(asked) / 2 > 0


def test_reports_without_films_stand_beside_films_of_other_patients(make_rows, make_row):
    findings = [{"name": "Pleural Effusion", "certainty": 1.0, "label": None, "grade": None}]
    films = make_rows(*(make_row(n, findings=findings) for n in range(8)), *(make_row(n) for n in range(8, 12)))
    report = {"findings": "There is a large right pleural effusion.", "impression": None, "indication": None}
    reports = make_rows(make_row(20, image=None, scanpath=None, report=report | {"comparison": None}))
    matched = sft(reports, films=films, gaze={"given": 1}, context={"findings": 1})
    shown = set()
    for epoch in range(12):
        matched.set_epoch(epoch)
        sample = matched.draw(0)
        pixels = np.asarray(sample["images"][0].convert("L"))
        (film,) = [n for n in range(12) if np.array_equal(pixels, np.asarray(films[n]["image"].convert("L")))]
        expected = np.asarray(films[film]["scanpath"]["x"], np.float32)
        np.testing.assert_allclose(sample["fixations"][0][:, 0], expected)  # gaze is the film's, not the report's
        shown.add(film)
    assert shown <= set(range(8)) and len(shown) > 2
    assert said(sample).endswith("Findings: pleural effusion.")
    with pytest.raises(ValueError, match="views must be image"):
        sft(reports, films=films, views="study")


def test_the_data_set_is_what_is_drawn(make_rows):
    drawn = sft(make_rows(4))
    rows = drawn.dataset()
    assert len(rows) == 4
    for place, row in enumerate(rows):
        sample = drawn.draw(place)
        assert row["prompt"] == sample["prompt"] and row["gaze"] == sample["gaze"]
        assert row["images"][0].tobytes() == sample["images"][0].tobytes()
    before = [row["gaze"] for row in rows]
    drawn.set_epoch(3)
    assert [row["gaze"] for row in rows] != before


def test_predicted_scanpaths_are_the_models(vlm, vlm_processor, make_rows, make_row):
    rows = make_rows(make_row(0), make_row(1, image=None), make_row(2))
    predicted = predict_scanpaths(vlm, vlm_processor.image_processor, rows, batch_size=2)
    assert len(predicted[1]) == 0
    for number in (0, 2):
        image = rows[number]["image"].convert("RGB")
        fixations, mask = vlm.predict_gaze(vlm_processor.image_processor(image, return_tensors="pt")["pixel_values"])
        np.testing.assert_allclose(predicted[number], fixations[0][mask[0]].numpy(), atol=1e-5)


# ---- batches


@pytest.fixture
def collator(vlm_processor):
    return GazeVLMCollator(vlm_processor, completion_only_loss=True)


def test_a_batch_has_gaze_image_by_image_and_labels_of_the_answer_only(make_rows, make_row, collator, vlm_processor):
    rows = make_rows(
        make_row(0, study_id="s1", view="LATERAL", scanpath=None),
        make_row(1, study_id="s1", view="PA", fixations=3),
        make_row(2, study_id="s2", fixations=1),
    )
    studies = sft(rows, views="study", gaze={"given": 1})
    samples = [studies.draw(0), studies.draw(1)]
    batch = collator([dict(sample) for sample in samples])
    assert batch["pixel_values"].shape[0] == 3
    assert batch["fixation_mask"].sum(1).tolist() == [3, 0, 1]
    np.testing.assert_allclose(batch["fixations"][0, :3].numpy(), samples[0]["fixations"][0])
    for ids, labels, sample in zip(batch["input_ids"], batch["labels"], samples, strict=True):
        learned = vlm_processor.tokenizer.decode(labels[labels != -100])
        assert learned == answer(sample) + "<|end|>"
        assert (ids == vlm_processor.image_token_id).sum() == 4 * len(sample["images"])


def test_each_image_needs_a_scanpath_or_none(make_rows, collator):
    sample = sft(make_rows(1)).draw(0)
    with pytest.raises(ValueError, match="sample 1: 1 images, 2 scanpaths"):
        collator([dict(sample), sample | {"fixations": [None, None]}])


def test_a_cut_that_loses_an_image_is_an_error(make_rows, vlm_processor):
    sample = sft(make_rows(1)).draw(0)
    short = GazeVLMCollator(vlm_processor, max_length=3, completion_only_loss=True)
    with pytest.raises(ValueError, match=r"sample 0: max_length=3 cuts its 1 images of 4 tokens each down to 2"):
        short([dict(sample)])
    whole = GazeVLMCollator(vlm_processor, completion_only_loss=True)([dict(sample)])["input_ids"]
    cut = GazeVLMCollator(vlm_processor, max_length=whole.shape[1] - 2, completion_only_loss=True)([dict(sample)])
    assert cut["input_ids"].tolist() == whole[:, :-2].tolist()


def test_a_cut_that_loses_an_answer_is_an_error(make_rows, vlm_processor):
    sample = sft(make_rows(1)).draw(0)
    batch = GazeVLMCollator(vlm_processor, completion_only_loss=True)([dict(sample)])
    before = int((batch["labels"][0] != -100).int().argmax())
    with pytest.raises(ValueError, match=rf"sample 0: max_length={before} leaves nothing of its answer"):
        GazeVLMCollator(vlm_processor, max_length=before, completion_only_loss=True)([dict(sample)])
    cut = GazeVLMCollator(vlm_processor, max_length=before + 1, completion_only_loss=True)([dict(sample)])
    assert (cut["labels"] != -100).sum() == 1


def test_tasks_are_scored_by_what_their_answers_mean(make_rows, make_row, vlm, vlm_processor, monkeypatch):
    from gaze_vlm.training import task_scores

    box = {"name": "Edema", "box": [0.1, 0.1, 0.5, 0.5], "shape": "box", "certainty": 1.0}
    asked = [
        make_row(n, boxes=[box | {"phrase": None, "annotator": None}], question=f"{n}?", answer="yes")
        for n in range(3)
    ]
    rows = sft(make_rows(*asked), tasks={"report": 1, "vqa": 1, "ground": 1}, training=False)
    truth = {answer(rows.draw(place)) for place in range(len(rows))}
    assert len(truth) == 5  # three reports, one answer, one box
    real = task_scores.task_scores(vlm, vlm_processor, rows, batch_size=4, max_new_tokens=4)
    assert {task: found["n"] for task, found in real.items()} == {"report": 3, "vqa": 3, "ground": 3}
    assert real["ground"]["score"] == 0
    assert real["ground"]["malformed"] == 1

    def right(model, processor, messages, images, fixations, **_):
        assert len(fixations) == sum(map(len, images))
        drawn = [rows.draw(place) for place in range(len(rows))]
        return [next(answer(one) for one in drawn if one["prompt"] == asked) for asked in messages]

    monkeypatch.setattr(task_scores, "generate_texts", right)
    scored = task_scores.task_scores(vlm, vlm_processor, rows, batch_size=4)
    assert {task: found["score"] for task, found in scored.items() if task != "report"} == {"vqa": 1, "ground": 1}
    assert all(found["malformed"] == 0 for found in scored.values())
