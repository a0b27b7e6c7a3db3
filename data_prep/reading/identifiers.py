"""Identifiers in DICOM headers: names, dates, numbers and UIDs. They are only compared with texts, never written."""

import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread

from vitar_jax.processing.sources import is_dicom, open_source, split_frame

# Names, dates, times and UIDs anywhere in the header, and the numbers of a patient, visit or study.
_REPRESENTATIONS = ("PN", "DA", "DT", "UI")
_NUMBERS = ("PatientID", "OtherPatientIDs", "AccessionNumber", "StudyID", "AdmissionID", "IssuerOfPatientID")
_SHORTEST = 4  # shorter values occur in texts by chance
_OF_THE_STANDARD = "1.2.840.10008."  # UIDs that the standard defines, for example for file types
# What devices and de-identification tools write in place of a name or number. Each word of a placeholder is one of these.
_PLACEHOLDERS = frozenset(
    "anon anonym anonyme anonymised anonymized anonymous applicable available blank de default deidentified deleted demo dummy "
    "empty given hidden id identified inconnu is known masked missing mrn na nan nil no noid noname none not null patient "
    "patientid pid redacted removed specified subject tba tbd test unbekannt undefined unidentified unk unknown unnamed "
    "unspecified withheld".split()
)


def identifiers(file: str | Path | bytes) -> Mapping[str, str]:
    """Returns the keyword of each identifying value in a DICOM file, given by its path or content.

    Ignores other files and damaged elements.
    """
    found: dict[str, str] = {}
    for keyword, value in _elements(_header(file)):
        for text in filter(lambda text: not is_placeholder(text), _values(value)):
            found.setdefault(text, keyword or "a private element")
    return found


def patient_of(file: str | Path | bytes) -> str:
    """Returns the PatientID of a DICOM file, or an empty string if it has none, or a placeholder such as 0 or NONE."""
    header = _header(file)
    try:
        patient = str(header.get("PatientID") or "").strip()
    except Exception:  # as in _header
        return ""
    return "" if is_placeholder(patient) or not patient.strip("0") else patient


def is_placeholder(identifier: str) -> bool:
    """Returns whether a text stands for a missing identifier, such as "NONE", "Anonymous^Patient", "N/A", "xxxx" or "--"."""
    words = re.findall(r"[^\W_]+", identifier.casefold())
    return words == ["n", "a"] or all(word in _PLACEHOLDERS or re.fullmatch("x{3,}", word) for word in words)


def _header(file: str | Path | bytes) -> Dataset:
    """Reads the header of a DICOM file. Returns an empty one if the file is not DICOM or cannot be read."""
    try:
        with io.BytesIO(file) if isinstance(file, bytes) else open_source(file) as opened:
            if is_dicom(opened) or (not isinstance(file, bytes) and split_frame(str(file))[0].lower().endswith(".dcm")):
                return dcmread(opened, force=True, stop_before_pixels=True)
    except Exception:  # pydicom raises many types on a damaged header
        pass
    return Dataset()


def _elements(header: Dataset) -> Iterator[tuple[str, Any]]:
    """Yields (keyword, value) of the identifying elements, including those in sequences. Skips damaged elements."""
    for tag in header.keys():
        try:
            element = header[tag]
            if element.VR == "SQ":
                for item in element.value:
                    yield from _elements(item)
            elif element.VR in _REPRESENTATIONS or element.keyword in _NUMBERS:
                yield element.keyword, element.value
        except Exception:  # as in _header
            continue


def held_by(text: str, found: Mapping[str, str]) -> str:
    """Returns the keyword of an identifier that `text` contains, or an empty string."""
    for value, keyword in found.items():
        whole = rf"(?<![^\W_]){re.escape(value)}(?![^\W_])"  # not part of a longer word or number
        if len(value) >= _SHORTEST and re.search(whole, text, re.IGNORECASE):
            return keyword
    return ""


def _values(value: Any) -> list[str]:
    """Returns the values as texts. Includes both spellings of a name: Doe^Jane and Jane Doe."""
    several = value if isinstance(value, list | tuple) or type(value).__name__ == "MultiValue" else [value]
    texts = [str(one).strip() for one in several]
    texts += [" ".join(reversed(text.split("^"))).strip() for text in texts if "^" in text]
    return [text for text in texts if text and not text.startswith(_OF_THE_STANDARD)]
