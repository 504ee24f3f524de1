"""Places that measure, this machine and connected devices: one way to evaluate, time and load artifacts at any of them.

What was measured before is found again by all that it depends on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from edgekit import __version__
from edgekit.core.contract import Terms
from edgekit.core.errors import DeviceError, EdgekitError
from edgekit.core.files import sha256_json, sha256_path, write_sealed
from edgekit.core.measurement import LOCAL, Accuracy, Environment, Sustained, Timed, Untimed
from edgekit.core.progress import Progress
from edgekit.core.record import plain, read
from edgekit.core.values import Artifact, Provenance
from edgekit.pipeline.accuracy import Frames
from edgekit.pipeline.stored import bench_frames, model_key, stored_part

Value = TypeVar("Value")


class Place(Protocol):
    """This machine, or a connected device.

    Attributes:
        name: ``local``, or the device's in the inventory.
        page: the standing report page whose place it takes, None for none.
        notes: what happened there meanwhile and belongs into its report.
    """

    @property
    def name(self) -> str: ...
    @property
    def page(self) -> str | None: ...
    @property
    def notes(self) -> Sequence[str]: ...
    @property
    def environment(self) -> Environment:
        """The machine, as it is described beside its numbers."""
        ...

    def machine(self) -> Sequence[Any]:
        """What times there are only comparable with: hardware, system, clocks, decoder."""
        ...

    def kernels(self) -> Sequence[Any]:
        """What labels there may depend on."""
        ...

    def by(self, target: str) -> str:
        """What runs a target's artifacts there, and its version."""
        ...

    def cannot_evaluate(self, artifact: Artifact) -> str | None:
        """What it has or lacks so that labels cannot be had there, after its name; None when they can."""
        ...

    def no_times(self, artifact: Artifact) -> Provenance | None:
        """Why times of an artifact would say nothing there; None when they count."""
        ...

    def evaluate(
        self, artifact: Artifact, frames: Frames, reference: Path | None, pictures: Path | None = None
    ) -> Accuracy:
        """Label and count frames.

        Args:
            reference: folder of float PyTorch's labels, None where the agreement with them is not asked for.
            pictures: folder for the first frames' labels, where the place gives labels at all.

        Raises:
            DeviceError: the place's own faults.
            EdgekitError: it cannot run this artifact.
        """
        ...

    def times(self, artifacts: Sequence[Artifact], samples: Path, terms: Terms) -> list[Timed | EdgekitError]:
        """Latencies of artifacts, taken in turns; the error in the place of one that could not be run."""
        ...

    def sustain(self, artifact: Artifact, samples: Path, seconds: float) -> Sustained:
        """One artifact under load for so long; raises as :meth:`evaluate` does."""
        ...


@dataclass(frozen=True)
class Task:
    """What is to be measured of artifacts.

    Attributes:
        folder: for frames, samples and what was measured.
        evaluated: frames for the accuracy; None for none.
        reference: folder of float PyTorch's labels on them; None where the agreement is not asked for.
        timed: frames that latency is measured with.
        terms: of the latency; None for none.
        sustained: seconds of sustained load for each artifact; None for none.
        again: measure also what was measured before, and keep nothing.
        pictures: folder for labels to look at, a folder for each artifact; None for none.
        elsewhere: accuracies by artifact's folder, for places that cannot evaluate it themselves.
    """

    folder: Path
    evaluated: Frames | None
    reference: Path | None
    timed: Frames
    terms: Terms | None
    sustained: float | None
    again: bool = False
    pictures: Path | None = None
    elsewhere: Mapping[Path, Accuracy] = field(default_factory=dict)


@dataclass(frozen=True)
class Taken:
    """What was measured of one artifact at one place; None for what was not asked for or not reached.

    Attributes:
        accuracy_why: why there is no accuracy.
        error: why it does not run there at all.
    """

    artifact: Artifact
    accuracy: Accuracy | None = None
    accuracy_why: str | None = None
    timed: Timed | None = None
    sustained: Sustained | None = None
    error: EdgekitError | None = None


