"""What the training data sets make of rows: texts, fixations, films, and draws that anybody can repeat."""

import json
import logging
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("datasets", reason='needs datasets: pip install "gaze2report[train]"')

from gaze_vlm.data import DataError, GazeSearch
from gaze_vlm.data.export import export
from gaze_vlm.data.matching import present_findings, report_findings
from gaze_vlm.pipelines import grey_film as film_of_text_alone
from gaze_vlm.training.rows import join_report, load_rows, rows_of, with_reports
from gaze_vlm.training.scanpath_data import (
    MatchedReportRows,
    ReportRows,
    ScanpathCollator,
    ScanpathRows,
    eight_bit,
    grey_film,
    parse_texts,
    text_room,
)

WORDS = [
    ("heart", 0.0, 0.4), ("big", 0.4, 0.9), (".", 0.9, 1.0),
    ("lungs", 10.0, 10.4), ("clear", 10.4, 11.0), (".", 11.0, 11.1),
    ("done", 30.0, 30.5), (".", 30.5, 30.6),
]  # fmt: skip
TRANSCRIPT = [dict(zip(("text", "start", "end"), word, strict=True)) for word in WORDS]
# one fixation in the first sentence, two in the second (one before it is spoken, one during), none in the third
SPOKEN = {"x": [0.1, 0.2, 0.3], "y": [0.1, 0.2, 0.3], "onset": [0.2, 6.0, 10.5], "duration": [0.3, 0.5, 0.2]}
ALWAYS = ("report", "finding", "phrase", "none")


@pytest.fixture
def items(make_rows, processor, make_config):
    def make(*rows, text=None, seed=0, **changes):
        return ScanpathRows(make_rows(*rows), processor, make_config(**changes), text=text or {"none": 1}, seed=seed)

    return make


def box(phrase):
    return {"name": "Mass", "box": [0, 0, 1, 1], "shape": "box", "certainty": 1.0, "phrase": phrase, "annotator": None}


def finding(name, certainty=1.0):
    return {"name": name, "certainty": certainty, "label": None, "grade": None}


# ---- texts


def test_each_condition_gives_its_text(items, make_row):
    found = [finding("Pleural Effusion"), finding("Edema", 0.2), finding("No Finding")]
    row = make_row(findings=found, boxes=[box("a mass"), box(None)], transcript=TRANSCRIPT, scanpath=SPOKEN)
    expected = {
        "report": {"Clear lungs. Case 0."},
        "finding": {"pleural effusion"},
        "phrase": {"a mass"},
        "sentence": {"heart big.", "lungs clear."},
        "none": {""},
    }
    for condition, texts in expected.items():
        made = items(row, text={condition: 1})
        assert {made.draw(number).text for number in range(len(made))} == texts
        assert {made.draw(number).condition for number in range(len(made))} == {condition}


def test_the_prompt_is_the_finding_where_there_is_one(items, make_row):
    assert items(make_row(prompt="lung lesion"), text={"finding": 1}).draw(0).text == "lung lesion"


def test_tokens_are_those_of_the_text(items, make_row, processor):
    item = items(make_row(), text={"report": 1})[0]
    assert processor.tokenizer.decode(item["input_ids"]) == "Clear lungs. Case 0."
    assert items(make_row())[0]["input_ids"] == []


def test_a_row_is_one_item_a_sentence_with_the_fixations_of_it(items, make_row, caplog):
    caplog.set_level(logging.INFO, "gaze_vlm")
    made = items(make_row(transcript=TRANSCRIPT, scanpath=SPOKEN), text={"sentence": 1}, start_at_center=False)
    onsets = {made.draw(number).text: made.draw(number).scanpath.onset.tolist() for number in range(len(made))}
    assert onsets == {"heart big.": pytest.approx([0.2]), "lungs clear.": pytest.approx([6.0, 10.5])}
    assert [reading.sentence for reading in made.readings] == [0, 1]
    assert "1 sentences left out, for no fixation belongs to them" in caplog.messages


