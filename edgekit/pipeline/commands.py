"""What the single-stage commands do: convert, evaluate, bench, predict. Each returns plain values for ``--json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from calibration.datasets import CLASS_SETS, IMAGE_SUFFIXES, Split, open_split, read_image, resize_image, resize_labels
from edgekit.core.errors import DeviceError, EdgekitError, TargetError, UsageError
from edgekit.core.files import clean_partials, write_bytes
from edgekit.core.progress import Progress
from edgekit.core.registry import load_target, require
from edgekit.core.values import Artifact, OutputKind, Precision, Provenance, Size, UInt8
from edgekit.devices.connected import Connected
from edgekit.devices.environment import local_environment
from edgekit.devices.inventory import LOCAL, THIS_MACHINE, Device
from edgekit.devices.local import Mode, Scope, Subject, interval_of, sustain
from edgekit.metrics.scores import add_counts, counts_from_json, score
from edgekit.networks.checkpoint import Checkpoint
from edgekit.pipeline.accuracy import (
    Frames,
    artifact_labeller,
    measure_accuracy,
    pytorch_labeller,
)
from edgekit.pipeline.artifacts import recipe_for
from edgekit.pipeline.conversion import Job, Order, convert_all
from edgekit.pipeline.devices import check_devices, connect, side_by_side
from edgekit.pipeline.devices import latencies as measured_latencies
from edgekit.pipeline.run import check_classes, measure_latencies
from edgekit.pipeline.stored import bench_frames


def convert(
    checkpoint: Checkpoint,
    targets: Sequence[str],
    precision: Precision | None,
    size: Size,
    output: OutputKind | None,
    output_stride: int,
    folder: Path,
    command: str,
    progress: Progress,
) -> list[Artifact]:
    """Float artifacts, one per target; ``precision`` None means each target's first float one.

    Raises:
        TargetError: a target is missing something, or has no such precision.
    """
    clean_partials(folder / "artifacts")
    jobs = []
    for name in targets:
        target = require(name)
        floats = [entry for entry in target.precisions if entry != "int8"]
        chosen = precision or next(iter(floats), "fp32")
        if chosen not in target.precisions:
            if len(targets) == 1:
                raise TargetError(
                    f"{target.title} has no {chosen}: choose from {', '.join(floats) or 'no float precision'}"
                )
            progress.say(f"{target.title}: skipped, it has no {chosen}")
            continue
        jobs.append(Job(name, recipe_for(target, chosen, output, output_stride)))
    return [_made(result) for result in convert_all(Order(checkpoint, size, folder, command), jobs, progress)]


def _made(result: Artifact | EdgekitError) -> Artifact:
    if isinstance(result, EdgekitError):
        raise result
    return result


def evaluate(
    checkpoint: Checkpoint | None,
    artifact: Artifact | None,
    split: Split,
    size: Size,
    threads: int | None,
    logs: Path,
    progress: Progress,
) -> dict[str, Any]:
    """All metrics of a checkpoint in PyTorch, or of an artifact, on a split."""
    frames = Frames(split)
    if artifact is not None:
        if artifact.class_names != split.classes.names:
            raise UsageError(
                f"{artifact.folder} was made for other classes than {split.dataset}'s: name its dataset with --data"
            )
        target = load_target(artifact.target)
        engine = target.engine()
        with artifact_labeller(target, artifact, threads, logs / f"{artifact.folder.name}.log") as label:
            taken = measure_accuracy(artifact.title, label, artifact.size, frames, None, None, 0, progress)
        provenance = Provenance(engine.kind, engine.by, engine.why)
        subject = str(artifact.folder)
    else:
        assert checkpoint is not None
        check_classes(checkpoint, split.dataset)
        import importlib.metadata

        with pytorch_labeller(checkpoint, size, threads) as label:
            taken = measure_accuracy(checkpoint.name, label, size, frames, None, None, 0, progress)
        provenance = Provenance("measured", f"PyTorch {importlib.metadata.version('torch')}")
        subject = checkpoint.name
    counts = [counts_from_json(count, len(split.classes)) for count in taken["counts"]]
    return {
        "subject": subject,
        "dataset": split.dataset,
        "split": split.split,
        "frames": len(split),
        "size": [size.height, size.width],
        "class_names": list(split.classes.names),
        **score(add_counts(counts), split.classes).to_json(),
        "provenance": provenance.to_json(),
    }


def bench(
    artifacts: Sequence[Artifact],
    devices: Sequence[Device],
    mode: Mode,
    scope: Scope,
    threads: int | None,
    sustained: float | None,
    folder: Path,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Latency of artifacts, interleaved, on streets frames at their size (the content does not change the work).

    Raises:
        DeviceError: a device cannot be reached, or cannot run the only artifact.
    """
    sizes = {artifact.size for artifact in artifacts}
    if len(sizes) > 1:
        raise UsageError("artifacts of different sizes cannot be compared: bench one size at a time")
    check_devices(devices)
    frames = Frames(open_split("streets", "test", None, next(iter(sizes))).first(4))
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        boards = connect([device for device in devices if device != THIS_MACHINE], stack, folder, progress)
        if THIS_MACHINE in devices:
            rows += _bench_here(artifacts, frames, mode, scope, threads, sustained, folder, progress)
        samples = bench_frames(frames, artifacts[0].size, folder)

        def work(board: Connected) -> list[dict[str, Any]]:
            return _bench_there(board, artifacts, samples, mode, scope, threads, sustained, progress)

        for found in side_by_side(boards, work):
            rows += found
    return rows


