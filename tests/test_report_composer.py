import itertools
import json
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaze_vlm.findings import FINDING_REGIONS, FINDINGS, FINER_FINDINGS, NO_FINDING, REGIONS
from gaze_vlm.labeler import label
from gaze_vlm.report_composer import ComposedSentence, Keyword, ReportComposer, choose_regions, text

NAMES = tuple(name for name in (*FINDINGS, *FINER_FINDINGS) if name != NO_FINDING)
RIGHT_BASE, LEFT_BASE = (0.12, 0.5, 0.45, 0.8), (0.55, 0.5, 0.88, 0.8)
COMPOSER = ReportComposer()

POOL = """
The lungs are clear. | Both lungs are well aerated. | Lungs are clear bilaterally without focal consolidation.
Heart size is normal. | The cardiomediastinal silhouette is within normal limits. | The mediastinum is unremarkable.
No pleural effusion or pneumothorax. | There is no pneumothorax. | No acute bony abnormality. | No fracture is seen.
No acute cardiopulmonary abnormality. | Normal chest. | IMPRESSION: No acute disease. | No focal airspace disease.
No pulmonary edema. | There is no evidence of pneumonia. | No suspicious nodule or mass. | Negative for hiatal hernia.
The heart is mildly enlarged. | Stable cardiomegaly. | The mediastinum is widened. | Prominent cardiac silhouette.
Small left pleural effusion. | There is a right pleural effusion. | Bilateral pleural effusions are present.
Left apical pneumothorax. | Right basilar atelectasis. | There is bibasilar atelectasis. | Linear left atelectasis.
Consolidation in the right lower lobe, consistent with pneumonia. | Left lower lobe pneumonia.
Hazy opacity at the left base. | Patchy bilateral airspace opacities. | Interstitial pulmonary edema.
Vascular congestion. | A 12 mm nodule in the right upper lobe. | Calcified granuloma in the left apex.
Large right hilar mass. | Apical pleural thickening. | Calcified pleural plaques.
Healed left rib fractures. | A right-sided PICC line ends in the superior vena cava. | Dual lead pacemaker.
Emphysematous changes in both apices. | Large hiatal hernia. | Right upper lobe fibrosis. | Left basilar infiltrate.
Possible small left effusion. | Findings may represent pneumonia. | Atelectasis versus infiltrate at the right base.
Right lower lobe opacity, which could be pneumonia or atelectasis.
Pneumothorax cannot be excluded. | Questionable nodule.
The lungs are clear but there is a small effusion. | Cardiomegaly without edema. | Low lung volumes with no effusion.
Two views of the chest were obtained. | The patient is slightly rotated. | XXXX year old patient with XXXX. | 12 34 56.
Comparison: none | Stable XXXX catheter. | There is a | and the | Is there a pneumothorax? | Unchanged. | FINDINGS:
In summary, pneumonia. | Impression: right pleural effusion and cardiomegaly. | Overall, the chest is normal.
The diaphragm and soft tissues look ordinary. | trachea lies in the midline. | 2. No effusion | - Clear lungs
"""
POOL = [piece.strip(" ") for line in POOL.strip().splitlines() for piece in line.split("|")]


def record(name, present=True, probability=0.8, box=None, regions=None):
    regions = choose_regions(name, box) if regions is None else regions
    return {"name": name, "probability": probability, "present": present, "regions": regions}


def canonical(name):
    return FINER_FINDINGS.get(name) or name


def expected(findings):
    """The guarantee, written down a second time."""
    names = {canonical(r["name"]) for r in findings if r["present"] and r["name"] != NO_FINDING}
    return names if names - {"Support Devices"} else names | {NO_FINDING}


def sides_of(mention, findings):
    named = [r for r in findings if r["present"] and canonical(r["name"]) == mention.finding]
    named = [r for r in named if r["name"] == mention.detail] or named
    return {REGIONS[region["name"]].side for r in named for region in r["regions"]} & {"left", "right"}


