"""A device's output as clean lines, whatever it holds."""

from __future__ import annotations

import re
from collections.abc import Iterator

from edgekit.core.text import printable

LINE_LIMIT = 1 << 16
"""Characters of a line that are looked at: no tool's own line is near it."""
LISTED = 1000
"""Entries of any one kind that a reader keeps: no tool lists more."""

NUMBER = r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?"
"""A number as C and C++ print it. Each sign has one place in it only, so that a search takes time in proportion to the text."""

_ENDS = re.compile(r"[\r\n]+")
_ENDLESS_NUMBER = re.compile(r"\d{19,}")
"""More digits than any tool's number has, and than Python may be willing to read."""
_NUMBER = re.compile(NUMBER)


def lines(text: str | bytes, *, endless_numbers: bool = False) -> Iterator[str]:
    """The lines of ``text`` without colours, control characters and what is beyond the limit.

    A carriage return ends one too.

    Args:
        endless_numbers: keep them: hashes and serials may hold some, where nothing is read as a number.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    start = 0
    for end in _ENDS.finditer(text):
        yield _clean(text[start : min(end.start(), start + LINE_LIMIT)], endless_numbers=endless_numbers)
        start = end.end()
    if start < len(text):
        yield _clean(text[start : start + LINE_LIMIT], endless_numbers=endless_numbers)


def _clean(line: str, *, endless_numbers: bool) -> str:
    plain = printable(line).rstrip()
    return plain if endless_numbers else _ENDLESS_NUMBER.sub("?", plain)


def number(text: str) -> float | None:
    """The number that a text is; None where it is none, or none that a float holds."""
    value = float(text) if _NUMBER.fullmatch(text) else float("inf")
    return value if abs(value) <= 1e300 else None


def clean_text(said: str | bytes, limit: int = 300) -> str:
    """What a device wrote as one line of plain text that fits into a sentence."""
    return shortened(" ".join(lines(said, endless_numbers=True)), limit)


def shortened(line: str, limit: int = 300) -> str:
    """As much of a device's line as fits into a sentence."""
    line = " ".join(line.split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def last_said(text: str | bytes) -> str:
    """The last line that says anything, for a sentence on a tool that failed."""
    said = "nothing"
    for line in lines(text):
        if line.strip():
            said = line
    return shortened(said, 200)
