"""Every artifact is run as it is made, and held to the network that it was made of: a converter may be wrong without a word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from calibration.datasets import open_split, resize_image
from edgekit.core.errors import ConversionError
from edgekit.core.seam import Inspectable, Target
from edgekit.core.values import Artifact, DeployableGraph, Float32, Precision, SessionOptions, Size, UInt8
from edgekit.export.sizes import decision_size

if TYPE_CHECKING:
    from torch import Tensor

    from edgekit.export.compare import Parting, Samples

FRAMES = 2
"""Looked at for each artifact: what a converter gets wrong it gets wrong on every frame."""
FRAME_PIXELS = 3 << 20
"""Above so many pixels one frame is enough."""
INT8_FRAMES, INT8_PIXELS = 6, 6 << 20
"""int8 is looked at on so many frames, of about so many pixels together, since what it loses differs from frame to frame."""
INT8_APART = 0.2
"""How far int8's maps may be from the float network's before a layer counts as broken: rounding was seen to do less."""
WORSE = 0.02
"""int8 may be expected to lose so much more mIoU than its simulation was: more is no rounding."""
JUDGED = 1 << 17
"""About so many pixels of a frame are judged."""
TOLERANCE: Mapping[str, float] = {"fp32": 0.01, "fp16": 0.03, "bf16": 0.1}
"""How far logits may be from the network's, as a share of their spread: several times what rounding was seen to do."""
OFFSET_SHARE = 0.01
"""The spread of logits is taken to be at least this share of the largest one."""
WRONG_SHARE = 0.002
"""Share of pixels whose label may be one that the network holds for less likely than that."""


@dataclass(frozen=True)
class Seen:
    """What an artifact gave on frames, beside its network.

    Attributes:
        frames: how many, and which.
        labels_alike: share of the pixels with the network's label.
        wrong: share of the pixels whose label the network holds for less likely by more than rounding.
        logits_distance: root mean square of the difference over the logits' spread; None of artifacts that give labels, or int8's
            own levels.
        expected_drop: of mIoU, a fraction, with the float network's own probabilities as the truth.
    """

    frames: str
    labels_alike: float
    wrong: float
    logits_distance: float | None
    expected_drop: float

    def to_json(self) -> dict[str, Any]:
        """The manifest's ``check``."""
        return {
            "frames": self.frames, "labels_alike": round(self.labels_alike, 6), "wrong": round(self.wrong, 6),
            "logits_distance": None if self.logits_distance is None else float(f"{self.logits_distance:.4g}"),
            "expected_drop": round(self.expected_drop, 6),
        }  # fmt: skip


