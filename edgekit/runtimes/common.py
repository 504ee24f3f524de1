"""What sessions of several runtimes share."""

from __future__ import annotations

import os
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgekit.core.errors import ArtifactError, TargetError, UsageError
from edgekit.core.quantities import MOST_CORES
from edgekit.core.values import Artifact, SessionOptions, UInt8
from edgekit.decoder import decode, path


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def bounded_threads(asked: int | None) -> int:
    """The asked number of threads, at most as many as cores that this process may run on; all of them where none is asked for.

    More would only wait for one another, and thousands of them are a load of their own.
    """
    return min(asked or MOST_CORES, available_cores())


def threads(options: SessionOptions) -> int:
    """How many threads a session uses; see :func:`bounded_threads`."""
    return bounded_threads(options.threads)


def check_threads(asked: int | None, cores: int, whose: str) -> None:
    """Raise UsageError where more threads are asked for than there are cores.

    Args:
        whose: ``this machine`` or a device, as the sentence begins.
    """
    if asked is not None and asked > cores:
        raise UsageError(
            f"{whose} has {cores} core{'s' if cores > 1 else ''} to offer, not {asked}: give --threads {cores} or fewer, or leave it out"
        )


def check_frame(frame: UInt8, artifact: Artifact) -> None:
    """Raise TargetError unless ``frame`` is uint8 [1, H, W, 3] at the artifact's size."""
    expected = (1, artifact.size.height, artifact.size.width, 3)
    if frame.shape != expected or frame.dtype != np.uint8:
        raise TargetError(
            f"a frame must be uint8 {list(expected)}, not {frame.dtype} {list(frame.shape)}: resize it first"
        )


def output_settings(artifact: Artifact) -> dict[str, str]:
    """What a session's settings say of the decoder, which is made ready here and not with the first frame."""
    return {"decoder": path()} if artifact.output == "logits" else {}


def refuse_nan(logits: NDArray[Any]) -> None:
    """Raise ArtifactError where a logit is NaN: labels made of it mean nothing."""
    if logits.dtype.kind == "f" and np.isnan(logits).any():
        raise ArtifactError(
            "its logits are NaN on this frame, so that its labels mean nothing: look for a value beyond its precision with "
            "edgekit compare"
        )


def label_map(
    output: NDArray[Any], artifact: Artifact, options: SessionOptions, *, channels_last: bool = False
) -> UInt8:
    """The label map, uint8 [1, H, W], of what a model gave.

    Args:
        output: labels of any integer type [1, H, W], or logits [1, C, h, w] with any strides; not kept.
        channels_last: logits are [1, h, w, C].
    """
    if artifact.output == "logits":
        if options.look is not None:
            options.look(output.transpose(0, 3, 1, 2) if channels_last else output)
        layout: Literal["CHW", "HWC"] = "HWC" if channels_last else "CHW"
        return decode(output[0], artifact.size, layout=layout, threads=threads(options))[None]
    return output.astype(np.uint8)
