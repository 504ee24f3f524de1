"""Every error edgekit raises on purpose, and the exit code each one ends a command with."""

from __future__ import annotations

import re


class EdgekitError(Exception):
    """A mistake or a circumstance that the user can mend; the message is one sentence that says how."""

    exit_code = 1


class DataError(EdgekitError):
    """A frame, a label or a dataset's folder is missing, damaged or not what it should be."""


class CheckpointError(EdgekitError):
    """A checkpoint cannot be read, is not trusted, or belongs to another network."""


class ArtifactError(EdgekitError):
    """An artifact is incomplete, was changed after it was written, or was written by another edgekit."""


class TargetError(EdgekitError):
    """A target is unknown, lacks a dependency, or cannot do what was asked of it."""


class ConversionError(EdgekitError):
    """A converter failed; the cause stays chained and its log file is named."""


class TrainingError(EdgekitError):
    """Training cannot start, go on, or resume."""


class DeviceError(EdgekitError):
    """A device cannot be reached, refuses, lacks something, or answers what it should not."""


class DeviceLost(DeviceError):
    """The connection to a device went while something ran there; the same may succeed when it is back."""


class UsageError(EdgekitError):
    """The command line asks for something that does not exist or contradicts itself."""

    exit_code = 2


class BudgetError(EdgekitError):
    """A budget or a gate that the user set was not met; everything measured was kept."""

    exit_code = 4


_CODES = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|[@-Z\\-_])|[\x00-\x08\x0b-\x1f\x7f]")
"""Colours and the like, which a terminal obeys."""


def first_line(error: Exception) -> str:
    """What an error of somebody else's says, as far as it fits into a sentence, without the colours that it is written in."""
    lines = _CODES.sub("", str(error)).strip().splitlines()
    return lines[0] if lines else type(error).__name__