def frames_to_check(precision: Precision, size: Size) -> int:
    """How many frames an artifact is held to."""
    if precision == "int8":
        return max(FRAMES, min(INT8_FRAMES, INT8_PIXELS // (size.height * size.width)))
    return 1 if size.height * size.width > FRAME_PIXELS else FRAMES


def check_frames(precision: Precision, size: Size, calibrating: Sequence[UInt8]) -> tuple[str, list[UInt8]]:
    """Frames to hold an artifact to, each uint8 [1, H, W, 3], and what they are: calibration frames, or drawn ones without these."""
    if calibrating:
        return f"{len(calibrating)} of the calibration", list(calibrating)
    count = min(frames_to_check(precision, size), FRAMES)
    references = open_split("streets", "train", None, size).first(count).references
    return f"{count} drawn", [resize_image(reference.load_image(), size)[None].copy() for reference in references]


def check_artifact(target: Target, artifact: Artifact, graph: DeployableGraph, frames: tuple[str, list[UInt8]]) -> Seen:
    """Run an artifact on frames and hold it to its network.

    Args:
        graph: the float network, whatever the artifact's precision.

    Raises:
        ConversionError: a float artifact differs in more than rounding; names the first layer where they part.
    """
    import torch

    from calibration.simulation import expected_drop_of_labels

    what, images = frames
    alike, wrong, distances = [], [], []
    judged: list[tuple[Tensor, Tensor]] = []
    kept: list[Float32] = []

    def look(logits: NDArray[Any]) -> None:
        if logits.dtype.kind == "f":
            kept.append(np.array(logits[0], np.float32))

    with target.open(artifact, SessionOptions(look=look)) as session:
        halves = "bf16" if "bf16" in str(session.settings.get("inference precision")) else "fp16"
        tolerance = TOLERANCE["fp32" if artifact.precision == "fp32" else halves]
        for image in images:
            kept.clear()
            labels = session.run(image)[0]
            logits, decided = _network(graph, image, artifact.output_stride)
            # Logits that lie far from zero beside their spread lose more of it to rounding.
            spread = max(float(logits.std()), OFFSET_SHARE * float(np.abs(logits).max()), 1e-30)
            if kept:
                distances.append(float(np.sqrt(np.mean((kept[0] - logits) ** 2))) / spread)
            best = decided.max(0)
            at = labels[:: artifact.output_stride, :: artifact.output_stride]
            at = at[: best.shape[0], : best.shape[1]]
            beyond = int(at.max()) >= len(decided)
            chosen = decided[0] if beyond else np.take_along_axis(decided, at[None].astype(np.int64), 0)[0]
            wrong.append(1.0 if beyond else float((best - chosen > 2 * tolerance * spread).mean()))
            alike.append(float((at == decided.argmax(0)).mean()))
            step = max(1, round((best.size / JUDGED) ** 0.5))
            some = np.minimum(at[::step, ::step], len(decided) - 1)
            judged.append((torch.from_numpy(decided[None, :, ::step, ::step].copy()), torch.from_numpy(some.copy())))
    distance = max(distances) if len(distances) == len(images) else None
    drop = expected_drop_of_labels(judged)
    seen = Seen(what, float(np.mean(alike)), float(np.mean(wrong)), distance, drop)
    if artifact.precision != "int8" and (
        seen.wrong > WRONG_SHARE or (distance is not None and not distance <= tolerance)
    ):
        off = "" if distance is None else f", logits {100 * distance:.2g} % apart"
        raise ConversionError(
            f"{artifact.title} is not the network that it was made of: {100 * (1 - seen.labels_alike):.2g} % of the labels differ on "
            f"{what} frames{off}; {_where(target, artifact, graph, images, tolerance)}: "
            "replace that operation by one that edgekit lint does not name, or choose another --target"
        )
    return seen


def _network(graph: DeployableGraph, image: UInt8, output_stride: int) -> tuple[NDArray[np.float64], Float32]:
    """The network's logits, float64 [C, h, w], and those that labels are decided on, float32 [C, ceil(H/s), ceil(W/s)]."""
    import torch
    from torch.nn import functional as F

    from edgekit.export.graph import normalize

    with torch.no_grad():
        logits = graph.module(normalize(torch.from_numpy(image), graph.normalization))
        if not logits.isfinite().all():
            raise ConversionError(
                "the network gives logits that are NaN or infinite on a frame: look for such weights, a logarithm or a division in it"
            )
        decision = decision_size(graph.size, output_stride)
        shape = (decision.height, decision.width)
        decided = (
            logits
            if tuple(logits.shape[2:]) == shape
            else F.interpolate(logits, shape, mode="bilinear", align_corners=False)
        )
    return logits[0].double().numpy(), decided[0].numpy()


def _where(
    target: Target, artifact: Artifact, graph: DeployableGraph, images: Sequence[UInt8], tolerance: float
) -> str:
    """The first layer at which an artifact and its network part, in words."""
    if not isinstance(target, Inspectable):
        return "this target does not show what its artifacts compute on the way"
    try:
        found = parts_at(target, artifact, graph, images, tolerance)
    except Exception as error:  # runtimes raise anything; the artifact is told to be wrong all the same
        return f"what it computes on the way cannot be looked at ({type(error).__name__})"
    if found.layer is None:
        return "no layer before the last differs"
    unseen = f", or at {', '.join(found.unseen)} just before it" if found.unseen else ""
    return f"they part at '{found.layer}'{unseen}"


def parts_at(
    target: Inspectable, artifact: Artifact, graph: DeployableGraph, images: Sequence[UInt8], tolerance: float
) -> Parting:
    """The first layer at which an artifact and its network part; raises whatever a runtime does."""
    from edgekit.export.compare import Samples, compare_layers, float_samples, map_shapes, parting

    shapes = map_shapes(graph)
    expected = float_samples(graph, images)
    kinds = frozenset(shapes.values())
    network, model = Samples(kinds, rescaled=False), Samples(kinds, rescaled=artifact.precision == "int8")
    network.values.update({(name, shapes[name]): [value] for name, value in expected.items()})
    _show(target, artifact, images, model)
    return parting(graph, compare_layers(graph, expected, network, model), tolerance)


def _show(target: Inspectable, artifact: Artifact, images: Sequence[UInt8], model: Samples) -> None:
    for image in images:
        target.show_tensors(artifact, image, model.look)


def check_made(target: Target, converted: Artifact, graph: DeployableGraph, calibrating: Sequence[UInt8]) -> Seen | str:
    """What was seen, or why it cannot run here.

    Raises:
        ConversionError: as :func:`check_artifact`.
    """
    try:
        frames = check_frames(converted.precision, converted.size, calibrating)
        return check_artifact(target, converted, graph, frames)
    except ImportError as error:
        return target.missing() or str(error)


def doubt(artifact: Artifact) -> str | None:
    """What is to be said at once of an int8 artifact that is not what was simulated; None where there is nothing."""
    if (why := collapsed(artifact.manifest)) is not None:
        return f"{artifact.title} has collapsed: {why}"
    mended = artifact.manifest.get("mended")
    if isinstance(mended, list) and mended:
        return f"{artifact.title}: int8 broke at {', '.join(map(str, mended))}, which stay in float"
    seen = artifact.manifest.get("check", {})
    if artifact.precision != "int8" or not isinstance(seen, dict) or seen.get("labels_alike", 1.0) >= 0.9:
        return None
    return (
        f"{artifact.title} labels {100 * seen['labels_alike']:.0f} % of the pixels as the float network does, on {seen['frames']} frames: "
        f"edgekit compare {artifact.folder} names the first layer where they part"
    )


def collapsed(manifest: Mapping[str, Any]) -> str | None:
    """Why an int8 artifact must not be shipped; None of one that may be."""
    why = manifest.get("collapsed")
    return why if isinstance(why, str) else None
