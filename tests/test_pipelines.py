"""The three models together, from Python: what the command line does not show."""

import json
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from gaze_vlm import ReadingPipeline, loading, pipelines, read_film
from gaze_vlm.chat_writer import ChatWriter
from gaze_vlm.loading import ModelError
from gaze_vlm.pipelines import grey_film
from gaze_vlm.report_composer import ComposedSentence, ReportComposer, choose_regions
from gaze_vlm.report_sentences import phrase
from gaze_vlm.scanpath import Scanpath


@pytest.fixture(scope="module")
def models(tiny_bundle) -> ReadingPipeline:
    return ReadingPipeline(tiny_bundle, batch_size=3)


@pytest.fixture
def films(film_file):
    return [read_film(film_file(f"{seed}.png", seed)) for seed in range(5)]


ADDED = ("fixations", "attention")


def judged(evidence) -> list[dict]:
    """The findings without what evidence adds."""
    return [{name: value for name, value in one.items() if name not in ADDED} for one in evidence.findings]


def test_readings_come_in_order_over_batches(models, films):
    readings = list(models.read(films))
    assert [reading.film for reading in readings] == films
    for film, reading in zip(films, readings, strict=True):
        assert reading.evidence.image["sha256"] == film.sha256
        assert reading.report == " ".join(sentence.text for sentence in reading.sentences)
        assert reading.report == reading.evidence.report
        assert reading.gaze == "predicted"
        assert reading.scanpath.image_size == film.size
        assert reading.findings == judged(reading.evidence)


def test_no_films_no_readings(models):
    assert list(models.read([])) == []
    assert models.classify([]) == []
    assert models.predict_scanpaths([]) == []


def test_given_and_predicted_gaze_in_one_batch(models, films):
    given = Scanpath.from_relative([0.1, 0.9], [0.5, 0.5], [0.2, 0.3])
    readings = list(models.read(films[:3], [None, given, None]))
    assert [reading.gaze for reading in readings] == ["predicted", "given", "predicted"]
    assert readings[1].scanpath is given
    assert json.loads(readings[1].evidence.to_json())["gaze"] == "given"


def test_an_empty_given_scanpath_is_not_given(models, films):
    (reading,) = models.read(films[:1], [Scanpath([], [], [], [])])
    assert reading.gaze == "predicted"
    assert len(reading.scanpath) > 0


@pytest.mark.parametrize("foreign", [{"Hernia": "Tuberculosis"}, "LABEL"])
def test_labels_that_we_do_not_know_stay_out_of_the_report(foreign, tiny_bundle, films):
    pipeline = ReadingPipeline(tiny_bundle)
    config = pipeline.classifier[0].config
    names = config.id2label.items()
    config.id2label = {i: f"LABEL_{i}" if foreign == "LABEL" else foreign.get(name, name) for i, name in names}
    for reading in pipeline.read(films):
        records = [record for record in reading.findings if record["name"] in ("Tuberculosis", "LABEL_0")]
        assert [record["regions"] for record in records] == [[]]
        assert "uberculosis" not in reading.report
        assert "LABEL" not in reading.report
        assert judged(reading.evidence) == reading.findings


def test_gaze_for_some_films_only_is_refused(models, films):
    with pytest.raises(ValueError, match="films: 5, scanpaths: 1; each film needs one"):
        next(models.read(films, [None]))


@pytest.fixture
def drafts(monkeypatch):
    """What the language model wrote, as it is before the findings have their say."""
    seen, reconcile = [], ReportComposer.reconcile

    def spy(self, report, findings):
        seen.append(report)
        return reconcile(self, report, findings)

    monkeypatch.setattr(ReportComposer, "reconcile", spy)
    return seen


def test_a_film_s_draft_does_not_depend_on_its_batch(models, films, drafts, monkeypatch):
    """Neither the greedy one nor one that is drawn because the greedy one disagrees with the findings."""
    monkeypatch.setattr(pipelines, "_disagreement", lambda report, known: 0)
    list(models.read(films))
    greedy = drafts.copy()
    drafts.clear()
    # every draft disagrees, some less than others
    monkeypatch.setattr(pipelines, "_disagreement", lambda report, known: 1 + zlib.crc32(report.encode()))
    list(models.read(films))
    together = drafts.copy()
    assert together != greedy
    drafts.clear()
    for number, film in enumerate(films[::-1]):
        torch.manual_seed(number)  # nor on what was drawn before
        list(models.read([film]))
    assert drafts[::-1] == together


