"""What a host can ask of the agent. Each command takes the agent and the command's object, and gives plain values."""

from __future__ import annotations

import getpass
import os
import platform
import shutil
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.core.contract import LatencyContract, Terms
from edgekit.core.errors import ArtifactError, EdgekitError, TargetError
from edgekit.core.files import sha256_json
from edgekit.core.progress import Progress
from edgekit.core.record import plain
from edgekit.devices import environment
from edgekit.devices.agent import PROTOCOL, tools
from edgekit.devices.agent.cache import Cache
from edgekit.devices.agent.lock import DeviceLock
from edgekit.devices.local import Clock, Load, Subject, Worker
from edgekit.devices.worker import read_artifact
from edgekit.runtimes import RUNTIMES, install_command
from edgekit.runtimes.tensorrt import ENGINE

if TYPE_CHECKING:
    from edgekit.devices.agent.serve import Talk

Answer = Mapping[str, Any]


@dataclass
class Agent:
    """What the commands share."""

    talk: Talk
    progress: Progress
    root: Path
    limit: int
    version: str
    lock: DeviceLock = field(default_factory=lambda: DeviceLock(f"a process of {_user()}"))
    made: Cache | None = None

    @property
    def cache(self) -> Cache:
        """The folder of what was sent, made when first needed."""
        if self.made is None:
            self.made = Cache(self.root, self.limit)
        return self.made


def worker_command() -> tuple[str, ...]:
    """What serves one artifact: this same file, in another role."""
    return (sys.executable, sys.argv[0], "worker")


def hello(agent: Agent, command: Answer) -> Answer:
    """Who is there: versions to shake hands on, and what can run."""
    return {"protocol": PROTOCOL, "edgekit": agent.version, **_who()}


def _who() -> dict[str, Any]:
    fitting = {target: _installed(target) for target, runtime in RUNTIMES.items() if runtime.fits()}
    return {
        "python": platform.python_version(),
        "system": sys.platform,
        "machine": platform.machine(),
        "host": socket.gethostname(),
        "boot": environment.boot_identity(),
        "runtimes": fitting,
        "missing": {
            target: install_command(target)
            for target, found in fitting.items()
            if found is None and target != "tensorrt"
        },
    }


def _installed(target: str) -> str | None:
    """The version of what runs a target's artifacts here, None where nothing does."""
    if target == "tensorrt":  # its version is trtexec's, which only a run of it tells
        return tools.find("trtexec")
    return RUNTIMES[target].installed()


def probe(agent: Agent, command: Answer) -> Answer:
    """Everything that can be told of the machine."""
    cache = {"folder": str(agent.root), "bytes": agent.cache.size(), "limit": agent.limit}
    return {**describe(agent.cache.root), "cache": cache}


def describe(folder: Path) -> dict[str, Any]:
    """The machine that this runs on, and the space where a folder is."""
    return {
        **_who(),
        "environment": environment.device_environment(),
        "conditions": plain(environment.conditions()),
        "compiler": next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None),
        "free_bytes": shutil.disk_usage(folder).free,
        "jetpack": tools.jetpack(),
        "tensorrt": {"python": RUNTIMES["tensorrt"].installed(), "gpu": tools.gpu(), "trtexec": tools.banner()},
        "programs": {program: tools.find(program) for program in tools.PROGRAMS},
    }


def take(agent: Agent, command: Answer) -> Answer:
    """The device for this host alone, until the talk ends."""
    agent.lock.take(float(command["seconds"]), lambda holder: agent.talk.event(busy=holder))
    return {"remark": agent.lock.remark} if agent.lock.remark else {}


def have(agent: Agent, command: Answer) -> Answer:
    """Which of these files and artifacts are missing here."""
    cache = agent.cache
    return {
        "artifacts": [key for key in command["artifacts"] if not cache.has(cache.artifact(key))],
        "packs": [key for key in command["packs"] if not cache.has(cache.pack(key))],
        "frames": [key for key in command["frames"] if not cache.has(cache.frames(key))],
    }


