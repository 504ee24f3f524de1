"""What is asked of a device over one connection that may be cut: accuracy, latency, sustained load."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edgekit.core.contract import LATENCY_CONTRACTS, Scope, Terms
from edgekit.core.errors import ArtifactError, DeviceError, DeviceLost, EdgekitError
from edgekit.core.files import sha256_json, sha256_path
from edgekit.core.measurement import (
    Counted,
    Environment,
    Latency,
    LoadInterval,
    Placement,
    Sustained,
    Timed,
    Trtexec,
    Unit,
)
from edgekit.core.progress import Progress
from edgekit.core.quantities import is_bytes
from edgekit.core.values import Artifact, ClassSet, Provenance
from edgekit.devices import jetson
from edgekit.devices.formats import trtexec
from edgekit.devices.inventory import Device
from edgekit.devices.local import interval_of
from edgekit.devices.remote import (
    Agent,
    Event,
    Truth,
    checked_conditions,
    checked_environment,
    checked_frame,
    checked_interval,
    checked_latency,
    checked_placement,
    checked_probe,
    failure_of,
    plain_values,
)
from edgekit.metrics.scores import count_frame
from edgekit.runtimes import RUNTIMES
from edgekit.runtimes.coreml import COMPUTE_UNITS

RECONNECT_SECONDS = 90.0
"""How long a device that was cut off is tried again."""
RETRY_SECONDS = 2.0
ATTEMPTS = 3
"""How often one step is begun, when the connection goes each time."""
Answer = TypeVar("Answer")


class Board:
    """One device, connected again when the connection goes; use it as a context manager.

    Attributes:
        found: what is there, as the agent's ``probe`` tells it.
        notes: what happened to the device meanwhile and belongs into its report.
    """

    def __init__(self, device: Device, logs: Path, progress: Progress) -> None:
        """Connect.

        Raises:
            DeviceError: it cannot be reached or used.
        """
        self.device = device
        self.progress = progress
        self._log = logs / f"{device.name}.device.log"
        self.notes: list[str] = []
        with Agent(device, self._log) as agent:
            self.found = checked_probe(device, agent.ask({"do": "probe"}))
        self._closed = False
        self._agent: Agent | None = None  # connected again with the first step, which may be hours away

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection and what runs there, for good; also from another thread, whose step then ends."""
        self._closed = True
        self._drop()

    def _drop(self) -> None:
        agent, self._agent = self._agent, None
        if agent is not None:
            agent.close()

    def step(self, work: Callable[[Agent], Answer]) -> Answer:
        """Do something there; when the connection goes, connect again and do it once more.

        Raises:
            DeviceLost: it does not come back, or goes each time.
            DeviceError: anything else that is wrong with the device.
        """
        for attempt in range(ATTEMPTS):
            try:
                return work(self._agent or self._connect())
            except DeviceLost as error:
                self._drop()
                if self._closed:
                    raise self._ended() from error
                if attempt + 1 == ATTEMPTS:
                    raise
                self._say(f"{error}: connecting again")
                self._wait(error)
        raise AssertionError("unreachable")

    def _wait(self, lost: DeviceLost) -> None:
        """Until the device can be reached again."""
        until = time.monotonic() + RECONNECT_SECONDS
        while True:
            try:
                self._connect()
                return
            except DeviceError as error:
                if self._closed or time.monotonic() > until:
                    raise DeviceLost(f"{lost} ({error})") from error
                time.sleep(RETRY_SECONDS)

    def _connect(self) -> Agent:
        """Connect and have the device alone."""
        if self._closed:
            raise self._ended()
        agent = self._agent = Agent(self.device, self._log)
        try:
            if self._closed:  # while it was being connected
                raise self._ended()
            if remark := agent.take(lambda holder: self._say(f"waiting for {holder}")):
                self._say(remark)
        except BaseException:
            self._drop()
            raise
        before, now = self.found.get("boot"), plain_values(agent.hello).get("boot")
        self.found["boot"] = now
        if before and now and now != before:
            self.notes.append(f"device '{self.device.name}' was started anew during the run")
            self._say("it was started anew meanwhile")
        return agent

    def _ended(self) -> DeviceLost:
        return DeviceLost(f"device '{self.device.name}': the measurement was ended")

    def _say(self, text: str) -> None:
        self.progress.say(f"{self.device.name}: {text}")

    # What is there

    @property
    def runtimes(self) -> Mapping[str, str | None]:
        """The version of what runs each target's artifacts there; None where it could be installed."""
        return dict(self.found.get("runtimes") or {})

    @property
    def environment(self) -> Environment:
        """The machine, as it was when it was connected."""
        return dict(self.found.get("environment") or {})

    def lacks(self, target: str) -> str | None:
        """Why a target's artifacts cannot run there, None when they can."""
        name = self.device.name
        if target not in RUNTIMES:
            return f"device '{name}': no runtime is known for the target '{target}'; only its own package can run it"
        title = RUNTIMES[target].title
        if target not in self.runtimes:
            return f"device '{name}' ({self.found.get('system')}) has no {title}: it does not exist for that system"
        if self.runtimes[target] is None:
            if target == "tensorrt":
                return (
                    f"device '{name}' has no trtexec: install TensorRT there (on a Jetson: apt install nvidia-jetpack)"
                )
            command = (self.found.get("missing") or {}).get(target, "")
            return f"device '{name}' has no {title}: run there {command}"
        return None

    def title(self, target: str) -> str:
        """What runs a target's artifacts there, and its version."""
        if target == "coreml":  # its version is the system's
            return f"Core ML, {self.environment.get('os', 'macOS')}"
        version = self.runtimes.get(target)
        if target == "tensorrt":
            version = self._tensorrt_python() or tensorrt_version(self.found)
        return f"{RUNTIMES[target].title} {version}" if version else RUNTIMES[target].title

    @property
    def page(self) -> str | None:
        """The report page that stands for this kind of device where none is connected."""
        if self.found.get("system") == "darwin":
            return "apple"
        return "jetson" if self.runtimes.get("tensorrt") else None

    def clean(self) -> int:
        """Remove everything that edgekit left there, when nobody measures; the bytes that it held."""
        freed = self.step(lambda agent: agent.ask({"do": "clean"})).get("bytes")
        return freed if isinstance(freed, int) and is_bytes(freed) else 0

    def _tensorrt_python(self) -> str | None:
        found = (self.found.get("tensorrt") or {}).get("python")
        return found if isinstance(found, str) else None

    # Work

    def _have(
        self, agent: Agent, artifacts: Sequence[Artifact], frames: Path | None = None, *, engines: bool = True
    ) -> list[str]:
        """Have artifacts, their engines and frames there, also when the device lost them meanwhile; the artifacts' keys."""
        keys = [device_key(artifact) for artifact in artifacts]
        whole = {key: (one.folder, dict(one.manifest)) for key, one in zip(keys, artifacts, strict=True)}
        sent = agent.send(whole, None, {} if frames is None else {sha256_path(frames): frames})
        if sent:
            self.progress.update(f"{self.device.name}: {sent / 1e6:.1f} MB sent")
        for key, artifact in zip(keys, artifacts, strict=True):
            if engines and artifact.target == "tensorrt":
                jetson.build(agent, key)
        return keys

    def evaluate(
        self, artifact: Artifact, packs: Sequence[Callable[[], Path]], classes: ClassSet, threads: int | None
    ) -> tuple[list[Counted], Environment]:
        """Counts of each frame, and the environment; a cut connection goes on with the pack it was at.

        Args:
            packs: each makes or finds one file of frames.

        Raises:
            ArtifactError: it cannot be run there.
        """
        document = asdict(classes)
        frames: list[Counted] = []
        done = 0
        environment: Environment = {}

        def work(agent: Agent) -> None:
            nonlocal done, environment
            (key,) = self._have(agent, [artifact])
            subject = {"artifact": key, "title": artifact.title}
            opened = agent.ask({"do": "evaluate", "step": "open", "subject": subject, "threads": threads})
            environment = checked_environment(opened.get("environment"))
            while done < len(packs):
                self.progress.update(f"{self.device.name}: {artifact.title}, {len(frames)} frames evaluated")
                path = packs[done]()
                content, truths = sha256_path(path), truths_in(path, classes)
                agent.send(packs={content: path})
                taken: list[Counted] = []

                def take(event: Event, taken: list[Counted] = taken, truths: Sequence[Truth] = truths) -> None:
                    if "frame" in event:
                        if len(taken) == len(truths):
                            raise DeviceError(
                                f"device '{self.device.name}' counts more frames than it was sent: run again"
                            )
                        taken.append(checked_frame(self.device, event["frame"], truths[len(taken)]))

                agent.ask({"do": "evaluate", "step": "pack", "pack": content, "classes": document}, take)
                if len(taken) != len(truths):
                    raise DeviceError(
                        f"device '{self.device.name}' counted {len(taken)} of {len(truths)} frames: run again"
                    )
                frames.extend(taken)
                done += 1
            agent.ask({"do": "evaluate", "step": "close"})

        self._as_artifact(lambda: self.step(work))
        return frames, environment

    def measure(self, artifacts: Sequence[Artifact], frames: Path, terms: Terms) -> list[Timed | EdgekitError]:
        """Latency of artifacts by the device's own clock, interleaved; per artifact the value or the error."""
        scope = terms.scope
        results: list[Timed | EdgekitError] = [
            ArtifactError(f"device '{self.device.name}' gave no result for {one.title}") for one in artifacts
        ]
        broken: dict[int, EdgekitError] = {}
        for index, artifact in enumerate(artifacts):
            if artifact.target == "tensorrt" and self._by_agent(
                artifact, scope
            ):  # one that cannot be built fails alone
                try:
                    self.step(lambda agent, one=artifact: self._have(agent, [one]))  # type: ignore[misc]
                except ArtifactError as error:
                    results[index] = broken[index] = error
        by_agent = [index for index, one in enumerate(artifacts) if index not in broken and self._by_agent(one, scope)]
        if by_agent:
            chosen = [artifacts[index] for index in by_agent]
            for index, outcome in zip(by_agent, self._interleaved(chosen, frames, terms), strict=True):
                results[index] = outcome
        for index, artifact in enumerate(artifacts):
            if artifact.target != "tensorrt" or index in broken:
                continue
            try:
                timed = self.step(
                    lambda agent, one=artifact: jetson.measure(agent, self._have(agent, [one], engines=False)[0], terms)  # type: ignore[misc]
                )
            except DeviceLost:
                raise
            except EdgekitError as error:
                headline = results[index]
                if index in by_agent and isinstance(headline, Timed):  # measured, and good without trtexec's figures
                    results[index] = _with_trtexec(headline, Trtexec(failed=str(error)))
                    self._say(f"{artifact.title}, no figures of trtexec's own, {error}")
                else:
                    results[index] = error
                continue
            outcome = results[index]
            if index in by_agent and isinstance(outcome, Timed):  # the agent's own is the headline
                assert timed.trtexec is not None
                results[index] = _with_trtexec(outcome, replace(timed.trtexec, graph_ms=_median(timed.samples)))
            else:
                results[index] = Timed(timed, self.environment)
        return results

    def _by_agent(self, artifact: Artifact, scope: Scope) -> bool:
        """Whether the agent itself can run it: TensorRT without its Python package is trtexec's alone."""
        if artifact.target != "tensorrt":
            return True
        return scope != "graph" and self._tensorrt_python() is not None

    def cannot_evaluate(self, artifact: Artifact) -> str | None:
        """What the device has or lacks so that its labels cannot be had there; None when they can."""
        return None if self._by_agent(artifact, "frame-to-labels") else "has no Python package of TensorRT"

    def _interleaved(self, artifacts: Sequence[Artifact], frames: Path, terms: Terms) -> list[Timed | EdgekitError]:
        subjects: list[tuple[int, dict[str, Any]]] = []
        for index, artifact in enumerate(artifacts):
            key = device_key(artifact)
            for units in COMPUTE_UNITS if artifact.target == "coreml" else COMPUTE_UNITS[:1]:
                subjects.append((index, {"artifact": key, "title": artifact.title, "compute_units": units}))
        found: dict[int, Latency | EdgekitError] = {}

        def take(event: Event) -> None:
            if isinstance(event.get("progress"), str):
                self.progress.update(f"{self.device.name}: {plain_values(dict(event))['progress']}")
            number = event.get("index")
            if not isinstance(number, int) or not 0 <= number < len(subjects):
                return
            if "latency" in event:
                target = artifacts[subjects[number][0]].target
                taken = checked_latency(self.device, event["latency"], terms, self.title(target))
                if target in ("tensorrt", "coreml") and (
                    own := taken.settings.get("engine")
                ):  # as the session names it
                    taken = replace(taken, provenance=Provenance("measured", str(own)))
                found[number] = taken
            else:
                found[number] = failure_of(self.device, event.get("failed"))

        def work(agent: Agent) -> Event:
            self._have(agent, artifacts, frames)
            found.clear()
            return agent.ask(
                {
                    "do": "bench", "subjects": [subject for _, subject in subjects], "frames": sha256_path(frames),
                    "mode": terms.mode, "contract": asdict(LATENCY_CONTRACTS[terms.mode]), "scope": terms.scope,
                    "threads": terms.threads,
                },
                take,
            )  # fmt: skip

        environment = checked_environment(self.step(work).get("environment"))
        results: list[Timed | EdgekitError] = []
        for index, artifact in enumerate(artifacts):
            own = {
                subject["compute_units"]: found.get(
                    number, ArtifactError(f"device '{self.device.name}' gave no result")
                )
                for number, (owner, subject) in enumerate(subjects)
                if owner == index
            }
            headline = own[COMPUTE_UNITS[0]]
            if isinstance(headline, EdgekitError):
                results.append(headline)
                continue
            if artifact.target == "coreml":
                chosen = {
                    units: Unit(p50=_median(one.samples)) if isinstance(one, Latency) else Unit(failed=str(one))
                    for units, one in own.items()
                }
                headline = replace(headline, compute_units=chosen, placement=self._placement(artifact))
            results.append(Timed(headline, environment))
        return results

    def _placement(self, artifact: Artifact) -> Mapping[str, Placement]:
        """Where Core ML runs each operation, by compute units; ``failed`` and why for those that it has no plan for."""

        def work(agent: Agent) -> Event:
            (key,) = self._have(agent, [artifact])
            return agent.ask({"do": "placement", "artifact": key, "compute_units": list(COMPUTE_UNITS)})

        try:
            return checked_placement(dict(self.step(work)))
        except DeviceLost:
            raise
        except EdgekitError as error:  # the latencies are measured and good without it
            return {units: Placement(failed=str(error)) for units in COMPUTE_UNITS}

    def sustain(self, artifact: Artifact, frames: Path, seconds: float, threads: int | None) -> Sustained:
        """One artifact under load for so long; see :meth:`edgekit.devices.local.Clock.sustain`."""
        if self.cannot_evaluate(artifact):  # TensorRT without its Python package

            def load(agent: Agent) -> Sustained:
                (key,) = self._have(agent, [artifact], engines=False)
                return jetson.sustain(agent, key, seconds, interval_of(seconds))

            return self._as_artifact(lambda: self.step(load))
        intervals: list[LoadInterval] = []

        def take(event: Event) -> None:
            if len(intervals) > 2 * seconds / interval_of(seconds) + 10:
                raise DeviceError(f"device '{self.device.name}' does not end its sustained load: run again")
            if "interval" in event:
                interval = checked_interval(self.device, event["interval"])
                if intervals and interval.begin_s < intervals[-1].begin_s:
                    raise DeviceError(f"device '{self.device.name}' counts the time of its load backwards: run again")
                intervals.append(interval)
                self.progress.update(
                    f"{self.device.name}: {artifact.title}, sustained load for {interval.end_s:.0f} of {seconds:.0f} s"
                )

        def work(agent: Agent) -> Event:
            intervals.clear()
            (key,) = self._have(agent, [artifact], frames)
            subject = {"artifact": key, "title": artifact.title}
            return agent.ask(
                {
                    "do": "sustain", "subject": subject, "frames": sha256_path(frames), "seconds": seconds,
                    "interval": interval_of(seconds), "threads": threads,
                },
                take,
            )  # fmt: skip

        done = self._as_artifact(lambda: self.step(work))
        if not intervals:
            raise ArtifactError(f"device '{self.device.name}' gave no interval for {artifact.title}")
        return Sustained(
            seconds, tuple(intervals), settings=plain_values(done.get("settings")),
            before=checked_conditions(done.get("before")),
        )  # fmt: skip

    def _as_artifact(self, work: Callable[[], Answer]) -> Answer:
        """What the agent refuses for an artifact's sake is the artifact's error, not the device's."""
        try:
            return work()
        except DeviceLost:
            raise
        except DeviceError as error:
            if getattr(error, "kind", "") in ("missing", "artifact"):
                raise ArtifactError(str(error)) from error
            raise


