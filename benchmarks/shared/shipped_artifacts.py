"""Artifacts of the shipped network that several benchmarks measure, made as a user's own commands make them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from calibration.choice import choose_frames
from calibration.datasets import open_split
from edgekit.core.progress import Progress, noise_to
from edgekit.core.registry import require
from edgekit.core.values import Artifact, DeployableGraph, Precision, Size
from edgekit.networks.checkpoint import Checkpoint
from edgekit.pipeline.artifacts import lazy_graph, make_artifact, recipe_for
from edgekit.pipeline.plans import Order
from edgekit.pipeline.quantization import Calibration

PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
CALIBRATION_FRAMES = 4


def save_frames(size: Size, count: int, path: Path) -> None:
    """Drawn test frames as the workers read them: uint8 [count, H, W, 3] in a .npy file."""
    references = open_split("streets", "test", size=size).first(count).references
    np.save(path, np.stack([reference.load_image() for reference in references]))


def artifacts(
    checkpoint: Checkpoint, size: Size, targets: tuple[str, ...], folder: Path, command: str
) -> Iterator[tuple[Artifact, Callable[[], DeployableGraph]]]:
    """Every target's artifacts in float32 and int8, one after the other, each with the graph that all were made of.

    What the converters print is in ``folder/log``.
    """
    progress = Progress(silent=True)
    graph = lazy_graph(checkpoint, size, progress)
    calibration = Calibration(choose_frames(open_split("streets", "train", size=size), CALIBRATION_FRAMES), size)
    for name in targets:
        target = require(name)
        for precision in PRECISIONS:
            with noise_to(folder / "log"):
                order = Order(checkpoint, size, folder, command, calibration)
                artifact = make_artifact(target, order, recipe_for(target, precision, None, 1), graph, progress)
            yield artifact, graph
