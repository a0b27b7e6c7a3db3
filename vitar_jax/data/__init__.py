"""From data sets to batches: sources by name, and grain pipelines; and a client of models that others serve."""
