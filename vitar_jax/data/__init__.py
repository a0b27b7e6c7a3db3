"""From data sets to batches: readers of question files, sources by name, and grain pipelines."""
