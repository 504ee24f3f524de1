"""int8 of trained networks of the kinds that people have, by default options, on frames that did not calibrate.

The weights are those of ``benchmarks/training/train_kinds.py``; what each kind is hard for stands in ``kinds.py``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from kinds import KINDS
from own_targets import OWN, missing
from seam import TESTS, edgekit

FRAMES = 24
PLACE = {"PYTHONPATH": str(TESTS)}


def rows_of(name: str, targets: tuple[str, ...], folder: Path) -> list[dict[str, Any]]:
    """What ``edgekit quantize`` says of a network, with its manifests."""
    done = edgekit(
        "quantize", TESTS / "trained" / f"{name}.safetensors", "--network", f"kinds:{KINDS[name].__name__}", "--calib", "streets",
        "--samples", 16, "--eval", "streets:val", "--frames", FRAMES, "--size", "128x256", "--target", ",".join(targets),
        "--out", "out", "--json", cwd=folder, env={**os.environ, **PLACE},
    )  # fmt: skip
    assert done.code == 0, done.err
    rows: list[dict[str, Any]] = done.document["rows"]
    for row in rows:
        row["manifest"] = json.loads((folder / row["artifact"] / "manifest.json").read_text())
    return rows


def held(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        said = f"{row['target']}: {row['miou_drop']:.4f} {row['miou_drop_ci']}"
        assert row["miou_drop"] <= 0.005 and row["miou_drop_ci"][1] <= 0.01, said
        assert row["mended"] == [] and row["manifest"]["collapsed"] is None, said


def test_an_image_that_is_joined_again_holds_in_int8(tmp_path: Path) -> None:
    """By one scale for each join, and without what brings its parts to like ranges, it lost 4 points on these two."""
    wanted = tuple(name for name in ("onnxruntime", "tflite") if missing(name) is None)
    if not wanted:
        pytest.skip(str(missing("onnxruntime")))
    held(rows_of("joined-image", wanted, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_holds_in_int8_on_every_target(name: str, tmp_path: Path) -> None:
    rows = rows_of(name, tuple(target for target in OWN if missing(target) is None), tmp_path)
    assert len(rows) > 1
    held(rows)
