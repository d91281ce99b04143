"""The DICOM structured report: the same text, its evidence, whose it is, and what it does not claim."""

import copy
import dataclasses
import io
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComprehensiveSRStorage, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

from gaze_vlm.evidence import NOTICE, link_evidence
from gaze_vlm.evidence.dicom_sr import _STANDARD, sr_text, standard_code, to_dicom_sr
from gaze_vlm.findings import FINDINGS, FINER_FINDINGS
from gaze_vlm.scanpath import Scanpath

highdicom = pytest.importorskip("highdicom", reason='needs pip install "gaze2report[dicom]"')

REPORT = (
    "FINDINGS: The heart is normal in size. There is a small left pleural effusion. No pneumothorax.\n\n"
    "IMPRESSION: Possible pneumonia. Compare with the prior film."
)
HEART, EFFUSION, PNEUMOTHORAX, PNEUMONIA, REST = range(5)
ANGLE = {"name": "left costophrenic angle", "box": [0.75, 0.7, 0.9, 0.8]}
WIDTH, HEIGHT = 300, 200
PATIENT = "Müller^Jörg"


def finding(name, probability, *regions):
    return {"name": name, "probability": probability, "present": probability > 0.5, "regions": list(regions)}


def bundle_of(report, findings=()):
    return link_evidence(
        report,
        list(findings),
        Scanpath.from_relative([0.8, 0.3], [0.75, 0.6], [0.5, 0.2]),
        image={"name": "film.dcm", "sha256": "0f" * 32, "width": WIDTH, "height": HEIGHT},
        model={"name": "gaze-vlm/nano", "version": "0.1.0"},
        gaze="given",
    )


@pytest.fixture
def bundle():
    judged = [finding("Pleural Effusion", 0.912345678, ANGLE), finding("Enlarged Cardiomediastinum", 0.1)]
    return bundle_of(REPORT, judged)


@pytest.fixture
def source():
    """A film as a file of an older system gives it: names in Latin-1, some attributes left out."""
    film = Dataset()
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    film.SpecificCharacterSet = "ISO_IR 100"
    film.SOPClassUID, film.SOPInstanceUID = DigitalXRayImageStorageForPresentation, "1.2.3.4"
    film.StudyInstanceUID, film.SeriesInstanceUID, film.StudyDate = "1.2.3", "1.2.3.1", "20200131"
    film.PatientName, film.PatientID, film.StudyDescription = PATIENT, "MRN4711", "Thorax für Röntgen"
    film.Modality, film.Rows, film.Columns = "DX", HEIGHT, WIDTH
    film.SamplesPerPixel, film.PhotometricInterpretation = 1, "MONOCHROME2"
    film.BitsAllocated, film.BitsStored, film.HighBit, film.PixelRepresentation = 8, 8, 7, 0
    film.PixelData = bytes(HEIGHT * WIDTH)
    return read_back(film, dcmread)


def read_back(dataset, reader=highdicom.sr.srread):
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    buffer.seek(0)
    return reader(buffer)


def meaning(item):
    return item.ConceptNameCodeSequence[0].CodeMeaning


def children(item, name=None):
    return [child for child in item.get("ContentSequence", ()) if name in (None, meaning(child))]


def section(report, name):
    (found,) = children(report, name)
    return children(found)


def answers(item):
    """What is said about findings: name -> Present, Absent or Undetermined."""
    codes = [child for child in children(item) if child.ValueType == "CODE"]
    return {meaning(code): code.ConceptCodeSequence[0].CodeMeaning for code in codes}


def numbers(item):
    values = [child for child in children(item) if child.ValueType == "NUM"]
    return {meaning(v): v.MeasuredValueSequence[0].NumericValue for v in values}


def places(item, kind="Finding Site"):
    """Region name, or when a key frame was -> its corners in pixels, (5, 2)."""
    found = {}
    for site in children(item, kind):
        (box,) = children(site)
        assert (box.ValueType, box.GraphicType, box.RelationshipType) == ("SCOORD", "POLYLINE", "INFERRED FROM")
        (image,) = children(box)
        assert image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "1.2.3.4"
        found[site.TextValue] = np.reshape(box.GraphicData, (5, 2))
    return found


