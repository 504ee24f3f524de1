"""TensorRT on a Jetson (or any machine with trtexec): the engine is built there, kept there, and timed there."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from edgekit.core.contract import LATENCY_CONTRACTS, Terms
from edgekit.core.errors import ArtifactError, DeviceError, DeviceLost
from edgekit.core.measurement import Conditions, Latency, Layer, LoadInterval, Spread, Sustained, Trtexec, Watched
from edgekit.core.quantities import are_milliseconds
from edgekit.core.values import Provenance
from edgekit.devices.formats import tegrastats, trtexec
from edgekit.devices.formats.text import clean_text
from edgekit.devices.remote import Agent, told

BUILD_SECONDS = 3600.0
"""An engine of a segmentation network takes minutes on a small board."""
TIMING_SECONDS = 600.0
"""A timing may take so much longer than 20 times what was asked of it."""
ENGINE, TIMES, PROFILE, LAYERS, CACHE = "model.engine", "times.json", "profile.json", "layers.json", "timing.cache"
FILE_LIMIT = 12 << 20
QUERIES = 1_000_000
"""Times of one call that are taken, some ten bytes each: full mode's minute has as many at 0.06 ms."""
SLOWEST = 12
"""Layers that a report shows."""
LOADED = 50
"""Percent of GPU load above which a sample of tegrastats' counts: it is there before trtexec has loaded its engine."""
Given = ParamSpec("Given")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Engine:
    """An engine on the device.

    Attributes:
        key: names it there: the ONNX, TensorRT's version and the GPU.
        folder: there.
        version: TensorRT's.
        gpu: what it was built for.
        built_seconds: None when it was there already.
    """

    key: str
    folder: str
    version: trtexec.Version
    gpu: str
    built_seconds: float | None

    @property
    def path(self) -> str:
        """The engine's file there."""
        return f"{self.folder}/{ENGINE}"


def _of_one_artifact(work: Callable[Concatenate[Agent, Given], Answer]) -> Callable[Concatenate[Agent, Given], Answer]:
    """What goes wrong with TensorRT is its artifact's error: other targets run there all the same. A lost device stays one."""

    @wraps(work)
    def guarded(agent: Agent, /, *given: Given.args, **named: Given.kwargs) -> Answer:
        try:
            return work(agent, *given, **named)
        except DeviceLost:
            raise
        except DeviceError as error:
            text, name = str(error), f"device '{agent.device.name}'"
            raise ArtifactError(text if text.startswith(name) else f"{name}: {text}") from error

    return guarded


def version_of(agent: Agent) -> trtexec.Version:
    """TensorRT's version, as trtexec says it."""
    return trtexec.parse_version(_run(agent, "", ("--help",), 60)["output"])


@_of_one_artifact
def build(agent: Agent, artifact: str, *, anew: bool = False) -> Engine:
    """The engine of an artifact that was sent: built on the device, or the one of the same ONNX, TensorRT and GPU.

    Args:
        artifact: its key there.
        anew: build it even so.

    Raises:
        ArtifactError: TensorRT cannot build it, for whatever reason.
        DeviceLost: the connection went.
    """
    version = version_of(agent)
    wanted = {"do": "engine", "artifact": artifact, "version": list(version)}
    place = agent.ask(wanted)
    if anew:
        agent.ask({"do": "keep_engine", "artifact": artifact, "key": place.get("key"), "good": False})
        place = agent.ask(wanted)
    gpu = clean_text(str(place.get("gpu", "")), 100)
    # They only ever go back to the device, which looks at them again.
    key, folder, model = told(agent.device, place, "key", "folder", "model")
    seconds = None
    if not place.get("ready"):
        command = trtexec.build_command(
            version, model, f"{folder}/{ENGINE}.partial", f"{folder}/{CACHE}", f"{folder}/{LAYERS}"
        )
        done = _run(agent, key, command[1:], BUILD_SECONDS, writes=(LAYERS,))
        if done["code"] != 0:
            raise ArtifactError(f"device '{agent.device.name}' cannot build an engine: {trtexec.why(done['output'])}")
        seconds = trtexec.parse_output(done["output"]).seconds
    agent.ask({"do": "keep_engine", "artifact": artifact, "key": key, "good": True})
    return Engine(key, folder, version, gpu, seconds)


