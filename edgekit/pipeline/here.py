"""Measuring on this machine: accuracy, latency and sustained load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calibration.datasets import open_split
from edgekit import __version__, decoder
from edgekit.core.errors import EdgekitError
from edgekit.core.files import sha256_json, write_sealed
from edgekit.core.progress import Progress
from edgekit.core.registry import load_target
from edgekit.core.seam import Target
from edgekit.core.values import Artifact, Engine, Provenance
from edgekit.devices.environment import clusters, local_environment, processor
from edgekit.devices.inventory import LOCAL
from edgekit.devices.local import Mode, Scope, Subject, alone, interval_of, measure, sustain
from edgekit.pipeline.accuracy import Frames, artifact_labeller, measure_accuracy
from edgekit.pipeline.artifacts import checkpoint_names
from edgekit.pipeline.stored import BENCH_FRAMES, bench_frames, model_key, stored_part


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


def sustain_here(
    artifact: Artifact, samples: Path, seconds: float, threads: int | None, logs: Path, progress: Progress
) -> dict[str, Any]:
    """Sustained load on this machine, which nobody else measures on meanwhile."""
    subject = Subject(artifact.folder, artifact.title)
    with alone(progress):
        return sustain(subject, samples, seconds, interval_of(seconds), threads, logs, progress)


def bench_frames_of(artifact: Artifact) -> Frames:
    """Frames to measure an artifact's latency with."""
    return Frames(open_split("streets", "test", None, artifact.size).first(BENCH_FRAMES))


def latencies_here(
    artifacts: Sequence[Artifact],
    frames: Frames,
    mode: Mode,
    scope: Scope,
    threads: int | None,
    folder: Path,
    progress: Progress,
) -> dict[str, dict[str, Any]]:
    """Latency objects by artifact folder, measured now on this machine."""
    made = [(load_target(artifact.target), artifact) for artifact in artifacts]
    return measure_latencies(folder, made, frames, mode, threads, progress, scope, anew=True)


def accuracy_here(
    artifact: Artifact,
    frames: Frames,
    threads: int | None,
    logs: Path,
    progress: Progress,
    *,
    reference: Path | None = None,
    pictures: Path | None = None,
) -> dict[str, Any]:
    """The ``accuracy`` object of an artifact on this machine; ``reference`` and ``pictures`` as :func:`measure_accuracy` has them."""
    target = load_target(artifact.target)
    engine = target.engine()
    with artifact_labeller(target, artifact, threads, logs / f"{artifact.folder.name}.log") as label:
        taken = measure_accuracy(
            artifact.title, label, artifact.size, frames, progress, reference=reference, pictures=pictures
        )
    return {**taken, "provenance": Provenance(engine.kind, engine.by, engine.why).to_json()}


def known_sustained(
    artifact: Artifact, frames: Frames, seconds: float, threads: int | None, folder: Path, progress: Progress
) -> dict[str, Any] | None:
    """Sustained load on this machine, measured now or before; None where it failed, which is said and tried again next time."""
    by = load_target(artifact.target).engine().by
    key = sha256_json([model_key(artifact), by, _machine(), seconds, threads, __version__])
    path = folder / "measurements" / f"{artifact.folder.name}.{LOCAL}.sustained.json"
    stored: dict[str, Any] | None = stored_part(path, key, "sustained")
    if stored is None:
        samples = bench_frames(frames, artifact.size, folder)
        try:
            stored = sustain_here(artifact, samples, seconds, threads, folder / "logs", progress)
        except EdgekitError as error:
            progress.say(f"{artifact.title}: no sustained load, {error}")
            return None
        write_sealed(path, {"key": key, "sustained": stored})
    return stored
