"""Gaze data: an expert's searches of images (MedEyes), as traces for learning from experts."""
