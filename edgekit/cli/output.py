"""What commands give on standard output, whose reader may be gone."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, NoReturn


class ReaderGoneError(Exception):
    """Nobody reads standard output any more (``| head``); no OSError, of which typer would make its own exit code."""


def print_text(text: str, end: str = "\n") -> None:
    """Write a result.

    Raises:
        ReaderGoneError: see there.
    """
    try:
        sys.stdout.write(text + end)
    except BrokenPipeError as error:
        raise ReaderGoneError from error


def print_json(document: Any) -> None:
    """Write a result as JSON; raises as :func:`print_text` does."""
    print_text(json.dumps(document, ensure_ascii=False, indent=1))


def leave(code: int) -> NoReturn:
    """End the process with an exit code, what was written before included, which a reader that is gone does not change."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left would be written again at the end, in vain
    sys.exit(code)
