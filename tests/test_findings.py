import math

import pytest

from gaze_vlm.findings import (
    FINDING_REGIONS,
    FINDINGS,
    FINER_FINDINGS,
    NO_FINDING,
    PARENTS,
    READING_ORDER,
    REGIONS,
    SYNONYMS,
    implied,
    regions_at,
    to_canonical,
    to_findings,
)

EVERY_NAME = (*FINDINGS, *FINER_FINDINGS)


def test_vocabulary():
    assert len(FINDINGS) == len(set(FINDINGS)) == 14
    assert FINDINGS[-1] == NO_FINDING
    assert not set(FINDINGS) & set(FINER_FINDINGS)
    assert {parent for parent in FINER_FINDINGS.values() if parent} < set(FINDINGS)
    assert set(PARENTS) | set(PARENTS.values()) < set(FINDINGS)


@pytest.mark.parametrize("vocabulary", SYNONYMS)
def test_synonyms_lead_into_the_vocabulary(vocabulary):
    for label, found in SYNONYMS[vocabulary].items():
        assert set(found) <= set(FINDINGS), label
        assert to_findings(label, vocabulary) == found
        assert to_findings(label.upper().replace(" ", "_"), vocabulary) == found


@pytest.mark.parametrize(
    ("vocabulary", "size"),
    [("nih14", 15), ("reflacx_phase1", 18), ("reflacx_phase2", 16), ("egd_cxr", 28), ("gazesearch", 13)],
)
def test_vocabularies_are_complete(vocabulary, size):
    assert len(SYNONYMS[vocabulary]) == size


@pytest.mark.parametrize(
    ("label", "vocabulary", "found"),
    [
        ("Effusion", "nih14", ("Pleural Effusion",)),
        ("Pleural_Thickening", "nih14", ("Pleural Other",)),
        ("Hernia", "nih14", ()),
        ("Groundglass opacity", "reflacx_phase1", ("Lung Opacity",)),
        ("Lung nodule or mass", "reflacx_phase3", ("Lung Lesion",)),
        ("enlarged_cardiomediastinum__chx", "egd_cxr", ("Enlarged Cardiomediastinum",)),
        ("lobar__segmental_collapse", "egd_cxr", ("Atelectasis",)),
        ("pleural other", "gazesearch", ("Pleural Other",)),
    ],
)
def test_to_findings(label, vocabulary, found):
    assert to_findings(label, vocabulary) == found


def test_to_findings_names_what_is_wrong():
    with pytest.raises(ValueError, match=r"'Flu'.*'nih14'.*Infiltration"):
        to_findings("Flu", "nih14")
    with pytest.raises(ValueError, match=r"'nih15'.*nih14"):
        to_findings("Mass", "nih15")


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("effusion", "Pleural Effusion"),
        ("  PLEURAL_effusion ", "Pleural Effusion"),
        ("pleural_thickening", "Pleural Thickening"),
        ("Enlarged cardiac silhouette", "Cardiomegaly"),
        ("nodule", "Nodule"),
        ("hiatal hernia", "Hernia"),
        ("Normal", NO_FINDING),
        *((name, name) for name in EVERY_NAME),
    ],
)
def test_to_canonical(spelling, name):
    assert to_canonical(spelling) == name


def test_to_canonical_suggests():
    with pytest.raises(ValueError, match="did you mean: Cardiomegaly"):
        to_canonical("cardiomegally")
    with pytest.raises(ValueError, match="allowed: Enlarged Cardiomediastinum"):
        to_canonical("???")


def test_implied_closes_upwards():
    assert implied([]) == frozenset()
    assert implied({"Pneumonia"}) == {"Pneumonia", "Consolidation", "Lung Opacity"}
    assert implied({"Cardiomegaly", "Fracture"}) == {"Cardiomegaly", "Enlarged Cardiomediastinum", "Fracture"}
    assert implied(["Nodule"]) == {"Nodule", "Lung Lesion", "Lung Opacity"}
    assert implied(["Emphysema"]) == {"Emphysema"}
    assert implied(implied(EVERY_NAME)) == set(EVERY_NAME)
    with pytest.raises(ValueError, match="'nodule'"):
        implied(["nodule"])


@pytest.mark.parametrize("name", EVERY_NAME)
def test_every_finding_is_looked_for_somewhere_and_says_why(name):
    links = FINDING_REGIONS[name]
    assert bool(links) == (name != NO_FINDING)
    assert len({link.region for link in links}) == len(links)
    for link in links:
        assert link.region in REGIONS
        assert len(link.reason.split()) >= 3
        assert not link.reason.endswith(".")


@pytest.mark.parametrize("region", REGIONS.values(), ids=lambda region: region.name)
def test_region(region):
    x1, y1, x2, y2 = region.box
    assert 0 <= x1 < x2 <= 1
    assert 0 <= y1 < y2 <= 1
    assert math.isclose(region.area, (x2 - x1) * (y2 - y1))
    assert region.stage in {stage.letter for stage in READING_ORDER}
    middle = (x1 + x2) / 2
    if region.side == "right":  # the patient's right is on the left of the image
        assert region.name.startswith("right ") and middle < 0.5
        twin = REGIONS[region.name.replace("right", "left", 1)].box
        assert x1 + twin[2] == pytest.approx(1, abs=0.03)
        assert x2 + twin[0] == pytest.approx(1, abs=0.03)
    elif region.side == "left":
        assert region.name.startswith("left ") and middle > 0.5
    else:
        assert region.side == "middle" and x1 < 0.5 < x2


def test_zones_tile_their_lung_from_top_to_bottom():
    for side in ("right", "left"):
        lung = REGIONS[f"{side} lung"].box
        zones = [REGIONS[f"{side} {part} lung zone"].box for part in ("upper", "mid", "lower")]
        edges = [lung[1], *(zone[3] for zone in zones)]
        assert [zone[1] for zone in zones] == edges[:-1]
        assert edges[-1] == lung[3]
        assert all(lung[0] <= zone[0] and zone[2] <= lung[2] for zone in zones)


def test_regions_at():
    found = regions_at(0.22, 0.70)
    assert found == ("right costophrenic angle", "right lower lung zone", "right lung")
    assert [REGIONS[name].area for name in found] == sorted(REGIONS[name].area for name in found)
    assert "cardiac silhouette" in regions_at(0.6, 0.65)
    assert regions_at(0.01, 0.99) == regions_at(-1, 2) == ()


def test_reading_order():
    assert "".join(stage.letter for stage in READING_ORDER) == "ABCDEF"
    assert len(REGIONS) == 17
    own = [region for stage in READING_ORDER[:-1] for region in stage.regions]
    assert sorted(own) == sorted(REGIONS)
    for stage in READING_ORDER[:-1]:
        assert {REGIONS[region].stage for region in stage.regions} == {stage.letter}
    decided = [finding for stage in READING_ORDER for finding in stage.findings]
    assert sorted(decided) == sorted(set(EVERY_NAME) - {NO_FINDING})
    assert set(READING_ORDER[-1].regions) <= set(REGIONS)
