"""Some hundred damaged inputs for each reader; ``make fuzz`` gives them 25,000."""

from __future__ import annotations

import re

import fuzz
import pytest
from fuzz import READERS, Fault, Reader, fuzzed, grown, judged

from edgekit.core.errors import DeviceError


@pytest.mark.parametrize("name", READERS)
def test_a_reader_reads_or_refuses(name: str) -> None:
    """Samples as they are, damaged ones, and lines without an end."""
    reader = READERS[name]
    assert "read" in {judged(reader, sample) for sample in reader.samples}, "nothing is damaged where nothing is read"
    counts = fuzzed(reader, 200)
    assert sum(counts.values()) == 200
    assert grown(reader, 6) == 18


def refusing(text: object) -> None:
    raise DeviceError(f"no\n{text!s:.3}")


@pytest.mark.parametrize(
    ("read", "fault"),
    [
        (lambda text: re.match(r"(a+)+$", "a" * 40 + "b"), "takes more than"), (lambda text: {}["x"], "KeyError"),
        (lambda text: float("nan"), "gives nan"), (lambda text: ["\x1b[2J"], "gives the text"), (refusing, "no plain line"),
        (lambda text: 3, "what cannot be: 3"),
    ],
)  # fmt: skip
def test_the_fuzzer_finds_what_breaks_the_rule(read, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(fuzz, "SECONDS", 0.2)
    with pytest.raises(Fault, match=fault):
        fuzzed(Reader(read, ["count=1 curr=2"], lambda value: value != 3), 1)


def test_the_fuzzer_finds_time_that_grows_too_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "SECONDS", 0.3)
    with pytest.raises(Fault, match=r"takes more than|time grows"):
        grown(Reader(lambda text: re.search(r"(?:x|\s)+\s*$", f"{text!s}y"), ["a b"]))