def room(agent: Agent, command: Answer) -> Answer:
    """Make room for what is to be pushed, and say where to."""
    agent.cache.make_room(int(command["bytes"]))
    return {"folder": str(agent.cache.root / "incoming")}


def keep(agent: Agent, command: Answer) -> Answer:
    """Put pushed files in their places."""
    cache = agent.cache
    for key in command.get("packs", ()):
        cache.keep(key, cache.pack(key))
    for key in command.get("frames", ()):
        cache.keep(key, cache.frames(key))
    for key, parts in command.get("artifacts", {}).items():
        cache.keep_artifact(key, parts["files"], parts["manifest"])
    cache.empty_incoming()
    return {}


def bench(agent: Agent, command: Answer) -> Answer:
    """Latency of artifacts, interleaved; one event a result, since samples are many."""
    subjects = [_subject(agent, entry) for entry in command["subjects"]]
    terms = Terms(command["mode"], command["scope"], command["threads"])
    frames = agent.cache.frames(command["frames"])
    results = _clock(agent).measure(subjects, frames, terms, LatencyContract(**command["contract"]))
    for index, result in enumerate(results):
        if isinstance(result, EdgekitError):
            agent.talk.event(index=index, failed=_failure(subjects[index].folder, str(result)))
        else:
            agent.talk.event(index=index, latency=plain(result))
    return {"environment": environment.device_environment()}


def sustained(agent: Agent, command: Answer) -> Answer:
    """One artifact under load for a while; one event an interval."""
    subject = _subject(agent, command["subject"])
    load = Load(float(command["seconds"]), float(command["interval"]), command["threads"])
    frames = agent.cache.frames(command["frames"])
    held = _clock(agent).sustain(subject, frames, load, lambda interval: agent.talk.event(interval=plain(interval)))
    return {"settings": held.settings, "before": plain(held.before)}


def _clock(agent: Agent) -> Clock:
    return Clock(agent.cache.root / "logs", agent.progress, worker_command())


def evaluate(agent: Agent, command: Answer) -> Answer:
    """Label and count frames with an artifact: ``open`` starts it, ``pack`` gives frames, ``close`` ends it."""
    global _evaluated
    if command["step"] == "open":
        _end_evaluation()
        subject = _subject(agent, command["subject"])
        log = agent.cache.root / "logs" / f"{subject.folder.name}.evaluate.log"
        try:
            _evaluated = Worker(subject, None, command["threads"], "frame-to-labels", log, worker_command())
        except ArtifactError as error:
            raise _missing_or(subject.folder, error) from error
        return {"settings": _evaluated.opened["settings"], "environment": environment.device_environment()}
    if command["step"] == "pack":
        if _evaluated is None:
            raise EdgekitError("no artifact is open")
        answer = _evaluated.ask(
            {"do": "evaluate", "pack": str(agent.cache.pack(command["pack"])), "classes": command["classes"]}
        )
        for frame in answer["frames"]:
            agent.talk.event(frame=frame)
        return {}
    _end_evaluation()
    return {}


_evaluated: Worker | None = None


def _end_evaluation() -> None:
    global _evaluated
    if _evaluated is not None:
        _evaluated.stop()
        _evaluated = None


def placement(agent: Agent, command: Answer) -> Answer:
    """Where Core ML places a package's operations, by compute units; ``failed`` and why for those it does not plan for."""
    from edgekit.runtimes.coreml import placement as of

    artifact = read_artifact(agent.cache.artifact(command["artifact"]))
    plans: dict[str, Any] = {}
    for units in command["compute_units"]:
        try:
            plans[units] = of(artifact, units)
        except ArtifactError as error:
            plans[units] = {"failed": str(error)}
    return plans


def engine(agent: Agent, command: Answer) -> Answer:
    """Where the engine of an artifact is, or is to be built, by its files, TensorRT's version and the GPU."""
    cache = agent.cache
    artifact = read_artifact(cache.artifact(command["artifact"]))
    gpu = tools.gpu()
    key = sha256_json([command["artifact"], command["version"], gpu])[:32]
    folder = cache.engine(key)
    folder.mkdir(mode=0o700, exist_ok=True)
    cache.has(folder)
    return {
        "key": key, "ready": (folder / ENGINE).is_file(), "folder": str(folder), "model": str(artifact.model_path),
        "gpu": gpu,
    }  # fmt: skip


