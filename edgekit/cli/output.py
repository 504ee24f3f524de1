"""What commands give on standard output, which may be closed, or whose reader may be gone (``| head``)."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, NoReturn


def print_text(text: str, end: str = "\n") -> None:
    """Write a result. Where nobody reads it any more the command goes on, to its own end and exit code."""
    if sys.stdout is None:  # closed from the start
        return
    try:
        sys.stdout.write(text + end)
    except BrokenPipeError:
        _to_nobody()


def print_json(document: Any) -> None:
    """Write a result as JSON, as :func:`print_text` does."""
    print_text(json.dumps(document, ensure_ascii=False, indent=1))


def leave(code: int) -> NoReturn:
    """End the process with an exit code, after what was written before; 1 where that cannot be written."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _to_nobody()
    except OSError as error:
        sys.stderr.write(f"edgekit: {error.strerror or error}: what was to be said could not be written\n")
        _to_nobody()
        code = code or 1
    sys.exit(code)


def _to_nobody() -> None:
    """Let standard output lead nowhere: what is still held back would be tried again at the end, in vain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
