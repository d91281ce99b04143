"""Small releases in the layouts that were published, made by code."""

import csv
import io
import json
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

pytest.importorskip("datasets", reason='gaze_vlm.data needs datasets: pip install "gaze2report[train]"')

ENTRY_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)
# image, labels, follow-up, patient, age, sex, view, width, height, spacing x, spacing y, nothing
ENTRIES = [
    "00000001_000.png,Cardiomegaly,0,1,57,M,PA,2682,2749,0.143,0.143,",
    "00000001_001.png,Cardiomegaly|Emphysema,1,1,58,M,PA,2894,2729,0.143,0.143,",
    "00000002_000.png,No Finding,0,2,80,M,AP,2500,2048,0.171,0.171,",
    "00000009_000.png,Infiltration|Pleural_Thickening,0,9,33,F,PA,2500,2048,0.168,0.168,",
    "00000009_001.png,No Finding,1,9,34,F,PA,2500,2048,0.168,0.168,",
    "00000019_000.png,Effusion|Mass,0,19,61,F,AP,2500,2048,0.168,0.168,",
]
BOX_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
BOXES = [
    "00000009_000.png,Infiltrate,256,512,128,256,,,",
    "00000019_000.png,Mass,225.084745762712,547.019216763771,86.7796610169491,79.1864406779661,,,",
    "00000019_000.png,Effusion,900,900,200,200,,,",  # reaches over the edge
    "00030000_000.png,Atelectasis,1,2,3,4,,,",  # an image of an archive that was not unpacked
]


def nih_published(root: Path) -> Path:
    """The NIH Clinical Center's own layout: patient 19 is in the test list, patient 9 in the other."""
    root.mkdir(exist_ok=True)
    (root / "Data_Entry_2017_v2020.csv").write_text("\n".join([ENTRY_HEADER, *ENTRIES]) + "\n")
    (root / "BBox_List_2017.csv").write_text("\n".join([BOX_HEADER, *BOXES]) + "\n")
    images = [line.split(",")[0] for line in ENTRIES]
    test = ["00000002_000.png", "00000019_000.png"]
    (root / "test_list.txt").write_text("\n".join(test))  # the release has no line break at the end
    (root / "train_val_list.txt").write_text("\n".join(name for name in images if name not in test))
    for number, name in enumerate(images):
        folder = root / f"images_{1 + number // 3:03d}" / "images"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (1024, 1024), 10 * number).save(folder / name)
    return root


COMPACT_HEADER = "image,patient,age,sex,view,labels,rsna_class,rsna_boxes,nih_boxes,split"


def nih_compact(root: Path) -> Path:
    """`manifest.csv` with relative boxes, `images/` beside it."""
    rsna = [{"x": 0.125, "y": 0.25, "w": 0.25, "h": 0.5}]
    nih = [{"label": "Infiltrate", "x": 0.5, "y": 0.5, "w": 0.25, "h": 0.125}]
    rows = [
        ["1_0.jpg", 1, 57, "M", "PA", "Cardiomegaly|Pneumonia", "Lung Opacity", json.dumps(rsna), "[]", "train"],
        ["1_1.jpg", 1, 58, "M", "AP", "No Finding", "Normal", "[]", "[]", "train"],
        ["2_0.jpg", 2, 33, "F", "PA", "Infiltration", "", "[]", json.dumps(nih), "validation"],
    ]
    (root / "images").mkdir(parents=True, exist_ok=True)
    with (root / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COMPACT_HEADER.split(","), *rows])
    for row in rows:
        Image.new("L", (48, 48), 99).save(root / "images" / row[0])
    return root


def gazesearch_record(**changes) -> dict:
    """One scanpath as released: integers in a 224 x 224 frame, seconds."""
    return {
        "name": "570e2641-afb84e9f-3dc49429-7cdd3e3f-4f5d1514.jpg",
        "subject": 1,
        "task": "pleural effusion",
        "condition": "present",
        "bbox": [0, 0, 0, 0],
        "X": [56, 112, 223],
        "Y": [0, 168, 28],
        "T": [0.25, 0.5, 0.0],
        "length": 3,
        "fixOnTarget": True,
        "correct": 1,
        "split": "train",
    } | changes


