"""Everything for every target: convert, quantize, evaluate, bench, report; resumes where it was."""

from __future__ import annotations

import importlib.metadata
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgekit import __version__
from edgekit.core.errors import DeviceError, EdgekitError, TargetError
from edgekit.core.files import (
    clean_partials,
    sha256_json,
    sha256_path,
    write_json,
    write_sealed,
)
from edgekit.core.hold import is_held
from edgekit.core.progress import Progress
from edgekit.core.registry import load_target
from edgekit.core.seam import Target
from edgekit.core.values import (
    Artifact,
    Precision,
    Provenance,
    Size,
)
from edgekit.devices.connected import Connected
from edgekit.devices.environment import local_environment, processor
from edgekit.devices.inventory import THIS_MACHINE
from edgekit.networks.checkpoint import trained_on
from edgekit.pipeline.accuracy import (
    Frames,
    measure_accuracy,
    reference_labels_folder,
    stored_labeller,
)
from edgekit.pipeline.artifacts import recipe_for
from edgekit.pipeline.conversion import Job, Order, convert_all
from edgekit.pipeline.devices import Work, check_devices, check_targets, connect, measure_on_devices
from edgekit.pipeline.here import accuracy_here, known_sustained, measure_latencies
from edgekit.pipeline.inputs import check_classes, check_labelled, check_precisions, precisions_of
from edgekit.pipeline.pages import (
    MEASUREMENT_SCHEMA,
    described,
    measurement_document,
    page_hashes,
    write_report,
)
from edgekit.pipeline.plans import Plan
from edgekit.pipeline.quantization import refuse_evaluated
from edgekit.pipeline.stored import model_key, stored_part


def run(plan: Plan, progress: Progress) -> Path:
    """Carry out a plan; returns the path of the report's first page.

    A target that fails stands in the report with its reason and does not stop the others.
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
        boards = connect(others, stack, folder, progress, plan.threads)
        check_targets(boards, plan.targets)
        made, failed = _convert(plan, progress)
        documents, errors = _measurements(plan, boards, made, failed, frames, progress)
    # Only now: an interrupted rerun leaves the finished run before it as it was.
    description = {
        **_describe(plan),
        "artifacts": [artifact.folder.name for _, artifact in made],
        "devices": {
            board.device.name: [
                document["artifact"] for document in documents if document.get("device") == board.device.name
            ]
            for board in boards
        },
        "failed": failed,
    }
    page, stamp = folder / "report" / "index.md", folder / "cache" / "report.json"
    key = sha256_json([documents, {name: value for name, value in description.items() if name != "created"}])
    if page.is_file() and stored_part(stamp, key, "pages") == page_hashes(folder):
        progress.say("report: already written")
    else:
        write_json(folder / "run.json", description)
        write_report(folder, description, documents, frames, progress)
        write_sealed(stamp, {"key": key, "pages": page_hashes(folder)})
    if errors:
        raise DeviceError(f"{errors[0]} (the report {page} holds what was finished)")
    return page


def _convert(plan: Plan, progress: Progress) -> tuple[list[tuple[Target, Artifact]], list[dict[str, Any]]]:
    """The artifacts, and the failures as the report shows them, both in the order of the plan."""
    jobs: list[Job] = []
    failures: list[dict[str, Any] | None] = []  # a row, or None for the next job
    for name in plan.targets:
        try:
            target = load_target(name)
        except TargetError as error:  # a plug-in that is broken; the others are not
            progress.say(f"{name}: failed, {error}")
            failures += [
                _failure(name, name, precision, plan.size, str(error)) for precision in plan.precisions or ("fp32",)
            ]
            continue
        sentence = target.missing()
        for precision in precisions_of(target, plan.precisions):
            if sentence is not None:
                progress.say(f"{target.title} {precision}: skipped, {sentence}")
                failures.append({**_failure(name, target.title, precision, plan.size, sentence), "missing": True})
                continue
            jobs.append(Job(name, recipe_for(target, precision, plan.output, plan.output_stride)))
            failures.append(None)
    order = Order(plan.checkpoint, plan.size, plan.folder, plan.command, plan.calibration)
    results = zip(jobs, convert_all(order, jobs, progress), strict=True)
    made: list[tuple[Target, Artifact]] = []
    failed: list[dict[str, Any]] = []
    for failure in failures:
        if failure is not None:
            failed.append(failure)
            continue
        job, result = next(results)
        target = load_target(job.target)
        if isinstance(result, EdgekitError):
            failed.append(_failure(job.target, target.title, job.recipe.precision, plan.size, str(result)))
        else:
            made.append((target, result))
    return made, failed


def _failure(name: str, title: str, precision: Precision, size: Size, reason: str) -> dict[str, Any]:
    return {
        "target": name, "title": title, "precision": precision, "size": [size.height, size.width], "failed": reason,
    }  # fmt: skip


def _describe(plan: Plan) -> dict[str, Any]:
    return {
        "schema": 1,
        "checkpoint": plan.checkpoint.describe(),
        "dataset": described(
            plan.evaluation, trained_on(plan.checkpoint.recipe, plan.evaluation.dataset, plan.evaluation.split)
        ),
        "size": [plan.size.height, plan.size.width],
        "command": plan.command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "edgekit": __version__,
    }


def _measurements(
    plan: Plan,
    boards: Sequence[Connected],
    made: list[tuple[Target, Artifact]],
    failed: list[dict[str, Any]],
    frames: Frames,
    progress: Progress,
) -> tuple[list[dict[str, Any]], list[EdgekitError]]:
    """Measure what was not measured before; all documents of this run, the float reference first, and devices' failures."""
    folder = plan.folder / "measurements"
    reference = reference_labels_folder(plan.checkpoint, plan.size, frames, plan.folder, progress, plan.threads)
    documents = [_reference_document(plan, frames, reference, progress)]
    accuracies: dict[str, dict[str, Any]] = {}
    for target, artifact in list(made):
        key = sha256_json(
            [
                model_key(artifact),
                reference.name,
                plan.evaluation.identity(),
                target.engine().by,
                processor(),
                __version__,
            ]
        )
        path = folder / f"{artifact.folder.name}.accuracy.json"
        pictures = plan.folder / "cache" / "pictures" / artifact.folder.name
        stored = _stored_with_pictures(path, key, pictures)
        if stored is None:
            try:
                stored = accuracy_here(
                    artifact,
                    frames,
                    plan.threads,
                    plan.folder / "logs",
                    progress,
                    reference=reference,
                    pictures=pictures,
                )
            except EdgekitError as error:
                progress.say(f"{artifact.title}: failed, {error}")
                failed.append(_failure(target.name, target.title, artifact.precision, artifact.size, str(error)))
                made.remove((target, artifact))
                continue
            write_sealed(path, {"key": key, "accuracy": stored, "pictures": sha256_path(pictures)})
        else:
            progress.say(f"{artifact.title}: already evaluated")
        accuracies[artifact.folder.name] = stored
    latencies = _not_here(made)
    if plan.here:
        latencies = measure_latencies(plan.folder, made, frames, plan.mode, plan.threads, progress)
    # Written together at the end, so that a stopped rerun leaves no checkpoint's float beside another's artifacts.
    finished = {f"pytorch-fp32-{plan.size}.local.json": documents[0]}
    for target, artifact in made:
        name = artifact.folder.name
        latency = dict(latencies[str(artifact.folder)])
        environment = latency.pop("environment", None) or local_environment()
        document = measurement_document(target, artifact, accuracies[name], latency, environment)
        if plan.here and plan.sustained is not None and target.engine().no_latency is None:
            sustained = known_sustained(artifact, frames, plan.sustained, plan.threads, plan.folder, progress)
            document |= {} if sustained is None else {"sustained": sustained}
        finished[f"{name}.local.json"] = document
        documents.append(document)
    work = Work(tuple(made), frames, reference, accuracies, plan.mode, plan.threads, plan.sustained, plan.folder)
    results = measure_on_devices(boards, work, progress)
    for result in results:
        for target, artifact, part in result.parts:
            document = measurement_document(target, artifact, part["accuracy"], part["latency"], part["environment"])
            document.update(part, device_pages=[])
            finished[f"{artifact.folder.name}.{result.device.name}.json"] = document
            documents.append(document)
    for file, document in finished.items():
        write_sealed(folder / file, document)
    documents.extend(failed)
    return documents, [result.error for result in results if result.error is not None]


