"""Accuracy by the definitions of the datasets' own scripts."""
