"""The pages of results: nothing typed, nothing from a stand-in."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """``benchmarks/pages/results.py``, writing elsewhere."""
    monkeypatch.syspath_prepend(str(BENCHMARKS.parent))
    monkeypatch.setattr(sys, "argv", ["results.py"])
    module = importlib.import_module("benchmarks.pages.results")
    monkeypatch.setattr(module, "PAGE", tmp_path / "results.md")
    return module


def test_the_page_is_what_the_stored_measurements_say(script: ModuleType) -> None:
    script.main()
    assert script.PAGE.read_text() == (BENCHMARKS.parent / "docs" / "results.md").read_text()


def test_the_page_of_speed_is_what_the_stored_measurements_say(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("benchmarks.pages.speed_page")
    monkeypatch.setattr(module, "PAGE", script.PAGE)
    module.main()
    assert script.PAGE.read_text() == (BENCHMARKS / "results.md").read_text()


def test_rows_of_other_devices_stay_out(script: ModuleType) -> None:
    """A run may have measured stand-ins of devices; the page tells of this machine."""
    document = json.loads((BENCHMARKS / "measured" / "run.json").read_text())
    before = script.artifacts(document)
    document["rows"] += [{**row, "device": "stand-in", "miou": 0.4321} for row in document["rows"]]
    assert script.artifacts(document) == before
