"""Connected devices as places that measure: several side by side, each one thing at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from calibration.datasets import resize_image
from edgekit.core.contract import Terms
from edgekit.core.errors import DeviceError, EdgekitError, UsageError
from edgekit.core.files import sha256_json, write_bytes
from edgekit.core.measurement import Accuracy, Environment, Latency, Sustained, Timed
from edgekit.core.progress import Progress
from edgekit.core.quantities import MOST_CORES
from edgekit.core.registry import target_names
from edgekit.core.values import Artifact, Int32, Provenance, ProvenanceKind, Size
from edgekit.devices.connected import Connected, connect_device
from edgekit.devices.inventory import Device
from edgekit.pipeline.accuracy import Frames, read_reference
from edgekit.runtimes.common import check_threads

PACK_FRAMES = 16
PACK_BYTES = 64 << 20
"""What one file of frames holds: enough that its transfer is worth a connection, little enough for a small board."""


def connect(
    devices: Sequence[Device], stack: ExitStack, folder: Path, progress: Progress, threads: int | None = None
) -> list[Connected]:
    """All devices, connected side by side, before anything else is done.

    Args:
        threads: that are asked for there.

    Raises:
        DeviceError: one cannot be reached or used; the others are let go.
        UsageError: one has fewer cores than threads are asked for.
    """

    def one(device: Device) -> Connected | DeviceError:
        try:
            return connect_device(device, folder / "logs", progress)
        except DeviceError as error:
            return error

    if not devices:
        return []
    with ThreadPoolExecutor(len(devices)) as pool:
        boards = list(pool.map(one, devices))
    connected = [board for board in boards if not isinstance(board, DeviceError)]
    for board in connected:
        stack.callback(board.close)
    if failed := [board for board in boards if isinstance(board, DeviceError)]:
        raise failed[0]
    for board in connected:
        check_threads(threads, board.environment.get("cores", MOST_CORES), f"device '{board.device.name}'")
    return connected


def check_targets(boards: Sequence[Connected], targets: Sequence[str]) -> None:
    """Raise DeviceError for a device that has nothing to do."""
    for board in boards:
        reasons = [why_not(board, target) for target in targets]
        if None not in reasons:
            name = board.device.name
            why = next((reason for reason in reasons if reason), None) or board.lacks(targets[0]) or "see its runs ="
            raise DeviceError(f"device '{name}' runs none of this run's targets, {', '.join(targets)}: {why}")


def side_by_side(boards: Sequence[Connected], work: Callable[[Connected], Any]) -> list[Any]:
    """The same for all devices at once; each has a thread, since it only waits here, and is let go when it is done."""

    def one(board: Connected) -> Any:
        try:
            return work(board)
        finally:
            board.close()

    if not boards:
        return []
    with ThreadPoolExecutor(len(boards), "edgekit-device") as pool:
        waiting = [pool.submit(one, board) for board in boards]
        try:
            return [future.result() for future in waiting]
        except BaseException:  # Ctrl-C: the connections' ends wake the threads
            for board in boards:
                board.close()
            raise


def why_not(board: Connected, target: str) -> str | None:
    """None when the device is to run a target's artifacts, else why not; empty where nobody expects it to."""
    device = board.device
    if device.runs and target not in device.runs:
        return ""
    lacks = board.lacks(target)
    if lacks is None or target in device.runs:
        return lacks
    # What could be installed there is a gap that a report names; TensorRT on a board without it is not.
    return lacks if target in board.runtimes and target != "tensorrt" else ""


