"""What ``edgekit compare`` does: the first layer at which two artifacts of one checkpoint part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibration.datasets import Split, resize_image
from edgekit.core.errors import ArtifactError, EdgekitError, TargetError, UsageError
from edgekit.core.files import write_json
from edgekit.core.progress import Progress, noise_to
from edgekit.core.registry import load_target
from edgekit.core.seam import Inspectable
from edgekit.core.values import Artifact, Size, UInt8
from edgekit.networks.checkpoint import Checkpoint, load_checkpoint, shipped_names
from edgekit.pipeline.accuracy import artifact_labeller, pytorch_labeller
from edgekit.pipeline.artifacts import lazy_graph
from edgekit.pipeline.pages import write_pages

FLOAT_TOLERANCE, INT8_TOLERANCE = 0.01, 0.2
"""Distances that rounding explains: of fp16 against float, and of int8 on both or one side."""


@dataclass(frozen=True)
class Subject:
    """One side of a comparison: an artifact, or float PyTorch where there is none."""

    checkpoint: Checkpoint
    artifact: Artifact | None

    @property
    def title(self) -> str:
        """As tables name it."""
        return "pytorch fp32" if self.artifact is None else self.artifact.title

    @property
    def name(self) -> str:
        """As a folder is named after it."""
        return "pytorch-fp32" if self.artifact is None else self.artifact.folder.resolve().name

    @property
    def is_int8(self) -> bool:
        """Whether its values are rounded to 256 levels."""
        return self.artifact is not None and self.artifact.precision == "int8"


def checkpoint_of(artifacts: Sequence[Artifact], named: Checkpoint | None) -> Checkpoint:
    """The one checkpoint that artifacts are of: the named one, else a shipped one by the name in their manifests.

    Raises:
        UsageError: they are of different checkpoints, or of one that must be named.
    """
    wanted = {artifact.manifest["checkpoint"]["sha256"]: artifact for artifact in artifacts}
    if len(wanted) > 1:
        one, other = (artifact.folder for artifact in wanted.values())
        raise UsageError(f"{one} and {other} were made from different checkpoints: compare artifacts of one")
    ((digest, artifact),) = wanted.items()
    name = artifact.manifest["checkpoint"]["name"]
    if named is None:
        if name not in shipped_names():  # a manifest's text is no path to follow
            raise UsageError(
                f"{artifact.folder} was made from the checkpoint '{name}', which is not at hand: add --checkpoint FILE"
            )
        named = load_checkpoint(name)
    if named.sha256 != digest:
        raise UsageError(
            f"{artifact.folder} was made from another checkpoint than {named.path}: add --checkpoint with its '{name}'"
        )
    return named


def compare(
    first: Subject, second: Subject, size: Size, split: Split, tolerance: float | None, folder: Path, progress: Progress
) -> dict[str, Any]:
    """Both subjects' values at every layer; writes a page, a figure and what they show into ``folder``.

    Args:
        split: frames to look at.
        tolerance: the largest distance that is passed over, as a share of a layer's result; None for what rounding explains.

    Raises:
        TargetError: a target does not show what its artifacts compute.
    """
    from edgekit.export.compare import Samples, compare_layers, float_samples, map_shapes, parting
    from reports.compare import render_comparison

    if tolerance is None:
        tolerance = INT8_TOLERANCE if first.is_int8 or second.is_int8 else FLOAT_TOLERANCE
    checkpoint = first.checkpoint
    graph = lazy_graph(checkpoint, size, progress)()
    frames = [resize_image(reference.load_image(), size)[None].copy() for reference in split.references]
    shapes = map_shapes(graph)
    with progress.stage("looking into float PyTorch"):
        expected = float_samples(graph, frames)
    taken, labels = [], []
    for subject in (first, second):
        samples = Samples(frozenset(shapes.values()), rescaled=subject.is_int8)
        log = folder / f"{subject.name}.log"
        with progress.stage(f"looking into {subject.title}"):
            if subject.artifact is None:
                samples.values.update({(name, shapes[name]): [value] for name, value in expected.items()})
            else:
                _look_into(subject.artifact, frames, samples, log)
            labels.append(_labels(subject, size, frames, log))
        taken.append(samples)
    distances = compare_layers(graph, expected, *taken)
    where = parting(graph, distances, tolerance)
    document = {
        "schema": 1,
        "checkpoint": checkpoint.describe(),
        "size": [size.height, size.width],
        "first": first.title,
        "second": second.title,
        "frames": {"dataset": split.dataset, "split": split.split, "frames": len(frames)},
        "tolerance": tolerance,
        "parting": asdict(where),
        "labels_alike": float(np.mean([(one == other).mean() for one, other in zip(*labels, strict=True)])),
        "layers": [asdict(row) for row in distances],
    }
    write_pages(folder, render_comparison(document))
    write_json(folder / "compare.json", document)
    return document


def _look_into(artifact: Artifact, frames: Sequence[UInt8], samples: Any, log: Path) -> None:
    target = load_target(artifact.target)
    if not isinstance(target, Inspectable):
        raise TargetError(f"{target.title} does not show what its artifacts compute: compare others")
    try:
        with noise_to(log):
            for frame in frames:
                target.show_tensors(artifact, frame, samples.look)
    except EdgekitError:
        raise
    except ImportError as error:
        raise TargetError(f"{artifact.title} cannot run here: {target.missing() or error}") from error
    except Exception as error:  # runtimes raise anything when they cannot load a model
        raise ArtifactError(f"{artifact.title} cannot be looked into: {error} (its output is in {log})") from error


def _labels(subject: Subject, size: Size, frames: Sequence[UInt8], log: Path) -> list[UInt8]:
    if subject.artifact is None:
        with pytorch_labeller(subject.checkpoint, size) as label:
            return [label(frame) for frame in frames]
    with artifact_labeller(load_target(subject.artifact.target), subject.artifact, None, log) as label:
        return [label(frame) for frame in frames]
