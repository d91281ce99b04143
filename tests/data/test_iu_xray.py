"""Open-i's reports, in a folder and in the published archive."""

import gzip
import io
import tarfile

import pytest

EXPECTED = {
    "train": [
        (
            "CXR1",
            {
                "findings": "The heart is normal in size. The lungs are clear & dry.",
                "impression": "Normal chest x-XXXX.",
            },
        ),
        ("CXR12", {"findings": None, "impression": "Cardiomegaly without edema."}),
    ],
    "validation": [
        ("CXR9", {"findings": "Small left pleural effusion.", "impression": None}),
        ("CXR109", {"findings": None, "impression": None}),
    ],
}


@pytest.mark.parametrize("layout", ["open_i_folder", "open_i_archive"])
def test_rows_in_the_order_of_their_numbers(layout, tmp_path, make, load_release):
    dataset = load_release("iu_xray", getattr(make, layout)(tmp_path / "iu"))
    found = {
        split: list(zip(rows["study_id"], rows["report"], strict=True)) for split, rows in sorted(dataset.items())
    }
    assert found == EXPECTED


def test_every_layout_gives_the_same_rows(tmp_path, make, load_release):
    folder, archive = make.open_i_folder(tmp_path / "folder"), make.open_i_archive(tmp_path / "archive")
    roots = [folder, folder / "ecgen-radiology", archive, archive / "NLMCXR_reports.tgz"]
    first, *others = (
        {split: rows.to_list() for split, rows in load_release("iu_xray", root).items()} for root in roots
    )
    assert all(other == first for other in others)


def test_one_xml_file_is_a_root(tmp_path, make, load_release):
    root = make.open_i_folder(tmp_path / "iu")
    assert load_release("iu_xray", root / "ecgen-radiology" / "9.xml").num_rows == {"validation": 1}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<eCitation><uId id='CXR1'/>",
        "<eCitation></eCitation>",
        "<eCitation><uId/></eCitation>",
        "<eCitation><uId id='CXR'/></eCitation>",
        "<eCitation><uId id='report'/></eCitation>",
    ],
    ids=["empty", "cut", "no id", "id without a value", "id without a number", "id of another kind"],
)
def test_a_broken_xml_is_named(text, tmp_path, make, refused):
    root = make.open_i_folder(tmp_path / "iu")
    file = root / "ecgen-radiology" / "12.xml"
    file.write_text(text)
    refused("iu_xray", root, file, "not an Open-i report")


def test_a_broken_xml_in_the_archive_is_named_with_the_archive(tmp_path, make, refused):
    root = tmp_path / "iu"
    root.mkdir()
    with tarfile.open(root / "NLMCXR_reports.tgz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("ecgen-radiology/1.xml"), io.BytesIO())
    refused("iu_xray", root, root / "NLMCXR_reports.tgz", "ecgen-radiology/1.xml", "not an Open-i report")


def test_two_reports_of_one_number_are_refused(tmp_path, make, refused):
    root = make.open_i_folder(tmp_path / "iu")
    (root / "ecgen-radiology" / "copy.xml").write_text(make.open_i_xml(12))
    refused("iu_xray", root, root, "CXR12", "twice")


@pytest.mark.parametrize("kept", [0, 5, 40, 0.5, 0.9])
def test_an_archive_that_is_cut_short_is_named(kept, tmp_path, make, refused):
    file = make.open_i_archive(tmp_path / "iu") / "NLMCXR_reports.tgz"
    data = file.read_bytes()
    file.write_bytes(data[: kept if isinstance(kept, int) else int(kept * len(data))])
    refused("iu_xray", file, file, "not a readable archive")


def test_an_archive_with_damaged_bytes_is_named(tmp_path, make, refused):
    file = make.open_i_archive(tmp_path / "iu") / "NLMCXR_reports.tgz"
    data = bytearray(file.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    file.write_bytes(bytes(data))
    refused("iu_xray", file, file, "not a readable archive")


def test_something_else_in_gzip_is_no_archive(tmp_path, refused):
    file = tmp_path / "NLMCXR_reports.tgz"
    file.write_bytes(gzip.compress(b"a letter, not an archive"))
    refused("iu_xray", file, file, "not a readable archive")


def test_an_archive_without_reports_is_named(tmp_path, refused):
    file = tmp_path / "NLMCXR_reports.tgz"
    with tarfile.open(file, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("readme.txt"), io.BytesIO())
    refused("iu_xray", file, file, "no XML report")