def _stored_with_pictures(path: Path, key: str, pictures: Path) -> dict[str, Any] | None:
    """An accuracy that was measured before, if what was labelled is there as it was, too."""
    stored: dict[str, Any] | None = stored_part(path, key)
    if not pictures.is_dir() or stored_part(path, key, "pictures") != sha256_path(pictures):
        return None
    return stored


def _not_here(made: Sequence[tuple[Target, Artifact]]) -> dict[str, dict[str, Any]]:
    """Latency objects of a run that was for other devices."""
    found = {}
    for target, artifact in made:
        why = (
            target.engine().no_latency
            or f"this run was for other devices; measure here with: edgekit bench {shlex.quote(str(artifact.folder))}"
        )
        found[str(artifact.folder)] = {"provenance": Provenance("not measured", "", why).to_json()}
    return found


def _reference_document(plan: Plan, frames: Frames, reference: Path, progress: Progress) -> dict[str, Any]:
    """Float PyTorch's own row: what every drop is measured from."""
    key = sha256_json(
        [reference.name, plan.checkpoint.identity(), str(plan.size), plan.evaluation.identity(), __version__]
    )
    path = plan.folder / "measurements" / f"pytorch-fp32-{plan.size}.accuracy.json"
    pictures = plan.folder / "cache" / "pictures" / f"pytorch-fp32-{plan.size}"
    stored = _stored_with_pictures(path, key, pictures)
    by = f"PyTorch {importlib.metadata.version('torch')}"
    if stored is None:
        stored = measure_accuracy(
            "PyTorch fp32", stored_labeller(reference, len(frames)), plan.size, frames, progress, reference=reference,
            pictures=pictures,
        )  # fmt: skip
        stored["provenance"] = Provenance("measured", by).to_json()
        write_sealed(path, {"key": key, "accuracy": stored, "pictures": sha256_path(pictures)})
    return {
        "schema": MEASUREMENT_SCHEMA,
        "artifact": f"pytorch-fp32-{plan.size}",
        "checkpoint": {"name": plan.checkpoint.name, "sha256": plan.checkpoint.sha256},
        "target": "pytorch",
        "title": "float PyTorch",
        "precision": "fp32",
        "size": [plan.size.height, plan.size.width],
        "output": "labels",
        "output_stride": 1,
        "model_bytes": plan.checkpoint.path.stat().st_size,
        "device": "local",
        "device_pages": [],
        "kept_float": [],
        "notes": {},
        "calibration": None,
        "accuracy": stored,
        "latency": {
            "provenance": Provenance(
                "not measured", by, "the float reference for accuracy, not an artifact that is shipped"
            ).to_json()
        },
        "environment": local_environment(),
    }
