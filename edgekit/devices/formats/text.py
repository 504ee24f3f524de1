"""A device's output as clean lines, whatever it holds."""

from __future__ import annotations

import re
from collections.abc import Iterator

LINE_LIMIT = 1 << 16
"""Characters of a line that are looked at: no tool's own line is near it."""

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb]"
)
"""Control signs, C1's among them, which some terminals obey, those that change the direction of writing, and halves of signs."""
_ENDS = re.compile(r"[\r\n]+")


_ENDLESS_NUMBER = re.compile(r"\d{19,}")
"""More digits than any tool's number has, and than Python may be willing to read."""


def lines(text: str | bytes, endless_numbers: bool = False) -> Iterator[str]:
    """The lines of ``text`` without colours, control characters and what is beyond the limit.

    A carriage return ends one too.

    Args:
        endless_numbers: keep them: hashes and serials may hold some, where nothing is read as a number.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    start = 0
    for end in _ENDS.finditer(text):
        yield _clean(text[start : min(end.start(), start + LINE_LIMIT)], endless_numbers)
        start = end.end()
    if start < len(text):
        yield _clean(text[start : start + LINE_LIMIT], endless_numbers)


def _clean(line: str, endless_numbers: bool) -> str:
    plain = _CONTROL.sub("", _ANSI.sub("", line)).rstrip()
    return plain if endless_numbers else _ENDLESS_NUMBER.sub("?", plain)


def clean_text(said: str | bytes, limit: int = 300) -> str:
    """What a device wrote as one line of plain text that fits into a sentence."""
    return shortened(" ".join(lines(said, endless_numbers=True)), limit)


def shortened(line: str, limit: int = 300) -> str:
    """As much of a device's line as fits into a sentence."""
    line = " ".join(line.split())
    return line if len(line) <= limit else line[: limit - 3] + "..."
