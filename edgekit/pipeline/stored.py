"""Measurements that are there already, and what they are known by."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from calibration.datasets import resize_image
from edgekit.core.errors import EdgekitError
from edgekit.core.files import read_sealed, sha256_bytes, sha256_json, sha256_path, write_bytes
from edgekit.core.values import Artifact, Size
from edgekit.pipeline.accuracy import Frames

BENCH_FRAMES = 4


def model_key(artifact: Artifact) -> str:
    """Hash of what decides an artifact's labels and speed."""
    return sha256_json([artifact.manifest["files"], artifact.output, artifact.output_stride, artifact.target])


def stored_part(path: Path, key: str, part: str = "accuracy") -> Any:
    """What a measurement's file holds, if it was made of the same inputs."""
    if not path.is_file():
        return None
    try:
        document = read_sealed(path)
    except EdgekitError:  # damaged, or edited since: it is measured again
        return None
    return document.get(part) if document.get("key") == key else None


def bench_frames(frames: Frames, size: Size, run_folder: Path) -> Path:
    """The first evaluation frames at the input size, in one file that every worker maps."""
    stack = np.stack([resize_image(frames[index].image, size) for index in range(min(BENCH_FRAMES, len(frames)))])
    buffer = io.BytesIO()
    np.save(buffer, stack)
    data = buffer.getvalue()
    path = run_folder / "cache" / f"bench-{size}-{sha256_bytes(data)[:16]}.npy"
    if not path.is_file() or sha256_path(path) != sha256_bytes(data):  # not there, or damaged since
        write_bytes(path, data)
    return path
