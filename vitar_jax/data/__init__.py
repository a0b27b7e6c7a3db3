"""From data sets to batches: sources by name, and grain pipelines."""
