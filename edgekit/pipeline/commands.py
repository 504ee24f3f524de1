"""What the single-stage commands do: convert, evaluate, bench, predict. Each returns plain values for ``--json``."""

from __future__ import annotations

import importlib.metadata
import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from calibration.datasets import CLASS_SETS, Split, resize_image, resize_labels
from calibration.images import IMAGE_SUFFIXES, images_in, png, read_image
from edgekit.core.errors import DeviceError, EdgekitError, TargetError, UsageError
from edgekit.core.files import clean_partials, write_bytes
from edgekit.core.hold import is_held
from edgekit.core.measurement import LOCAL, Accuracy, Latency, Measurement, Timed, Untimed
from edgekit.core.progress import Progress
from edgekit.core.record import plain
from edgekit.core.registry import load_target, require
from edgekit.core.values import Artifact, OutputKind, Precision, Provenance, Size, UInt8
from edgekit.devices.connected import Connected
from edgekit.devices.inventory import THIS_MACHINE
from edgekit.metrics.scores import Scores, add_counts, dense, score
from edgekit.networks.checkpoint import Checkpoint, trained_on
from edgekit.pipeline.accuracy import Frames, artifact_labeller, measure_accuracy, pytorch_labeller
from edgekit.pipeline.artifacts import checkpoint_names, recipe_for
from edgekit.pipeline.conversion import convert_all
from edgekit.pipeline.devices import There, check_devices, connect, side_by_side
from edgekit.pipeline.here import Here, bench_frames_of
from edgekit.pipeline.inputs import check_classes
from edgekit.pipeline.pages import measurement_of, write_bench
from edgekit.pipeline.places import Place, Taken, Task, measure_at
from edgekit.pipeline.plans import Bench, Job, Order, Work


def convert(
    order: Order,
    targets: Sequence[str],
    precision: Precision | None,
    output: OutputKind | None,
    output_stride: int,
    progress: Progress,
) -> list[Artifact]:
    """Float artifacts, one per target; ``precision`` None means each target's first float one.

    Raises:
        TargetError: a target is missing something, or has no such precision.
    """
    clean_partials(order.folder / "artifacts", alone=is_held(order.folder))
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
    return [_made(result) for result in convert_all(order, jobs, progress)]


def _made(result: Artifact | EdgekitError) -> Artifact:
    if isinstance(result, EdgekitError):
        raise result
    return result


