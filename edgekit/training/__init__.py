"""Training: the paper's recipe by default, resumable, on CPU or GPU."""
