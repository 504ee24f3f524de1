"""What the single-stage commands do: convert, quantize, evaluate, bench, predict. Each returns plain values for ``--json``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from calibration.choice import Choice, choose_frames
from calibration.datasets import CLASS_SETS, IMAGE_SUFFIXES, Split, open_split, read_image, resize_image, resize_labels
from edgekit.core.errors import DataError, EdgekitError, TargetError, UsageError
from edgekit.core.files import clean_partials, write_bytes, write_json
from edgekit.core.progress import Progress
from edgekit.core.registry import load_target, require
from edgekit.core.values import Artifact, OutputKind, Precision, Provenance, Size, UInt8
from edgekit.devices.environment import local_environment
from edgekit.devices.local import Mode, Scope
from edgekit.metrics.scores import add_counts, counts_from_json, score
from edgekit.networks.checkpoint import Checkpoint
from edgekit.pipeline.accuracy import (
    Frames,
    artifact_labeller,
    measure_accuracy,
    pytorch_labeller,
    read_reference,
    reference_labels_folder,
    stored_labeller,
)
from edgekit.pipeline.artifacts import recipe_for
from edgekit.pipeline.conversion import Job, Order, convert_all
from edgekit.pipeline.quantization import Calibration, refuse_evaluated
from edgekit.pipeline.run import check_classes, measure_latencies

AGREEMENT_FRAMES = 8


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


def split_for_agreement(split: Split, samples: int) -> tuple[Choice, Split]:
    """Calibration frames, and others of the same split on which int8 and float are compared.

    With fewer frames than twice ``samples`` each takes half, so that no frame does both.
    """
    total = len(split)
    if total < 2:
        raise DataError(
            f"{split.dataset} {split.split} has {total} frame: at least two are needed, one to calibrate and one to compare on"
        )
    count = min(samples, total // 2)
    chosen = choose_frames(split, count)
    names = {reference.name for reference in chosen.frames.references}
    rest = tuple(reference for reference in split.references if reference.name not in names)
    return chosen, replace(split, references=rest).first(min(AGREEMENT_FRAMES, len(rest)))


def quantize(
    checkpoint: Checkpoint,
    targets: Sequence[str],
    calibration_split: Split,
    samples: int,
    evaluation: Split | None,
    why_not: str,
    size: Size,
    output: OutputKind | None,
    output_stride: int,
    max_drop: float | None,
    folder: Path,
    threads: int | None,
    command: str,
    progress: Progress,
) -> list[dict[str, Any]]:
    """int8 artifacts, one per target, compared with float PyTorch on frames that did not calibrate.

    Args:
        calibration_split: frames to choose from.
        evaluation: labelled frames for mIoU and its drop; None when there are none.
        why_not: the reason, then.
        max_drop: budget on the drop's interval; only looked at, by the caller.

    Returns:
        One plain row per target.
    """
    from reports.statistics import bootstrap_drop

    clean_partials(folder / "artifacts")
    clean_partials(folder / "cache")
    choice, others = split_for_agreement(calibration_split, samples)
    calibration, chosen = Calibration(choice, size), choice.frames
    if evaluation is not None:
        refuse_evaluated(calibration, evaluation)
    progress.say(
        f"calibrating on {len(chosen)} {chosen.dataset} {chosen.split} frames, comparing labels on {len(others)} others"
    )
    compared = Frames(others)
    compared_reference = reference_labels_folder(checkpoint, size, compared, folder, progress, threads)
    evaluated = Frames(evaluation) if evaluation is not None else None
    float_counts = None
    if evaluated is not None:
        evaluated_reference = reference_labels_folder(checkpoint, size, evaluated, folder, progress, threads)
        accuracy = measure_accuracy(
            "PyTorch fp32", stored_labeller(evaluated_reference, len(evaluated)), size, evaluated, None, None, 0,
            progress,
        )  # fmt: skip
        classes = len(evaluated.split.classes)
        float_counts = [counts_from_json(count, classes) for count in accuracy["counts"]]
    rows: list[dict[str, Any]] = []
    jobs = []
    for name in targets:
        target = require(name)
        if "int8" not in target.precisions:
            if len(targets) == 1:
                raise TargetError(f"{target.title} has no int8: choose another --target")
            progress.say(f"{target.title}: skipped, it has no int8")
            continue
        jobs.append(Job(name, recipe_for(target, "int8", output, output_stride)))
    results = convert_all(Order(checkpoint, size, folder, command, calibration), jobs, progress)
    for job, result in zip(jobs, results, strict=True):
        artifact, name, target = _made(result), job.target, load_target(job.target)
        engine = target.engine()
        row: dict[str, Any] = {
            "target": name,
            "precision": "int8",
            "size": [size.height, size.width],
            "artifact": str(artifact.folder),
            "model_bytes": artifact.manifest["model_bytes"],
            "calibration": {"dataset": chosen.dataset, "split": chosen.split, "frames": len(chosen)},
            "kept_float": artifact.manifest["kept_float"],
            "agreement": None,
            "agreement_frames": len(others),
            "miou": None,
            "miou_float": None,
            "miou_drop": None,
            "miou_drop_ci": None,
            "evaluation": None,
            "provenance": Provenance(engine.kind, engine.by, engine.why).to_json(),
        }
        log = folder / "logs" / f"{artifact.folder.name}.log"
        with artifact_labeller(target, artifact, threads, log) as label:
            agreement = []
            for index in range(len(others)):
                image = resize_image(compared[index].image, size)
                labels = label(image[None].copy())[0]
                agreement.append(float((labels == read_reference(compared_reference, index)).mean()))
            row["agreement"] = float(np.mean(agreement))
            if evaluated is not None and float_counts is not None:
                taken = measure_accuracy(artifact.title, label, size, evaluated, evaluated_reference, None, 0, progress)
                counts = [counts_from_json(count, classes) for count in taken["counts"]]
                interval = bootstrap_drop(
                    np.stack([count.confusion for count in float_counts]),
                    np.stack([count.confusion for count in counts]),
                )
                row["miou"] = score(add_counts(counts), evaluated.split.classes).miou
                row["miou_float"] = score(add_counts(float_counts), evaluated.split.classes).miou
                row["miou_drop"] = interval.value
                row["miou_drop_ci"] = [interval.low, interval.high]
                row["evaluation"] = {
                    "dataset": evaluated.split.dataset, "split": evaluated.split.split, "frames": len(evaluated)
                }  # fmt: skip
            else:
                row["provenance_miou"] = Provenance("not measured", "", why_not).to_json()
        if max_drop is not None:
            row["budget"] = {
                "max_drop": max_drop,
                "holds": row["miou_drop_ci"] is not None and row["miou_drop_ci"][1] <= max_drop,
            }
        rows.append(row)
        write_json(folder / "measurements" / f"{artifact.folder.name}.quantize.json", row)
    return rows


def evaluation_split(
    checkpoint: Checkpoint,
    text: str | None,
    root: Path | None,
    calibration_dataset: str,
    size: Size,
    frames: int | None,
) -> tuple[Split | None, str]:
    """The split behind ``--eval DATA:SPLIT``, or the checkpoint's own val split where its frames are at hand.

    Returns:
        The split, or None and the reason.

    Raises:
        UsageError, DataError: ``--eval`` was given and cannot be met.
    """
    if text is not None:
        dataset, separator, split_name = text.partition(":")
        if not separator:
            raise UsageError(f"--eval {text} must be DATA:SPLIT, for example streets:val")
        check_classes(checkpoint, dataset)
        return open_split(dataset, split_name, root if dataset == calibration_dataset else None, size).first(frames), ""
    if checkpoint.dataset not in CLASS_SETS:
        return None, "the checkpoint does not say which dataset it belongs to: give --eval DATA:SPLIT"
    try:
        own_root = root if checkpoint.dataset == calibration_dataset else None
        return open_split(checkpoint.dataset, "val", own_root, size).first(frames), ""
    except DataError as error:
        return None, str(error)


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
    artifacts: Sequence[Artifact], mode: Mode, scope: Scope, threads: int | None, folder: Path, progress: Progress
) -> list[dict[str, Any]]:
    """Latency of artifacts, interleaved, on streets frames at their size (the content does not change the work)."""
    sizes = {artifact.size for artifact in artifacts}
    if len(sizes) > 1:
        raise UsageError("artifacts of different sizes cannot be compared: bench one size at a time")
    frames = Frames(open_split("streets", "test", None, next(iter(sizes))).first(4))
    made = [(load_target(artifact.target), artifact) for artifact in artifacts]
    for target, _ in made:
        engine = target.engine()
        if engine.no_latency is not None and len(made) == 1:
            raise TargetError(f"{target.title} cannot be measured here: {engine.no_latency}")
    latencies = measure_latencies(folder, made, frames, mode, threads, progress, scope, anew=True)
    return [
        {
            "artifact": str(artifact.folder), "target": artifact.target, "precision": artifact.precision,
            "size": [artifact.size.height, artifact.size.width], "latency": latencies[str(artifact.folder)],
            "environment": local_environment(),
        }
        for artifact in artifacts
    ]  # fmt: skip


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
    from contextlib import ExitStack

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
