"""A device's output as clean lines, whatever it holds."""

from __future__ import annotations

import re
from collections.abc import Iterator

LINE_LIMIT = 1 << 16
"""Characters of a line that are looked at: no tool's own line is near it."""

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff]")
_ENDS = re.compile(r"[\r\n]+")


_ENDLESS_NUMBER = re.compile(r"\d{19,}")
"""More digits than any tool's number has, and than Python may be willing to read."""


def lines(text: str | bytes) -> Iterator[str]:
    """The lines of ``text`` without colours, control characters, endless numbers and what is beyond the limit.

    A carriage return ends one too.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    start = 0
    for end in _ENDS.finditer(text):
        yield _clean(text[start : min(end.start(), start + LINE_LIMIT)])
        start = end.end()
    if start < len(text):
        yield _clean(text[start : start + LINE_LIMIT])


def _clean(line: str) -> str:
    return _ENDLESS_NUMBER.sub("?", _CONTROL.sub("", _ANSI.sub("", line))).rstrip()


def shortened(line: str, limit: int = 300) -> str:
    """As much of a device's line as fits into a sentence."""
    line = " ".join(line.split())
    return line if len(line) <= limit else line[: limit - 3] + "..."