def assert_agrees(result, findings):
    assert label(text(result)).positive() == expected(findings)
    listed = {r["name"]: r for r in findings if r["present"]}
    for sentence in result:
        read = label(sentence.text).mentions
        assert not any(mention.status == "uncertain" for mention in read), sentence
        mentions = [m for m in read if m.status == "present" and m.finding != NO_FINDING]
        for mention in mentions:
            known = sides_of(mention, findings)
            named = {"left", "right"} if mention.side == "both" else {mention.side} - {None}
            assert not known or named <= known, (sentence, known)
        if sentence.finding:
            assert canonical(sentence.finding) in {m.finding for m in mentions}
            assert sentence.confidence == listed[sentence.finding]["probability"]
            assert sentence.region is None or sentence.region in {
                r["name"] for r in listed[sentence.finding]["regions"]
            }
            assert (sentence.region is None) == (sentence.box is None)
    said = [sentence.text for sentence in result]
    assert len(set(said)) == len(said)
    for words in said:
        assert re.fullmatch(r"[^a-z ].*\.", words) and not re.search(r"  | \.| ,|\.\.|xxx|\n|[{}]", words, re.I), words


@st.composite
def listings(draw):
    """Records of all names, any subset present, each with regions by attention, by dictionary, or without."""
    present = draw(st.sets(st.sampled_from(NAMES), max_size=8))
    corner, extent = st.floats(0, 0.9), st.floats(0.02, 0.8)
    records = []
    for name in draw(st.permutations([*NAMES, NO_FINDING])):
        kind, x, y = draw(st.sampled_from(["attention", "dictionary", "none"])), draw(corner), draw(corner)
        box = (x, y, x + draw(extent), y + draw(extent)) if kind == "attention" else None
        regions = [] if kind == "none" else None
        is_present = name in present or (name == NO_FINDING and not present)
        records.append(record(name, is_present, draw(st.floats(0, 1)), box, regions))
    return records


REPORTS = st.builds(str.join, st.sampled_from([" ", "\n", "\n\n"]), st.lists(st.sampled_from(POOL), max_size=12))


@settings(max_examples=300, deadline=None)
@given(listings(), REPORTS)
def test_report_of_a_model_agrees_with_the_listing(findings, report):
    result = COMPOSER.reconcile(report, findings)
    assert_agrees(result, findings)
    assert result == ReportComposer().reconcile(report, findings)
    kept = [s.text for s in result if s.source == "model"]
    plain = re.sub(r"\s+", " ", report).lower()
    assert all(words.lower().rstrip(".") in plain for words in kept)


@settings(max_examples=300, deadline=None)
@given(listings())
def test_templates_agree_with_the_listing(findings):
    result = COMPOSER.compose(findings)
    assert_agrees(result, findings)
    assert result == ReportComposer().compose(findings)
    assert {s.source for s in result} == {"template"} and result[-1].text.startswith("Impression:")


@settings(max_examples=100, deadline=None)
@given(listings(), st.text(max_size=200))
def test_any_text_is_survived(findings, report):
    assert label(text(COMPOSER.reconcile(report, findings))).positive() == expected(findings)


def test_templates_agree_for_singles_pairs_and_many_subsets():
    rng = random.Random(7)
    subsets = [*itertools.combinations(NAMES, 1), *itertools.combinations(NAMES, 2)]
    subsets += [rng.sample(NAMES, rng.randint(3, len(NAMES))) for _ in range(1000)]
    for subset in [(), *subsets]:
        box = rng.choice([None, RIGHT_BASE, LEFT_BASE, (0.3, 0.2, 0.7, 0.7), (0.1, 0.1, 0.4, 0.3)])
        findings = [record(name, probability=rng.random(), box=box) for name in subset]
        assert_agrees(COMPOSER.compose(findings), findings)


@pytest.mark.parametrize("name", NAMES)
def test_every_finding_can_lie_in_every_region(name):
    for region in REGIONS.values():
        here = [{"name": region.name, "box": list(region.box)}]
        mirror = region.name.replace("right", "LEFT").replace("left", "right").replace("LEFT", "left")
        both = [*here, {"name": mirror, "box": list(REGIONS[mirror].box)}]
        for regions in (here, both):
            findings = [record(name, regions=regions)]
            assert_agrees(COMPOSER.compose(findings), findings)


