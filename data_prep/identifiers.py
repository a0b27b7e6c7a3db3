"""What a DICOM header says of whom an image shows and when: read to be compared, never to be written."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydicom import dcmread

from vitar_jax.processing.dicom import is_dicom

# Names, dates, moments and UIDs, wherever in the header they stand; and what numbers a patient, a visit or a study.
_REPRESENTATIONS = ("PN", "DA", "DT", "UI")
_NUMBERS = ("PatientID", "OtherPatientIDs", "AccessionNumber", "StudyID", "AdmissionID", "IssuerOfPatientID")
_SHORTEST = 4  # a shorter value stands in many texts by chance
_OF_THE_STANDARD = "1.2.840.10008."  # UIDs that say what kind of file it is


def identifiers(file: str | Path) -> Mapping[str, str]:
    """Keyword by value of what identifies somebody in a DICOM file; nothing for other files, or damaged ones."""
    try:
        with open(file, "rb") as opened:
            if not (is_dicom(opened) or str(file).lower().endswith(".dcm")):
                return {}
            header = dcmread(opened, force=True, stop_before_pixels=True)
            found: dict[str, str] = {}
            for element in header.iterall():
                if element.VR in _REPRESENTATIONS or element.keyword in _NUMBERS:
                    for value in _values(element.value):
                        found.setdefault(value, element.keyword or "a private element")
            return found
    except Exception:  # pydicom raises anything at all on a damaged header; its pixels will not be read either
        return {}


def patient_of(file: str | Path) -> str:
    """The PatientID of a DICOM file, or nothing."""
    return next((value for value, keyword in identifiers(file).items() if keyword == "PatientID"), "")


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
