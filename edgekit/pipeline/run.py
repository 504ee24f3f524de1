"""Everything for every target: convert, quantize, evaluate, bench, report; resumes where it was."""

from __future__ import annotations

import importlib.metadata
import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from calibration.choice import choose_frames
from calibration.datasets import Split, class_set, open_split, resize_image, resize_labels
from calibration.images import read_plane
from edgekit import __version__, decoder
from edgekit.core.errors import CheckpointError, DataError, DeviceError, EdgekitError, TargetError, UsageError
from edgekit.core.files import (
    clean_partials,
    read_json,
    read_sealed,
    sha256_json,
    sha256_path,
    write_bytes,
    write_json,
    write_sealed,
    write_text,
)
from edgekit.core.hold import is_held
from edgekit.core.progress import Progress
from edgekit.core.registry import load_target, target_names
from edgekit.core.seam import Target
from edgekit.core.values import (
    IGNORE,
    MANIFEST,
    Artifact,
    Engine,
    OutputKind,
    Precision,
    Provenance,
    Size,
    is_plain_name,
)
from edgekit.devices.connected import Connected
from edgekit.devices.environment import clusters, local_environment, processor
from edgekit.devices.inventory import LOCAL, THIS_MACHINE, Device
from edgekit.devices.local import Mode, Scope, Subject, alone, interval_of, measure, sustain
from edgekit.networks.checkpoint import Checkpoint, trained_on
from edgekit.pipeline.accuracy import (
    Frames,
    artifact_labeller,
    measure_accuracy,
    reference_labels_folder,
    stored_labeller,
)
from edgekit.pipeline.artifacts import checkpoint_names, recipe_for
from edgekit.pipeline.conversion import Job, Order, convert_all
from edgekit.pipeline.devices import Work, check_devices, check_targets, connect, measure_on_devices
from edgekit.pipeline.quantization import Calibration, check_calibration, refuse_evaluated
from edgekit.pipeline.stored import bench_frames, model_key, stored_part

MEASUREMENT_SCHEMA = 1
PICTURES = 4
DEFAULT_SPLITS: Mapping[str, str] = {"cityscapes": "val"}
"""Where accuracy is measured by default, test elsewhere; Cityscapes keeps the labels of its test split to itself."""
DEFAULT_SIZES: Mapping[str, Size] = {
    "streets": Size(512, 1024),
    "cityscapes": Size(1024, 2048),
    "camvid": Size(360, 480),
}


@dataclass(frozen=True)
class Plan:
    """What a run is to do.

    Attributes:
        checkpoint: what is deployed.
        size: input size.
        targets, precisions: what is made; ``precisions`` None means each target's first float one, and int8.
        evaluation: frames that accuracy is measured on.
        calibration: frames that quantizers see; None where nothing is quantized.
        folder: the run's folder.
        mode: how long latency is measured.
        threads: of the runtimes; None for all cores.
        output, output_stride: form of the artifacts; without an output each target's own.
        command: as typed.
        devices: where latency is measured, and accuracy too besides this machine's.
        sustained: seconds of sustained load for each artifact there, None for none.
    """

    checkpoint: Checkpoint
    size: Size
    targets: tuple[str, ...]
    precisions: tuple[Precision, ...] | None
    evaluation: Split
    calibration: Calibration | None
    folder: Path
    mode: Mode
    threads: int | None
    output: OutputKind | None
    output_stride: int
    command: str
    devices: tuple[Device, ...] = (THIS_MACHINE,)
    sustained: float | None = None

    @property
    def here(self) -> bool:
        """Whether latency is measured on this machine."""
        return THIS_MACHINE in self.devices


def default_size(checkpoint: Checkpoint) -> Size:
    """The size that a checkpoint was trained for, else that its dataset is usually labelled at."""
    drawn = checkpoint.recipe.get("draw_size") if checkpoint.dataset == "streets" else ""
    if meant := checkpoint.recipe.get("frame_size") or drawn:
        return Size.parse(str(meant))
    return DEFAULT_SIZES.get(checkpoint.dataset, DEFAULT_SIZES["streets"])


def open_evaluation(dataset: str, split: str | None, root: Path | None, size: Size, frames: int | None) -> Split:
    """Frames to measure accuracy on; ``split`` None means the dataset's usual one, ``frames`` None all of them."""
    return open_split(dataset, split or DEFAULT_SPLITS.get(dataset, "test"), root, size).first(frames)