@dataclass(frozen=True)
class Evaluation:
    """All metrics of something on a split.

    Attributes:
        scores: of all frames together.
        subject: a checkpoint's name or an artifact's folder; empty where it is known anyway.
        size: of the input.
        trained_on: whether the network was trained on these frames; None where nobody knows.
    """

    split: Split
    scores: Scores
    provenance: Provenance
    subject: str = ""
    size: Size | None = None
    trained_on: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, for ``--json``."""
        split = self.split
        about = {} if self.size is None else {
            "subject": self.subject, "size": plain(self.size), "trained_on": self.trained_on
        }  # fmt: skip
        return {
            **about, "dataset": split.dataset, "split": split.split, "frames": len(split),
            "class_names": list(split.classes.names), **self.scores.to_json(), "provenance": self.provenance.to_json(),
        }  # fmt: skip


def evaluate(subject: Checkpoint | Artifact, split: Split, size: Size, place: Work, progress: Progress) -> Evaluation:
    """All metrics of a checkpoint in PyTorch here, or of an artifact here or on a device, on a split.

    Raises:
        UsageError: the artifact is for other classes.
        DeviceError: the device cannot be reached, or does not run this target.
    """
    frames = Frames(split)
    if isinstance(subject, Artifact):
        _check_artifact(subject, split)
        taken = _evaluated(subject, frames, place, progress)
        name, training = str(subject.folder), subject.manifest.get("training", {})
    else:
        check_classes(subject, split.dataset)
        with pytorch_labeller(subject, size, place.threads, progress.say) as label:
            taken = measure_accuracy(subject.name, label, size, frames, progress)
        proof = Provenance("measured", f"PyTorch {importlib.metadata.version('torch')}")
        taken = replace(taken, provenance=proof)
        name, training = subject.name, subject.recipe
    found = scored(taken, split)
    return replace(found, subject=name, size=size, trained_on=trained_on(training, split.dataset, split.split))


def _evaluated(artifact: Artifact, frames: Frames, place: Work, progress: Progress) -> Accuracy:
    if place.device == THIS_MACHINE:
        return Here(place.threads, place.folder / "logs", progress).evaluate(artifact, frames, None)
    with ExitStack() as stack:
        (board,) = connect([place.device], stack, place.folder, progress, place.threads)
        if (reason := board.lacks(artifact.target)) is not None:
            raise DeviceError(reason)
        return There(board, place.threads, place.folder, progress).evaluate(artifact, frames, None)


def scored(accuracy: Accuracy, split: Split) -> Evaluation:
    """All metrics of an accuracy on its split."""
    counts = [dense(count, len(split.classes)) for count in accuracy.counts]
    return Evaluation(split, score(add_counts(counts), split.classes), accuracy.provenance)


def bench(plan: Bench, progress: Progress) -> list[Benched]:
    """Measure artifacts here and on devices, and write a page for each device into the folder ``report``.

    Latency is taken on streets frames at the artifacts' size: the content does not change the work.

    Raises:
        DeviceError: a device cannot be reached, can run none of the artifacts, or failed on the way; then the pages hold what
            was finished, there and elsewhere.
    """
    sizes = {artifact.size for artifact in plan.artifacts}
    if len(sizes) > 1:
        raise UsageError("artifacts of different sizes cannot be compared: bench one size at a time")
    if plan.evaluation is not None:
        for artifact in plan.artifacts:
            _check_artifact(artifact, plan.evaluation)
    check_devices(plan.devices)
    evaluated = None if plan.evaluation is None else Frames(plan.evaluation)
    timed = bench_frames_of(plan.artifacts[0])
    task = Task(plan.folder, evaluated, None, timed, plan.terms, plan.sustained, again=True)
    threads = plan.terms.threads
    benched: list[Benched] = []
    with ExitStack() as stack:
        others = [device for device in plan.devices if device != THIS_MACHINE]
        boards = connect(others, stack, plan.folder, progress, threads)
        if THIS_MACHINE in plan.devices:
            benched += _bench_here(plan, task, progress)

        def on_device(board: Connected) -> tuple[list[Benched], EdgekitError | None]:
            return _bench_there(plan, task, board, progress)

        done = side_by_side(boards, on_device)
    for found, _ in done:
        benched += found
    told = {one.device for one in benched if isinstance(one.measured.latency, Latency) or one.measured.accuracy}
    lost = {found[0].device for found, error in done if error is not None} - told
    if told:  # a device of which nothing is known now leaves its page as it was
        write_bench(plan, [one.measured for one in benched if one.device not in lost])
    if failures := [error for _, error in done if error is not None]:
        if told:
            progress.say(f"what was finished is in {plan.folder / 'report'}")
        raise failures[0]
    return benched


@dataclass(frozen=True)
class Benched:
    """An artifact that ``bench`` measured at one place.

    Attributes:
        artifact: its folder.
        evaluation: its metrics, where they were asked for and taken.
        accuracy_why: why they were not taken, where they were asked for.
        failed: why something of it could not be measured, where that was tried.
    """

    artifact: Path
    measured: Measurement
    evaluation: Evaluation | None
    accuracy_why: str | None
    failed: str | None

    @property
    def device(self) -> str:
        """Where."""
        return self.measured.device

    def to_json(self) -> dict[str, Any]:
        """Plain values, for ``--json``: all metrics of the frames together, in the place of each frame's counts."""
        measured = self.measured
        row = {
            "artifact": str(self.artifact), "target": measured.target, "precision": measured.precision,
            "device": self.device, "size": plain(measured.size), "latency": plain(measured.latency),
            "environment": plain(measured.environment),
        }  # fmt: skip
        if self.evaluation is not None:
            row["accuracy"] = self.evaluation.to_json()
        if measured.sustained is not None:
            row["sustained"] = plain(measured.sustained)
        if self.accuracy_why is not None:
            row["accuracy_why"] = self.accuracy_why
        if self.failed is not None and not isinstance(measured.latency, Untimed):
            row["failed"] = self.failed
        return row