def measure_at(
    place: Place, artifacts: Sequence[Artifact], task: Task, progress: Progress, *, latency_first: bool = False
) -> tuple[list[Taken], EdgekitError | None]:
    """What a task asks for of each artifact, and what went wrong with the place itself, after which the rest is not reached.

    Args:
        latency_first: before the accuracy, not after it.
    """
    found = {artifact.folder: Taken(artifact) for artifact in artifacts}
    stages: list[Callable[[Place, dict[Path, Taken], Task, Progress], None]] = [_evaluate, _time, _load]
    if latency_first:
        stages = [_time, _evaluate, _load]
    try:
        for stage in stages:
            stage(place, found, task, progress)
    except EdgekitError as error:
        if place.name == LOCAL and not isinstance(error, DeviceError):
            raise
        progress.say(f"{_prefix(place)}{error}")
        return list(found.values()), error
    return list(found.values()), None


def _prefix(place: Place) -> str:
    return "" if place.name == LOCAL else f"{place.name}: "


def _stored(path: Path, key: str, part: str, kind: type[Value]) -> Value | None:
    """What was measured before under the same key; None for none, or for what is of an older form."""
    kept = stored_part(path, key, part)
    try:
        return None if kept is None else read(kind, kept, part)
    except EdgekitError:
        return None


def stored_accuracy(path: Path, key: str) -> Accuracy | None:
    """The accuracy that :func:`keep_accuracy` kept under this key."""
    return _stored(path, key, "accuracy", Accuracy)


def _evaluate(place: Place, found: dict[Path, Taken], task: Task, progress: Progress) -> None:
    if task.evaluated is None:
        return
    for folder, taken in found.items():
        artifact, frames = taken.artifact, task.evaluated
        said = f"{_prefix(place)}{artifact.title}"
        if (reason := place.cannot_evaluate(artifact)) is not None:
            if folder in task.elsewhere:
                other = task.elsewhere[folder]
                why = f"ran on this machine, not on the device, which {reason}"
                proof = Provenance("reference", other.provenance.by, why)
                found[folder] = replace(taken, accuracy=replace(other, provenance=proof))
            else:
                why = f"device '{place.name}' {reason}"
                progress.say(f"{said} not evaluated, {why}")
                found[folder] = replace(taken, accuracy_why=why)
            continue
        reference = None if task.reference is None else task.reference.name
        key = sha256_json(
            [
                model_key(artifact), frames.split.identity(), place.by(artifact.target), place.kernels(), reference,
                __version__,
            ]
        )  # fmt: skip
        path = task.folder / "measurements" / f"{artifact.folder.name}.{place.name}.accuracy.json"
        pictures = None if task.pictures is None else task.pictures / artifact.folder.name
        accuracy = None if task.again else stored_accuracy(path, key)
        if accuracy is not None and same_pictures(path, key, pictures):
            progress.say(f"{said} already evaluated")
            found[folder] = replace(taken, accuracy=accuracy)
            continue
        started = time.monotonic()
        try:
            accuracy = place.evaluate(artifact, frames, task.reference, pictures)
        except DeviceError:
            raise
        except EdgekitError as error:  # this artifact only
            progress.say(f"{said} not evaluated, {error}")
            # What does not run here has failed; what a device cannot label, its own tool may time.
            found[folder] = replace(taken, accuracy_why=str(error), error=error if place.name == LOCAL else None)
            continue
        progress.say(f"{said} evaluated on {len(frames)} frames in {time.monotonic() - started:.0f} s")
        found[folder] = replace(taken, accuracy=accuracy)
        if not task.again:
            keep_accuracy(path, key, accuracy, pictures)


