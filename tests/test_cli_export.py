"""gaze-vlm report --sr --fhir and gaze-vlm export, as a person types them."""

import json
import sys

import pydicom
import pytest

from gaze_vlm.evidence import EvidenceBundle

pytest.importorskip("highdicom", reason='structured reports need highdicom: pip install "gaze2report[dicom]"')

from gaze_vlm.evidence.dicom_sr import sr_text

NAME = "Quxley^Zenobia"


@pytest.fixture
def run(tiny_bundle, monkeypatch, capsys):
    """Status, stdout and stderr of `gaze-vlm ARGUMENTS`."""

    def call(*arguments):
        from gaze_vlm.cli import main

        model = ["--model", str(tiny_bundle)] if arguments[0] == "report" else []
        monkeypatch.setattr(sys, "argv", ["gaze-vlm", *map(str, arguments), *model])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as left:
            code = left.code or 0
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return call


@pytest.fixture
def dicom_film(film_file):
    """A DICOM film of a made-up patient, with all that a structured report refers to."""
    path = film_file("film.dcm")
    data = pydicom.dcmread(path)
    data.PatientName, data.PatientID = NAME, "made-up-1"
    data.StudyInstanceUID, data.SeriesInstanceUID = "1.2.3.4", "1.2.3.5"
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "1.2.3.6"
    data.save_as(path, enforce_file_format=True)
    return path


def test_a_dicom_film_gets_a_structured_report_and_no_other_file_names_the_patient(run, dicom_film, tmp_path):
    out = tmp_path / "out"
    status, printed, _ = run("report", dicom_film, "--out", out, "--sr", "--fhir", "--json", "--protocol", "abcdef")
    assert status == 0
    folder = out / "film"
    bundle = EvidenceBundle.from_json((folder / "evidence.json").read_text())
    report = pydicom.dcmread(folder / "report.sr.dcm")
    assert sr_text(report) == bundle.report == json.loads((folder / "report.fhir.json").read_text())["conclusion"]
    assert str(report.PatientName) == NAME
    for file in folder.iterdir():
        if file.suffix != ".dcm":
            content = file.read_bytes()
            assert b"Quxley" not in content and b"Zenobia" not in content and b"made-up-1" not in content, file
    assert "Quxley" not in printed
    lines = bundle.report.split(". ")
    assert any("not judged" in line for line in lines)


def test_a_film_that_cannot_have_a_structured_report_keeps_all_else(run, film_file, dicom_film, tmp_path):
    png, bare = film_file("a.png"), film_file("bare.dcm", seed=3)
    status, _, err = run("report", png, bare, dicom_film, "--out", tmp_path / "out", "--sr")
    assert status == 1
    assert err.count("\n") == 2
    assert f"{png}: report.sr.dcm: no DICOM file, which a structured report needs\n" in err
    assert f"{bare}: report.sr.dcm: the DICOM source has no StudyInstanceUID" in err
    assert (tmp_path / "out" / "film" / "report.sr.dcm").exists()
    for folder in ("a", "bare"):
        assert (tmp_path / "out" / folder / "evidence.html").exists()
        assert not (tmp_path / "out" / folder / "report.sr.dcm").exists()


def test_other_formats_need_a_folder(run, film_file):
    assert run("report", film_file("a.png"), "--fhir") == (
        2,
        "",
        "gaze-vlm: --fhir needs --out, the folder to write it into\n",
    )


@pytest.fixture
def signed(run, dicom_film, tmp_path):
    """evidence.json of a film, its first sentence edited and all signed off."""
    run("report", dicom_film, "--out", tmp_path / "read")
    bundle = EvidenceBundle.from_json((tmp_path / "read" / "film" / "evidence.json").read_text())
    bundle = bundle.review(0, "edited", "Naïve reading.", "R. Reader")
    for number in range(1, len(bundle.sentences)):
        bundle = bundle.review(number, "accepted", None, "R. Reader")
    file = tmp_path / "signed.json"
    file.write_text(bundle.sign("R. Reader").to_json(), encoding="utf-8")
    return file