def keep_engine(agent: Agent, command: Answer) -> Answer:
    """Give a built engine its name, or drop one that does not fit; an artifact is opened with the engine beside it."""
    folder = agent.cache.engine(command["key"])
    if not command["good"]:
        shutil.rmtree(folder, ignore_errors=True)
        return {}
    built = folder / f"{ENGINE}.partial"
    if built.is_file():
        os.replace(built, folder / ENGINE)
    beside = agent.cache.artifact(command["artifact"]) / ENGINE
    beside.unlink(missing_ok=True)
    beside.symlink_to(folder / ENGINE)
    return {}


def tool(agent: Agent, command: Answer) -> Answer:
    """Run a program of the device's; files that it is to write are removed first, lest those of another run are read."""
    for name in command.get("writes", ()):
        _export(agent, command["key"], name).unlink(missing_ok=True)
    return tools.run(
        command["program"], command["arguments"], float(command["seconds"]), agent.progress,
        watched=bool(command["watched"]),
    )  # fmt: skip


def read(agent: Agent, command: Answer) -> Answer:
    """A small file that a program wrote into an engine's folder, None where it is not there."""
    path = _export(agent, command["key"], command["name"])
    if not path.is_file():
        return {"text": None}
    if path.stat().st_size > int(command["limit"]):
        raise EdgekitError(f"{path.name} has {path.stat().st_size} bytes, which is more than is taken")
    return {"text": path.read_text(errors="replace")}


def times(agent: Agent, command: Answer) -> Answer:
    """One number of each query that trtexec timed and exported, None where it exported nothing."""
    path = _export(agent, command["key"], command["name"])
    if not path.is_file():
        return {"times": None}
    return {"times": tools.exported_times(path, command["field"], int(command["limit"]))}


def _export(agent: Agent, key: str, name: str) -> Path:
    if "/" in name or name.startswith("."):
        raise EdgekitError(f"{name!r} is no file's name")
    return agent.cache.engine(key) / name


def clean(agent: Agent, command: Answer) -> Answer:
    """Remove everything that edgekit left here."""
    _end_evaluation()
    return {"bytes": agent.cache.clean(), "folder": str(agent.root)}


def _subject(agent: Agent, entry: Answer) -> Subject:
    folder = agent.cache.artifact(entry["artifact"])
    if not agent.cache.has(folder):
        raise EdgekitError("the artifact is not here: send it first")
    return Subject(folder, entry["title"], entry.get("compute_units", "ALL"))


def _failure(folder: Path, text: str) -> dict[str, str]:
    error = _missing_or(folder, EdgekitError(text))
    return {"kind": "missing" if isinstance(error, TargetError) else "artifact", "text": str(error)}


def _missing_or(folder: Path, error: EdgekitError) -> EdgekitError:
    """The error, or that the artifact's runtime is not installed where that is its cause."""
    target = read_artifact(folder).target
    if target in RUNTIMES and RUNTIMES[target].installed() is None:
        return TargetError(
            f"{RUNTIMES[target].title} is not installed there: run {install_command(target)} on the device"
        )
    return error


def _user() -> str:
    try:
        return f"{getpass.getuser()}, since {time.strftime('%H:%M:%S')}"
    except (KeyError, OSError):
        return f"user {os.getuid()}"


COMMANDS: Mapping[str, Callable[[Agent, Answer], Answer]] = {
    "hello": hello,
    "probe": probe,
    "take": take,
    "have": have,
    "room": room,
    "keep": keep,
    "bench": bench,
    "sustain": sustained,
    "evaluate": evaluate,
    "placement": placement,
    "engine": engine,
    "keep_engine": keep_engine,
    "tool": tool,
    "read": read,
    "times": times,
    "clean": clean,
}
