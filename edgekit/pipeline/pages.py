"""A run's measurements and bench's rows into pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from calibration.datasets import CLASS_SETS, Split, open_split, resize_image, resize_labels
from calibration.images import read_plane
from edgekit import __version__
from edgekit.core.errors import DataError, EdgekitError, UsageError
from edgekit.core.files import read_json, read_sealed, sha256_path, write_bytes, write_text
from edgekit.core.measurement import (
    LOCAL,
    SCHEMA,
    CalibrationSummary,
    Failure,
    Measurement,
    Origin,
    Row,
    Timed,
    Untimed,
    read_row,
)
from edgekit.core.progress import Progress
from edgekit.core.record import plain, read
from edgekit.core.registry import load_target
from edgekit.core.values import MANIFEST, Provenance, Size, is_plain_name
from edgekit.networks.checkpoint import trained_on
from edgekit.pipeline.accuracy import PICTURES, Frames
from edgekit.pipeline.check import collapsed
from edgekit.pipeline.places import Place, Taken
from edgekit.pipeline.plans import Bench


@dataclass(frozen=True)
class EvaluatedOn:
    """The ``dataset`` object of report.json.

    Attributes:
        frames: their number.
        trained_on: whether the network was trained on them; None where nobody knows.
    """

    name: str
    split: str
    frames: int
    trained_on: bool | None = None


def evaluated_on(split: Split, *, seen: bool | None) -> EvaluatedOn:
    """A split as a report names it; ``seen`` says whether the network was trained on it."""
    return EvaluatedOn(split.dataset, split.split, len(split), seen)


@dataclass(frozen=True)
class Description:
    """What ``run.json`` says of a finished run, beside its measurements.

    Attributes:
        checkpoint: as :meth:`edgekit.networks.checkpoint.Checkpoint.describe` gives it.
        command, created, edgekit: how, when and by which version it was made.
        artifacts: names of those that were measured here.
        devices: names of those that were measured on each device.
    """

    checkpoint: Mapping[str, Any]
    dataset: EvaluatedOn
    size: Size
    command: str
    created: str
    edgekit: str
    artifacts: tuple[Any, ...]  # names, which are looked at where a file brings them
    failed: tuple[Failure, ...]
    devices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    schema: Any = 1


def measurement_of(place: Place, taken: Taken, why_not: str | None = None) -> Measurement:
    """One artifact at one place, as ``measurements/`` keeps it and reports read it.

    Args:
        why_not: why nothing more was measured, where something is missing.
    """
    artifact = taken.artifact
    target, manifest = load_target(artifact.target), artifact.manifest
    missing = why_not or "it was not measured there"
    timed = taken.timed or Timed(Untimed(Provenance("not measured", "", missing)))
    environment = timed.environment if timed.environment is not None else place.environment
    calibration = manifest["calibration"]
    if calibration is not None:
        counted = {**calibration, "frames": len(calibration["frames"])}
        calibration = read(CalibrationSummary, counted, f"the calibration of {artifact.folder}")
    return Measurement(
        artifact=artifact.folder.name,
        target=target.name,
        precision=artifact.precision,
        size=artifact.size,
        latency=timed.latency,
        schema=SCHEMA,
        artifact_key=manifest["key"],
        checkpoint=read(Origin, manifest["checkpoint"], "checkpoint"),
        title=target.title,
        output=artifact.output,
        output_stride=artifact.output_stride,
        model_bytes=manifest["model_bytes"],
        device=place.name,
        device_pages=tuple(target.device_pages) if place.name == LOCAL else (),
        stands_for=place.page,
        kept_float=tuple(manifest["kept_float"]),
        notes=manifest["notes"],
        calibration=calibration,
        accuracy=taken.accuracy,
        accuracy_why=None if taken.accuracy is not None else taken.accuracy_why or missing,
        environment={**environment, "events": list(place.notes)} if place.notes else environment,
        sustained=taken.sustained,
        collapsed=collapsed(manifest),
    )


def write_report(
    folder: Path, description: Description, rows: Sequence[Row], frames: Frames, progress: Progress
) -> Path:
    """Render every page from the measurements and what ``run.json`` says of the run; returns the first page's path."""
    from reports.document import ReportContext, Strip
    from reports.markdown import render

    size = description.size
    strips = []
    for index in range(min(PICTURES, len(frames))):
        frame = frames[index]
        predictions = {}
        for row in rows:
            picture = folder / "cache" / "pictures" / row.artifact / f"{index:05d}.png"
            if isinstance(row, Measurement) and picture.is_file():
                with suppress(DataError):  # damaged since: the strip does without, a run makes it again
                    predictions[f"{row.named} {row.precision}"] = read_plane(picture).astype(np.uint8)
        strips.append(
            Strip(frame.name, resize_image(frame.image, size), resize_labels(frame.labels, size), predictions)
        )
    context = ReportContext(
        checkpoint=description.checkpoint,
        dataset=plain(description.dataset),
        class_names=tuple(description.checkpoint["classes"]),
        classes=frames.split.classes,
        command=description.command,
        created=description.created,
        edgekit_version=description.edgekit,
        strips=tuple(strips),
        run_folder=str(folder),
    )
    with progress.stage("writing the report"):
        write_pages(folder / "report", render(rows, context))
    return folder / "report" / "index.md"


