"""One module a published data set: what it is, and how its records are read from its published files."""
