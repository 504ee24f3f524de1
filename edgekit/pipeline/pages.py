"""A run's measurements and bench's rows into pages."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from calibration.datasets import CLASS_SETS, Split, open_split, resize_image, resize_labels
from calibration.images import read_plane
from edgekit import __version__
from edgekit.core.errors import DataError, EdgekitError, UsageError
from edgekit.core.files import read_json, read_sealed, sha256_path, write_bytes, write_text
from edgekit.core.progress import Progress
from edgekit.core.registry import load_target
from edgekit.core.seam import Target
from edgekit.core.values import MANIFEST, Artifact, Size, is_plain_name
from edgekit.devices.inventory import LOCAL
from edgekit.networks.checkpoint import trained_on
from edgekit.pipeline.accuracy import PICTURES, Frames
from edgekit.pipeline.artifacts import checkpoint_names
from edgekit.pipeline.plans import Bench

MEASUREMENT_SCHEMA = 1


def described(split: Split, seen: bool | None) -> dict[str, Any]:
    """The ``dataset`` object of report.json; ``seen`` says whether the network was trained on it."""
    return {"name": split.dataset, "split": split.split, "frames": len(split), "trained_on": seen}


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


def write_report(
    folder: Path,
    description: Mapping[str, Any],
    documents: Sequence[Mapping[str, Any]],
    frames: Frames,
    progress: Progress,
) -> Path:
    """Render every page from the measurements and what ``run.json`` says of the run; returns the first page's path."""
    from reports.document import ReportContext, Strip
    from reports.markdown import render

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
        write_pages(folder / "report", render(list(documents), context))
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
    return write_report(folder, description, documents + failed, frames, progress)


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


def write_pages(folder: Path, pages: Mapping[str, str | bytes]) -> None:
    """Write texts and figures, by their paths under the folder."""
    for relative, content in pages.items():
        path = folder / relative
        write_text(path, content) if isinstance(content, str) else write_bytes(path, content)


def page_hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file of the report, so that one changed by hand is written again."""
    files = sorted(path for path in (folder / "report").rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_path(path) for path in files}


def write_bench(plan: Bench, rows: Sequence[Mapping[str, Any]]) -> None:
    """A page for each device, its figures beside it."""
    from reports.document import ReportContext
    from reports.markdown import render_bench

    artifacts = {str(artifact.folder): artifact for artifact in plan.artifacts}
    told_apart = checkpoint_names(plan.artifacts)
    documents = []
    for row in rows:
        artifact = artifacts[row["artifact"]]
        document = measurement_document(
            load_target(artifact.target), artifact, row.get("accuracy"), row["latency"], row["environment"]
        )  # fmt: skip
        there = "" if row["device"] == LOCAL else f" --device {row['device']}"
        why = f"bench was given no frames to evaluate: add --data, or edgekit evaluate {shlex.quote(str(artifact.folder))}{there}"
        documents.append(
            {
                **document,
                "title": document["title"] + told_apart[artifact.manifest["checkpoint"]["sha256"]],
                "run_folder": str(artifact.folder.parent.parent),
                "device": row["device"],
                "device_pages": [],
                "accuracy_why": row.get("accuracy_why", why),
                "sustained": row.get("sustained"),
            }
        )
    first = plan.artifacts[0]
    split = plan.evaluation
    seen = split is not None and any(
        trained_on(artifact.manifest.get("training", {}), split.dataset, split.split) for artifact in plan.artifacts
    )
    context = ReportContext(
        checkpoint={"name": first.manifest["checkpoint"]["name"]},
        dataset={} if split is None else described(split, seen),
        class_names=first.class_names,
        classes=split.classes if split is not None else CLASS_SETS["streets"],
        command=plan.command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        edgekit_version=__version__,
        run_folder=str(first.folder.parent.parent),
    )
    write_pages(plan.folder / "report", render_bench(documents, context))