def check_classes(checkpoint: Checkpoint, dataset: str) -> None:
    """Raise CheckpointError unless the checkpoint's classes are the dataset's."""
    if checkpoint.class_names != class_set(dataset).names:
        raise CheckpointError(
            f"checkpoint '{checkpoint.name}' has {len(checkpoint.class_names)} classes of "
            f"{checkpoint.dataset or 'an unknown dataset'}, not those of {dataset}: evaluate it on its own dataset"
        )


def open_calibration(dataset: str, root: Path | None, samples: int, size: Size) -> Calibration:
    """Calibration frames from the training split, chosen by class coverage."""
    calibration = Calibration(choose_frames(open_split(dataset, "train", root, size), samples), size)
    check_calibration(calibration)
    return calibration


def chosen_targets(names: Sequence[str] | None) -> tuple[str, ...]:
    """The asked targets, or all installed ones.

    Raises:
        UsageError: one does not exist.
    """
    known = target_names()
    for name in names or ():
        if name not in known:
            raise UsageError(f"there is no target '{name}': choose from {', '.join(known)}")
    return tuple(dict.fromkeys(names)) if names else known


def precisions_of(target: Target, asked: tuple[Precision, ...] | None) -> tuple[Precision, ...]:
    """What to make for a target: the asked ones that it has, or its first float one and int8."""
    if asked is not None:
        return tuple(precision for precision in asked if precision in target.precisions)
    floats = [precision for precision in target.precisions if precision != "int8"]
    return (*floats[:1], *(("int8",) if "int8" in target.precisions else ()))


def check_precisions(targets: Sequence[str], asked: tuple[Precision, ...] | None) -> None:
    """Raise UsageError when none of the targets has any of the asked precisions, so that there is nothing to do."""
    for name in targets:
        try:
            if precisions_of(load_target(name), asked):
                return
        except TargetError:  # stands in the report as a failure
            return
    raise UsageError(f"{', '.join(targets)}: no precision is {' or '.join(asked or ())}: see edgekit targets")


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
    if page.is_file() and stored_part(stamp, key, "pages") == _page_hashes(folder):
        progress.say("report: already written")
    else:
        write_json(folder / "run.json", description)
        write_report(folder, documents, frames, progress)
        write_sealed(stamp, {"key": key, "pages": _page_hashes(folder)})
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


