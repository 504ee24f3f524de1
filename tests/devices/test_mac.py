"""A "Mac" behind a real sshd: Core ML on each compute unit, its plan, and accuracy on the same frames.

What only macOS has is a stand-in, in front of the real package format and coremltools; its times are nobody's measurement.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from boards import Project


def mac(project: Project, more: str = "") -> None:
    """The device ``mac``; ``more`` is what its Python does at its start."""
    folder = project.folder.parent / "device"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(f"import mac\n{more}")
    paths = [folder, Path(__file__).parent / "stand_ins", Path(__file__).parents[2]]
    (folder / "python").write_text(
        f'#!/bin/sh\nexport PYTHONPATH={":".join(map(str, paths))}\nexec {sys.executable} "$@"\n'
    )
    (folder / "python").chmod(0o755)
    project.device("mac", python=str(folder / "python"))


def test_reference_becomes_measured(project: Project) -> None:
    mac(project)
    done = project.run("--device", "mac", targets="coreml")
    assert done.code == 0, done.err
    report = project.folder / "out" / "report"
    rows = {(row["device"], row["target"]): row for row in json.loads((report / "report.json").read_text())["rows"]}
    here, there = rows["local", "coreml"], rows["mac", "coreml"]
    assert here["provenance"]["miou"]["kind"] == "reference"
    assert there["provenance"]["miou"]["kind"] == there["provenance"]["latency"]["kind"] == "measured"
    assert there["provenance"]["miou"]["by"] == there["provenance"]["latency"]["by"] == "Core ML, macOS 15.1"
    assert there["miou"] == here["miou"], "the same operations"
    assert ("apple", "coreml") not in rows, "the Mac's page stands for Apple's"
    document = json.loads((project.folder / "out/measurements/coreml-fp32-64x128.mac.json").read_text())
    units = document["latency"]["compute_units"]
    assert list(units) == ["ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE"]
    assert all(units[name]["p50"] > 0 for name in ("ALL", "CPU_ONLY", "CPU_AND_GPU"))
    assert "Neural Engine is not available" in units["CPU_AND_NE"]["failed"]
    plan = document["latency"]["placement"]["ALL"]
    assert plan["operations"]["Neural Engine"] > plan["operations"]["CPU"] == 1
    assert plan["elsewhere"] == {"ios17.reduce_argmax on CPU": 1}
    assert "not available" in document["latency"]["placement"]["CPU_AND_NE"]["failed"]
    assert "no compute plan" in document["latency"]["placement"]["CPU_ONLY"]["failed"], "a plan like no other"
    page = (report / "mac.md").read_text()
    assert "no device connected" not in page
    assert "## Compute units" in page
    assert "Neural Engine is not available" in page, "why a unit was not measured"
    assert "of the cost" in page


def test_latency_stays_where_the_plan_fails(project: Project) -> None:
    """The plan is asked for last; whatever goes wrong with it, what was measured before it is good."""
    mac(project, "mac.no_coremltools = True\n")
    done = project.edgekit("bench", "out/artifacts/coreml-fp32-64x128", "--device", "mac", "--json")
    assert done.code == 0, done.err
    (row,) = done.document["rows"]
    assert row["latency"]["provenance"]["kind"] == "measured"
    assert row["latency"]["compute_units"]["CPU_ONLY"]["p50"] > 0
    assert "another macOS" in row["latency"]["placement"]["ALL"]["failed"]
    assert "not planned" in (project.folder / "runs/bench/report/mac.md").read_text()