class There:
    """A connected device as a :class:`edgekit.pipeline.places.Place`.

    Args:
        threads: that are asked for there; None for all cores.
        folder: keeps the frames as devices take them.
    """

    def __init__(self, board: Connected, threads: int | None, folder: Path, progress: Progress) -> None:
        self.board = board
        self._threads, self._folder, self._progress = threads, folder, progress

    @property
    def name(self) -> str:
        """The device's, in the inventory."""
        return self.board.device.name

    @property
    def page(self) -> str | None:
        """The report page that stands for this kind of device where none is connected."""
        return self.board.page

    @property
    def notes(self) -> Sequence[str]:
        """What happened to the device meanwhile."""
        return self.board.notes

    @property
    def environment(self) -> Environment:
        """The device, as it was when it was connected."""
        return self.board.environment

    def machine(self) -> list[Any]:
        """Its hardware, its system, how fast it may run, its decoder."""
        gpu = (self.board.found.get("tensorrt") or {}).get("gpu")
        told = ("cpu", "cores", "board", "build", "jetson_linux", "governor", "clusters")
        environment = [self.environment.get(name) for name in told]
        return [self.name, gpu, self.board.found.get("compiler"), *environment]

    def kernels(self) -> list[Any]:
        """All that its times depend on."""
        return self.machine()

    def by(self, target: str) -> str:
        """What runs a target's artifacts there, its version, and what emulates the processor."""
        title, emulated = self.board.title(target), self.board.device.emulated
        return f"{title} {self.board.found.get('machine', '')}, {emulated}" if emulated else title

    def cannot_evaluate(self, artifact: Artifact) -> str | None:
        """What the device has or lacks so that its labels cannot be had; None when they can."""
        return self.board.cannot_evaluate(artifact)

    def no_times(self, artifact: Artifact) -> Provenance | None:
        """An emulated processor's times say nothing."""
        emulated = self.board.device.emulated
        if not emulated:
            return None
        why = f"the device's processor is emulated by {emulated}, whose times say nothing: measure on the board"
        return Provenance("not measured", "", why)

    def evaluate(
        self, artifact: Artifact, frames: Frames, reference: Path | None, pictures: Path | None = None
    ) -> Accuracy:
        """Have frames labelled and counted there; only counts come back, no pictures.

        Raises:
            ArtifactError: it cannot be run there.
            DeviceError: the device's own faults.
        """
        split, emulated = frames.split, self.board.device.emulated
        packs = frame_packs(frames, artifact.size, reference, self._folder / "cache" / "packs")
        counted, environment = self.board.evaluate(artifact, packs, split.classes, self._threads)
        kind: ProvenanceKind = "reference" if emulated else "measured"
        why = f"the device's processor is emulated by {emulated}" if emulated else ""
        return Accuracy(
            tuple(entry.name for entry in split.references),
            tuple(frame.counts for frame in counted),
            Provenance(kind, self.by(artifact.target), why),
            split.dataset,
            split.split,
            None if reference is None else tuple(float(frame.agreement or 0.0) for frame in counted),
            environment,
        )

    def times(self, artifacts: Sequence[Artifact], samples: Path, terms: Terms) -> list[Timed | EdgekitError]:
        """Latencies of artifacts by the device's own clock; the error in the place of one that failed."""
        found = self.board.measure(artifacts, samples, terms)
        for artifact, outcome in zip(artifacts, found, strict=True):
            if isinstance(outcome, EdgekitError):
                self._progress.say(f"{self.name}: {artifact.title}, latency not measured, {outcome}")
            elif isinstance(outcome.latency, Latency):
                told = f"{_middle(outcome.latency)} ({outcome.latency.scope})"
                self._progress.say(f"{self.name}: {artifact.title}, {told}")
        return found

    def sustain(self, artifact: Artifact, samples: Path, seconds: float) -> Sustained:
        """One artifact under load there."""
        return self.board.sustain(artifact, samples, seconds, self._threads)


def _middle(latency: Latency) -> str:
    """A latency in a few words."""
    if latency.statistics is not None:
        printed = latency.statistics
        name, value = ("mean", printed.mean) if printed.p50 is None else ("p50", printed.p50)
        return f"{value:.1f} ms, {name} of {printed.n}"
    samples = sorted(latency.samples)
    return f"{samples[len(samples) // 2]:.1f} ms, p50 of {len(samples)}"


def frame_packs(frames: Frames, size: Size, reference: Path | None, folder: Path) -> list[Callable[[], Path]]:
    """Files of evaluation frames as devices take them, each made when it is first asked for.

    See :func:`edgekit.devices.worker.count_pack` for what is in one.
    """
    pixels = 3 * size.height * size.width
    each = max(1, min(PACK_FRAMES, PACK_BYTES // pixels))
    of = None if reference is None else reference.name
    key = sha256_json([frames.split.identity(), str(size), of, each, 1])[:16]

    def pack(first: int) -> Path:
        path = folder / f"{key}-{first:05d}.npz"
        if not path.is_file():
            write_bytes(path, _packed(frames, range(first, min(first + each, len(frames))), size, reference))
        return path

    return [lambda first=first: pack(first) for first in range(0, len(frames), each)]  # type: ignore[misc]


def _packed(frames: Frames, numbers: range, size: Size, reference: Path | None) -> bytes:
    import io

    arrays: dict[str, Any] = {}
    for index, number in enumerate(numbers):
        frame = frames[number]
        height, width = frame.labels.shape
        arrays[f"{index}.image"] = resize_image(frame.image, size)
        arrays[f"{index}.labels"] = frame.labels
        arrays[f"{index}.rows"] = _nearest(size.height, height)
        arrays[f"{index}.columns"] = _nearest(size.width, width)
        if frame.instances is not None:
            arrays[f"{index}.instances"] = frame.instances
        if reference is not None:
            arrays[f"{index}.reference"] = read_reference(reference, number)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _nearest(source: int, target: int) -> Int32:
    """int32 [target]: which of ``source`` positions each takes, as ``resize_labels`` does: Pillow itself is asked."""
    ramp = Image.fromarray(np.arange(source, dtype=np.int32)[None])
    chosen: Int32 = np.asarray(ramp.resize((target, 1), Image.Resampling.NEAREST), np.int32)[0]
    return chosen


def check_devices(devices: Sequence[Device]) -> None:
    """Raise UsageError for devices that cannot be measured on side by side, or are to run what is no target."""
    for device in devices:
        if unknown := [name for name in device.runs if name not in target_names()]:
            raise UsageError(
                f"device '{device.name}': '{unknown[0]}' is no target: correct runs = in the inventory to some of "
                f"{', '.join(target_names())}"
            )
    addresses: dict[tuple[str, str, int | None], str] = {}
    for device in devices:
        place = (device.kind, device.address, device.port)
        if device.kind != "local" and place in addresses:
            raise UsageError(
                f"'{addresses[place]}' and '{device.name}' are one machine, which measures one thing at a time: name one of them"
            )
        addresses[place] = device.name