def _page_hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file of the report, so that one changed by hand is written again."""
    files = sorted(path for path in (folder / "report").rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_path(path) for path in files}


def check_labelled(frames: Frames) -> None:
    """Raise DataError when no frame has a labelled pixel, before hours are spent on them; looks no further than the first that has."""
    if not any((reference.load_labels() != IGNORE).any() for reference in frames.split.references):
        raise DataError(
            f"{frames.split.dataset} {frames.split.split} has no labels (its owners may keep them): choose another --split"
        )


def _failure(name: str, title: str, precision: Precision, size: Size, reason: str) -> dict[str, Any]:
    return {
        "target": name, "title": title, "precision": precision, "size": [size.height, size.width], "failed": reason,
    }  # fmt: skip


def described(split: Split, seen: bool | None) -> dict[str, Any]:
    """The ``dataset`` object of report.json; ``seen`` says whether the network was trained on it."""
    return {"name": split.dataset, "split": split.split, "frames": len(split), "trained_on": seen}


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
                log = plan.folder / "logs" / f"{artifact.folder.name}.log"
                with artifact_labeller(target, artifact, plan.threads, log) as label:
                    stored = measure_accuracy(
                        artifact.title, label, artifact.size, frames, reference, pictures, PICTURES, progress
                    )
            except EdgekitError as error:
                progress.say(f"{artifact.title}: failed, {error}")
                failed.append(_failure(target.name, target.title, artifact.precision, artifact.size, str(error)))
                made.remove((target, artifact))
                continue
            engine = target.engine()
            stored["provenance"] = Provenance(engine.kind, engine.by, engine.why).to_json()
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
            document |= _sustained(plan, target, artifact, frames, progress)
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


def _sustained(plan: Plan, target: Target, artifact: Artifact, frames: Frames, progress: Progress) -> dict[str, Any]:
    """``sustained`` of a document, measured now or before; nothing where it failed, which is said and tried again next time."""
    assert plan.sustained is not None
    key = sha256_json([model_key(artifact), target.engine().by, _machine(), plan.sustained, plan.threads, __version__])
    path = plan.folder / "measurements" / f"{artifact.folder.name}.{LOCAL}.sustained.json"
    stored: dict[str, Any] | None = stored_part(path, key, "sustained")
    if stored is None:
        samples = bench_frames(frames, artifact.size, plan.folder)
        try:
            stored = sustain_here(artifact, samples, plan.sustained, plan.threads, plan.folder / "logs", progress)
        except EdgekitError as error:
            progress.say(f"{artifact.title}: no sustained load, {error}")
            return {}
        write_sealed(path, {"key": key, "sustained": stored})
    return {"sustained": stored}


def sustain_here(
    artifact: Artifact, samples: Path, seconds: float, threads: int | None, logs: Path, progress: Progress
) -> dict[str, Any]:
    """Sustained load on this machine, which nobody else measures on meanwhile."""
    subject = Subject(artifact.folder, artifact.title)
    with alone(progress):
        return sustain(subject, samples, seconds, interval_of(seconds), threads, logs, progress)


def measurement_document(
    target: Target,
    artifact: Artifact,
    accuracy: Mapping[str, Any] | None,
    latency: Mapping[str, Any],
    environment: Mapping[str, Any],
) -> dict[str, Any]:
    """One artifact on one device, as ``measurements/`` keeps it and reports read it."""
    manifest = artifact.manifest
    calibration = manifest["calibration"]
    return {
        "schema": MEASUREMENT_SCHEMA,
        "artifact": artifact.folder.name,
        "artifact_key": manifest["key"],
        "checkpoint": dict(manifest["checkpoint"]),
        "target": target.name,
        "title": target.title,
        "precision": artifact.precision,
        "size": [artifact.size.height, artifact.size.width],
        "output": artifact.output,
        "output_stride": artifact.output_stride,
        "model_bytes": manifest["model_bytes"],
        "device": "local",
        "device_pages": list(target.device_pages),
        "kept_float": manifest["kept_float"],
        "notes": manifest["notes"],
        "calibration": None if calibration is None else {**calibration, "frames": len(calibration["frames"])},
        "accuracy": accuracy,
        "latency": dict(latency),
        "environment": dict(environment),
    }


def measure_latencies(
    run_folder: Path,
    made: Sequence[tuple[Target, Artifact]],
    frames: Frames,
    mode: Mode,
    threads: int | None,
    progress: Progress,
    scope: Scope = "frame-to-labels",
    anew: bool = False,
) -> dict[str, dict[str, Any]]:
    """Latency objects by artifact folder: all measurable ones together, interleaved.

    Args:
        anew: measure even where the same set of artifacts was measured before.
    """
    results: dict[str, dict[str, Any]] = {}
    measurable: list[tuple[Target, Artifact, Engine]] = []
    for target, artifact in made:
        engine = target.engine()
        if engine.no_latency is None:
            measurable.append((target, artifact, engine))
        else:
            results[str(artifact.folder)] = {
                "provenance": Provenance("not measured", engine.by, engine.no_latency).to_json()
            }
    if not measurable:
        return results
    key = sha256_json(
        [[model_key(artifact), engine.by] for _, artifact, engine in measurable]
        + [mode, scope, threads, __version__, _machine(), frames.split.image_identity()]
    )
    path = run_folder / "measurements" / "latency.local.json"
    known = None if anew else stored_part(path, key, "latency")
    if isinstance(known, list):  # in the order of the key; folders may be named in another way this time
        progress.say(f"latency of {len(measurable)} artifacts: already measured")
        stored = {str(artifact.folder): taken for (_, artifact, _), taken in zip(measurable, known, strict=True)}
    else:
        samples = bench_frames(frames, measurable[0][1].size, run_folder)
        names = checkpoint_names([artifact for _, artifact, _ in measurable])
        subjects = [
            Subject(artifact.folder, artifact.title + names[artifact.manifest["checkpoint"]["sha256"]])
            for _, artifact, _ in measurable
        ]
        with alone(progress):
            taken = measure(subjects, samples, mode, scope, threads, run_folder / "logs", progress)
        stored = {}
        environment = local_environment()
        for (_, artifact, engine), subject, outcome in zip(measurable, subjects, taken, strict=True):
            if isinstance(outcome, EdgekitError):
                progress.say(f"{subject.title}: latency not measured, {outcome}")
                stored[str(artifact.folder)] = {
                    "provenance": Provenance("not measured", engine.by, str(outcome)).to_json(),
                    "failed": str(outcome),
                }
            else:
                flat = sorted(value for part in outcome["rounds_ms"] for value in part)
                progress.say(f"{subject.title}: {flat[len(flat) // 2]:.1f} ms a frame (p50 of {len(flat)})")
                stored[str(artifact.folder)] = {
                    "provenance": Provenance("measured", engine.by).to_json(),
                    **outcome,
                    "environment": environment,
                }
        if all("rounds_ms" in value for value in stored.values()):  # a failure is tried again the next time
            write_sealed(path, {"key": key, "latency": list(stored.values())})
    return {**results, **stored}


def _machine() -> list[Any]:
    """What makes two latencies comparable at all: the processor, the cores that may be used and their clocks, the decoder."""
    environment = local_environment()
    return [*processor(), environment["cores"], environment["governor"], clusters(), decoder.path()]


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
            "PyTorch fp32", stored_labeller(reference, len(frames)), plan.size, frames, reference, pictures, PICTURES,
            progress,
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


def write_report(folder: Path, documents: Sequence[Mapping[str, Any]], frames: Frames, progress: Progress) -> Path:
    """Render every page from the measurements; returns the first page's path."""
    from reports.document import ReportContext, Strip
    from reports.markdown import render

    description = read_json(folder / "run.json")
    size = Size(*description["size"])
    strips = []
    for index in range(min(PICTURES, len(frames))):
        frame = frames[index]
        predictions = {}
        for document in documents:
            picture = folder / "cache" / "pictures" / str(document.get("artifact", "")) / f"{index:05d}.png"
            if "failed" not in document and picture.is_file():
                with suppress(DataError):  # damaged since: the strip does without, a run makes it again
                    predictions[f"{document['title']} {document['precision']}"] = read_plane(picture).astype(np.uint8)
        strips.append(
            Strip(frame.name, resize_image(frame.image, size), resize_labels(frame.labels, size), predictions)
        )
    context = ReportContext(
        checkpoint=description["checkpoint"],
        dataset=description["dataset"],
        class_names=tuple(description["checkpoint"]["classes"]),
        classes=frames.split.classes,
        command=description["command"],
        created=description["created"],
        edgekit_version=description["edgekit"],
        strips=tuple(strips),
        run_folder=str(folder),
    )
    with progress.stage("writing the report"):
        for relative, content in render(list(documents), context).items():
            path = folder / "report" / relative
            if isinstance(content, str):
                write_text(path, content)
            else:
                write_bytes(path, content)
    return folder / "report" / "index.md"


