"""A plain-text table for the terminal, from the rows of ``report.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgekit.core.measurement import HEADLINE_SCOPE
from reports.numbers import milliseconds, points

WIDTH = 100


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per row, at most 100 columns; what is not there is said, never left blank.

    Args:
        rows: ``report.json``'s rows.
    """
    sizes = {_size(row) for row in rows}
    header = ["target", "precision", "size", "device", "mIoU %", "drop [95 %]", "p50 ms", "obtained"]
    left = [True, True, True, True, False, False, False, True]
    lines = [header, *(_cells(row) for row in rows)]
    if len(sizes) < 2:  # one size is said once, above the table
        lines = [line[:2] + line[3:] for line in lines]
        left = left[:2] + left[3:]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    # Names and the words on provenance are cut when they must be; numbers never are.
    for column in (0, len(widths) - 5, len(widths) - 1):
        excess = sum(widths) + 2 * (len(widths) - 1) - WIDTH
        widths[column] -= max(0, min(excess, widths[column] - 8))
    text = []
    for line in lines:
        cells = []
        for cell, width, is_left in zip(line, widths, left, strict=True):
            fitted = cell if len(cell) <= width else cell[: width - 1] + "~"
            cells.append(fitted.ljust(width) if is_left else fitted.rjust(width))
        text.append("  ".join(cells).rstrip())
    text.insert(1, "-" * max(map(len, text)))
    if len(sizes) == 1:
        text.insert(0, f"size {sizes.pop()}; drops in points of mIoU; obtained: mIoU / p50")
    else:
        text.insert(0, "drops in points of mIoU; obtained: mIoU / p50")
    other = sorted({str(row["latency_scope"]) for row in rows} - {"None", HEADLINE_SCOPE})
    if other:
        text.append(f"* scope {', '.join(other)}: not comparable with {HEADLINE_SCOPE}")
    return "\n".join(text) + "\n"


def _size(row: Mapping[str, Any]) -> str:
    height, width = row["size"]
    return f"{height}x{width}"


def _cells(row: Mapping[str, Any]) -> list[str]:
    miou, drop, interval, latency = (row[key] for key in ("miou", "miou_drop", "miou_drop_ci", "latency_ms"))
    kinds = [str(row["provenance"][key]["kind"]) for key in ("miou", "latency")]
    if latency is None:  # its own column says that it was not measured
        kinds = kinds[:1]
    scope = "" if row["latency_scope"] in (None, HEADLINE_SCOPE) else "*"
    no_drop = "not measured" if miou is None or row["target"] != "pytorch" else "does not apply"
    return [
        str(row["target"]),
        str(row["precision"]),
        _size(row),
        str(row["device"]),
        "not measured" if miou is None else f"{100 * miou:.2f}",
        no_drop if drop is None else f"{points(drop)} [{points(interval[0])}, {points(interval[1])}]",
        "not measured" if latency is None else milliseconds(latency["p50"]) + scope,
        " / ".join(dict.fromkeys(kinds)),
    ]