def test_what_was_signed_off_is_exported(run, signed, dicom_film, tmp_path):
    out = tmp_path / "out"
    status, printed, _ = run(
        "export", signed, "--out", out, "--film", dicom_film, "--organization", "Made-up Hospital"
    )
    assert status == 0
    assert "report.sr.dcm" in printed
    report, resource = pydicom.dcmread(out / "report.sr.dcm"), json.loads((out / "report.fhir.json").read_text())
    assert sr_text(report).startswith("Naïve reading.")
    assert report.VerificationFlag == "VERIFIED"
    assert resource["status"] == "final"
    assert resource["conclusion"].startswith("Naïve reading.")
    status, _, err = run("export", signed, "--out", out)
    assert (status, "already there; pass --overwrite to replace it" in err) == (2, True)
    (out / "report.fhir.json").unlink()
    assert "report.sr.dcm: already there; pass --overwrite to remove it" in run("export", signed, "--out", out)[2]
    assert run("export", signed, "--out", out, "--overwrite")[0] == 0
    assert [file.name for file in out.iterdir()] == ["report.fhir.json"]  # the old structured report is gone


def test_what_is_read_anew_leaves_no_report_of_before(run, dicom_film, tmp_path):
    out = tmp_path / "out"
    assert run("report", dicom_film, "--out", out, "--sr", "--fhir")[0] == 0
    status, _, err = run("report", dicom_film, "--out", out)
    assert (status, "already there" in err) == (1, True)
    assert run("report", dicom_film, "--out", out, "--overwrite")[0] == 0
    assert not {"report.sr.dcm", "report.fhir.json"} & {file.name for file in (out / "film").iterdir()}


def test_a_damaged_film_is_one_line_and_the_next_one_is_read(run, dicom_film, film_file, tmp_path):
    """Bytes of a header that no model needs are broken: the film is read, and has no structured report."""
    data = dicom_film.read_bytes()
    films = []
    for name, old, new in (
        ("unknown.dcm", b"\x20\x00\x0d\x00UI", b"\x20\x00\x0d\x00ZZ"),  # a value representation that is none
        ("uid.dcm", b"1.2.3.4\x00", b"Quxley.\x00"),
    ):
        assert old in data
        films.append(film_file(name))
        films[-1].write_bytes(data.replace(old, new))
    status, _, err = run("report", *films, dicom_film, "--out", tmp_path / "out", "--sr")
    reason = "report.sr.dcm: the DICOM source has a patient's or study's attribute of an invalid value"
    assert (status, err.splitlines()) == (1, [f"gaze-vlm: {film}: {reason}" for film in films])
    assert (tmp_path / "out" / "film" / "report.sr.dcm").exists()
    for film in films:
        assert (tmp_path / "out" / film.stem / "evidence.json").exists()


def test_an_organization_needs_a_film_and_a_signature(run, signed, dicom_film, tmp_path):
    unsigned = tmp_path / "read" / "film" / "evidence.json"
    for arguments, said in (
        ((signed,), "--organization needs --film"),
        ((unsigned, "--film", dicom_film), "nobody has signed off"),
        ((signed, "--film", dicom_film, "--organization", "A\\B"), "the organization's name must have 1 to 63"),
    ):
        status, out, err = run(
            "export", *arguments[:1], "--organization", "H", *arguments[1:], "--out", tmp_path / "o"
        )
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert said in err
    assert not (tmp_path / "o").exists()


def test_what_cannot_be_exported_is_one_line(run, signed, film_file, tmp_path):
    other, text, binary = film_file("other.dcm", seed=5), tmp_path / "a.json", tmp_path / "b.json"
    text.write_text("{}")
    binary.write_bytes(b"\xff\xfe\x00")
    for arguments, said in (
        ((signed, "--film", other), "signed.json, {film}: another film"),
        ((signed, "--film", film_file("a.png")), "signed.json, {film}: another film"),
        ((signed, "--film", tmp_path / "none.dcm"), "{film}: no such file"),
        ((signed, "--film", tmp_path), "{film}: is a directory"),
        ((text,), "a.json: evidence lacks"),
        ((binary,), "b.json: not a text file"),
        ((tmp_path / "c.json",), "c.json: No such file"),
    ):
        status, out, err = run("export", *arguments, "--out", tmp_path / "out")
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert said.format(film=arguments[-1]) in err
    assert not (tmp_path / "out").exists()


def test_a_film_that_cannot_have_one_is_named_with_the_evidence(run, film_file, tmp_path):
    """The evidence is of this very file: what it lacks, not that it is another, is told."""
    bare = film_file("bare.dcm", seed=3)
    run("report", bare, "--out", tmp_path / "read")
    evidence = tmp_path / "read" / "bare" / "evidence.json"
    status, out, err = run("export", evidence, "--film", bare, "--out", tmp_path / "out")
    assert (status, out) == (2, "")
    assert err.startswith(f"gaze-vlm: {evidence}, {bare}: the DICOM source has no StudyInstanceUID")