def _with_trtexec(timed: Timed, told: Trtexec) -> Timed:
    """A latency of the agent's with what trtexec tells besides."""
    assert isinstance(timed.latency, Latency)
    return replace(timed, latency=replace(timed.latency, trtexec=told))


def tensorrt_version(found: Mapping[str, Any]) -> str | None:
    """TensorRT's version by the trtexec of a device, as a probe found it."""
    said = (found.get("tensorrt") or {}).get("trtexec")
    try:
        return ".".join(map(str, trtexec.parse_version(said))) if isinstance(said, str) else None
    except DeviceError:
        return None


def truths_in(pack: Path, classes: ClassSet) -> list[Truth]:
    """What each frame of a file decides of its counts; see :func:`edgekit.devices.worker.count_pack`."""
    found = []
    with np.load(pack, allow_pickle=False) as file:
        for index in range(sum(name.endswith(".labels") for name in file.files)):
            labels = file[f"{index}.labels"]
            instances = file[f"{index}.instances"] if f"{index}.instances" in file.files else None
            counts = count_frame(np.zeros_like(labels), labels, instances, classes)
            found.append(
                Truth(
                    counts.confusion.sum(1), counts.class_hits + counts.class_misses,
                    counts.category_hits + counts.category_misses, f"{index}.reference" in file.files,
                )
            )  # fmt: skip
    return found


def device_key(artifact: Artifact) -> str:
    """What an artifact is called on devices: a hash of all that decides how it runs.

    Raises:
        ArtifactError: another tool's: nothing says which of the files beside it belong to it.
    """
    manifest = artifact.manifest
    if "files" not in manifest:
        raise ArtifactError(
            f"{artifact.folder / artifact.model} was not made by edgekit: it is evaluated here only, without --device"
        )
    return sha256_json(
        [
            manifest["files"], artifact.target, artifact.precision, artifact.output, artifact.output_stride,
            artifact.model, [artifact.size.height, artifact.size.width], list(artifact.class_names),
        ]
    )[:32]  # fmt: skip


def _median(samples: Sequence[float]) -> float:
    return sorted(samples)[len(samples) // 2]
