"""From detection data to questions: boxes in four formats, questions by template or by a model, checked, written, shown."""
