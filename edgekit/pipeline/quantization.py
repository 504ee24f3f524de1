"""How a network is brought to int8: worked out once for all targets, kept in the run's folder, known again by content."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from calibration.choice import Choice
from calibration.datasets import Split, resize_image
from edgekit import __version__
from edgekit.core.ahead import in_order
from edgekit.core.errors import DataError, EdgekitError, UsageError
from edgekit.core.files import read_checked, sha256_json, write_checked
from edgekit.core.registry import versions
from edgekit.core.values import Batches, DeployableGraph, Derived, Quantization, Ranges, Scheme, Size, UInt8
from edgekit.networks.checkpoint import Checkpoint

if TYPE_CHECKING:
    from calibration.ranges import Calibrated

MEMORY_FOR_CALIBRATION = 256 << 20
SCHEMA = 7


@dataclass(frozen=True, eq=False)
class Calibration:
    """The frames a quantizer sees.

    Attributes:
        choice: the frames, and how they were chosen.
        size: they are resized to.
        derived: what was worked out on them.
    """

    choice: Choice
    size: Size
    derived: Derived = field(default_factory=Derived, init=False, repr=False)
    _kept: dict[int, UInt8] = field(default_factory=dict, repr=False)
    _sizes: dict[int, Size] = field(default_factory=dict, repr=False)

    @property
    def frames(self) -> Split:
        """The chosen frames."""
        return self.choice.frames

    def batches(self) -> Batches:
        """Fresh passes over the frames: uint8 [1, H, W, 3]. Up to 256 MiB are kept, the rest is loaded again."""

        def start() -> Iterator[UInt8]:
            # The next one while this one is looked at.
            return (frame.copy() for frame in in_order(self._frame, range(len(self.frames)), threads=1, ahead=1))

        return start

    def spread(self, count: int) -> list[UInt8]:
        """So many of the frames, spread over all as the simulation's are."""
        total = len(self.frames)
        wanted = np.linspace(0, total - 1, min(count, total)).round().astype(int)
        return [self._frame(int(index)) for index in dict.fromkeys(wanted.tolist())]

    def sizes(self) -> dict[str, int]:
        """How many of the frames looked at so far had each size before they were resized, the most frequent first."""
        return {str(size): count for size, count in Counter(self._sizes.values()).most_common()}

    def _frame(self, index: int) -> UInt8:
        if index in self._kept:
            return self._kept[index]
        image = self.frames.references[index].load_image()
        self._sizes[index] = Size(*image.shape[:2])
        frame = resize_image(image, self.size)[None]
        if (len(self._kept) + 1) * frame.nbytes <= MEMORY_FOR_CALIBRATION:
            self._kept[index] = frame
        return frame


def check_calibration(calibration: Calibration) -> None:
    """Load one frame, so that a broken dataset is told before a long conversion starts."""
    if not len(calibration.frames):
        raise DataError(f"no {calibration.frames.dataset} frames to calibrate with: raise --samples")
    calibration.frames.references[0].load_image()


def refuse_evaluated(calibration: Calibration, evaluation: Split) -> None:
    """Raise UsageError when a frame would both calibrate and be evaluated: the drop would look smaller than it is."""
    calibrating = calibration.frames.images()
    for reference in evaluation.references:
        if reference.image_identity() in calibrating:
            raise UsageError(
                f"frame '{reference.name}' of {evaluation.dataset} {evaluation.split} would both calibrate and be evaluated: "
                f"evaluate on another split than {calibration.frames.split}"
            )


def quantization_key(checkpoint: Checkpoint, calibration: Calibration) -> str:
    """Identity of a quantization before it is worked out: everything that decides it."""
    return sha256_json(
        [
            SCHEMA, __version__, versions("torch", "numpy", "pillow"), checkpoint.identity(), str(calibration.size),
            calibration.frames.image_identity(),
        ]
    )  # fmt: skip