@_of_one_artifact
def measure(agent: Agent, artifact: str, terms: Terms) -> Latency:
    """Latency of the bare graph by trtexec, and what else it tells.

    That is the time with the copies, memory, the slowest layers, power and heat.

    Raises:
        ArtifactError: TensorRT cannot build or run it.
    """
    engine = build(agent, artifact)
    contract = LATENCY_CONTRACTS[terms.mode]
    plain = trtexec.Timing(contract.queries, contract.seconds, profiled=True)
    done = _time(agent, engine, plain)
    if done["code"] != 0 and trtexec.built_elsewhere(done["output"]):  # kept from before a change of the board
        engine = build(agent, artifact, anew=True)
        done = _time(agent, engine, plain)
    run, times = _timed(agent, engine, done)
    profile = trtexec.parse_profile(_read(agent, engine, PROFILE))
    precisions = Counter(trtexec.parse_layers(_read(agent, engine, LAYERS)).values())
    with_copies, why = _with_copies(agent, engine, trtexec.Timing(contract.queries, contract.seconds, transfers=True))
    settings = {**_settings(engine, run), "flags": " ".join(_flags(engine, plain))}
    told = Trtexec(
        built_seconds=engine.built_seconds,
        gpu_bytes=run.gpu_bytes,
        unstable_cv=trtexec.unstable(run),
        with_copies_ms=with_copies,
        with_copies_failed=why,
        layers=tuple(
            Layer(clean_text(layer.name, 160), layer.mean_ms, layer.share)
            for layer in sorted(profile, key=lambda layer: -layer.share)[:SLOWEST]
        ),
        precisions={clean_text(name, 20): count for name, count in precisions.items()},
        warnings=tuple(clean_text(warning, 200) for warning in run.warnings[:10]),
        tegrastats=_watched(done.get("tegrastats")),
    )
    return Latency(
        Provenance("measured", settings["engine"]), terms.mode, "graph", (tuple(times),), settings=settings,
        load_ms=None if run.seconds is None else run.seconds * 1e3, trtexec=told,
    )  # fmt: skip


@_of_one_artifact
def sustain(agent: Agent, artifact: str, seconds: float, interval: float) -> Sustained:
    """The bare graph under load for so long: each interval is a call of trtexec, its engine loaded anew.

    Returns:
        Scope ``graph``; clocks are the GPU's, and where ``under_load`` is false they are not only those under load.

    Raises:
        ArtifactError: TensorRT cannot build or run it.
    """
    engine = build(agent, artifact)
    intervals: list[LoadInterval] = []
    settings: Mapping[str, str] = {}
    begin = now = time.monotonic()
    while now - begin < seconds - 1e-3:
        span = min(interval, seconds - (now - begin))
        done = _time(agent, engine, trtexec.Timing(1, span, warmup_ms=0))
        run, times = _timed(agent, engine, done)
        settings = _settings(engine, run)
        watched = _watched(done.get("tegrastats")) or Watched()
        clocks = watched.gpu_clock_mhz
        conditions = Conditions({"GPU": clocks.median * 1000} if clocks else {}, watched.max_celsius or {})
        end = time.monotonic()
        intervals.append(
            LoadInterval(
                round(now - begin, 3), round(end - begin, 3), conditions, tuple(times), under_load=watched.under_load
            )
        )
        now = end
    return Sustained(seconds, tuple(intervals), "graph", settings)


def _settings(engine: Engine, run: trtexec.TrtexecRun) -> dict[str, str]:
    return {
        "engine": f"TensorRT {'.'.join(map(str, engine.version))}",
        "GPU": run.gpu or engine.gpu or "unavailable",
    }


def _flags(engine: Engine, timing: trtexec.Timing) -> tuple[str, ...]:
    command = trtexec.time_command(
        engine.version, engine.path, timing, f"{engine.folder}/{TIMES}", f"{engine.folder}/{PROFILE}"
    )
    return command[1:]


