"""Text of somebody else's, made fit for a terminal and a page. Everything that edgekit writes to one passes through here."""

from __future__ import annotations

import json
import math
import re
from typing import Any, Union

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\n]*(?:\x07|\x1b\\)?|[@-Z\\^_])")
"""A terminal's commands: colours, moves of the cursor, titles of the window."""
_SIGNS = (
    "\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f"
)
_CONTROL = re.compile(f"[\x00-\x08\x0b-\x1f{_SIGNS}]")
"""Control signs, C1's among them, which some terminals obey, those that change the direction of writing or cannot be seen, and
halves of signs. A tab and a line's end stay."""
_IN_JSON = re.compile(f"[{_SIGNS}]")


def printable(text: str) -> str:
    """The text without anything that commands a terminal, hides, or turns the direction of writing."""
    return _CONTROL.sub("", _ANSI.sub("", text))


def json_text(document: Any, indent: int | None = 1) -> str:
    """JSON whose texts keep every sign; those that :func:`printable` takes away stand in it as their codes."""
    text = json.dumps(document, ensure_ascii=False, indent=indent)
    return _IN_JSON.sub(lambda match: json.dumps(match[0])[1:-1], text)


def parse_json(text: Union[str, bytes]) -> Any:  # noqa: UP007 - devices have Python 3.9
    """The value of a JSON text that somebody else may have written.

    Raises:
        ValueError: it is none, holds a number that no float is (NaN, 1e999) or that is endless, or nests without end.
    """
    try:
        return json.loads(text, parse_constant=_refused, parse_float=_finite)
    except RecursionError:
        raise ValueError("it nests without end") from None


def _refused(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refused(text[:40])