def test_other_texts_of_a_sentences_item_go_with_the_whole_scanpath(items, make_row):
    row = make_row(transcript=TRANSCRIPT, scanpath=SPOKEN)
    made = items(row, text={"sentence": 1, "report": 1}, start_at_center=False)
    assert len(made) == 2
    seen = set()
    for epoch in range(20):
        made.set_epoch(epoch)
        drawn = made.draw(1)
        seen.add((drawn.condition, len(drawn.scanpath)))
    assert seen == {("sentence", 2), ("report", 3)}


def test_what_a_row_does_not_offer_is_not_drawn(items, make_row):
    rows = [make_row(0, report=None), make_row(1, findings=None), make_row(2, boxes=[box("a mass")])]
    made = items(*rows, text=dict.fromkeys(("report", "finding", "phrase"), 1))
    drawn = [set() for _ in rows]
    for epoch in range(40):
        made.set_epoch(epoch)
        for number, known in enumerate(drawn):
            known.add(made.draw(number).condition)
    assert drawn == [{"finding"}, {"report"}, {"report", "finding", "phrase"}]


def test_conditions_come_as_often_as_their_weights_say(items, make_row):
    made = items(make_row(), text={"report": 3, "finding": 1, "phrase": 5, "none": 0})
    counts = Counter()
    for epoch in range(2000):
        made.set_epoch(epoch)
        counts[made.draw(0).condition] += 1
    assert counts.keys() == {"report", "finding"}
    assert counts["report"] / 2000 == pytest.approx(0.75, abs=0.04)  # four standard deviations


def test_a_row_without_any_of_the_texts_is_named(items, make_row):
    rows = make_row(0, prompt="edema"), make_row(7, findings=None)
    with pytest.raises(ValueError, match=r"row 1 \(image film-7\) offers none of the texts asked for: finding"):
        items(*rows, text={"finding": 1})


@pytest.mark.parametrize(
    ("text", "expected"),
    [("report", {"report": 1}), ("report:2, none:0.5", {"report": 2, "none": 0.5}), ("none:1,phrase:0", {"none": 1})],
)
def test_weights_are_read(text, expected):
    assert parse_texts(text) == expected


@pytest.mark.parametrize("text", ["", "reports:1", "report:x", "report:-1", "report:nan", "report:inf", "none:0"])
def test_wrong_weights_are_refused(text):
    with pytest.raises(ValueError, match=r"text|weight"):
        parse_texts(text)


# ---- length of texts


def test_the_longest_text_that_fits_is_taken_and_the_next_refused(items, make_row, make_model, processor):
    model = make_model()
    room = text_room(model.config)
    assert room == model.config.text_config.max_position_embeddings - model.config.num_query_tokens

    def of(tokens):
        text = "The heart " * tokens
        text = processor.tokenizer.decode(processor.tokenizer(text)["input_ids"][:tokens])
        assert len(processor.tokenizer(text)["input_ids"]) == tokens
        return make_row(5, prompt=text)

    batch = ScanpathCollator(0)([items(of(room), text={"finding": 1})[0]])
    assert torch.isfinite(model(**batch).loss)
    with pytest.raises(ValueError, match=rf"row 0 \(image film-5\): text of {room + 1} tokens.* room for {room}"):
        items(of(room + 1), text={"finding": 1})


def test_every_text_that_could_be_drawn_is_measured(items, make_row):
    with pytest.raises(ValueError, match="row 0"):
        items(make_row(boxes=[box("a mass"), box("The heart is " * 99)]), text={"none": 1, "phrase": 0.01})


def test_text_max_length_cuts(items, make_row):
    row = make_row(prompt="The heart is normal in size. " * 99)
    assert len(items(row, text={"finding": 1}, text_max_length=5)[0]["input_ids"]) == 5