def test_attention_on_the_images_left_is_the_patients_right():
    assert [r["name"] for r in choose_regions("Consolidation", (0.12, 0.5, 0.45, 0.75))] == ["right lower lung zone"]
    names = [r["name"] for r in choose_regions("Pleural Effusion", (0.75, 0.65, 0.95, 0.85))]
    assert names[0] == "left costophrenic angle" and not any("right" in name for name in names)


def test_regions_of_the_dictionary():
    regions = choose_regions("Atelectasis")
    assert [r["name"] for r in regions] == [link.region for link in FINDING_REGIONS["Atelectasis"]]
    assert regions[0]["box"] == list(REGIONS["right lower lung zone"].box)
    assert choose_regions(NO_FINDING, LEFT_BASE) == []
    assert [r["name"] for r in choose_regions("Hernia", (0.0, 0.0, 0.05, 0.05))] == ["cardiac silhouette"]  # nearest
    whole = [r["name"] for r in choose_regions("Lung Opacity", REGIONS["right lung"].box)]
    assert whole[0] == "right lung" and not any("left" in name for name in whole)
    with pytest.raises(ValueError, match="unknown finding 'Cold'"):
        choose_regions("Cold")
    with pytest.raises(ValueError, match="attention_box"):
        choose_regions("Edema", (0.5, 0.1, 0.4, 0.2))


def test_keywords_by_confidence_and_the_specific_before_the_general():
    findings = [
        record("Lung Opacity", probability=0.95),
        record("Pleural Effusion", probability=0.6, box=LEFT_BASE),
        record("Pneumonia", probability=0.9, box=RIGHT_BASE),
        record("Consolidation", probability=0.92),
        record("Nodule", probability=0.7),
        record("Lung Lesion", probability=0.8),
        record("Edema", present=False, probability=0.3),
        record(NO_FINDING, probability=0.2),
    ]
    keywords = COMPOSER.keywords(findings)
    assert [k.finding for k in keywords] == ["Pneumonia", "Nodule", "Pleural Effusion"]
    assert (keywords[0].region, keywords[0].side) == ("right lower lung zone", "right")
    assert keywords[1] == Keyword("Nodule", 0.7)  # every region of the dictionary: no place
    assert keywords[2].box == REGIONS[keywords[2].region].box


def test_both_sides():
    names = ("right lower lung zone", "left lower lung zone")
    regions = [{"name": name, "box": list(REGIONS[name].box)} for name in names]
    (keyword,) = COMPOSER.keywords([record("Infiltration", regions=regions)])
    assert (keyword.side, keyword.box) == ("both", (0.13, 0.51, 0.87, 0.76))
    assert "both lower lung zones" in text(COMPOSER.compose([record("Infiltration", regions=regions)]))


@settings(max_examples=100, deadline=None)
@given(listings())
def test_prompt_names_the_keywords_and_no_other_finding(findings):
    keywords = COMPOSER.keywords(findings)
    prompt = COMPOSER.prompt(keywords)
    rows = [json.loads(line) for line in prompt.splitlines() if line.startswith("{")]
    assert [row["finding"] for row in rows] == [k.finding for k in keywords]
    assert [(row["region"], row["side"]) for row in rows] == [(k.region, k.side) for k in keywords]
    listed = " ".join(k.finding for k in keywords)
    for name in (*NAMES, NO_FINDING):
        assert bool(re.search(rf"\b{name}\b", prompt, re.I)) == (name in listed), name


def test_one_sentence_says_a_finding_and_what_stands_above_it():
    names = ("Lung Opacity", "Consolidation", "Pneumonia")
    said = COMPOSER.compose([record(name, box=RIGHT_BASE) for name in names])
    assert [s.finding for s in said if s.finding] == ["Pneumonia"]
    assert "onsolidative opacity" in text(said) and "right lower lung zone" in text(said)
    both = COMPOSER.compose([record("Cardiomegaly"), record("Enlarged Cardiomediastinum")])
    assert "The cardiomediastinal silhouette is enlarged." in text(both)
    apart = COMPOSER.compose([record("Lung Opacity", box=LEFT_BASE), record("Consolidation", box=RIGHT_BASE)])
    assert [s.finding for s in apart if s.finding] == ["Lung Opacity", "Consolidation"]


