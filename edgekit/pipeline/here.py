"""This machine as a place that measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from calibration.datasets import open_split
from edgekit import decoder
from edgekit.core.contract import Terms
from edgekit.core.errors import EdgekitError
from edgekit.core.measurement import LOCAL, Accuracy, Environment, Sustained, Timed
from edgekit.core.progress import Progress
from edgekit.core.registry import load_target
from edgekit.core.values import Artifact, Provenance
from edgekit.devices.environment import clusters, local_environment, processor
from edgekit.devices.local import Clock, Load, Subject, alone, interval_of
from edgekit.pipeline.accuracy import Frames, artifact_labeller, measure_accuracy
from edgekit.pipeline.artifacts import checkpoint_names
from edgekit.pipeline.stored import BENCH_FRAMES


class Here:
    """A :class:`edgekit.pipeline.places.Place`.

    Args:
        threads: of the runtimes; None for all cores.
        logs: folder for what they print.
    """

    name = LOCAL
    page = None
    notes: Sequence[str] = ()

    def __init__(self, threads: int | None, logs: Path, progress: Progress) -> None:
        self._threads, self._logs, self._progress = threads, logs, progress

    @property
    def environment(self) -> Environment:
        """The machine, now."""
        return local_environment()

    def machine(self) -> list[Any]:
        """The processor, the cores that may be used and their clocks, the decoder."""
        environment = local_environment()
        return [*processor(), environment["cores"], environment["governor"], clusters(), decoder.path()]

    def kernels(self) -> list[Any]:
        """The processor, by which runtimes choose their kernels."""
        return processor()

    def by(self, target: str) -> str:
        """The engine and its version."""
        return load_target(target).engine().by

    def cannot_evaluate(self, artifact: Artifact) -> None:
        """Any artifact is tried."""

    def no_times(self, artifact: Artifact) -> Provenance | None:
        """Why times of an artifact would say nothing here; None when they count."""
        engine = load_target(artifact.target).engine()
        return None if engine.no_latency is None else Provenance("not measured", engine.by, engine.no_latency)

    def evaluate(
        self, artifact: Artifact, frames: Frames, reference: Path | None, pictures: Path | None = None
    ) -> Accuracy:
        """Label and count frames; ``reference`` and ``pictures`` as :func:`measure_accuracy` has them."""
        target = load_target(artifact.target)
        engine = target.engine()
        with artifact_labeller(target, artifact, self._threads, self._logs / f"{artifact.folder.name}.log") as label:
            taken = measure_accuracy(
                artifact.title, label, artifact.size, frames, self._progress, reference=reference, pictures=pictures
            )
        return replace(taken, provenance=Provenance(engine.kind, engine.by, engine.why))

    def times(self, artifacts: Sequence[Artifact], samples: Path, terms: Terms) -> list[Timed | EdgekitError]:
        """Latencies of artifacts, taken in turns while nobody else measures; the error in the place of one that failed."""
        names = checkpoint_names(artifacts)
        subjects = [
            Subject(one.folder, one.title + names[one.manifest["checkpoint"]["sha256"]], by=self.by(one.target))
            for one in artifacts
        ]
        with alone(self._progress):
            outcomes = Clock(self._logs, self._progress).measure(subjects, samples, terms)
        environment = self.environment
        found: list[Timed | EdgekitError] = []
        for subject, outcome in zip(subjects, outcomes, strict=True):
            if isinstance(outcome, EdgekitError):
                self._progress.say(f"{subject.title}: latency not measured, {outcome}")
                found.append(outcome)
                continue
            taken = sorted(outcome.samples)
            self._progress.say(f"{subject.title}: {taken[len(taken) // 2]:.1f} ms a frame (p50 of {len(taken)})")
            found.append(Timed(outcome, environment))
        return found

    def sustain(self, artifact: Artifact, samples: Path, seconds: float) -> Sustained:
        """One artifact under load while nobody else measures."""
        subject = Subject(artifact.folder, artifact.title, by=self.by(artifact.target))
        with alone(self._progress):
            load = Load(seconds, interval_of(seconds), self._threads)
            return Clock(self._logs, self._progress).sustain(subject, samples, load)


def bench_frames_of(artifact: Artifact) -> Frames:
    """Frames to measure an artifact's latency with: the content does not change the work."""
    return Frames(open_split("streets", "test", None, artifact.size).first(BENCH_FRAMES))