def report_again(folder: Path, root: Path | None, progress: Progress) -> Path:
    """Render a finished run's report from its measurements.

    Raises:
        UsageError: not a run's folder.
        EdgekitError: a measurement is gone, or an artifact is another one by now.
    """
    if not (folder / "run.json").is_file():
        raise UsageError(
            f"{folder} is not a run's folder (it has no run.json): give the folder of a run that was finished"
        )
    description = read_json(folder / "run.json")
    kept = description.get("command") if isinstance(description, dict) else None
    again = f"run again, as it was: {kept}" if kept else "run again"
    try:
        size = Size(*description["size"])
        dataset, command = description["dataset"], description["command"]
        named = [(f"pytorch-fp32-{size}", LOCAL), *((name, LOCAL) for name in description["artifacts"])]
        named += [(name, device) for device, names in description.get("devices", {}).items() for name in names]
        if odd := [part for pair in named for part in pair if not is_plain_name(part)]:
            raise ValueError(f"{odd[0]!r} is no artifact's or device's name")
        wanted, failed = (dataset["name"], dataset["split"], int(dataset["frames"])), list(description["failed"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EdgekitError(f"{folder / 'run.json'} is not what edgekit run writes ({error!r}): {again}") from error
    documents = [_measured_before(folder, name, device, command) for name, device in named]
    frames = Frames(open_split(wanted[0], wanted[1], root, size).first(wanted[2]))
    if not (folder / "cache" / "pictures").is_dir():
        progress.say(
            f"what artifacts labelled is gone ({folder / 'cache'}): the strips show frames and truth alone; to have it, {again}"
        )
    return write_report(folder, documents + failed, frames, progress)


def _measured_before(folder: Path, name: str, device: str, command: str) -> dict[str, Any]:
    """A measurement that a run kept, of an artifact that is still the same."""
    path = folder / "measurements" / f"{name}.{device}.json"
    if not path.is_file():
        raise EdgekitError(f"{path} is gone: run again, as it was: {command}")
    try:
        document = read_sealed(path)
    except EdgekitError as error:
        raise EdgekitError(f"{path} is not a measurement as edgekit wrote it; {error}, as it was: {command}") from error
    if not {"target", "precision", "latency", "environment"} <= document.keys():
        raise EdgekitError(f"{path} is not a measurement of edgekit's: delete it and run again, as it was: {command}")
    manifest_path = folder / "artifacts" / name / MANIFEST
    manifest = read_json(manifest_path) if manifest_path.is_file() else {}
    if manifest and document.get("artifact_key", manifest["key"]) != manifest["key"]:
        raise EdgekitError(
            f"{manifest_path.parent} is not what was measured, but was made since by: {manifest['command']}; run again, as it "
            f"was: {command}; and give other artifacts another --out"
        )
    return document
