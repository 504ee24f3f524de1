"""Measuring artifacts where they run. The clock is always in the process that runs the model."""
