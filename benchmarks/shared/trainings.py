"""Trainings on CamVid that benchmarks compare on val."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from edgekit.networks.checkpoint import load_checkpoint, read_metadata


def val_scores(out: Path, network: str, arguments: list[str]) -> dict[str, Any]:
    """Scores on CamVid's val of ``edgekit train`` with these arguments: made now, or gone on with, unless made before."""
    path = out / f"{network}.safetensors"
    done = path.is_file() and "camvid:val" in (read_metadata(path) or {}).get("metrics", {})
    if not done:
        subprocess.run([sys.executable, "-m", "edgekit", "train", *arguments, "--out", str(out)], check=True)
    return dict(load_checkpoint(str(path)).metrics["camvid:val"])