def keep_accuracy(path: Path, key: str, accuracy: Accuracy, pictures: Path | None) -> None:
    """Keep an accuracy for the next run, with a hash of the pictures that were made beside it."""
    beside = {} if pictures is None else {"pictures": sha256_path(pictures)}
    write_sealed(path, {"key": key, "accuracy": plain(accuracy), **beside})


def same_pictures(path: Path, key: str, pictures: Path | None) -> bool:
    """Whether what was labelled is there as it was when the accuracy of this key was kept."""
    return pictures is None or (pictures.is_dir() and stored_part(path, key, "pictures") == sha256_path(pictures))


def _time(place: Place, found: dict[Path, Taken], task: Task, progress: Progress) -> None:
    if task.terms is None:
        return
    measurable: list[Artifact] = []
    for folder, taken in found.items():
        if taken.error is not None:
            continue
        if (why := place.no_times(taken.artifact)) is not None:
            found[folder] = replace(taken, timed=Timed(Untimed(why)))
        else:
            measurable.append(taken.artifact)
    if not measurable:
        return
    key = sha256_json(
        [
            [[model_key(artifact), place.by(artifact.target)] for artifact in measurable], plain(task.terms),
            place.machine(), __version__, task.timed.split.image_identity(),
        ]
    )  # fmt: skip
    path = task.folder / "measurements" / f"latency.{place.name}.json"
    # In the order of the key: folders may be named in another way this time.
    kept = None if task.again else _stored(path, key, "latency", _Together)
    if kept is not None and len(kept.artifacts) == len(measurable):
        known = kept.artifacts
        progress.say(f"{_prefix(place)}latency of {len(measurable)} artifacts already measured")
    else:
        samples = bench_frames(task.timed, measurable[0].size, task.folder)
        outcomes = place.times(measurable, samples, task.terms)
        known = tuple(
            _untimed(place, artifact, outcome) if isinstance(outcome, EdgekitError) else outcome
            for artifact, outcome in zip(measurable, outcomes, strict=True)
        )
        if not task.again and not any(isinstance(one.latency, Untimed) for one in known):  # a failure is tried again
            write_sealed(path, {"key": key, "latency": plain(_Together(known))})
    for artifact, timed in zip(measurable, known, strict=True):
        found[artifact.folder] = replace(found[artifact.folder], timed=timed)


@dataclass(frozen=True)
class _Together:
    """Latencies that were taken in turns, in the order of their key."""

    artifacts: tuple[Timed, ...]


def _untimed(place: Place, artifact: Artifact, error: EdgekitError) -> Timed:
    return Timed(Untimed(Provenance("not measured", place.by(artifact.target), str(error)), str(error)))


def _load(place: Place, found: dict[Path, Taken], task: Task, progress: Progress) -> None:
    if task.sustained is None:
        return
    for folder, taken in found.items():
        artifact = taken.artifact
        if taken.error is not None or place.no_times(artifact) is not None:
            continue
        threads = None if task.terms is None else task.terms.threads
        key = sha256_json(
            [
                model_key(artifact), place.by(artifact.target), place.machine(), task.sustained, threads, __version__,
            ]
        )  # fmt: skip
        path = task.folder / "measurements" / f"{artifact.folder.name}.{place.name}.sustained.json"
        sustained = None if task.again else _stored(path, key, "sustained", Sustained)
        if sustained is None:
            samples = bench_frames(task.timed, artifact.size, task.folder)
            try:
                sustained = place.sustain(artifact, samples, task.sustained)
            except DeviceError:
                raise
            except EdgekitError as error:
                progress.say(f"{_prefix(place)}{artifact.title}, no sustained load, {error}")
                found[folder] = replace(taken, error=error if place.name == LOCAL else None)
                continue
            if not task.again:
                write_sealed(path, {"key": key, "sustained": plain(sustained)})
            progress.say(f"{_prefix(place)}{artifact.title}, {task.sustained:.0f} s of sustained load")
        found[folder] = replace(taken, sustained=sustained)
