"""Markdown's parts: escaped text, notes, tables, and the names of results."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from edgekit.core.errors import EdgekitError
from edgekit.core.text import printable
from reports.document import Result
from reports.numbers import points
from reports.statistics import Interval


def escape(text: str) -> str:
    """A name as markdown shows it literally, also inside a table's cell: on one line, every special sign escaped.

    Control characters are left out: pages are looked at in terminals too.
    """
    plain = " ".join(printable(str(text)).split())
    text = re.sub(r"([\\`*\[\]<>|~$])", r"\\\1", plain)
    text = re.sub(r"&(?=#?\w+;)", r"\\&", text)
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)  # inside a word an underscore is plain text


def code(text: str) -> str:
    """A fenced block; its fence is longer than any run of backticks inside."""
    text = printable(text)
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def interval(value: Interval) -> str:
    return f"{points(value.value)} [{points(value.low)}, {points(value.high)}]"


class Notes:
    """Numbered notes below a table; equal notes share a number."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def mark(self, cell: str, *texts: str) -> str:
        """The cell with the numbers of its notes."""
        numbers = []
        for text in texts:
            if text not in self._texts:
                self._texts.append(text)
            numbers.append(self._texts.index(text) + 1)
        return " ".join([cell, *(f"[{number}]" for number in dict.fromkeys(numbers))])

    def lines(self) -> list[str]:
        """The notes as a list, empty without notes."""
        if not self._texts:
            return []
        return [f"- [{number}] {escape(text)}" for number, text in enumerate(self._texts, 1)] + [""]


_WORDS = frozenset({"How obtained", "Scope", "Pair", "Reading", "Mode", "By", "By, there", "Layers", "Throttling"})
"""Headers of columns that hold words."""


def table(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> list[str]:
    """A markdown table, its first ``left`` columns and columns of words aligned left, numbers right, all padded.

    Cells must be escaped already.

    Raises:
        EdgekitError: a cell is blank or a row has another length than the header.
    """
    listed = [list(row) for row in rows]
    for row in listed:
        if len(row) != len(header) or not all(cell.strip() for cell in row):
            raise EdgekitError(f"a report's table has a blank or missing cell in the row of {row[0] if row else '?'}")
    widths = [max(3, *(len(row[column]) for row in [list(header), *listed])) for column in range(len(header))]

    lefts = [column < left or name in _WORDS for column, name in enumerate(header)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if lefts[column] else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * width if lefts[column] else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    return [line(header), line(rule), *(line(row) for row in listed), ""]


def size_of(result: Result) -> str:
    return str(result.row.size)


def distinct_names(results: Sequence[Result]) -> list[str]:
    """A name per result that tells it from the others of its page; a size or variant only where it is needed."""
    sizes = {size_of(result) for result in results}
    found = [result.name + (f" {size_of(result)}" if len(sizes) > 1 else "") for result in results]
    variants = [
        f"{name} ({result.row.output}, stride {result.row.output_stride or 1})"
        for name, result in zip(found, results, strict=True)
    ]
    found = [variant if found.count(name) > 1 else name for name, variant in zip(found, variants, strict=True)]
    return [
        f"{name} {result.row.artifact}".strip() if found.count(name) > 1 else name
        for name, result in zip(found, results, strict=True)
    ]