# ---- fixations


@pytest.mark.parametrize("source", ["gazesearch", "reflacx"])
@pytest.mark.parametrize("start_at_center", [True, False])
def test_the_centre_is_in_front_of_whoevers_scanpath_where_the_model_starts_there(
    source, start_at_center, items, make_row
):
    row = make_row(source=source)
    fixations = items(row, start_at_center=start_at_center)[0]["fixations"]
    recorded = np.stack([row["scanpath"][name] for name in ("x", "y", "onset", "duration")], axis=1)
    if start_at_center:
        assert fixations[0].tolist() == pytest.approx([0.5, 0.5, 0, 0.3])
        recorded[:, 2] += 0.3
        fixations = fixations[1:]
    np.testing.assert_allclose(fixations, recorded, atol=1e-6)


def test_the_centre_is_in_front_of_a_sentences_scanpath_too(items, make_row):
    made = items(make_row(transcript=TRANSCRIPT, scanpath=SPOKEN), text={"sentence": 1, "report": 0})
    x = [made.draw(number).scanpath.x.tolist() for number in range(len(made))]
    assert x == [pytest.approx([0.5, 0.1]), pytest.approx([0.5, 0.2, 0.3])]


def test_no_recorded_place_is_lost_to_the_one_that_is_given(items, make_row, make_model):
    """Where the first fixation is recorded changes the loss, of whatever release it is."""
    model = make_model().eval()
    losses = []
    for x in (0.1, 0.9):
        path = {"x": [x, 0.5], "y": [0.5, 0.5], "onset": [0.0, 1.0], "duration": [0.3, 0.3]}
        with torch.no_grad():
            losses.append(model(**ScanpathCollator(0)([items(make_row(source="reflacx", scanpath=path))[0]])).loss)
    assert not torch.isclose(*losses)


def test_long_scanpaths_are_cut_and_counted_in_one_line(items, make_row, caplog):
    caplog.set_level(logging.INFO, "gaze_vlm")
    rows = [make_row(0, 6), make_row(1, 7), make_row(2, 30)]
    made = items(*rows, max_fixations=6, start_at_center=False)
    assert [len(made[number]["fixations"]) for number in range(3)] == [6, 6, 6]
    np.testing.assert_allclose(made[2]["fixations"][:, 0], rows[2]["scanpath"]["x"][:6])
    assert [line for line in caplog.messages if "cut" in line] == [
        "2 scanpaths of more than 6 fixations cut to as many"
    ]
    made = items(*rows, max_fixations=6)
    assert [len(made[number]["fixations"]) for number in range(3)] == [6, 6, 6], "the centre among them"


def test_fixations_off_the_film_are_left_out_and_counted(items, make_row, caplog):
    caplog.set_level(logging.INFO, "gaze_vlm")
    path = {"x": [0.2, 1.4, 0.6], "y": [0.2, 0.5, -0.1], "onset": [0, 1, 2], "duration": [0.5, 0.5, 0.5]}
    made = items(make_row(scanpath=path), start_at_center=False)
    assert made[0]["fixations"].tolist() == [pytest.approx([0.2, 0.2, 0, 0.5])]
    assert "2 fixations off the film left out" in caplog.messages


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (None, "has no fixation$"),
        ({"x": [], "y": [], "onset": [], "duration": []}, "has no fixation$"),
        ({"x": [1.5], "y": [0.5], "onset": [0], "duration": [1]}, "has no fixation on the film"),
        ({"x": [0.5], "y": [0.5], "onset": [0], "duration": [-1]}, "duration is -1 s"),
    ],
)
def test_a_row_that_cannot_be_learned_from_is_named(path, said, items, make_row):
    with pytest.raises(ValueError, match=rf"^row 1 \(image film-9\):? .*{said}"):
        items(make_row(0), make_row(9, scanpath=path))


# ---- films