def _benched(plan: Bench, place: Place, taken: Taken, why_not: str | None = None) -> Benched:
    artifact = taken.artifact
    there = "" if place.name == LOCAL else f" --device {place.name}"
    why = f"bench was given no frames to evaluate: add --data, or edgekit evaluate {shlex.quote(str(artifact.folder))}{there}"
    if plan.evaluation is not None:
        why = taken.accuracy_why or why_not or why
    if why_not is not None and taken.timed is None:
        taken = replace(taken, timed=Timed(Untimed(Provenance("not measured", "", why_not), why_not)))
    measured = measurement_of(place, replace(taken, accuracy_why=why), why_not)
    told_apart = checkpoint_names(plan.artifacts)[artifact.manifest["checkpoint"]["sha256"]]
    evaluation = None
    if plan.evaluation is not None and taken.accuracy is not None:
        evaluation = scored(taken.accuracy, plan.evaluation)
    failed = measured.latency.failed if isinstance(measured.latency, Untimed) else None
    return Benched(
        artifact.folder,
        replace(
            measured, title=measured.title + told_apart, run_folder=str(artifact.folder.parent.parent), device_pages=()
        ),
        evaluation,
        why if plan.evaluation is not None and evaluation is None else None,
        failed or (None if taken.error is None else str(taken.error)),
    )


def _bench_here(plan: Bench, task: Task, progress: Progress) -> list[Benched]:
    here = Here(plan.terms.threads, plan.logs, progress)
    alone = len(plan.artifacts) == 1
    for artifact in plan.artifacts:
        if alone and task.evaluated is None and (why := here.no_times(artifact)) is not None:
            raise TargetError(f"{load_target(artifact.target).title} cannot be measured here: {why.why}")
    found, error = measure_at(here, plan.artifacts, task, progress, latency_first=True)
    if error is not None:
        raise error
    if alone and found[0].error is not None:
        raise found[0].error
    return [_benched(plan, here, one) for one in found]


def _bench_there(
    plan: Bench, task: Task, board: Connected, progress: Progress
) -> tuple[list[Benched], EdgekitError | None]:
    """What was measured of each artifact, and what went wrong with the device itself, after which the rest is not reached."""
    place = There(board, plan.terms.threads, plan.folder, progress)
    lacking = {artifact.folder: board.lacks(artifact.target) for artifact in plan.artifacts}
    able = [artifact for artifact in plan.artifacts if lacking[artifact.folder] is None]
    lost: EdgekitError | None = None
    found: list[Taken] = []
    if able:
        found, lost = measure_at(place, able, task, progress, latency_first=True)
    else:
        lost = DeviceError(next(reason for reason in lacking.values() if reason))
    done = {one.artifact.folder: one for one in found}
    return [
        _benched(
            plan, place, done.get(one.folder, Taken(one)), lacking[one.folder] or (None if lost is None else str(lost))
        )
        for one in plan.artifacts
    ], lost


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


@dataclass(frozen=True)
class Predicted:
    """An image that was labelled: paths of it and of its pictures, and the share of its pixels by class."""

    image: str
    labels: str
    overlay: str
    classes: Mapping[str, float]


def predict(
    subject: Checkpoint | Artifact,
    images: Sequence[Path],
    size: Size,
    folder: Path,
    threads: int | None,
    progress: Progress,
) -> list[Predicted]:
    """Label images; for each writes ``<name>.labels.png`` (train ids) and ``<name>.overlay.png`` (to look at)."""
    names = subject.class_names
    classes = next((entry for entry in CLASS_SETS.values() if entry.names == names), None)
    colours = classes.colours if classes is not None else tuple(_colour(index) for index in range(len(names)))
    for path in images:
        read_image(path)  # told before anything is opened or written; not kept, there may be thousands
    rows = []
    with ExitStack() as stack:
        if isinstance(subject, Artifact):
            log = folder / "logs" / f"{subject.folder.name}.log"
            label = stack.enter_context(artifact_labeller(load_target(subject.target), subject, threads, log))
        else:
            label = stack.enter_context(pytorch_labeller(subject, size, threads, progress.say))
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
            shares = {name: round(float(value), 4) for name, value in zip(names, share, strict=False) if value}
            rows.append(
                Predicted(str(path), str(folder / f"{stem}.labels.png"), str(folder / f"{stem}.overlay.png"), shares)
            )
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