def _time(agent: Agent, engine: Engine, timing: trtexec.Timing) -> Mapping[str, Any]:
    return _run(
        agent,
        engine.key,
        _flags(engine, timing),
        TIMING_SECONDS + 20 * timing.seconds,
        watched=True,
        writes=(TIMES, PROFILE),
    )


def _with_copies(agent: Agent, engine: Engine, timing: trtexec.Timing) -> tuple[float | None, str | None]:
    """Median in ms with the copies to the GPU and back, or why there is none: the graph's own time stands either way."""
    try:
        done = _time(agent, engine, timing)
        if done["code"] != 0:
            return None, trtexec.why(done["output"])
        times = sorted(_times(agent, engine, "latencyMs"))
    except DeviceLost:
        raise
    except (DeviceError, ArtifactError) as error:
        return None, str(error)
    return times[len(times) // 2], None


def _timed(agent: Agent, engine: Engine, done: Mapping[str, Any]) -> tuple[trtexec.TrtexecRun, Sequence[float]]:
    """What a timing printed, and milliseconds of the graph in each query."""
    if done["code"] != 0:
        raise ArtifactError(f"device '{agent.device.name}' cannot run the engine: {trtexec.why(done['output'])}")
    return trtexec.parse_output(done["output"]), _times(agent, engine, "computeMs")


def _times(agent: Agent, engine: Engine, field: str) -> Sequence[float]:
    """Milliseconds of every query of the last timing; warm-ups are not among them."""
    wanted = {"do": "times", "key": engine.key, "name": TIMES, "field": field, "limit": QUERIES}
    values = agent.ask(wanted).get("times")
    if values is None:
        raise ArtifactError(f"device '{agent.device.name}': trtexec exported no {TIMES}: look at its output by hand")
    if not are_milliseconds(values) or not 0 < len(values) <= QUERIES:
        raise ArtifactError(f"device '{agent.device.name}' answers times that are none: nothing of them was kept")
    times: Sequence[float] = values
    return times


def _run(
    agent: Agent,
    key: str,
    arguments: tuple[str, ...],
    seconds: float,
    *,
    watched: bool = False,
    writes: tuple[str, ...] = (),
) -> Mapping[str, Any]:
    done = agent.ask(
        {
            "do": "tool", "program": "trtexec", "arguments": list(arguments), "seconds": seconds, "watched": watched,
            "key": key, "writes": list(writes),
        }
    )  # fmt: skip
    if not isinstance(done.get("output"), str) or not isinstance(done.get("code"), int):
        raise DeviceError(f"device '{agent.device.name}': trtexec did not end in {seconds:.0f} s: see whether it hangs")
    return done


def _read(agent: Agent, engine: Engine, name: str) -> str:
    text = agent.ask({"do": "read", "key": engine.key, "name": name, "limit": FILE_LIMIT}).get("text")
    if not isinstance(text, str):
        raise ArtifactError(f"device '{agent.device.name}': trtexec exported no {name}: look at its output by hand")
    return text


def _watched(output: Any) -> Watched | None:
    """Heat meanwhile, and power and clocks under load; None where the board has no tegrastats.

    ``under_load`` is false where no sample says that it was: power and clocks are of all of them then, idle ones too.
    """
    if not isinstance(output, str):
        return None
    try:
        samples = tegrastats.parse(output)
    except DeviceError:
        return None
    loaded = [sample for sample in samples if sample.gpu_load is not None and sample.gpu_load > LOADED]
    # Thor's tegrastats tells no load, and a short call may end before the second sample.
    kept: Sequence[tegrastats.TegraSample] = loaded or samples
    watts = [sample.watts for sample in kept if sample.watts is not None]
    celsius: dict[str, float] = {}
    for sample in samples:
        for name, value in sample.celsius.items():
            celsius[name] = max(value, celsius.get(name, value))
    clocks = sorted(sample.gpu_clock for sample in kept if sample.gpu_clock)
    return Watched(
        samples=len(kept),
        under_load=bool(loaded),
        mean_watts=sum(watts) / len(watts) if watts else None,
        max_watts=max(watts, default=None),
        max_celsius=celsius,
        gpu_clock_mhz=Spread(clocks[len(clocks) // 2], clocks[0], clocks[-1]) if clocks else None,
    )
