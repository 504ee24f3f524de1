"""What commands give on standard output, which may be closed, or whose reader may be gone (``| head``), and on standard error.

Names, paths and what devices say are in it: nothing of it commands a terminal.
"""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

from edgekit.core.text import json_text, printable


def print_text(text: str, end: str = "\n") -> None:
    """Write a result. Where nobody reads it any more the command goes on, to its own end and exit code."""
    _write(printable(text) + end)


def print_json(document: Any) -> None:
    """Write a result as JSON, as :func:`print_text` does; signs that command a terminal stand in it as their codes."""
    _write(json_text(document) + "\n")


def print_error(text: str) -> None:
    """Write what went wrong, where there is a standard error."""
    if sys.stderr is not None:
        sys.stderr.write(printable(text) + "\n")


def _write(text: str) -> None:
    if sys.stdout is None:  # closed from the start
        return
    try:
        sys.stdout.write(text)
    except BrokenPipeError:
        _to_nobody()


def leave(code: int) -> NoReturn:
    """End the process with an exit code, after what was written before; 1 where that cannot be written."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _to_nobody()
    except OSError as error:
        print_error(f"edgekit: {error.strerror or error}: what was to be said could not be written")
        _to_nobody()
        code = code or 1
    sys.exit(code)


def _to_nobody() -> None:
    """Let standard output lead nowhere: what is still held back would be tried again at the end, in vain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
