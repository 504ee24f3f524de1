"""Everything for every target: convert, quantize, evaluate, bench, report; resumes where it was."""

from __future__ import annotations

import importlib.metadata
import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgekit import __version__
from edgekit.core.errors import DeviceError, EdgekitError, TargetError
from edgekit.core.files import clean_partials, sha256_json, write_json, write_sealed
from edgekit.core.hold import is_held
from edgekit.core.measurement import SCHEMA, Accuracy, Failure, Measurement, Origin, Row, Timed, Untimed
from edgekit.core.progress import Progress
from edgekit.core.record import plain
from edgekit.core.registry import load_target
from edgekit.core.values import Artifact, Precision, Provenance
from edgekit.devices.connected import Connected
from edgekit.devices.environment import local_environment
from edgekit.devices.inventory import THIS_MACHINE
from edgekit.networks.checkpoint import trained_on
from edgekit.pipeline.accuracy import Frames, measure_accuracy, reference_labels_folder, stored_labeller
from edgekit.pipeline.artifacts import recipe_for
from edgekit.pipeline.conversion import convert_all
from edgekit.pipeline.devices import There, check_devices, check_targets, connect, side_by_side, why_not
from edgekit.pipeline.here import Here
from edgekit.pipeline.inputs import check_classes, check_labelled, check_precisions, precisions_of
from edgekit.pipeline.pages import Description, evaluated_on, measurement_of, page_hashes, report_document, write_report
from edgekit.pipeline.places import Taken, Task, keep_accuracy, measure_at, same_pictures, stored_accuracy
from edgekit.pipeline.plans import Job, Order, Plan
from edgekit.pipeline.quantization import refuse_evaluated
from edgekit.pipeline.stored import stored_part


@dataclass(frozen=True)
class Finished:
    """What a run came to.

    Attributes:
        page: the report's first page.
        document: ``report.json``.
        failed: artifacts that could not be made or run.
        measured: what was measured of the others.
    """

    page: Path
    document: Mapping[str, Any]
    failed: tuple[Failure, ...]
    measured: tuple[Measurement, ...]


def run(plan: Plan, progress: Progress) -> Finished:
    """Carry out a plan.

    A target that fails stands in the report with its reason and does not stop the others.

    Raises:
        DeviceError: a device failed on the way; the report holds what was finished.
        EdgekitError: nothing could be done.
    """
    check_classes(plan.checkpoint, plan.evaluation.dataset)
    check_precisions(plan.targets, plan.precisions)
    if plan.calibration is not None:
        refuse_evaluated(plan.calibration, plan.evaluation)
    folder = plan.folder
    for part in (".", "artifacts", "measurements", "cache", "report", "report/figures"):
        clean_partials(folder / part, alone=is_held(folder))
    frames = Frames(plan.evaluation)
    check_labelled(frames)
    check_devices(plan.devices)
    with ExitStack() as stack:
        # A device that is not there is told now, not after hours; connections are kept until it is their turn.
        others = [device for device in plan.devices if device != THIS_MACHINE]
        boards = connect(others, stack, folder, progress, plan.terms.threads)
        check_targets(boards, plan.targets)
        made, failed = _convert(plan, progress)
        measured, broken, errors = _measurements(plan, boards, made, frames, progress)
    failed += broken
    unmade = {one.target + one.precision for one in broken}
    # Only now: an interrupted rerun leaves the finished run before it as it was.
    description = Description(
        checkpoint=plan.checkpoint.describe(),
        dataset=evaluated_on(
            plan.evaluation,
            seen=trained_on(plan.checkpoint.recipe, plan.evaluation.dataset, plan.evaluation.split),
        ),
        size=plan.size,
        command=plan.command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        edgekit=__version__,
        artifacts=tuple(one.folder.name for one in made if one.target + one.precision not in unmade),
        devices={
            board.device.name: tuple(one.artifact for one in measured if one.device == board.device.name)
            for board in boards
        },
        failed=tuple(failed),
    )
    rows: tuple[Row, ...] = (*measured, *failed)
    page, stamp = folder / "report" / "index.md", folder / "cache" / "report.json"
    key = sha256_json([plain(rows), plain(replace(description, created=""))])
    if page.is_file() and stored_part(stamp, key, "pages") == page_hashes(folder):
        progress.say("report: already written")
    else:
        write_json(folder / "run.json", plain(description))
        write_report(folder, description, rows, frames, progress)
        write_sealed(stamp, {"key": key, "pages": page_hashes(folder)})
    if errors:
        raise DeviceError(f"{errors[0]} (the report {page} holds what was finished)")
    return Finished(page, report_document(folder), tuple(failed), tuple(measured))