def test_a_row_without_an_image_gets_the_film_of_text_alone(items, make_row, processor):
    made = items(make_row(image=None))
    expected = processor.image_processor(film_of_text_alone().to_pil(), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(made[0]["pixel_values"], expected)
    assert not torch.equal(made[0]["pixel_values"], items(make_row())[0]["pixel_values"])
    assert grey_film().getextrema() == film_of_text_alone().to_pil().getextrema()


def test_images_are_read_when_they_are_asked_for(items, make_row, tmp_path):
    file = tmp_path / "film.png"
    Image.new("L", (8, 8), 50).save(file)
    made = items(make_row(image=str(file)))
    assert made[0]["pixel_values"].shape == (3, 64, 64)
    file.unlink()
    with pytest.raises(FileNotFoundError):
        made[0]


@pytest.mark.parametrize("low", [0, 30000])
def test_sixteen_bit_films_keep_their_shades(low, tmp_path):
    values = (low + 400 * np.arange(64)).astype(np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "film.png")
    with Image.open(tmp_path / "film.png") as image:
        shown = np.asarray(eight_bit(image))
    assert shown.shape == (8, 8, 3)
    np.testing.assert_allclose(shown[..., 0].ravel(), np.linspace(0, 255, 64), atol=0.51)


def test_an_even_sixteen_bit_film_is_no_division_by_zero():
    assert np.asarray(eight_bit(Image.fromarray(np.full((4, 4), 700, np.uint16)))).max() == 0


# ---- draws


def drawn(data):
    return [(one.condition, one.text, len(one.scanpath)) for one in map(data.draw, range(len(data)))]


def test_draws_depend_on_seed_epoch_and_item_only(items, make_row):
    rows = [make_row(number, boxes=[box("a"), box("b")]) for number in range(12)]
    text = dict.fromkeys(ALWAYS, 1)
    first, other = items(*rows, text=text), items(*rows, text=text)
    backwards = [(one.condition, one.text) for one in map(other.draw, reversed(range(12)))][::-1]
    assert backwards == [known[:2] for known in drawn(first)]
    start = drawn(first)
    first.set_epoch(1)
    assert drawn(first) != start
    first.set_epoch(0)
    assert drawn(first) == start
    assert drawn(items(*rows, text=text, seed=1)) != start


def test_workers_draw_the_same_and_hear_of_a_new_epoch(items, make_row):
    made = items(*[make_row(number) for number in range(8)], text={"report": 1, "none": 1})
    loader = torch.utils.data.DataLoader(
        made, batch_size=2, num_workers=2, persistent_workers=True, collate_fn=lambda batch: [
            item["input_ids"] for item in batch
        ],
    )  # fmt: skip
    seen = []
    for epoch in range(3):
        made.set_epoch(epoch)
        seen.append([ids for batch in loader for ids in batch])
        assert seen[-1] == [made[number]["input_ids"] for number in range(8)]
    assert seen[0] != seen[1]


# ---- batches


def test_batches_are_padded_on_the_right(items, make_row, processor):
    made = items(make_row(0, 2, prompt="The heart"), make_row(1, 4, prompt="The heart is normal"), text={"finding": 1})
    pad = processor.tokenizer.pad_token_id
    batch = ScanpathCollator(pad)([made[0], made[1]])
    short, long = (len(made[number]["input_ids"]) for number in (0, 1))
    assert batch["input_ids"].shape == (2, long)
    assert batch["input_ids"][0].tolist() == made[0]["input_ids"] + [pad] * (long - short)
    assert batch["attention_mask"].sum(1).tolist() == [short, long]
    assert batch["fixation_mask"].tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert torch.equal(batch["fixations"][0, :3], made[0]["fixations"])
    assert "labels" not in batch


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(0, 399), max_size=9), st.integers(1, 7)), min_size=1, max_size=5))
def test_a_batch_holds_its_items_whole(sizes):
    """Token ids that equal the padding's among them."""
    items = [
        {"pixel_values": torch.zeros(3, 2, 2), "input_ids": ids, "fixations": torch.rand(count, 4)}
        for ids, count in sizes
    ]
    batch = ScanpathCollator(0)(items)
    for number, item in enumerate(items):
        assert batch["input_ids"][number][batch["attention_mask"][number].bool()].tolist() == item["input_ids"]
        assert torch.equal(batch["fixations"][number][batch["fixation_mask"][number]], item["fixations"])
    for mask in (batch["attention_mask"], batch["fixation_mask"].long()):
        assert mask.shape[1] >= 1 and (mask.diff(dim=1) <= 0).all(), "padding stands on the right"