def _bench_here(
    artifacts: Sequence[Artifact],
    frames: Frames,
    mode: Mode,
    scope: Scope,
    threads: int | None,
    sustained: float | None,
    folder: Path,
    progress: Progress,
) -> list[dict[str, Any]]:
    made = [(load_target(artifact.target), artifact) for artifact in artifacts]
    for target, _ in made:
        engine = target.engine()
        if engine.no_latency is not None and len(made) == 1:
            raise TargetError(f"{target.title} cannot be measured here: {engine.no_latency}")
    latencies = measure_latencies(folder, made, frames, mode, threads, progress, scope, anew=True)
    rows = []
    for target, artifact in made:
        row = _bench_row(artifact, LOCAL, latencies[str(artifact.folder)], local_environment())
        if sustained is not None and target.engine().no_latency is None:
            subject = Subject(artifact.folder, artifact.title)
            samples = bench_frames(frames, artifact.size, folder)
            row["sustained"] = sustain(
                subject, samples, sustained, interval_of(sustained), threads, folder / "logs", progress
            )
        rows.append(row)
    return rows


def _bench_there(
    board: Connected,
    artifacts: Sequence[Artifact],
    samples: Path,
    mode: Mode,
    scope: Scope,
    threads: int | None,
    sustained: float | None,
    progress: Progress,
) -> list[dict[str, Any]]:
    lacking = {artifact.folder: board.lacks(artifact.target) for artifact in artifacts}
    able = [artifact for artifact in artifacts if lacking[artifact.folder] is None]
    if not able:
        raise DeviceError(next(reason for reason in lacking.values() if reason))
    taken = dict(
        zip(
            [artifact.folder for artifact in able],
            measured_latencies(board, able, samples, mode, scope, threads, progress),
            strict=True,
        )
    )
    rows = []
    for artifact in artifacts:
        reason = lacking[artifact.folder]
        if reason is not None:
            provenance = Provenance("not measured", "", reason).to_json()
            taken[artifact.folder] = {"provenance": provenance, "failed": reason}
        latency = dict(taken[artifact.folder])
        environment = latency.pop("environment", None) or board.environment
        row = _bench_row(artifact, board.device.name, latency, environment)
        if sustained is not None and reason is None:
            row["sustained"] = board.sustain(artifact, samples, sustained, threads)
        rows.append(row)
    return rows


def _bench_row(
    artifact: Artifact, device: str, latency: Mapping[str, Any], environment: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "artifact": str(artifact.folder), "target": artifact.target, "precision": artifact.precision, "device": device,
        "size": [artifact.size.height, artifact.size.width], "latency": dict(latency), "environment": dict(environment),
    }  # fmt: skip


def image_files(arguments: Sequence[Path]) -> list[Path]:
    """Images named one by one or by their folder.

    Raises:
        UsageError: a folder without images.
    """
    found: list[Path] = []
    for path in arguments:
        if path.is_dir():
            inside = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise UsageError(
                    f"{path} holds no images: name a file or a folder with {', '.join(IMAGE_SUFFIXES)} files"
                )
            found += inside
        else:
            found.append(path)
    return found


def predict(
    checkpoint: Checkpoint | None,
    artifact: Artifact | None,
    images: Sequence[Path],
    size: Size,
    folder: Path,
    threads: int | None,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Label images; for each writes ``<name>.labels.png`` (train ids) and ``<name>.overlay.png`` (to look at)."""
    names = artifact.class_names if artifact is not None else checkpoint.class_names if checkpoint is not None else ()
    classes = next((entry for entry in CLASS_SETS.values() if entry.names == names), None)
    colours = classes.colours if classes is not None else tuple(_colour(index) for index in range(len(names)))
    for path in images:
        read_image(path)  # told before anything is opened or written; not kept, there may be thousands
    rows = []
    with ExitStack() as stack:
        if artifact is not None:
            target = load_target(artifact.target)
            label = stack.enter_context(
                artifact_labeller(target, artifact, threads, folder / "logs" / f"{artifact.folder.name}.log")
            )
        else:
            assert checkpoint is not None
            label = stack.enter_context(pytorch_labeller(checkpoint, size, threads))
        taken: set[str] = set()
        for path in images:
            image = read_image(path)
            labels = label(resize_image(image, size)[None].copy())[0]
            native = resize_labels(labels, Size(*image.shape[:2]))
            stem = path.stem
            while stem in taken:
                stem += "_"
            taken.add(stem)
            write_bytes(folder / f"{stem}.labels.png", _png(native))
            write_bytes(folder / f"{stem}.overlay.png", _png(overlay(image, native, colours)))
            share = np.bincount(native.ravel(), minlength=len(names)) / native.size
            rows.append(
                {
                    "image": str(path), "labels": str(folder / f"{stem}.labels.png"),
                    "overlay": str(folder / f"{stem}.overlay.png"),
                    "classes": {name: round(float(value), 4) for name, value in zip(names, share, strict=False) if value},
                }
            )  # fmt: skip
            progress.update(f"labelled {path.name}")
    return rows


def overlay(image: UInt8, labels: UInt8, colours: Sequence[tuple[int, int, int]]) -> UInt8:
    """The image with class colours over it, and white lines where classes meet: uint8 [H, W, 3]."""
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(colours)] = colours
    blended = (image * np.float32(0.45) + palette[labels] * np.float32(0.55)).astype(np.uint8)
    edges = np.zeros(labels.shape, bool)
    edges[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edges[1:] |= labels[1:] != labels[:-1]
    blended[edges] = 255
    return blended


def _png(pixels: UInt8) -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _colour(index: int) -> tuple[int, int, int]:
    """Colours for classes of an unknown dataset: hues a golden angle apart."""
    import colorsys

    red, green, blue = colorsys.hsv_to_rgb((index * 0.618) % 1.0, 0.75, 0.9)
    return int(red * 255), int(green * 255), int(blue * 255)