# ---- the text


@pytest.mark.parametrize(
    "report",
    [
        REPORT,
        "Kein Pneumothorax. Herzgröße normal, Zwerchfell rechts höher (≈ 2 cm).",
        "心影不大。双肺清晰。",
        "Une opacité à gauche\\droite; = ^ et 𝛼.\r\n\tFin",
    ],
)
def test_the_report_reads_back_with_highdicoms_own_reader(source, report):
    back = read_back(to_dicom_sr(bundle_of(report), source))
    assert isinstance(back, highdicom.sr.ComprehensiveSR)
    assert sr_text(back) == report
    assert back.SpecificCharacterSet == "ISO_IR 192"


@settings(
    max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff"), min_size=1))
def test_any_text_reads_back(source, text):
    bundle = bundle_of(f"Lungs. {text}")
    assert sr_text(read_back(to_dicom_sr(bundle, source))) == bundle.reviewed_report


def test_sentences_stand_in_order_with_what_they_rest_on(bundle, source):
    sentences = section(read_back(to_dicom_sr(bundle, source)), "Findings")
    assert [item.TextValue for item in sentences] == [sentence.text for sentence in bundle.sentences]
    assert [answers(item) for item in sentences] == [
        {"Cardiomegaly": "Absent"},
        {"Pleural effusion": "Present"},
        {"Pneumothorax": "Absent"},
        {"Pneumonia": "Undetermined"},
        {},
    ]
    assert numbers(sentences[EFFUSION]) == {"Agreement of the classifier": 91.2346}
    assert numbers(sentences[PNEUMONIA]) == {}
    assert [len(places(item)) for item in sentences] == [len(sentence.regions) for sentence in bundle.sentences]


def test_a_region_is_a_closed_rectangle_in_pixels_of_the_film(bundle, source):
    sentences = section(to_dicom_sr(bundle, source), "Findings")
    corners = [[225, 140], [270, 140], [270, 160], [225, 160], [225, 140]]
    assert places(sentences[EFFUSION]).keys() == {"left costophrenic angle"}
    np.testing.assert_allclose(places(sentences[EFFUSION])["left costophrenic angle"], corners)


def test_what_the_classifier_lists_with_its_probability(bundle, source):
    (listed,) = section(read_back(to_dicom_sr(bundle, source)), "What the classifier found")
    assert (meaning(listed), listed.ConceptCodeSequence[0].CodeMeaning) == ("Pleural effusion", "Present")
    assert numbers(listed) == {"Probability by the classifier": 91.2346}
    assert list(places(listed)) == ["left costophrenic angle"]
    other = bundle_of(REPORT, [finding("Enlarged Cardiomediastinum", 0.9)])
    (listed,) = section(to_dicom_sr(other, source), "What the classifier found")
    assert listed.ConceptNameCodeSequence[0].CodingSchemeDesignator == "99GAZEVLM"


def test_what_the_model_concluded_does_not_stand_beside_what_a_person_did(bundle, source):
    sections = ("What the classifier found", "Disagreements")
    accepted = bundle
    for number in range(len(bundle.sentences)):
        accepted = accepted.review(number, "accepted")
    assert all(children(to_dicom_sr(accepted, source), name) for name in sections)
    for decided in (bundle.review(REST, "rejected"), bundle.review(REST, "edited", "Fine."), accepted.sign("R")):
        report = to_dicom_sr(decided, source)
        assert not any(children(report, name) for name in sections)
        assert section(report, "Findings")


def test_without_findings_there_is_no_empty_section(source):
    report = to_dicom_sr(bundle_of("Compare with the prior film."), source)
    assert not children(report, "What the classifier found")


def test_a_reviewers_decisions_are_carried_out(bundle, source):
    bundle = bundle.review(HEART, "rejected").review(EFFUSION, "edited", "No effusion.").review(REST, "accepted")
    report = read_back(to_dicom_sr(bundle, source))
    assert sr_text(report) == bundle.reviewed_report != REPORT
    sentences = section(report, "Findings")
    kept = ["No effusion.", *(sentence.text for sentence in bundle.sentences[PNEUMOTHORAX:])]
    assert [item.TextValue for item in sentences] == kept
    assert not children(sentences[0])  # the evidence was that of other words


def test_who_edited_a_sentence_and_who_signed_are_observers_beside_the_model(bundle, source):
    bundle = bundle.review(EFFUSION, "edited", "No effusion.", "Second^Reader")
    edited = section(to_dicom_sr(bundle, source), "Findings")[EFFUSION]
    assert [item.PersonName for item in children(edited, "Person Observer Name")] == ["Second^Reader"]
    assert not children(to_dicom_sr(bundle, source), "Person Observer Name")
    for number in (HEART, PNEUMOTHORAX, PNEUMONIA, REST):
        bundle = bundle.review(number, "accepted", reviewer="R. Adiologist")
    report = read_back(to_dicom_sr(bundle.sign("R. Adiologist"), source))
    assert [item.PersonName for item in children(report, "Person Observer Name")] == ["R. Adiologist^"]
    kinds = [item.ConceptCodeSequence[0].CodeMeaning for item in children(report, "Observer Type")]
    assert kinds == ["Device", "Person"]


def test_a_sentence_has_its_key_frames(bundle, source):
    frame = {"x": 0.8, "y": 0.75, "box": [0.7, 0.65, 0.9, 0.85], "onset": 1.25, "dwell": 0.5, "fixations": [0]}
    frame |= {"stage": "D", "sentence": None, "regions": []}
    sentences = list(bundle.sentences)
    sentences[EFFUSION] = dataclasses.replace(sentences[EFFUSION], key_frames=[1])
    others = [dataclasses.replace(sentence, key_frames=[]) for sentence in sentences[PNEUMOTHORAX:]]
    frames = [{**frame, "onset": 0.0}, frame]
    bundle = dataclasses.replace(bundle, key_frames=frames, sentences=(*sentences[:PNEUMOTHORAX], *others))
    found = section(read_back(to_dicom_sr(bundle, source)), "Findings")
    shown = places(found[EFFUSION], "Key frame of the given gaze")
    assert list(shown) == ["0.5 s from second 1.2 on"]
    np.testing.assert_allclose(shown["0.5 s from second 1.2 on"][[0, 2]], [[210, 130], [270, 170]])
    assert not any(places(item, "Key frame of the given gaze") for item in found[PNEUMOTHORAX:])


def test_flags_speak_of_sentences_by_their_place_in_the_report(bundle, source):
    report = read_back(to_dicom_sr(bundle.review(REST, "accepted"), source))
    assert [item.TextValue for item in section(report, "Disagreements")] == [flag["message"] for flag in bundle.flags]
    (unlinked,) = [flag for flag in bundle.flags if flag["kind"] == "unlinked"]
    number = int(unlinked["message"].split()[1])
    assert section(report, "Findings")[number - 1].TextValue == "Compare with the prior film."


# ---- whose it is, and what it claims


def test_it_belongs_to_the_patient_and_study_of_the_film(bundle, source):
    report = read_back(to_dicom_sr(bundle, source))
    assert (report.PatientName, report.PatientID, report.PatientSex) == (PATIENT, "MRN4711", "")
    assert (report.StudyInstanceUID, report.StudyDescription) == ("1.2.3", "Thorax für Röntgen")
    assert (report.Modality, report.SOPClassUID) == ("SR", ComprehensiveSRStorage)
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    (series,) = study.ReferencedSeriesSequence
    (image,) = series.ReferencedSOPSequence
    assert (study.StudyInstanceUID, series.SeriesInstanceUID) == ("1.2.3", "1.2.3.1")
    assert image.ReferencedSOPInstanceUID == "1.2.3.4"
    other = to_dicom_sr(bundle, source)
    assert len({report.SeriesInstanceUID, other.SeriesInstanceUID, source.SeriesInstanceUID}) == 3
    assert len({report.SOPInstanceUID, other.SOPInstanceUID, source.SOPInstanceUID}) == 3


def test_it_names_the_model_and_says_that_it_is_research(bundle, source):
    report = to_dicom_sr(bundle, source)
    texts = {meaning(item): item.TextValue for item in children(report) if item.ValueType == "TEXT"}
    assert texts == {
        "Device Observer Name": "gaze-vlm/nano",
        "Device Observer Manufacturer": "gaze_vlm",
        "Device Observer Model Name": "gaze-vlm/nano 0.1.0",
        "Comment": NOTICE,
    }
    assert report.ContentQualification == "RESEARCH"
    (device,) = children(report, "Device Observer UID")
    (again,) = children(to_dicom_sr(bundle, source), "Device Observer UID")
    assert device.UID == again.UID


def test_nobody_has_verified_what_nobody_signed_off(bundle, source):
    report = to_dicom_sr(bundle, source)
    assert (report.VerificationFlag, report.PreliminaryFlag, report.CompletionFlag) == (
        "UNVERIFIED",
        "PRELIMINARY",
        "COMPLETE",
    )
    assert "VerifyingObserverSequence" not in report
    with pytest.raises(ValueError, match="nobody has signed off"):
        to_dicom_sr(bundle, source, organization="Some Hospital")


@pytest.mark.parametrize("name", ["^", "A=B", "A\\B", "x" * 64, "a^b^c^d^e^f"])
def test_a_name_that_dicom_cannot_hold_is_refused(bundle, source, name):
    for number in range(len(bundle.sentences)):
        bundle = bundle.review(number, "accepted")
    with pytest.raises(ValueError, match=r"^the reviewer's name must have 1 to 63 characters") as refusal:
        to_dicom_sr(bundle.sign(name), source)
    assert name not in str(refusal.value).replace("no = and at most four ^", "")
    for organization in (" ", "x" * 64, "A\\B", "A\n"):
        with pytest.raises(ValueError, match=r"^the organization's name must have 1 to 63 characters"):
            to_dicom_sr(bundle.sign("R"), source, organization=organization)


def test_who_signed_off_verifies_it_with_an_organization(bundle, source):
    for number in range(len(bundle.sentences)):
        bundle = bundle.review(number, "accepted", reviewer="R. Adiologist")
    bundle = bundle.sign("R. Adiologist", "2026-11-23T05:06:07+01:00")
    unnamed = to_dicom_sr(bundle, source)
    assert (unnamed.VerificationFlag, unnamed.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    report = read_back(to_dicom_sr(bundle, source, organization="Some Hospital"))
    assert (report.VerificationFlag, report.PreliminaryFlag) == ("VERIFIED", "FINAL")
    (observer,) = report.VerifyingObserverSequence
    assert observer.VerifyingObserverName.family_name == "R. Adiologist"
    assert (observer.VerifyingOrganization, observer.VerificationDateTime) == (
        "Some Hospital",
        "20261123050607+0100",
    )


def test_the_source_is_left_as_it_was(bundle, source):
    before = copy.deepcopy(source)
    to_dicom_sr(bundle, source)
    assert source == before
    assert "StudyTime" not in source


def test_every_standard_code_is_in_the_dictionary_and_of_our_vocabulary():
    assert set(_STANDARD) <= {*FINDINGS, *FINER_FINDINGS}
    assert all(standard_code(name).scheme_designator in ("SCT", "DCM") for name in _STANDARD)
    assert standard_code("Fracture") is None


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy of dicom3tools is not installed")
@pytest.mark.parametrize("signed", [False, True])
def test_dciodvfy_finds_no_error(bundle, source, signed, tmp_path):
    organization = None
    if signed:
        for number in range(len(bundle.sentences)):
            bundle = bundle.review(number, "accepted", reviewer="R. Adiologist")
        bundle = bundle.review(EFFUSION, "edited", "No effusion.", "Second^Reader").sign("R. Adiologist")
        organization = "Some Hospital"
    to_dicom_sr(bundle, source, organization=organization).save_as(tmp_path / "sr.dcm", enforce_file_format=True)
    checked = subprocess.run(["dciodvfy", tmp_path / "sr.dcm"], capture_output=True, text=True)
    assert "ComprehensiveSR" in checked.stderr
    assert "Error" not in checked.stderr


# ---- refusals


@pytest.mark.parametrize(
    "keyword", ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Rows", "Columns"]
)
def test_a_source_that_lacks_what_is_needed_is_named(bundle, source, keyword):
    del source[keyword]
    with pytest.raises(ValueError, match=f"^the DICOM source has no {keyword}; [^.]*$"):
        to_dicom_sr(bundle, source)


@pytest.mark.parametrize(("keyword", "value"), [("PatientSex", "Bono"), ("StudyTime", "25:00 Bono")])
@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_an_invalid_value_of_the_patient_is_refused_and_not_repeated(bundle, source, keyword, value):
    setattr(source, keyword, value)
    with pytest.raises(ValueError, match=r"of an invalid value$") as refusal:
        to_dicom_sr(bundle, source)
    assert refusal.value.__suppress_context__


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
def test_an_invalid_uid_is_refused_and_not_repeated(bundle, source, keyword):
    setattr(source, keyword, "Bono.1")
    with pytest.raises(ValueError, match=r"of an invalid value$"):
        to_dicom_sr(bundle, source)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"1.2.3.1\x00", b"Bono.31\x00"),
        (b"1.2.3.1\x00", b"1.2\\3.1\x00"),
        (b"\x10\x00\x40\x00CS", b"\x10\x00\x40\x00ZZ"),  # a value representation that is none
        (b"\x28\x00\x10\x00US", b"\x28\x00\x10\x00LO"),
    ],
)
def test_broken_bytes_are_refused_without_a_warning(bundle, source, old, new, recwarn):
    source.PatientSex = ""
    written = io.BytesIO()
    source.save_as(written, enforce_file_format=True)
    assert written.getvalue().count(old) == 1
    broken = dcmread(io.BytesIO(written.getvalue().replace(old, new)))
    with pytest.raises(ValueError, match=r"of an invalid value$"):
        to_dicom_sr(bundle, broken)
    assert not recwarn.list