def test_a_batch_loses_what_its_items_lose(items, make_row, make_model):
    """Items without text among them, and none but those."""
    model = make_model().eval()
    made = items(make_row(0, 2), make_row(1, 5, report=None), make_row(2, 3), text={"report": 1, "none": 0.01})
    collate = ScanpathCollator(0)
    with torch.no_grad():
        alone = torch.stack([model(**collate([made[number]])).loss for number in range(3)])
        together = model(**collate([made[number] for number in range(3)])).loss
        without = collate([made[1]])
        plain = model(without["pixel_values"], fixations=without["fixations"]).loss
    torch.testing.assert_close(together, alone.mean())
    torch.testing.assert_close(alone[1], plain)


# ---- reports


def test_reports_are_their_own_labels(make_rows, processor, make_config):
    made = ReportRows(make_rows(3), processor, make_config())
    batch = ScanpathCollator(processor.tokenizer.pad_token_id)([made[number] for number in range(3)])
    assert torch.equal(batch["labels"] != -100, batch["attention_mask"].bool())
    real = batch["labels"] != -100
    assert torch.equal(batch["labels"][real], batch["input_ids"][real])
    assert "fixations" not in batch
    assert processor.tokenizer.decode(made[2]["input_ids"]) == "Clear lungs. Case 2."


def test_a_report_is_findings_and_impression():
    assert join_report({"findings": " a \n b", "impression": None}) == "a b"
    assert join_report({"findings": "a", "impression": "b."}) == "a b."
    assert join_report(None) == join_report({"findings": None, "impression": " "}) == ""


@pytest.mark.parametrize("filtered", [False, True])
def test_rows_without_image_or_report_are_left_out_and_counted(filtered, make_rows, make_row, caplog):
    caplog.set_level(logging.INFO, "gaze_vlm")
    nothing = dict.fromkeys(("findings", "impression", "indication", "comparison"))
    rows = make_rows(make_row(0), make_row(1, image=None), make_row(2, report=None), make_row(3, report=nothing),
                     make_row(4))  # fmt: skip
    kept = with_reports(rows.select([4, 3, 2, 1, 0]) if filtered else rows)
    assert sorted(kept["image_id"]) == ["film-0", "film-4"]
    assert "3 of 5 rows left out: no image, or no report" in caplog.messages


def test_a_row_without_report_is_named(make_rows, make_row, processor, make_config):
    with pytest.raises(ValueError, match=r"row 1 \(image film-4\) has no report"):
        ReportRows(make_rows(make_row(0), make_row(4, report=None)), processor, make_config())


REPORTS = (
    "The heart is markly enlarged today. There is cardiomegaly in this patient.",
    "There is a small left pleural effusion here.",
    "There is a large right pneumothorax here.",  # of which no film is labelled
    "Normal.",  # too short
)


@pytest.fixture
def matched(make_rows, make_row, processor, make_config):
    names = ["Cardiomegaly", "Pleural Effusion"] * 3
    films = make_rows(*(make_row(i, findings=[finding(name)], report=None) for i, name in enumerate(names)))
    sections = ({"findings": text, "impression": None, "indication": None, "comparison": None} for text in REPORTS)
    reports = make_rows(*(make_row(i, image=None, report=report) for i, report in enumerate(sections)))
    return MatchedReportRows(films, reports, processor, make_config())


