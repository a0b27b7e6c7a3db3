"""What a DICOM header says of whom an image shows and when: read to be compared, never to be written."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread

from vitar_jax.processing.dicom import is_dicom

# Names, dates, moments and UIDs, wherever in the header they stand; and what numbers a patient, a visit or a study.
_REPRESENTATIONS = ("PN", "DA", "DT", "UI")
_NUMBERS = ("PatientID", "OtherPatientIDs", "AccessionNumber", "StudyID", "AdmissionID", "IssuerOfPatientID")
_SHORTEST = 4  # a shorter value stands in many texts by chance
_OF_THE_STANDARD = "1.2.840.10008."  # UIDs that say what kind of file it is


def identifiers(file: str | Path) -> Mapping[str, str]:
    """Keyword by value of what identifies somebody in a DICOM file; nothing for other files, or for what is damaged."""
    found: dict[str, str] = {}
    for keyword, value in _elements(_header(file)):
        for text in _values(value):
            found.setdefault(text, keyword or "a private element")
    return found


def patient_of(file: str | Path) -> str:
    """The PatientID of a DICOM file, or nothing."""
    header = _header(file)
    try:
        return str(header.get("PatientID") or "").strip()
    except Exception:  # as below
        return ""


def _header(file: str | Path) -> Dataset:
    """Empty for what is no DICOM file, or none that can be read."""
    try:
        with open(file, "rb") as opened:
            if is_dicom(opened) or str(file).lower().endswith(".dcm"):
                return dcmread(opened, force=True, stop_before_pixels=True)
    except Exception:  # pydicom raises anything at all on a damaged header
        pass
    return Dataset()


def _elements(header: Dataset) -> Iterator[tuple[str, Any]]:
    """(keyword, value) of those that identify, in sequences too. One that is damaged is passed over, and no other."""
    for tag in header.keys():
        try:
            element = header[tag]
            if element.VR == "SQ":
                for item in element.value:
                    yield from _elements(item)
            elif element.VR in _REPRESENTATIONS or element.keyword in _NUMBERS:
                yield element.keyword, element.value
        except Exception:  # as above
            continue


def held_by(text: str, found: Mapping[str, str]) -> str:
    """The keyword of an identifier that a text holds, or nothing."""
    for value, keyword in found.items():
        whole = rf"(?<![^\W_]){re.escape(value)}(?![^\W_])"  # no part of a longer word or number
        if len(value) >= _SHORTEST and re.search(whole, text, re.IGNORECASE):
            return keyword
    return ""


def _values(value: Any) -> list[str]:
    """A name counts in both its spellings, Doe^Jane and Jane Doe, too."""
    several = value if isinstance(value, list | tuple) or type(value).__name__ == "MultiValue" else [value]
    texts = [str(one).strip() for one in several]
    texts += [" ".join(reversed(text.split("^"))).strip() for text in texts if "^" in text]
    return [text for text in texts if text and not text.startswith(_OF_THE_STANDARD)]