def test_a_child_without_its_parent_does_not_bring_the_parent():
    status = label(text(COMPOSER.compose([record("Consolidation", box=RIGHT_BASE)]))).status
    assert "Lung Opacity" not in status and status["Consolidation"] == "present"


def test_what_is_false_goes_and_what_is_missing_comes_before_the_impression():
    report = (
        "The lungs are clear. Heart size is normal. No pleural effusion. Left rib fracture. "
        "Two views were obtained. Heart size is normal. Impression: pneumonia in the right lower lobe."
    )
    findings = [record("Pneumonia", box=RIGHT_BASE), record("Pleural Effusion", box=LEFT_BASE, probability=0.6)]
    result = COMPOSER.reconcile(report, findings)
    assert [s.text for s in result if s.source == "model"] == [
        "Heart size is normal.",
        "Two views were obtained.",
        "Impression: pneumonia in the right lower lobe.",
    ]
    assert result[-2].finding == "Pleural Effusion" and result[-2].source == "template"
    assert (result[-1].finding, result[-1].region) == ("Pneumonia", "right lower lung zone")
    assert result[0] == ComposedSentence("Heart size is normal.", None, None, None, None, "model")


def test_a_sentence_that_names_a_side_is_narrowed_to_it():
    everywhere = [record("Pleural Effusion")]
    (sentence,) = COMPOSER.reconcile("There is a small left pleural effusion.", everywhere)
    assert (sentence.source, sentence.region) == ("model", "left costophrenic angle")
    assert sentence.box == REGIONS["left costophrenic angle"].box
    right = [record("Pleural Effusion", box=RIGHT_BASE)]
    assert all(s.source == "template" for s in COMPOSER.reconcile("There is a small left pleural effusion.", right))


def test_a_hedge_is_replaced_by_the_finding():
    result = COMPOSER.reconcile("Heart size is normal. Possible pneumothorax.", [record("Pneumothorax")])
    assert [s.source for s in result] == ["model", "template"] and result[1].finding == "Pneumothorax"


def test_a_finer_name_that_the_classifier_denies_is_not_said():
    findings = [record("Lung Lesion"), record("Nodule"), record("Mass", present=False, probability=0.1)]
    assert text(COMPOSER.reconcile("Heart size is normal. There is a large mass.", findings)).count("mass") == 0
    assert "tiny nodule" in text(COMPOSER.reconcile("There is a tiny nodule.", findings))


@pytest.mark.parametrize("report", ["", "  \n", "There is a", "XXXX XXXX XXXX.", "12 34 56."])
def test_without_a_usable_sentence_the_templates_speak(report):
    findings = [record("Cardiomegaly"), record("Support Devices")]
    assert COMPOSER.reconcile(report, findings) == COMPOSER.compose(findings)


@pytest.mark.parametrize(
    "stump", ["The trachea lies is.", "There is cardiomegaly and.", "Heart size is normal with a."]
)
def test_stumps_go(stump):
    result = COMPOSER.reconcile(f"The patient is slightly rotated. {stump}", [record("Cardiomegaly")])
    assert "rotated" in result[0].text
    assert stump not in [sentence.text for sentence in result]


def test_normal_film():
    normal = COMPOSER.compose([record(NO_FINDING)])
    assert label(text(normal)).positive() == {NO_FINDING} and len(normal) == 5
    assert COMPOSER.compose([]) == normal


def test_wordings_differ_between_findings_and_places():
    said = {
        s.text.replace(region.name, "").split()[0]
        for name in NAMES
        for region in REGIONS.values()
        for s in COMPOSER.compose([record(name, regions=[{"name": region.name, "box": list(region.box)}])])
        if s.finding
    }
    assert len(said) > 8