def test_matched_films_show_a_finding_of_the_report(matched):
    assert len(matched) == 2
    seen = [set(), set()]
    for epoch in range(30):
        matched.set_epoch(epoch)
        for item, films in enumerate(seen):
            films.add(matched.film(item))
    assert seen == [{0, 2, 4}, {1, 3, 5}], "all films of the finding, anew in each epoch, and no others"
    matched.set_epoch(3)
    assert torch.equal(matched[1]["pixel_values"], matched.pixel_values(matched.film(1)))


def test_matched_reports_say_that_they_are_not_paired(caplog, request):
    caplog.set_level(logging.INFO, "gaze_vlm")
    matched = request.getfixturevalue("matched")
    assert any("2 of 4 reports beside 6 films" in line and "NOT paired" in line for line in caplog.messages)
    for text, found in zip(matched.texts, matched.findings, strict=True):
        assert found and found <= report_findings(text)
        assert "today" not in text, "what one film cannot show is left out"


def test_a_film_whose_findings_nobody_judged_is_named(make_rows, make_row, processor, make_config):
    films = make_rows(make_row(0), make_row(6, findings=None))
    with pytest.raises(ValueError, match=r"film 1 \(image film-6\)"):
        MatchedReportRows(films, make_rows(1), processor, make_config())


# ---- rows of releases


def record(number, task="edema", split="train"):
    return {"name": f"{number}.jpg", "task": task, "X": [10, 200], "Y": [20, 100], "T": [0.2, 0.3], "split": split}


@pytest.fixture
def gazesearch(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    root = tmp_path / "gaze: search"  # a colon that is no configuration
    root.mkdir()
    records = [record(number, split=split) for number, split in enumerate(["train", "train", "valid", "test"])]
    (root / "finding_visual_search.json").write_text(json.dumps(records))
    return root


def test_releases_are_read_and_put_together(gazesearch):
    one = load_rows([f"gazesearch={gazesearch}"])
    two = load_rows([f"gazesearch={gazesearch}", f"gazesearch={gazesearch}:official"])
    assert {split: len(rows) for split, rows in one.items()} == {"train": 2, "validation": 1, "test": 1}
    assert two["train"]["image_id"] == one["train"]["image_id"][:] * 2
    disjoint = load_rows([f"gazesearch={gazesearch}:image-disjoint"])
    assert sum(map(len, disjoint.values())) == 4


def test_an_export_gives_the_rows_of_its_release(gazesearch, tmp_path):
    export(GazeSearch(gazesearch, cache_dir=tmp_path / "cache"), tmp_path / "out")
    exported, read = load_rows([str(tmp_path / "out")]), load_rows([f"gazesearch={gazesearch}"])
    assert {split: rows.to_list() for split, rows in exported.items()} == {
        split: rows.to_list() for split, rows in read.items()
    }
    assert len(load_rows([str(tmp_path / "out"), f"gazesearch={gazesearch}"])["train"]) == 4


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("gaze_search={root}", "unknown data set 'gaze_search'"),
        ("gazesearch={root}/nowhere", "no such file or folder"),
        ("gazesearch={root}:other", "unknown configuration 'other'"),
        ("{root}", "neither NAME=DIR nor a folder that gaze-vlm data wrote"),
    ],
)
def test_a_source_that_is_none_is_named(source, said, gazesearch):
    with pytest.raises(DataError, match=said):
        load_rows([source.format(root=gazesearch)])


