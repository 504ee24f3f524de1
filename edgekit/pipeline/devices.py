"""Measuring on devices: several side by side, each one thing at a time; what is finished is kept and found again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from calibration.datasets import resize_image
from edgekit import __version__
from edgekit.core.errors import DeviceError, EdgekitError, UsageError
from edgekit.core.files import sha256_json, write_bytes, write_sealed
from edgekit.core.progress import Progress
from edgekit.core.quantities import MOST_CORES
from edgekit.core.registry import target_names
from edgekit.core.seam import Target
from edgekit.core.values import Artifact, Int32, Provenance, ProvenanceKind, Size
from edgekit.devices.connected import Connected, connect_device
from edgekit.devices.inventory import Device
from edgekit.devices.local import Mode
from edgekit.pipeline.accuracy import Frames, read_reference
from edgekit.pipeline.stored import bench_frames, model_key, stored_part
from edgekit.runtimes.common import check_threads

PACK_FRAMES = 16
PACK_BYTES = 64 << 20
"""What one file of frames holds: enough that its transfer is worth a connection, little enough for a small board."""

Made = Sequence[tuple[Target, Artifact]]


@dataclass(frozen=True)
class Work:
    """What every device is to do.

    Attributes:
        made: artifacts; each device takes those that it can run.
        frames: to evaluate on.
        reference: folder of float PyTorch's labels.
        accuracies: of this machine, by artifact's name, for what a device cannot evaluate itself.
        mode, threads: of the latency.
        sustained: seconds of sustained load for each artifact, None for none.
        folder: the run's.
    """

    made: Made
    frames: Frames
    reference: Path
    accuracies: Mapping[str, Mapping[str, Any]]
    mode: Mode
    threads: int | None
    sustained: float | None
    folder: Path


@dataclass(frozen=True)
class Result:
    """What came of one device: measurement documents without what the artifact says itself, and what went wrong."""

    device: Device
    parts: list[tuple[Target, Artifact, dict[str, Any]]]
    error: EdgekitError | None


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


def measure_on_devices(boards: Sequence[Connected], work: Work, progress: Progress) -> list[Result]:
    """Accuracy, latency and sustained load on every device."""
    return side_by_side(boards, lambda board: _measure(board, work, progress))


def _measure(board: Connected, work: Work, progress: Progress) -> Result:
    parts: dict[str, dict[str, Any]] = {}
    chosen: list[tuple[Target, Artifact]] = []
    error: EdgekitError | None = None
    for target, artifact in work.made:
        reason = why_not(board, target.name)
        if reason is None:
            chosen.append((target, artifact))
            parts[artifact.folder.name] = {}
        elif reason:
            parts[artifact.folder.name] = {"missing": reason}
    try:
        for target, artifact in chosen:
            _evaluate(board, target, artifact, work, parts[artifact.folder.name], progress)
        _time(board, chosen, work, parts, progress)
        if work.sustained is not None:
            for _, artifact in chosen:
                _sustain(board, artifact, work, work.sustained, parts[artifact.folder.name], progress)
    except EdgekitError as failure:
        error = failure
        progress.say(f"{board.device.name}: {failure}")
    found = []
    for target, artifact in work.made:
        part = parts.get(artifact.folder.name)
        if part is not None:
            found.append((target, artifact, _document(board, artifact, part, error)))
    return Result(board.device, found, error)


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


def _by(board: Connected, target: str) -> str:
    title = board.title(target)
    if board.device.emulated:
        return f"{title} {board.found.get('machine', '')}, {board.device.emulated}"
    return title


def _machine(board: Connected) -> list[Any]:
    """What numbers of a device are only comparable with: its hardware, its system, how fast it may run, its decoder."""
    gpu = (board.found.get("tensorrt") or {}).get("gpu")
    told = ("cpu", "cores", "board", "build", "jetson_linux", "governor", "clusters")
    environment = [board.environment.get(name) for name in told]
    return [board.device.name, gpu, board.found.get("compiler"), *environment]


def _evaluate(
    board: Connected, target: Target, artifact: Artifact, work: Work, part: dict[str, Any], progress: Progress
) -> None:
    name = board.device.name
    if (reason := board.cannot_evaluate(artifact)) is not None:
        local = work.accuracies.get(artifact.folder.name)
        if local is not None:
            why = f"ran on this machine, not on the device, which {reason}"
            provenance = Provenance("reference", str(local["provenance"]["by"]), why).to_json()
            part["accuracy"] = {**local, "provenance": provenance}
        return
    key = sha256_json(
        [
            model_key(artifact), work.frames.split.identity(), _by(board, artifact.target), _machine(board),
            work.reference.name, __version__,
        ]
    )  # fmt: skip
    path = work.folder / "measurements" / f"{artifact.folder.name}.{name}.accuracy.json"
    stored = stored_part(path, key)
    if stored is None:
        started = time.monotonic()
        try:
            stored = accuracy_there(board, artifact, work.frames, work.reference, work.folder, work.threads)
        except DeviceError:
            raise
        except EdgekitError as error:  # this artifact only
            part["accuracy_why"] = str(error)
            progress.say(f"{name}: {artifact.title} not evaluated, {error}")
            return
        write_sealed(path, {"key": key, "accuracy": stored})
        progress.say(
            f"{name}: {artifact.title} evaluated on {len(work.frames)} frames in {time.monotonic() - started:.0f} s"
        )
    else:
        progress.say(f"{name}: {artifact.title} already evaluated")
    part["accuracy"] = stored


def accuracy_there(
    board: Connected, artifact: Artifact, frames: Frames, reference: Path | None, folder: Path, threads: int | None
) -> dict[str, Any]:
    """Evaluate an artifact on a device: the ``accuracy`` object of a measurement.

    Args:
        reference: folder of float PyTorch's labels, None where the agreement with them is not asked for.
        folder: keeps the frames as devices take them.

    Raises:
        ArtifactError: it cannot be run there.
        DeviceError: the device's own faults.
    """
    split, emulated = frames.split, board.device.emulated
    packs = frame_packs(frames, artifact.size, reference, folder / "cache" / "packs")
    counted, environment = board.evaluate(artifact, packs, split.classes, threads)
    kind: ProvenanceKind = "reference" if emulated else "measured"
    why = f"the device's processor is emulated by {emulated}" if emulated else ""
    return {
        "dataset": split.dataset,
        "split": split.split,
        "frames": [entry.name for entry in split.references],
        "counts": [frame["counts"] for frame in counted],
        "agreement": None if reference is None else [frame["agreement"] for frame in counted],
        "provenance": Provenance(kind, _by(board, artifact.target), why).to_json(),
        "environment": environment,
    }


def _time(
    board: Connected,
    chosen: Sequence[tuple[Target, Artifact]],
    work: Work,
    parts: Mapping[str, dict[str, Any]],
    progress: Progress,
) -> None:
    name = board.device.name
    if not chosen:
        return
    if (unmeasured := _if_emulated(board)) is not None:
        for _, artifact in chosen:
            parts[artifact.folder.name]["latency"] = dict(unmeasured)
        return
    artifacts = [artifact for _, artifact in chosen]
    key = sha256_json(
        [[model_key(artifact), _by(board, artifact.target)] for artifact in artifacts]
        + [work.mode, work.threads, _machine(board), __version__, work.frames.split.image_identity()]
    )
    path = work.folder / "measurements" / f"latency.{name}.json"
    known = stored_part(path, key, "latency")
    if isinstance(known, list) and len(known) == len(artifacts):
        progress.say(f"{name}: latency of {len(artifacts)} artifacts already measured")
    else:
        samples = bench_frames(work.frames, artifacts[0].size, work.folder)
        known = latencies_there(board, artifacts, samples, work.mode, "frame-to-labels", work.threads, progress)
        if not any("failed" in entry for entry in known):  # a failure is tried again the next time
            write_sealed(path, {"key": key, "latency": known})
    for artifact, latency in zip(artifacts, known, strict=True):
        parts[artifact.folder.name]["latency"] = latency


def _if_emulated(board: Connected) -> dict[str, Any] | None:
    """The ``latency`` object of everything on a device whose processor is emulated; None where it is a real one."""
    if not board.device.emulated:
        return None
    why = (
        f"the device's processor is emulated by {board.device.emulated}, whose times say nothing: measure on the board"
    )
    return {"provenance": Provenance("not measured", "", why).to_json()}


def latencies_there(
    board: Connected,
    artifacts: Sequence[Artifact],
    samples: Path,
    mode: Mode,
    scope: Any,
    threads: int | None,
    progress: Progress,
) -> list[dict[str, Any]]:
    """The ``latency`` object of each artifact with its provenance; ``failed`` where there are no samples."""
    if (unmeasured := _if_emulated(board)) is not None:
        return [dict(unmeasured) for _ in artifacts]
    found: list[dict[str, Any]] = []
    for artifact, outcome in zip(artifacts, board.measure(artifacts, samples, mode, scope, threads), strict=True):
        if isinstance(outcome, EdgekitError):
            progress.say(f"{board.device.name}: {artifact.title}, latency not measured, {outcome}")
            provenance = Provenance("not measured", _by(board, artifact.target), str(outcome))
            found.append({"provenance": provenance.to_json(), "failed": str(outcome)})
            continue
        progress.say(f"{board.device.name}: {artifact.title}, {_middle(outcome)} ({outcome['scope']})")
        by = outcome["settings"].get("engine") if artifact.target in ("tensorrt", "coreml") else None
        found.append({"provenance": Provenance("measured", by or _by(board, artifact.target)).to_json(), **outcome})
    return found


def _middle(latency: Mapping[str, Any]) -> str:
    """A latency in a few words."""
    if "rounds_ms" not in latency:
        printed = latency["statistics"]
        name = "mean" if printed["p50"] is None else "p50"
        return f"{printed[name]:.1f} ms, {name} of {printed['n']}"
    samples = sorted(value for part in latency["rounds_ms"] for value in part)
    return f"{samples[len(samples) // 2]:.1f} ms, p50 of {len(samples)}"


def _sustain(
    board: Connected, artifact: Artifact, work: Work, seconds: float, part: dict[str, Any], progress: Progress
) -> None:
    if board.device.emulated:
        return
    key = sha256_json(
        [model_key(artifact), _by(board, artifact.target), _machine(board), seconds, work.threads, __version__]
    )
    path = work.folder / "measurements" / f"{artifact.folder.name}.{board.device.name}.sustained.json"
    stored = stored_part(path, key, "sustained")
    if stored is None:
        samples = bench_frames(work.frames, artifact.size, work.folder)
        try:
            stored = board.sustain(artifact, samples, seconds, work.threads)
        except DeviceError:
            raise
        except EdgekitError as error:
            progress.say(f"{board.device.name}: {artifact.title}, no sustained load, {error}")
            return
        write_sealed(path, {"key": key, "sustained": stored})
        progress.say(f"{board.device.name}: {artifact.title}, {seconds:.0f} s of sustained load")
    part["sustained"] = stored


def _document(
    board: Connected, artifact: Artifact, part: Mapping[str, Any], error: EdgekitError | None
) -> dict[str, Any]:
    """What a measurement document says of the device; why something is missing stands in its place."""
    missing = part.get("missing") or (str(error) if error is not None else "it was not measured there")
    latency = dict(part.get("latency") or {"provenance": Provenance("not measured", "", str(missing)).to_json()})
    environment = latency.pop("environment", None) or board.environment
    document: dict[str, Any] = {
        "device": board.device.name,
        "stands_for": board.page,
        "accuracy": part.get("accuracy"),
        "latency": latency,
        "environment": environment,
    }
    if part.get("accuracy") is None:
        document["accuracy_why"] = part.get("accuracy_why") or str(missing)
    if "sustained" in part:
        document["sustained"] = part["sustained"]
    if board.notes:
        document["environment"] = {**environment, "events": list(board.notes)}
    return document


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
