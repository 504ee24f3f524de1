"""What the single-stage commands do: convert, evaluate, bench, predict. Each returns plain values for ``--json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from calibration.datasets import CLASS_SETS, Split, resize_image, resize_labels
from calibration.images import IMAGE_SUFFIXES, images_in, png, read_image
from edgekit.core.errors import ArtifactError, DeviceError, EdgekitError, TargetError, UsageError
from edgekit.core.files import clean_partials, write_bytes
from edgekit.core.hold import is_held
from edgekit.core.progress import Progress
from edgekit.core.registry import load_target, require
from edgekit.core.values import Artifact, OutputKind, Precision, Provenance, Size, UInt8
from edgekit.devices.connected import Connected
from edgekit.devices.environment import local_environment
from edgekit.devices.inventory import LOCAL, THIS_MACHINE, Device
from edgekit.metrics.scores import add_counts, counts_from_json, score
from edgekit.networks.checkpoint import Checkpoint, trained_on
from edgekit.pipeline.accuracy import (
    Frames,
    artifact_labeller,
    measure_accuracy,
    pytorch_labeller,
)
from edgekit.pipeline.artifacts import recipe_for
from edgekit.pipeline.conversion import Job, Order, convert_all
from edgekit.pipeline.devices import accuracy_there, check_devices, connect, latencies_there, side_by_side
from edgekit.pipeline.here import accuracy_here, bench_frames_of, latencies_here, sustain_here
from edgekit.pipeline.inputs import check_classes
from edgekit.pipeline.pages import write_bench
from edgekit.pipeline.plans import Bench
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
    clean_partials(folder / "artifacts", alone=is_held(folder))
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
    if not jobs:
        raise UsageError(f"{', '.join(targets)}: none has {precision}: see edgekit targets")
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
    device: Device = THIS_MACHINE,
) -> dict[str, Any]:
    """All metrics of a checkpoint in PyTorch, or of an artifact here or on a device, on a split.

    Args:
        logs: folder for what tools say; frames for a device are kept beside it.
        device: of an artifact.

    Raises:
        UsageError: the artifact is for other classes.
        DeviceError: the device cannot be reached, or does not run this target.
    """
    frames = Frames(split)
    if artifact is not None:
        _check_artifact(artifact, split)
        if device == THIS_MACHINE:
            taken = accuracy_here(artifact, frames, threads, logs, progress)
        else:
            with ExitStack() as stack:
                (connected,) = connect([device], stack, logs.parent, progress, threads)
                if (reason := connected.lacks(artifact.target)) is not None:
                    raise DeviceError(reason)
                taken = accuracy_there(connected, artifact, frames, None, logs.parent, threads)
        subject, training = str(artifact.folder), artifact.manifest.get("training", {})
    else:
        assert checkpoint is not None
        check_classes(checkpoint, split.dataset)
        import importlib.metadata

        with pytorch_labeller(checkpoint, size, threads, progress.say) as label:
            taken = measure_accuracy(checkpoint.name, label, size, frames, progress)
        taken["provenance"] = Provenance("measured", f"PyTorch {importlib.metadata.version('torch')}").to_json()
        subject, training = checkpoint.name, checkpoint.recipe
    seen = trained_on(training, split.dataset, split.split)
    return {"subject": subject, "size": [size.height, size.width], "trained_on": seen, **_scored(taken, split)}


def _scored(accuracy: Mapping[str, Any], split: Split) -> dict[str, Any]:
    """All metrics of an ``accuracy`` object."""
    counts = [counts_from_json(count, len(split.classes)) for count in accuracy["counts"]]
    return {
        "dataset": split.dataset,
        "split": split.split,
        "frames": len(split),
        "class_names": list(split.classes.names),
        **score(add_counts(counts), split.classes).to_json(),
        "provenance": accuracy["provenance"],
    }


def bench(plan: Bench, progress: Progress) -> list[dict[str, Any]]:
    """Measure artifacts here and on devices; a row for each, and a page for each device in the folder ``report``.

    Latency is taken on streets frames at the artifacts' size: the content does not change the work.

    Raises:
        DeviceError: a device cannot be reached, can run none of the artifacts, or failed on the way; then the pages hold what
            was finished, there and elsewhere.
    """
    sizes = {artifact.size for artifact in plan.artifacts}
    if len(sizes) > 1:
        raise UsageError("artifacts of different sizes cannot be compared: bench one size at a time")
    evaluated = None if plan.evaluation is None else Frames(plan.evaluation)
    if plan.evaluation is not None:
        for artifact in plan.artifacts:
            _check_artifact(artifact, plan.evaluation)
    check_devices(plan.devices)
    frames = bench_frames_of(plan.artifacts[0])
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        others = [device for device in plan.devices if device != THIS_MACHINE]
        boards = connect(others, stack, plan.folder, progress, plan.threads)
        if THIS_MACHINE in plan.devices:
            rows += _bench_here(plan, frames, evaluated, progress)
        samples = bench_frames(frames, plan.artifacts[0].size, plan.folder)
        done = side_by_side(boards, lambda board: _bench_there(plan, board, samples, evaluated, progress))
    for found, _ in done:
        rows += found
    told = {row["device"] for row in rows if "scope" in row["latency"] or "accuracy" in row}
    lost = {found[0]["device"] for found, error in done if error is not None} - told
    if told:  # a device of which nothing is known now leaves its page as it was
        write_bench(plan, [row for row in rows if row["device"] not in lost])
    if failures := [error for _, error in done if error is not None]:
        if told:
            progress.say(f"what was finished is in {plan.folder / 'report'}")
        raise failures[0]
    if plan.evaluation is not None:
        for row in rows:
            if "accuracy" in row:  # all metrics of the frames together, in the place of each frame's counts
                row["accuracy"] = _scored(row["accuracy"], plan.evaluation)
    return rows


def _bench_here(plan: Bench, frames: Frames, evaluated: Frames | None, progress: Progress) -> list[dict[str, Any]]:
    made = [(load_target(artifact.target), artifact) for artifact in plan.artifacts]
    for target, _ in made:
        engine = target.engine()
        if engine.no_latency is not None and len(made) == 1 and evaluated is None:
            raise TargetError(f"{target.title} cannot be measured here: {engine.no_latency}")
    latencies = latencies_here(plan.artifacts, frames, plan.mode, plan.scope, plan.threads, plan.folder, progress)
    rows = []
    for target, artifact in made:
        row = _bench_row(artifact, LOCAL, latencies[str(artifact.folder)], local_environment())
        try:  # one that fails here leaves the others what was measured of them
            if evaluated is not None:
                row["accuracy"] = accuracy_here(artifact, evaluated, plan.threads, plan.logs, progress)
            if plan.sustained is not None and target.engine().no_latency is None:
                samples = bench_frames(frames, artifact.size, plan.folder)
                row["sustained"] = sustain_here(artifact, samples, plan.sustained, plan.threads, plan.logs, progress)
        except EdgekitError as error:
            if len(made) == 1:
                raise
            progress.say(f"{artifact.title}: {error}")
            row["failed"] = str(error)
            if evaluated is not None and "accuracy" not in row:
                row["accuracy_why"] = str(error)
        rows.append(row)
    return rows


def _bench_there(
    plan: Bench, board: Connected, samples: Path, evaluated: Frames | None, progress: Progress
) -> tuple[list[dict[str, Any]], EdgekitError | None]:
    """A row for each artifact, and what went wrong with the device itself, after which the rows are what was finished."""
    lacking = {artifact.folder: board.lacks(artifact.target) for artifact in plan.artifacts}
    able = [artifact for artifact in plan.artifacts if lacking[artifact.folder] is None]
    lost: EdgekitError | None = None
    measured: list[dict[str, Any]] = []
    if not able:
        lost = DeviceError(next(reason for reason in lacking.values() if reason))
    else:
        try:
            measured = latencies_there(board, able, samples, plan.mode, plan.scope, plan.threads, progress)
        except EdgekitError as error:
            lost = error
            progress.say(f"{board.device.name}: {error}")
            lacking = {artifact.folder: lacking[artifact.folder] or str(error) for artifact in plan.artifacts}
    taken = dict(zip([artifact.folder for artifact in able], measured, strict=False))
    rows = []
    for artifact in plan.artifacts:
        reason = lacking[artifact.folder]
        if reason is not None:
            provenance = Provenance("not measured", "", reason).to_json()
            taken[artifact.folder] = {"provenance": provenance, "failed": reason}
        latency = dict(taken[artifact.folder])
        environment = latency.pop("environment", None) or board.environment
        row = _bench_row(artifact, board.device.name, latency, environment)
        if lost is None and reason is None:
            try:
                _bench_more(plan, board, artifact, samples, evaluated, row, progress)
            except DeviceError as error:
                lost = error
                progress.say(f"{board.device.name}: {error}")
        if lost is not None and evaluated is not None and "accuracy" not in row:
            row["accuracy_why"] = str(lost)
        rows.append(row)
    return rows, lost


def _bench_more(
    plan: Bench,
    board: Connected,
    artifact: Artifact,
    samples: Path,
    evaluated: Frames | None,
    row: dict[str, Any],
    progress: Progress,
) -> None:
    """Put accuracy and sustained load on a device into its row, as far as they were asked for and this artifact has them."""
    if evaluated is not None:
        reason = board.cannot_evaluate(artifact)
        try:
            if reason is not None:
                raise ArtifactError(f"device '{board.device.name}' {reason}")
            row["accuracy"] = accuracy_there(board, artifact, evaluated, None, plan.folder, plan.threads)
        except ArtifactError as error:
            row["accuracy_why"] = str(error)
            progress.say(f"{board.device.name}: {artifact.title} not evaluated, {error}")
    if plan.sustained is not None and not board.device.emulated:
        try:
            row["sustained"] = board.sustain(artifact, samples, plan.sustained, plan.threads)
        except ArtifactError as error:
            progress.say(f"{board.device.name}: {artifact.title}, no sustained load, {error}")


def _bench_row(
    artifact: Artifact, device: str, latency: Mapping[str, Any], environment: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "artifact": str(artifact.folder), "target": artifact.target, "precision": artifact.precision, "device": device,
        "size": [artifact.size.height, artifact.size.width], "latency": dict(latency), "environment": dict(environment),
    }  # fmt: skip


def _check_artifact(artifact: Artifact, split: Split) -> None:
    if artifact.class_names != split.classes.names:
        raise UsageError(
            f"{artifact.folder} was made for other classes than {split.dataset}'s: name its dataset with --data"
        )


def image_files(arguments: Sequence[Path]) -> list[Path]:
    """Images named one by one or by their folder.

    Raises:
        UsageError: a folder without images.
    """
    found: list[Path] = []
    for path in arguments:
        if path.is_dir():
            inside = images_in(path)
            if not inside:
                heic = any(entry.suffix.lower() in (".heic", ".heif") for entry in path.iterdir())
                raise UsageError(
                    f"{path} holds no images: name a file or a folder with {', '.join(IMAGE_SUFFIXES)} files"
                    f"{'; save HEIC as JPEG' if heic else ''}"
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
            label = stack.enter_context(pytorch_labeller(checkpoint, size, threads, progress.say))
        taken: set[str] = set()
        for path in images:
            image = read_image(path)
            labels = label(resize_image(image, size)[None].copy())[0]
            native = resize_labels(labels, Size(*image.shape[:2]))
            stem = path.stem
            while stem in taken:
                stem += "_"
            taken.add(stem)
            write_bytes(folder / f"{stem}.labels.png", png(native))
            write_bytes(folder / f"{stem}.overlay.png", png(overlay(image, native, colours)))
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


def _colour(index: int) -> tuple[int, int, int]:
    """Colours for classes of an unknown dataset: hues a golden angle apart."""
    import colorsys

    red, green, blue = colorsys.hsv_to_rgb((index * 0.618) % 1.0, 0.75, 0.9)
    return int(red * 255), int(green * 255), int(blue * 255)
