"""The target runtimes, one file each, found by entry point and imported on first use."""
