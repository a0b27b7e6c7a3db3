"""One module per data set: where its records come from and how they become samples; and curation, which makes such sets."""
