"""Evidence as other systems read it: a DICOM structured report, a FHIR DiagnosticReport; gaze-vlm export."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from .cli_films import OutputError, Overwrite, write
from .terminal import complain, console, shown

SR, FHIR = "report.sr.dcm", "report.fhir.json"


def export(
    evidence: Annotated[
        Path, typer.Argument(help="evidence.json of gaze-vlm report, or saved from its page.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder to write into.", show_default=False)],
    film: Annotated[
        Path | None, typer.Option(help="The DICOM film that it is about: a structured report too.", show_default=False)
    ] = None,
    organization: Annotated[
        str | None,
        typer.Option(help="Of who signed off: without it no structured report is verified.", show_default=False),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Evidence as reviewed, as a FHIR DiagnosticReport and as a DICOM structured report."""
    from .evidence import EvidenceBundle

    if organization is not None and film is None:
        complain("--organization needs --film: only a structured report says who has verified it")
        raise typer.Exit(2)
    about = str(evidence)
    try:
        bundle = EvidenceBundle.from_json(evidence.read_text(encoding="utf-8"))
        files = {FHIR: fhir(bundle)}
        if film is not None:
            about += f", {film}"
            files[SR] = structured_report(bundle, film, organization)
        write(out, files, overwrite, stale=(SR, FHIR))
    except OSError as error:
        complain(f"{evidence}: {error.strerror or error}")
        raise typer.Exit(2) from None
    except UnicodeDecodeError:
        complain(f"{evidence}: not a text file")
        raise typer.Exit(2) from None
    except (ValueError, ImportError) as error:
        complain(str(error) if isinstance(error, OutputError | ImportError) else f"{about}: {error}")
        raise typer.Exit(2) from None
    for name in files:
        console.print(shown(out / name), soft_wrap=True)


def fhir(bundle) -> Callable[[Path], None]:
    """What writes the bundle as a FHIR DiagnosticReport.

    Raises:
        ValueError: if it cannot be one.
    """
    from .evidence.fhir import to_fhir

    text = json.dumps(to_fhir(bundle), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return lambda path: path.write_text(text, encoding="utf-8")


def structured_report(bundle, film: Path, organization: str | None = None) -> Callable[[Path], None]:
    """What writes the bundle as a DICOM structured report on a film.

    Raises:
        ValueError: if the file is no DICOM film, another one, broken, or lacks what a report needs; it is not named.
        ImportError: without highdicom.
    """
    import hashlib

    from .evidence.dicom_sr import to_dicom_sr
    from .images import quiet, read_bytes

    data = read_bytes(str(film))
    if hashlib.sha256(data).hexdigest() != bundle.image["sha256"]:
        raise ValueError("another film: its SHA-256 is not that of the evidence")
    with quiet():
        report = to_dicom_sr(bundle, _header(data), organization=organization)
        written = io.BytesIO()
        try:
            report.save_as(written, enforce_file_format=True)
        except Exception:  # pydicom raises anything, and quotes values
            raise ValueError("a value in the DICOM source cannot stand in a structured report") from None
    return lambda path: path.write_bytes(written.getvalue())


def _header(data: bytes):
    """The data set of a DICOM file without its pixels; ValueError if it is none or broken."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        return pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
    except InvalidDicomError:
        raise ValueError("no DICOM file, which a structured report needs") from None
    except Exception:  # pydicom raises anything on broken bytes
        raise ValueError("broken DICOM file, it cannot be read") from None