def report_document(folder: Path) -> Mapping[str, Any]:
    """A run's ``report.json``."""
    document: Mapping[str, Any] = read_json(folder / "report" / "report.json")
    return document


def report_again(folder: Path, root: Path | None, progress: Progress) -> tuple[Path, Mapping[str, Any]]:
    """Render a finished run's report from its measurements; returns the first page's path and ``report.json``.

    Raises:
        UsageError: not a run's folder.
        EdgekitError: a measurement is gone, or an artifact is another one by now.
    """
    if not (folder / "run.json").is_file():
        raise UsageError(
            f"{folder} is not a run's folder (it has no run.json): give the folder of a run that was finished"
        )
    document = read_json(folder / "run.json")
    kept = document.get("command") if isinstance(document, dict) else None
    again = f"run again, as it was: {kept}" if kept else "run again"
    try:
        description = read(Description, document, "the document")
        named = [(f"pytorch-fp32-{description.size}", LOCAL), *((name, LOCAL) for name in description.artifacts)]
        named += [(name, device) for device, names in description.devices.items() for name in names]
        if odd := [part for pair in named for part in pair if not is_plain_name(part)]:
            raise EdgekitError(f"{odd[0]!r} is no artifact's or device's name")
    except EdgekitError as error:
        raise EdgekitError(f"{folder / 'run.json'} is not what edgekit run writes ({error}): {again}") from error
    measured = [_measured_before(folder, name, device, description.command) for name, device in named]
    wanted = description.dataset
    frames = Frames(open_split(wanted.name, wanted.split, root, description.size).first(wanted.frames))
    if not (folder / "cache" / "pictures").is_dir():
        progress.say(
            f"what artifacts labelled is gone ({folder / 'cache'}): the strips show frames and truth alone; to have it, {again}"
        )
    page = write_report(folder, description, [*measured, *description.failed], frames, progress)
    return page, report_document(folder)


def _measured_before(folder: Path, name: str, device: str, command: str) -> Row:
    """A measurement that a run kept, of an artifact that is still the same."""
    path = folder / "measurements" / f"{name}.{device}.json"
    if not path.is_file():
        raise EdgekitError(f"{path} is gone: run again, as it was: {command}")
    try:
        document = read_sealed(path)
    except EdgekitError as error:
        raise EdgekitError(f"{path} is not a measurement as edgekit wrote it; {error}, as it was: {command}") from error
    try:
        row = read_row(document)
    except EdgekitError as error:
        raise EdgekitError(
            f"{path} is not a measurement of edgekit's ({error}): delete it and run again, as it was: {command}"
        ) from error
    manifest_path = folder / "artifacts" / name / MANIFEST
    manifest = read_json(manifest_path) if manifest_path.is_file() else {}
    if manifest and isinstance(row, Measurement) and row.artifact_key not in (None, manifest["key"]):
        raise EdgekitError(
            f"{manifest_path.parent} is not what was measured, but was made since by: {manifest['command']}; run again, as it "
            f"was: {command}; and give other artifacts another --out"
        )
    return row


def write_pages(folder: Path, pages: Mapping[str, str | bytes]) -> None:
    """Write texts and figures, by their paths under the folder."""
    for relative, content in pages.items():
        path = folder / relative
        write_text(path, content) if isinstance(content, str) else write_bytes(path, content)


def page_hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file of the report, so that one changed by hand is written again."""
    files = sorted(path for path in (folder / "report").rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_path(path) for path in files}


def write_bench(plan: Bench, measured: Sequence[Measurement]) -> None:
    """A page for each device, its figures beside it."""
    from reports.document import ReportContext
    from reports.markdown import render_bench

    first = plan.artifacts[0]
    split = plan.evaluation
    seen = split is not None and any(
        trained_on(artifact.manifest.get("training", {}), split.dataset, split.split) for artifact in plan.artifacts
    )
    context = ReportContext(
        checkpoint={"name": first.manifest["checkpoint"]["name"]},
        dataset={} if split is None else plain(evaluated_on(split, seen=seen)),
        class_names=first.class_names,
        classes=split.classes if split is not None else CLASS_SETS["streets"],
        command=plan.command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        edgekit_version=__version__,
        run_folder=str(first.folder.parent.parent),
    )
    write_pages(plan.folder / "report", render_bench(measured, context))
