"""Datasets and their label maps, the preprocessing contract, and the choice of calibration frames."""
