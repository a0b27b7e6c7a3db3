"""Gaze data: an expert's searches of images (MedEyes), as traces for learning from experts.

A recipe's source `data_prep.gaze:source` reads them as demonstrations.
"""

from data_prep.gaze.dialogues import source

__all__ = ["source"]