def quantization_path(checkpoint: Checkpoint, calibration: Calibration, run_folder: Path) -> Path:
    """Where it is kept."""
    key = quantization_key(checkpoint, calibration)
    return run_folder / "cache" / f"quantization-{calibration.size}-{key[:16]}.npz"


def prepare(graph: DeployableGraph, checkpoint: Checkpoint, calibration: Calibration, run_folder: Path) -> Calibrated:
    """The quantization of a network, worked out or found.

    Raises:
        ConversionError: the network's values cannot be represented; names the module.
    """
    path = quantization_path(checkpoint, calibration, run_folder)
    if read_checked(path) is None:  # not there, or damaged since
        _work_out(graph, calibration, path)
    # One value for all targets of a process, which keep with their graphs what they make of it.
    return calibration.derived.once("quantization", path, lambda: _stored(path, calibration))


def _stored(path: Path, calibration: Calibration) -> Calibrated:
    """What was worked out before."""
    from calibration.ranges import Calibrated

    data = read_checked(path)
    if data is None:
        raise EdgekitError(f"{path} was damaged while this command ran: check the disk and run again")
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
        ranges: dict[Scheme, Ranges] = {
            scheme: {name.partition("/")[2]: stored[name] for name in stored.files if name.partition("/")[0] == scheme}
            for scheme in get_args(Scheme)
        }
        scales, biases = (
            {name.partition("/")[2]: stored[name] for name in stored.files if name.partition("/")[0] == kind}
            for kind in ("scales", "biases")
        )
        record = json.loads(str(stored["record"]))
        return Calibrated(Quantization(ranges, scales, stored["probe"], calibration.batches(), biases), record)


def equalized_graph(graph: DeployableGraph, quantization: Quantization) -> DeployableGraph:
    """The float network in int8's scales, made once."""
    from calibration.equalization import equalized

    return graph.derived.once("equalized", quantization, lambda: equalized(graph, quantization.scales))


def int8_graph(graph: DeployableGraph, quantization: Quantization, keep_float: tuple[str, ...]) -> DeployableGraph:
    """What int8 is made of, made once for all targets."""
    from calibration.bias import corrected
    from edgekit.export.layers import nodes_of

    def make() -> DeployableGraph:
        return corrected(equalized_graph(graph, quantization), quantization.biases, but=nodes_of(graph, keep_float))

    return graph.derived.once("int8", (quantization, keep_float), make, most=2)


def calibration_record(calibrated: Calibrated, scheme: Scheme | None) -> dict[str, Any]:
    """What a manifest says of the calibration: frames, and how the ranges of its scheme were chosen."""
    record = dict(calibrated.record)
    schemes = record.pop("ranges")
    return record if scheme is None else {**record, "scheme": scheme, **schemes[scheme]}


def _work_out(graph: DeployableGraph, calibration: Calibration, path: Path) -> None:
    from calibration.ranges import calibrate

    frames: dict[int, dict[str, str]] = {}

    def batches() -> Iterator[UInt8]:
        for index, frame in enumerate(calibration.batches()()):
            name = calibration.frames.references[index].name
            frames[index] = {"name": name, "sha256": hashlib.sha256(frame.tobytes()).hexdigest()}
            yield frame

    calibrated = calibrate(graph, batches, len(calibration.frames))
    record = {
        "dataset": calibration.frames.dataset,
        "split": calibration.frames.split,
        "chosen": calibration.choice.why,
        "class_shares": calibration.choice.shares,
        "frame_sizes": calibration.sizes(),
        "frames": list(frames.values()),
        **calibrated.record,
    }
    arrays: dict[str, Any] = {
        f"{scheme}/{name}": value
        for scheme, ranges in calibrated.quantization.ranges.items()
        for name, value in ranges.items()
    }
    arrays |= {f"scales/{name}": value for name, value in calibrated.quantization.scales.items()}
    arrays |= {f"biases/{name}": value for name, value in calibrated.quantization.biases.items()}
    buffer = io.BytesIO()
    np.savez(buffer, probe=calibrated.quantization.probe, record=np.array(json.dumps(record)), **arrays)
    write_checked(path, buffer.getvalue())
