"""Speed beside Hugging Face's, in one process and in turns; torch is imported nowhere else."""