def _convert(plan: Plan, progress: Progress) -> tuple[list[Artifact], list[Failure]]:
    """The artifacts, and what failed, both in the order of the plan."""
    jobs: list[Job] = []
    failures: list[Failure | None] = []  # None for the next job
    for name in plan.targets:
        try:
            target = load_target(name)
        except TargetError as error:  # a plug-in that is broken; the others are not
            progress.say(f"{name}: failed, {error}")
            failures += [_failure(plan, name, precision, error) for precision in plan.precisions or ("fp32",)]
            continue
        sentence = target.missing()
        for precision in precisions_of(target, plan.precisions):
            if sentence is not None:
                progress.say(f"{target.title} {precision}: skipped, {sentence}")
                failures.append(Failure(name, precision, plan.size, sentence, target.title, missing=True))
                continue
            jobs.append(Job(name, recipe_for(target, precision, plan.output, plan.output_stride)))
            failures.append(None)
    order = Order(plan.checkpoint, plan.size, plan.folder, plan.command, plan.calibration)
    results = zip(jobs, convert_all(order, jobs, progress), strict=True)
    made: list[Artifact] = []
    failed: list[Failure] = []
    for failure in failures:
        if failure is not None:
            failed.append(failure)
            continue
        job, result = next(results)
        if isinstance(result, EdgekitError):
            failed.append(_failure(plan, job.target, job.recipe.precision, result, load_target(job.target).title))
        else:
            made.append(result)
    return made, failed


def _failure(plan: Plan, target: str, precision: Precision, error: EdgekitError, title: str = "") -> Failure:
    return Failure(target, precision, plan.size, str(error), title or target)


def _measurements(
    plan: Plan, boards: Sequence[Connected], made: list[Artifact], frames: Frames, progress: Progress
) -> tuple[list[Measurement], list[Failure], list[EdgekitError]]:
    """What was measured now or before, the float reference first; what does not run here; and devices' failures."""
    folder, threads = plan.folder, plan.terms.threads
    reference = reference_labels_folder(plan.checkpoint, plan.size, frames, folder, progress, threads)
    floats = _float(plan, frames, reference, progress)
    task = Task(
        folder, frames, reference, frames, plan.terms if plan.here else None, plan.sustained if plan.here else None,
        pictures=folder / "cache" / "pictures",
    )  # fmt: skip
    here = Here(threads, folder / "logs", progress)
    taken, lost = measure_at(here, made, task, progress)
    if lost is not None:  # as somebody else measures here
        raise lost
    measured = [floats]
    broken: list[Failure] = []
    elsewhere: dict[Path, Accuracy] = {}
    for one in taken:
        artifact = one.artifact
        if one.accuracy is None:
            title = load_target(artifact.target).title
            broken.append(Failure(artifact.target, artifact.precision, artifact.size, str(one.accuracy_why), title))
            progress.say(f"{artifact.title}: failed, {one.accuracy_why}")
            continue
        elsewhere[artifact.folder] = one.accuracy
        timed = one.timed if one.timed is not None else _not_here(here, artifact)
        measured.append(measurement_of(here, replace(one, timed=timed)))
    task = replace(task, terms=plan.terms, sustained=plan.sustained, pictures=None, elsewhere=elsewhere)
    usable = [one.artifact for one in taken if one.accuracy is not None]

    def on_device(board: Connected) -> tuple[list[Measurement], EdgekitError | None]:
        reasons = {artifact.folder: why_not(board, artifact.target) for artifact in usable}
        place = There(board, threads, folder, progress)
        chosen = [artifact for artifact in usable if reasons[artifact.folder] is None]
        found, error = measure_at(place, chosen, task, progress)
        done = {one.artifact.folder: one for one in found}
        # A reason that is empty is of a target that nobody expects there.
        return [
            measurement_of(
                place, done.get(one.folder, Taken(one)), reasons[one.folder] or (None if error is None else str(error))
            )
            for one in usable
            if reasons[one.folder] != ""
        ], error

    results = side_by_side(boards, on_device)
    for found, _ in results:
        measured += found
    # Written together at the end, so that a stopped rerun leaves no checkpoint's float beside another's artifacts.
    for row in measured:
        write_sealed(folder / "measurements" / f"{row.artifact}.{row.device}.json", plain(row))
    return measured, broken, [error for _, error in results if error is not None]


def _not_here(here: Here, artifact: Artifact) -> Timed:
    """The latency of a run that was for other devices."""
    why = here.no_times(artifact)
    way = f"this run was for other devices; measure here with: edgekit bench {shlex.quote(str(artifact.folder))}"
    return Timed(Untimed(Provenance("not measured", "", way if why is None else why.why)))


def _float(plan: Plan, frames: Frames, reference: Path, progress: Progress) -> Measurement:
    """Float PyTorch's own row: what every drop is measured from."""
    name = f"pytorch-fp32-{plan.size}"
    key = sha256_json(
        [reference.name, plan.checkpoint.identity(), str(plan.size), plan.evaluation.identity(), __version__]
    )
    path = plan.folder / "measurements" / f"{name}.accuracy.json"
    pictures = plan.folder / "cache" / "pictures" / name
    by = f"PyTorch {importlib.metadata.version('torch')}"
    accuracy = stored_accuracy(path, key)
    if accuracy is None or not same_pictures(path, key, pictures):
        label = stored_labeller(reference, len(frames))
        taken = measure_accuracy(
            "PyTorch fp32", label, plan.size, frames, progress, reference=reference, pictures=pictures
        )
        accuracy = replace(taken, provenance=Provenance("measured", by))
        keep_accuracy(path, key, accuracy, pictures)
    why = "the float reference for accuracy, not an artifact that is shipped"
    return Measurement(
        name, "pytorch", "fp32", plan.size, Untimed(Provenance("not measured", by, why)), SCHEMA,
        checkpoint=Origin(plan.checkpoint.name, plan.checkpoint.sha256), title="float PyTorch", output_stride=1,
        model_bytes=plan.checkpoint.path.stat().st_size, accuracy=accuracy, environment=local_environment(),
    )  # fmt: skip
