"""Indiana University chest X-ray collection (Open-i): radiology reports."""

import tarfile
import xml.etree.ElementTree as ET
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from .builder import DataError, ReleaseBuilder
from .schema import row


class IuXray(ReleaseBuilder):
    """De-identified radiology reports of Indiana University, as released by Open-i (`NLMCXR_reports.tgz`).

    `root` is the archive, a folder that holds it, or a folder of its XML files. `XXXX` in a text marks removed words.
    The release has no split: reports whose number ends in 9 are validation here, the others train. The licence named
    in each file is CC BY-NC-ND 4.0: research use, and the text is not to be redistributed in another form.
    """

    homepage = "https://openi.nlm.nih.gov"
    licence = "CC BY-NC-ND 4.0 (Indiana University / Open-i)"
    citation = (
        "@article{demner2016preparing, title={Preparing a collection of radiology examinations for distribution and "
        "retrieval}, author={Demner-Fushman, Dina and Kohli, Marc D and Rosenman, Marc B and others}, "
        "journal={JAMIA}, volume={23}, number={2}, year={2016}}"
    )

    def raw_files(self) -> list[Path]:
        if self.root.is_file():
            return [self.root]
        archives = sorted(self.root.glob("NLMCXR_reports*.tgz"))
        if archives:
            return archives[:1]
        files = sorted(self.root.glob("**/*.xml"))
        if not files:
            raise DataError(f"{self.root}: neither NLMCXR_reports*.tgz nor an XML report is there")
        return files

    def split_names(self) -> list[str]:
        return list(dict.fromkeys(report["split"] for report in self._reports))

    def rows(self, split: str) -> Iterator[dict]:
        return (report for report in self._reports if report["split"] == split)

    @cached_property
    def _reports(self) -> list[dict]:
        reports = [self._report(name, text) for name, text in self._texts()]
        if not reports:
            raise DataError(f"{self.root}: no XML report in it")
        studies = Counter(report["study_id"] for report in reports)
        if max(studies.values()) > 1:
            raise DataError(f"{self.root}: {studies.most_common(1)[0][0]} is there twice")
        return sorted(reports, key=lambda report: (report["split"], int(report["study_id"].removeprefix("CXR"))))

    def _texts(self) -> Iterator[tuple[str, bytes]]:
        files = self.raw_files()
        if files[0].suffix == ".xml":
            yield from ((str(file), file.read_bytes()) for file in files)
            return
        try:
            with tarfile.open(files[0]) as archive:
                for member in archive:
                    if member.isfile() and member.name.endswith(".xml"):
                        yield f"{files[0]}: {member.name}", archive.extractfile(member).read()
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            reason = str(error).splitlines()[0].rstrip(":")  # tarfile lists what each compression said
            raise DataError(f"{files[0]}: not a readable archive ({reason})") from None

    def _report(self, name: str, text: bytes) -> dict:
        try:
            tree = ET.fromstring(text)
            study = tree.find("uId").get("id")
            int(study.removeprefix("CXR"))
            sections = {part.get("Label"): (part.text or "").strip() for part in tree.iter("AbstractText")}
        except (ET.ParseError, AttributeError, ValueError) as error:
            raise DataError(f"{name}: not an Open-i report ({error})") from None
        return row(
            study_id=study,
            report={"findings": sections.get("FINDINGS") or None, "impression": sections.get("IMPRESSION") or None},
            split="validation" if study.endswith("9") else "train",
            source="iu_xray",
            licence=self.licence,
        )
