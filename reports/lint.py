"""What ``edgekit lint`` prints, from its JSON document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from textwrap import wrap
from typing import Any

WIDTH = 100
SEVERITIES = ("fails", "wrong", "slow")
"""What is shown by module, worst first; what edgekit rewrites is summed up."""


def count_findings(
    findings: Sequence[Mapping[str, Any]], targets: Sequence[str], known: Sequence[str]
) -> dict[str, dict[str, int] | None]:
    """Operations of each severity for each target; None for a target that the rules do not know."""
    return {
        target: {
            severity: sum(
                int(entry["count"])
                for entry in findings
                if entry["severity"] == severity and target in entry["targets"]
            )
            for severity in (*SEVERITIES, "rewritten")
        }
        if target in known
        else None
        for target in targets
    }


def lint_text(document: Mapping[str, Any]) -> str:
    """Findings by module, worst first, and one closing line a target.

    Args:
        document: what ``edgekit lint --json`` prints.
    """
    height, width = document["size"]
    lines = [f"{document['network']} at {height}x{width}, {document['weights']}", ""]
    for place, entries in _by_place([entry for entry in document["findings"] if entry["severity"] != "rewritten"]):
        lines.append(place)
        for entry in entries:
            lines += _entry(entry)
        lines.append("")
    if rewritten := [entry for entry in document["findings"] if entry["severity"] == "rewritten"]:
        lines.append("rewritten by edgekit, nothing to do")
        for _, group in groupby(sorted(rewritten, key=lambda entry: str(entry["rule"])), lambda entry: entry["rule"]):
            same = list(group)
            text = f"{same[0]['rewrite']} x {sum(entry['count'] for entry in same)} for {', '.join(same[0]['targets'])}"
            lines += [f"  {text}", *_wrapped(same[0]["reason"])]
        lines.append("")
    return "\n".join([*lines, *(_closing(target, counts) for target, counts in document["summary"].items())]) + "\n"


def _by_place(findings: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """Findings of one module and line together, places with the worst finding first, else in the given order."""
    places: dict[str, list[Mapping[str, Any]]] = {}
    for entry in findings:  # worst first, so the first finding of a place is its worst
        module = entry["module"] or "the network itself"
        places.setdefault(f"{module}  ({entry['source']})" if entry["source"] else module, []).append(entry)
    yield from places.items()


def _entry(entry: Mapping[str, Any]) -> list[str]:
    times = f" x {entry['count']}" if entry["count"] > 1 else ""
    precision = " int8" if entry["precision"] == "int8" else ""
    head = f"  {entry['severity']:7}{entry['operation']}{times} on {', '.join(entry['targets'])}{precision}"
    return [f"{head}  [{entry['rule']}]", *_wrapped(f"{entry['reason']}."), *_wrapped(f"-> {entry['remedy']}")]


def _wrapped(sentence: str) -> list[str]:
    return wrap(sentence, WIDTH, initial_indent=" " * 9, subsequent_indent=" " * 9)


def _closing(target: str, counts: Mapping[str, int] | None) -> str:
    if counts is None:
        return f"{target}: edgekit has no rules for this target"
    bad = ", ".join(f"{counts[severity]} {severity}" for severity in SEVERITIES if counts[severity]) or "clean"
    return f"{target}: {bad}" + (f"; {counts['rewritten']} rewritten by edgekit" if counts["rewritten"] else "")