def gazesearch(root: Path, records=None) -> Path:
    """A folder with the one JSON; without `records`, one scanpath in each official split."""
    root.mkdir(exist_ok=True)
    if records is None:
        other = "a0000000-00000000-00000000-00000000-00000000.jpg"
        records = [
            gazesearch_record(),
            gazesearch_record(task="cardiomegaly", split="valid"),
            gazesearch_record(name=other, task="support devices", split="test", X=[1], Y=[2], T=[0.3], length=1),
        ]
    (root / "finding_visual_search.json").write_text(json.dumps(records))
    return root


def open_i_xml(number: int, findings: str = "", impression: str = "") -> str:
    """A report in the layout of Open-i's ecgen-radiology."""
    return f"""<?xml version="1.0" encoding="utf-8"?>
<eCitation>
  <meta type="rr"/>
  <uId id="CXR{number}"/>
  <pmcId id="{number}"/>
  <IUXRId id="{number}"/>
  <licenseType>open-access</licenseType>
  <licenseURL>http://creativecommons.org/licenses/by-nc-nd/4.0/</licenseURL>
  <MedlineCitation Owner="Indiana University" Status="supplied by publisher">
    <Article PubModel="Electronic">
      <Abstract>
        <AbstractText Label="COMPARISON">None.</AbstractText>
        <AbstractText Label="INDICATION">Positive TB test</AbstractText>
        <AbstractText Label="FINDINGS">{findings}</AbstractText>
        <AbstractText Label="IMPRESSION">{impression}</AbstractText>
      </Abstract>
    </Article>
  </MedlineCitation>
  <MeSH><major>normal</major></MeSH>
  <parentImage id="CXR{number}_IM-0001-3001"><caption>Xray Chest PA and Lateral</caption></parentImage>
</eCitation>
"""


OPEN_I = {
    1: ("The heart is normal in size. The lungs are clear &amp; dry.", "Normal chest x-XXXX."),
    9: ("Small left pleural effusion.", ""),
    12: ("", "Cardiomegaly without edema."),
    109: ("", ""),
}


def open_i_folder(root: Path) -> Path:
    folder = root / "ecgen-radiology"
    folder.mkdir(parents=True)
    for number, (findings, impression) in OPEN_I.items():
        (folder / f"{number}.xml").write_text(open_i_xml(number, findings, impression))
    return root


def open_i_archive(root: Path) -> Path:
    root.mkdir(exist_ok=True)
    with tarfile.open(root / "NLMCXR_reports.tgz", "w:gz") as archive:
        for number, (findings, impression) in OPEN_I.items():
            text = open_i_xml(number, findings, impression).encode()
            member = tarfile.TarInfo(f"ecgen-radiology/{number}.xml")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    return root


RELEASES = {
    "nih_cxr, published": ("nih_cxr", nih_published),
    "nih_cxr, compact": ("nih_cxr", nih_compact),
    "gazesearch": ("gazesearch", gazesearch),
    "iu_xray, folder": ("iu_xray", open_i_folder),
    "iu_xray, archive": ("iu_xray", open_i_archive),
}


@pytest.fixture
def make() -> SimpleNamespace:
    """The functions above that make releases and their parts."""
    makers = (nih_published, nih_compact, gazesearch, gazesearch_record, open_i_xml, open_i_folder, open_i_archive)
    return SimpleNamespace(**{maker.__name__: maker for maker in makers})


@pytest.fixture(params=RELEASES)
def release(request, tmp_path) -> tuple[str, Path]:
    """Each small release in turn: name of its builder and root."""
    name, make = RELEASES[request.param]
    return name, make(tmp_path / "release")


@pytest.fixture
def load_release(tmp_path):
    """`gaze_vlm.data.load` with a cache of the test's own."""
    from gaze_vlm.data import load

    return lambda name, root: load(name, root, tmp_path / "cache")


@pytest.fixture
def refused(load_release):
    """Asserts that a release is refused in one line that names `place` and holds all of `words`."""
    from gaze_vlm.data import DataError

    def check(name: str, root: Path, place: Path, *words: str) -> None:
        with pytest.raises(DataError) as caught:
            load_release(name, root)
        message = str(caught.value)
        assert str(place) in message
        assert all(word in message for word in words), message
        assert "\n" not in message

    return check