def test_a_draft_that_agrees_is_kept_and_none_is_drawn(models, films, monkeypatch):
    asked = []
    generate = ReadingPipeline._generate
    monkeypatch.setattr(
        ReadingPipeline,
        "_generate",
        lambda self, *arguments, sample=False: asked.append(sample) or generate(self, *arguments, sample=sample),
    )
    monkeypatch.setattr(pipelines, "_disagreement", lambda report, known: 0)
    list(models.read(films[:2]))
    assert asked == [False]
    monkeypatch.setattr(pipelines, "_disagreement", lambda report, known: 1)
    list(models.read(films[:2]))
    assert asked[1:] == [False, True, True]


def test_reading_leaves_the_random_state_alone(models, films, monkeypatch):
    monkeypatch.setattr(pipelines, "_disagreement", lambda report, known: 1)
    torch.manual_seed(5)
    list(models.read(films[:1]))
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), after)


def test_drawing_on_the_cpu_does_not_touch_a_gpu(models, films, monkeypatch):
    def touched(*arguments):
        raise AssertionError("a GPU was seeded")

    for name in ("manual_seed", "manual_seed_all"):
        monkeypatch.setattr(torch.cuda, name, touched)
    monkeypatch.setattr(pipelines, "_disagreement", lambda report, known: 1)
    assert list(models.read(films[:1]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_drawing_on_a_gpu_leaves_its_random_state_alone(tiny_bundle, films, monkeypatch):
    monkeypatch.setattr(pipelines, "_disagreement", lambda report, known: 1)
    before = torch.cuda.get_rng_state()
    assert list(ReadingPipeline(tiny_bundle, device="cuda").read(films[:1]))
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_gaze_changes_what_the_language_model_sees(models, films):
    model, processor = models.vlm
    pixels = models._pixels(processor, films[:1])
    left, right = (torch.tensor([[[x, 0.5, 0.0, 1.0]]]) for x in (0.1, 0.9))
    mask = torch.ones(1, 1, dtype=torch.bool)
    with torch.no_grad():
        tokens = [model.get_image_features(pixels, path, mask) for path in (left, right)]
    assert not torch.allclose(*tokens)


def test_a_checkpoint_without_a_predictor_reads_without_gaze(tiny_bundle, films, tmp_path):
    import shutil

    from gaze_vlm import GazeVLM, GazeVLMConfig

    folder = shutil.copytree(tiny_bundle, tmp_path / "copy")
    config = GazeVLMConfig.from_pretrained(folder / "gaze_vlm").to_dict() | {"scanpath_config": None, "gaze": "none"}
    model = GazeVLM(GazeVLMConfig(**config))
    model.generation_config = GazeVLM.from_pretrained(folder / "gaze_vlm").generation_config
    (folder / "gaze_vlm" / "model.safetensors").unlink()
    model.save_pretrained(folder / "gaze_vlm")
    given = Scanpath.from_relative([0.5], [0.5], [0.2])
    readings = list(ReadingPipeline(folder).read(films[:2], [None, given]))
    assert [reading.gaze for reading in readings] == ["none", "given"]
    assert len(readings[0].scanpath) == 0
    assert readings[1].scanpath is given


def test_the_name_of_the_model_is_kept(tiny_bundle, models, films):
    assert models.name == tiny_bundle.name, "and not where it lies"
    assert str(tiny_bundle.parent) not in next(models.read(films[:1])).evidence.to_json()
    assert ReadingPipeline("owner/name").name == "owner/name"


def test_the_default_is_called_nano(tiny_bundle, monkeypatch):
    monkeypatch.setattr(loading, "NANO", tiny_bundle)
    assert ReadingPipeline().name == "nano"


BAD_NAMES = ["nowhere", "a/b/c", "two words/model", "https://example.org/model", "./model", "../model", "here/model"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_what_can_be_no_model_is_refused_at_once(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(ModelError, match="no such folder, and no name of a Hub repository"):
        ReadingPipeline(name)


def test_models_are_loaded_when_they_are_needed(tiny_bundle, films, tmp_path):
    import shutil

    folder = shutil.copytree(tiny_bundle / "gaze_classifier", tmp_path / "only" / "gaze_classifier").parent
    only = ReadingPipeline(folder)
    assert len(only.classify(films)) == len(films)
    with pytest.raises(ModelError, match="scanpath_predictor"):
        only.predict_scanpaths(films)


def test_a_grey_film_is_even_and_has_no_name_of_a_file():
    film = grey_film(64)
    assert film.size == (64, 64)
    assert np.ptp(film.pixels) == 0
    assert isinstance(film.to_pil(), Image.Image)


# ---- attention and composed reports


def test_attention_is_the_model_s_and_chooses_the_regions(models, films):
    model, processor = models.classifier
    with torch.no_grad():
        outputs = model(pixel_values=models._pixels(processor, films))
    attended = models.attend(films)
    assert [findings for findings, _ in attended] == models.classify(films)
    several = set()
    for number, (findings, maps) in enumerate(attended):
        assert list(maps) == [finding["name"] for finding in findings]
        for label, finding in enumerate(findings):
            attention = maps[finding["name"]]
            assert attention.shape == outputs.attention.shape[-2:]
            assert attention.sum() == pytest.approx(1, abs=1e-4)
            shared = 0 if outputs.attention.shape[1] == 1 else label
            np.testing.assert_allclose(attention, outputs.attention[number, shared].numpy(), atol=1e-5)
            if finding["name"] != "No Finding":
                assert finding["regions"] == choose_regions(finding["name"], attention)
            several.add((finding["name"], str(finding["regions"])))
    assert len(several) > len(findings), "films differ in it"


def test_composed_readings_are_readings(models, films):
    given = Scanpath.from_relative([0.1, 0.9], [0.5, 0.5], [0.2, 0.3])
    gaze = [None, given, None, None, None]
    for reading, known in zip(models.compose(films, gaze, "template"), models.read(films, gaze), strict=True):
        assert (reading.film, reading.findings, reading.gaze) == (known.film, known.findings, known.gaze)
        assert reading.scanpath == known.scanpath
        assert reading.sentences == ReportComposer().compose(reading.findings)
        assert reading.report == " ".join(sentence.text for sentence in reading.sentences)
        sources = [sentence.source for sentence in reading.evidence.sentences]
        assert sources == ["template"] * len(reading.sentences)
    with pytest.raises(ValueError, match="films: 5, scanpaths: 1; each film needs one"):
        next(models.compose(films, [None]))
    assert list(models.compose([])) == []


def test_a_random_language_model_leaves_the_templates(models, films):
    composed, plain = (list(models.compose(films, writer=writer)) for writer in ("model", "template"))
    assert [reading.sentences for reading in composed] == [reading.sentences for reading in plain]


def test_sentences_of_the_evidence_are_those_of_the_report(models, films, monkeypatch):
    # to the labeler "p.a." ends no sentence
    report = [ComposedSentence("A film p.a.", source="model"), ComposedSentence("The lungs are clear.")]
    monkeypatch.setattr(ReportComposer, "reconcile", lambda *_: report)
    (reading,) = models.read(films[:1])
    assert [(one.text, one.source) for one in reading.evidence.sentences] == [(one.text, one.source) for one in report]


def test_any_writer_composes(models, films):
    asked = []

    def writer(keywords):
        asked.append(keywords)
        return [phrase(keyword, (keyword.finding,)) for keyword in keywords]

    readings = list(models.compose(films, writer=writer))
    expected = [ReportComposer().keywords(reading.findings) for reading in readings]
    assert asked == [keywords for keywords in expected if keywords]
    for reading, keywords in zip(readings, expected, strict=True):
        written = sorted(s.finding for s in reading.sentences if s.source == "model")
        assert written == sorted(keyword.finding for keyword in keywords)
        assert reading.evidence.model["name"] == models.name
    assert any(s.source == "model" for reading in readings for s in reading.evidence.sentences)


def test_the_evidence_names_the_chat_model(models, films):
    (reading,) = models.compose(films[:1], writer=ChatWriter(lambda messages: "", name="chat"))
    assert reading.evidence.model["name"] == f"{models.name}, chat"


@pytest.mark.parametrize("writer", ["models", "", None, 3])
def test_what_is_no_writer_is_refused_at_once(models, films, writer):
    with pytest.raises(ValueError, match='writer must be "model", "template" or a callable'):
        models.compose(films, writer=writer)


def test_the_language_model_writes_about_each_finding_alone(models, films, monkeypatch):
    """A greedy draft; where it does not pass, drafts that are drawn, whose first sentence that passes is taken."""
    calls = []

    def generate(self, pixels, scanpaths, known, sample=False):
        calls.append((len(pixels), known, sample))
        assert len(pixels) == len(scanpaths) == len(known) <= self.batch_size + 1
        (said, *_) = zip(*known, strict=True)
        if not sample:
            return [f"The {name.lower()} is large. There is {name.lower()}." for name in said]
        return ["Nothing.", f"There is {said[0].lower()} present.", "Nothing at all.", "There is no finding."]

    monkeypatch.setattr(ReadingPipeline, "_generate", generate)
    readings = list(models.compose(films))
    keywords = [keyword for reading in readings for keyword in ReportComposer().keywords(reading.findings)]
    greedy = [names for _, known, sample in calls if not sample for names in known]
    assert greedy == [[pipelines.canonical(keyword.finding)] for keyword in keywords]
    passed = {"Cardiomegaly", "Pleural Effusion", "Lung Opacity", "Lung Lesion", "Emphysema"}
    for reading in readings:
        said = {sentence.finding: sentence for sentence in reading.sentences if sentence.finding}
        for keyword in ReportComposer().keywords(reading.findings):
            words, sentence = pipelines.canonical(keyword.finding), said[keyword.finding]
            if words in passed:
                assert (sentence.text, sentence.source) == (f"There is {words.lower()}.", "model")
            else:
                assert sentence.source == "template", "a hernia is not hiatal yet"
    assert any(keyword.finding in passed for keyword in keywords)
    drawn = [known for count, known, sample in calls if sample]
    assert all(len(known) == 4 and {names[0] for names in known} == {known[0][0]} for known in drawn)
    assert {known[0][0] for known in drawn} == {"Hernia"} & {k.finding for k in keywords}


def test_a_film_s_composed_report_does_not_depend_on_its_batch(models, films, monkeypatch):
    drafts = []
    monkeypatch.setattr(pipelines, "written_for", lambda keyword, draft, findings: drafts.append(draft))
    list(models.compose(films))
    together = set(drafts)
    drafts.clear()
    for film in films[::-1]:
        list(models.compose([film]))
    assert set(drafts) == together
    assert len(together) > 5


# ---- gaze and text


REPORT = "The heart is large. No effusion.\n\nThere is an opacity on the left."


def test_gaze_follows_a_report_sentence_by_sentence(models, films):
    followed = list(models.follow_report(films[:2], REPORT))
    assert len(followed) == 2
    for film, (scanpath, spoken) in zip(films, followed, strict=False):
        assert [one["text"] for one in spoken] == [
            "The heart is large.",
            "No effusion.",
            "There is an opacity on the left.",
        ]
        assert spoken[0]["start"] == 0
        assert [one["start"] for one in spoken[1:]] == [one["end"] for one in spoken[:-1]]
        assert scanpath.image_size == film.size
        assert spoken[-1]["end"] == pytest.approx(float(scanpath.duration.sum()), abs=1e-4)
        for number, one in enumerate(spoken):
            (alone,) = models.predict_scanpaths([film], one["text"])[0]
            part = scanpath.between(one["start"] + 1e-3, one["end"] - 1e-3)
            first = int(number > 0 and len(alone) > 1)  # the centre is where the reading begins, not each sentence
            np.testing.assert_allclose(part.x, alone.x[first:], atol=1e-4)
            np.testing.assert_allclose(part.duration.sum(), alone.duration[first:].sum(), atol=5e-3)


@pytest.mark.parametrize("report", ["", "  \n", "..."])
def test_a_report_without_a_sentence_cannot_be_followed(models, films, report):
    with pytest.raises(ValueError, match="no sentence"):
        list(models.follow_report(films[:1], report))


def test_text_beyond_the_language_model_is_an_error(models, films):
    with pytest.raises(ValueError, match=r"row 0: .* text tokens; the language model has room for"):
        models.predict_scanpaths(films[:1], "opacity " * 300)
    with pytest.raises(ValueError, match=r"row 1: .* text tokens"):
        list(models.follow_report(films[:1], "No effusion. " + "opacity " * 300 + "."))


def test_a_text_is_read_once_for_all_films(films):
    models = ReadingPipeline(batch_size=2)
    calls = []
    models.scanpath_predictor[0].language_model.base_model.register_forward_hook(lambda *_: calls.append(1))
    together = models.predict_scanpaths(films, "cardiomegaly")
    assert calls == [1]
    (alone,) = models.predict_scanpaths(films[3:4], "cardiomegaly")
    np.testing.assert_allclose(together[3][0].to_array(), alone[0].to_array(), atol=1e-5)
    models.predict_scanpaths(films)
    assert calls == [1, 1]