@pytest.fixture
def two_exports(tmp_path, make_rows, make_row):
    """Folders as `gaze-vlm data` writes them: `two_exports({split: ids}, {split: ids})`, ids as (patient, image)."""
    from gaze_vlm.data.export import RECORD

    def make(*known):
        folders = []
        for name, splits in zip("ab", known, strict=True):
            folder = tmp_path / name
            (folder / "data").mkdir(parents=True)
            (folder / RECORD).write_text("{}")
            for split, ids in splits.items():
                rows = [make_row(patient_id=one, image_id=image, split=split, source=name) for one, image in ids]
                make_rows(*rows).to_parquet(folder / f"data/{split}-00000-of-00001.parquet")
            folders.append(str(folder))
        return folders

    return make


def homes(rows):
    return {split: sorted(zip(part["source"], part["image_id"], strict=True)) for split, part in rows.items()}


LEAKING = (
    {"train": [("p", "1"), ("q", "2"), ("q", "3")], "test": [("r", "4")]},
    {"train": [("s", "5"), ("r", "6")], "validation": [("q", "7")], "test": [("p", "8")]},
)


def test_a_patient_in_two_splits_of_two_releases_is_refused(two_exports):
    first, second = two_exports(*LEAKING)
    said = rf"^3 patients .*: p in train of {first} and in test of {second}; one_split"
    with pytest.raises(DataError, match=said):
        load_rows([first, second])
    assert len(load_rows([first])["train"]) == 3 and len(load_rows([second])["train"]) == 2


def test_one_split_keeps_patients_where_they_are_most_held_out(two_exports, caplog):
    caplog.set_level(logging.INFO, "gaze_vlm")
    rows = load_rows(two_exports(*LEAKING), one_split=True)
    assert homes(rows) == {
        "train": [("b", "5")],
        "validation": [("a", "2"), ("a", "3"), ("b", "7")],
        "test": [("a", "1"), ("a", "4"), ("b", "6"), ("b", "8")],
    }
    for split, part in rows.items():
        assert set(part["split"]) == {split}
        assert part[0]["image"].size == (16, 20), "films go with their rows"
    assert "4 rows of 3 patients moved to the most held-out split they stand in" in caplog.messages


def test_an_image_whose_patient_one_release_does_not_tell_is_still_the_same_one(two_exports):
    """GazeSearch names images only; REFLACX tells whose they are."""
    known = {"train": [(None, "x"), (None, "y")]}, {"train": [("q", "z")], "test": [("p", "x"), ("p", "w")]}
    folders = two_exports(*known)
    with pytest.raises(DataError, match=r"^1 patients .*: p in train of"):
        load_rows(folders)
    assert homes(load_rows(folders, one_split=True))["train"] == [("a", "y"), ("b", "z")]


def test_releases_that_share_no_patient_or_split_alike_are_taken(two_exports):
    known = (
        {"train": [("p", "1"), (None, None)], "test": [("q", "2")]},
        {"train": [("p", "1")], "test": [(None, None)]},
    )
    assert {split: len(part) for split, part in load_rows(two_exports(*known)).items()} == {"train": 3, "test": 2}


def test_what_one_release_shares_between_its_own_splits_is_its_builders_to_tell(two_exports):
    folders = two_exports({"train": [("p", "1")], "test": [("p", "1")]}, {"train": [("q", "2")]})
    assert len(load_rows(folders)["train"]) == 2
    assert homes(load_rows(folders, one_split=True)) == {"train": [("b", "2")], "test": [("a", "1"), ("a", "1")]}


def test_readers_are_chosen(make_rows):
    rows = make_rows(5)
    assert rows_of(rows, ["b"])["image_id"][:] == ["film-1", "film-3"]
    assert len(rows_of(rows, ["a", "b"])) == 5
    assert len(rows_of(rows, ["made"], "source")) == 5
    with pytest.raises(ValueError, match=r"no row is of reader 'c'; known: a, b$"):
        rows_of(rows, ["a", "c"])


def test_findings_of_films_are_those_of_the_labels(make_row):
    """The matcher's view of a film, on which `MatchedReportRows` rests."""
    assert present_findings(make_row()) == {"Cardiomegaly"}
