"""A recipe at work: its schema, what is built from it, compiled programs, training, prediction, run directories."""