def test_a_broken_element_that_no_report_needs_does_not_matter(bundle, source):
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    tag = Tag(0x0018, 0x1150)  # ExposureTime
    source[tag] = RawDataElement(tag, "FD", 4, b"\0\0\0\0", 0, False, True)
    assert sr_text(to_dicom_sr(bundle, source)) == REPORT


def test_nothing_warns_of_a_patients_name(bundle, source, recwarn):
    source.PatientName = "Bono"
    assert to_dicom_sr(bundle, source).PatientName == "Bono"
    assert not recwarn.list


def test_another_film_is_refused(bundle, source):
    source.Rows = 512
    with pytest.raises(ValueError, match=r"\(300, 512\), evidence: \(300, 200\)"):
        to_dicom_sr(bundle, source)


@pytest.mark.parametrize("uid", ["1.3.12.2.1107.5", "1.2.840.10008.5.1.4.1.1.121"])
def test_a_class_that_the_standard_does_not_know_is_refused(bundle, source, uid):
    source.SOPClassUID = uid
    with pytest.raises(ValueError, match=f"^the DICOM source is of {re.escape(uid)}, no class of the DICOM standard$"):
        to_dicom_sr(bundle, source)


@pytest.mark.parametrize("name", ["A\\B", "x" * 65])
def test_a_finding_that_cannot_be_a_code_is_named(source, name):
    with pytest.raises(ValueError, match=r"^the finding '(A|x+).* cannot be a code in DICOM"):
        to_dicom_sr(bundle_of(REPORT, [finding(name, 0.9)]), source)


@pytest.mark.parametrize(("report", "problem"), [("Heart.\x1b$B", r"character 6 is '\\x1b'"), ("", "is empty")])
def test_a_report_that_dicom_cannot_hold_is_refused(source, report, problem):
    with pytest.raises(ValueError, match=problem):
        to_dicom_sr(bundle_of(report), source)


def test_a_report_of_rejected_sentences_only_is_empty(source):
    with pytest.raises(ValueError, match="is empty"):
        to_dicom_sr(bundle_of("No pneumothorax.").review(0, "rejected"), source)


def test_what_is_no_report_has_no_text(source):
    with pytest.raises(ValueError, match="holds no report"):
        sr_text(source)


def test_without_highdicom_the_command_is_told(bundle, source, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(ImportError, match=r'pip install "gaze2report\[dicom\]"'):
        to_dicom_sr(bundle, source)
