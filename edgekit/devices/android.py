"""A phone: LiteRT's benchmark_model, which the user brings, runs artifacts there on CPU, GPU and NNAPI or NPU.

The tool holds the clock and prints statistics of its runs, not the runs. Its scope is ``graph``: one forward pass. Labels come
back through its input and output files, so that accuracy is measured on the phone's own kernels.
"""

from __future__ import annotations

import math
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edgekit.core.contract import LATENCY_CONTRACTS, Terms
from edgekit.core.errors import ArtifactError, DeviceError, DeviceLost, EdgekitError
from edgekit.core.files import open_log, sha256_bytes, sha256_path
from edgekit.core.measurement import (
    Conditions,
    Counted,
    Environment,
    Latency,
    LoadInterval,
    Round,
    Statistics,
    Sustained,
    Timed,
    Unit,
)
from edgekit.core.progress import Progress
from edgekit.core.quantities import MOST_CORES, is_bytes
from edgekit.core.record import plain
from edgekit.core.values import Artifact, ClassSet, Provenance, SessionOptions, TensorForm, UInt8
from edgekit.devices import adb
from edgekit.devices.agent.lock import Busy, DeviceLock
from edgekit.devices.environment import UNAVAILABLE, arm_cores, cluster, cpu_flags
from edgekit.devices.formats import battery, benchmark_model, thermalservice
from edgekit.devices.formats.text import clean_text, lines, shortened
from edgekit.devices.inventory import Device
from edgekit.devices.worker import count_pack
from edgekit.runtimes.common import label_map

CACHE = "/data/local/tmp/edgekit"
TARGET = "tflite"
ROUNDS = 4
MOST_SECONDS = 480.0
"""The tool's own limit for a round, at which it stops short of the runs asked for: 16 of them may take half a minute each."""
RECONNECT_SECONDS = 180.0
"""As long as a phone may take to start anew."""
ATTEMPTS = 3
LOCK_SECONDS = 3600.0
RUN_SECONDS = 600.0
"""How long one call of the tool may take."""
THREADS = 4
"""More are not used where none are asked for: a phone's other cores are small ones, which a layer would wait for."""
_FRAME, _OUTPUT = "frame.bin", "output.bin"
_OWN = re.compile(rf"[0-9a-f]{{64}}(\.[0-9a-f]{{8}}\.partial)?|{re.escape(_FRAME)}|{re.escape(_OUTPUT)}")
"""Names of the files that edgekit leaves on a phone."""
_COUNT = re.compile(r"[0-9]{1,18}")
_POLICIES = (
    "for p in /sys/devices/system/cpu/cpufreq/policy*; do "
    'r() { cat "$p/$1" 2>/dev/null; }; '
    'echo "$(r related_cpus):$(r scaling_governor):$(r cpuinfo_max_freq):$(r scaling_max_freq)"; done'
)
_POLICY = re.compile(r"([0-9 ]{1,160}):([^:]*):([^:]*):([^:]*)")
"""Cores that share a clock, their governor, and the highest kHz that they can have and may have now, where they can be read.

Heat lowers what they may have. What they have would be that of an idle phone: it is asked between calls of the tool.
"""
LOG_LIMIT, LOG_CALL = 64 << 20, 256 << 10
"""Bytes of what tools say that a device's log takes altogether, and of one call."""
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Backend:
    """Where the tool can run a graph.

    Attributes:
        name: as reports name it.
        delegate: as the tool names what does it; empty for the CPU, which is also what everything falls back to.
        flags: for each of the two tools.
    """

    name: str
    delegate: str
    flags: Mapping[benchmark_model.Tool, tuple[str, ...]]


BACKENDS = (
    Backend("CPU", "", {"tflite": ("--use_xnnpack=true",), "litert": ("--use_cpu=true",)}),
    Backend("GPU", "GPU", {"tflite": ("--use_gpu=true",), "litert": ("--use_gpu=true",)}),
    Backend("NNAPI", "NNAPI", {"tflite": ("--use_nnapi=true",)}),
    Backend("NPU", "NPU", {"litert": ("--use_npu=true",)}),
)
"""The first is the headline, whose accuracy is measured too."""


class Phone:
    """One phone, with the same surface as :class:`edgekit.devices.board.Board`; use it as a context manager.

    Attributes:
        found: what is there.
        notes: what happened to it meanwhile and belongs into its report.
    """

    page = "android"

    def __init__(self, device: Device, logs: Path, progress: Progress) -> None:
        """Connect, and see what is there.

        Raises:
            DeviceError: it cannot be reached or used, or the tool does not run on it.
        """
        self.device = device
        self.progress = progress
        self.notes: list[str] = []
        self.found: dict[str, Any] = {}
        self._log = logs / f"{device.name}.device.log"
        self._folder = device.cache or CACHE
        self._flags: frozenset[str] = frozenset()
        self._program = ""
        self._closed = False
        serial = sha256_bytes(device.address.encode())[:16]
        self._lock = DeviceLock("another edgekit", Path(tempfile.gettempdir()) / f"edgekit-adb-{serial}.lock")
        self._transport = adb.connect(device)
        try:
            self.found = self._probe()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Phone:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection, also from another thread, whose work then ends; what was sent stays for the next time."""
        self._closed = True
        self._transport.close()

    def clean(self) -> int:
        """Remove everything that edgekit left there, and nothing else; returns how many bytes that were."""
        with self._alone():
            held = self._held()
            if held:
                self._checked(("rm", "-f", *(name for _, name in held)), "what was sent cannot be removed")
            self._transport.run(("rmdir", self._folder))  # others' files may lie there too
        return sum(size for size, _ in held)

    # What is there

    @property
    def runtimes(self) -> Mapping[str, str | None]:
        """The tool, by its content, since it tells no version; None where the inventory names none."""
        return {TARGET: self.found["benchmark_model"]}

    @property
    def environment(self) -> Environment:
        """The phone, as it was when it was connected."""
        return dict(self.found["environment"])

    def lacks(self, target: str) -> str | None:
        """Why a target's artifacts cannot run there, None when they can."""
        name = self.device.name
        if target != TARGET:
            return f"device '{name}' is an Android phone: benchmark_model runs TFLite artifacts only"
        if self.found["benchmark_model"] is None:
            return (
                f"device '{name}': name LiteRT's benchmark_model for {self.found['environment']['architecture']} "
                "in devices.toml (benchmark_model = PATH)"
            )
        return None

    def title(self, target: str) -> str:
        """What runs a target's artifacts there."""
        return f"LiteRT {self.found['benchmark_model']}"

    def cannot_evaluate(self, artifact: Artifact) -> str | None:
        """What the device has or lacks so that its labels cannot be had there; None when they can."""
        able = {"input_layer_value_files", "output_filepath"} <= self._flags
        return None if able else "has a benchmark_model that writes no outputs"

    def backends(self) -> tuple[Backend, ...]:
        """Where this tool can run graphs, as far as its flags tell."""
        tool = benchmark_model.tool_of(self._flags)
        known = [one for one in BACKENDS if tool in one.flags and self._flags]
        return tuple(one for one in known if not one.delegate or self._choosing(one))

    def _choosing(self, backend: Backend) -> tuple[str, ...]:
        """The flags that choose it, of those that this version of the tool has: old ones have no word for the CPU."""
        flags = backend.flags[benchmark_model.tool_of(self._flags)]
        return tuple(flag for flag in flags if flag[2:].partition("=")[0] in self._flags)

    # Work

    def evaluate(
        self, artifact: Artifact, packs: Sequence[Callable[[], Path]], classes: ClassSet, threads: int | None
    ) -> tuple[list[Counted], Environment]:
        """Counts of each frame, and the environment.

        Args:
            packs: each makes or finds one file of frames; see :func:`edgekit.devices.worker.count_pack`.

        Raises:
            ArtifactError: it cannot be run there.
        """
        if self.cannot_evaluate(artifact):
            raise ArtifactError(
                f"device '{self.device.name}': this benchmark_model writes no outputs: use LiteRT's classic one, "
                "of 2024 or newer, which has --output_filepath"
            )
        frames: list[Counted] = []
        with self._alone():  # others' frames would stand in the same files
            label = self.labeller(artifact, threads)
            for pack in packs:
                self.progress.update(f"{self.device.name}: {artifact.title}, {len(frames)} frames evaluated")
                frames += count_pack(label, pack(), classes)
        return frames, self.environment

    def labeller(self, artifact: Artifact, threads: int | None) -> Callable[[UInt8], UInt8]:
        """What labels frames there: uint8 [1, H, W, 3] -> uint8 [1, H, W]; each is a call of the tool."""
        model = self._send(artifact.model_path)
        dtype, shape = _tensor(artifact)
        given, result = f"{self._folder}/{_FRAME}", f"{self._folder}/{_OUTPUT}"
        size = artifact.size
        command = (
            *self._command(model, threads),
            *self._choosing(BACKENDS[0]),
            # One run: its input's name is only compared with this one, and a difference only remarked.
            "--input_layer=frame", f"--input_layer_shape=1,{size.height},{size.width},3",
            f"--input_layer_value_files=frame:{given}", f"--output_filepath={result}",
            "--num_runs=1", "--min_secs=0", "--warmup_runs=1", "--warmup_min_secs=0",
        )  # fmt: skip

        def label(frame: UInt8) -> UInt8:
            def work() -> bytes:
                self._checked(("sh", "-c", 'rm -f "$2" && cat > "$1"', "sh", given, result), "a frame", frame.tobytes())
                run, text = self._tool(command)
                if run.ignored_flags:
                    raise ArtifactError(
                        f"this benchmark_model does not know --{run.ignored_flags[0]}: bring a newer one"
                    )
                expected = dtype.itemsize * math.prod(shape)
                done = self._transport.run(("cat", result), limit=expected + 1)
                if done.code or len(done.out) != expected:
                    free = self._free()
                    if free is not None and free < expected:
                        raise self._full()
                    raise ArtifactError(
                        f"benchmark_model wrote {len(done.out)} bytes where {expected} were due ({shortened(text, 200)})"
                    )
                return done.out

            output = np.frombuffer(self._again(work), dtype).reshape(shape)
            if output.dtype.kind == "f" and not np.isfinite(output).all():
                raise ArtifactError(
                    f"device '{self.device.name}' computes logits that are no numbers for {artifact.title}"
                )
            labels = label_map(output, artifact, SessionOptions(threads or THREADS), channels_last=True)
            if int(labels.max()) >= len(artifact.class_names):
                raise ArtifactError(
                    f"device '{self.device.name}' labelled a class {labels.max()}, which does not exist"
                )
            return labels

        return label

    def measure(self, artifacts: Sequence[Artifact], frames: Path, terms: Terms) -> list[Timed | EdgekitError]:
        """Latency of artifacts on every backend, in turns; per artifact the value or the error.

        Args:
            frames: not used, the tool times random input, to which a convolution's time does not matter.
            terms: whatever scope is asked for, the tool times one forward pass.

        Returns:
            Per artifact, of scope ``graph``, statistics in the place of raw samples (p50 and p95 are the medians of the
            rounds'), its rounds, conditions before the first and after each of them, and compute units by backend. The
            headline is the CPU's.
        """
        contract = LATENCY_CONTRACTS[terms.mode]
        share = (
            f"--num_runs={math.ceil(contract.queries / ROUNDS)}", f"--min_secs={contract.seconds / ROUNDS:g}",
            f"--max_secs={MOST_SECONDS:g}", f"--warmup_runs={contract.warmup_runs}",
            f"--warmup_min_secs={contract.warmup_seconds:g}",
        )  # fmt: skip
        with self._alone():
            return self._measure(artifacts, terms, share)

    def _measure(self, artifacts: Sequence[Artifact], terms: Terms, share: Sequence[str]) -> list[Timed | EdgekitError]:
        threads = terms.threads
        work: list[tuple[int, Backend]] = []
        models: dict[int, str] = {}
        results: list[Timed | EdgekitError] = []
        for index, artifact in enumerate(artifacts):
            models[index] = self._send(artifact.model_path)
            work += [(index, backend) for backend in self.backends()]
            results.append(ArtifactError(f"device '{self.device.name}' gave no result for {artifact.title}"))
        runs: dict[tuple[int, str], list[benchmark_model.BenchmarkRun] | EdgekitError] = {
            (index, backend.name): [] for index, backend in work
        }
        conditions = [self._again(self._conditions)]
        for number in range(ROUNDS):
            for index, backend in work:
                taken = runs[index, backend.name]
                if isinstance(taken, EdgekitError):
                    continue
                self.progress.update(
                    f"{self.device.name}: round {number + 1} of {ROUNDS}, {artifacts[index].title} on {backend.name}"
                )
                command = (*self._command(models[index], threads), *self._choosing(backend), *share)
                try:
                    run = self._again(lambda command=command: self._tool(command)[0])  # type: ignore[misc]
                    if backend.delegate and (why := benchmark_model.fallback(run, backend.delegate)):
                        raise ArtifactError(f"device '{self.device.name}': {why}")
                    taken.append(run)
                except DeviceLost:
                    raise
                except (ArtifactError, DeviceError) as error:
                    # A driver that hangs or floods is the backend's fault, unless it is the CPU's.
                    if isinstance(error, DeviceError) and not backend.delegate:
                        raise
                    runs[index, backend.name] = error
            conditions.append(self._again(self._conditions))
        for index, artifact in enumerate(artifacts):
            headline = runs[index, BACKENDS[0].name]
            if isinstance(headline, EdgekitError):
                results[index] = headline
                continue
            latency = Latency(
                Provenance("measured", self.title(artifact.target)), terms.mode, "graph",
                statistics=_statistics(headline),
                rounds=tuple(
                    Round(one.inference.count, one.inference.mean_ms, one.inference.median_ms, one.inference.std_ms)
                    for one in headline
                ),
                first_ms=headline[0].first_ms, load_ms=headline[0].init_ms,
                peak_rss_bytes=self._peak(models[index], threads), settings=self._settings(headline[0], threads),
                conditions=tuple(conditions),
                compute_units={backend.name: _unit(runs[index, backend.name]) for of, backend in work if of == index},
            )  # fmt: skip
            results[index] = Timed(latency, self.environment)
            self.progress.update(f"{self.device.name}: {artifact.title} measured")
        return results

    def sustain(self, artifact: Artifact, frames: Path, seconds: float, threads: int | None) -> Sustained:
        """One artifact on the CPU under load for so long; an interval is a call of the tool, its model loaded anew."""
        with self._alone():
            model = self._send(artifact.model_path)
            # A phone cools while it is waited for, so that a load that was cut begins anew.
            return self._again(lambda: self._sustain(artifact, model, seconds, threads))

    def _sustain(self, artifact: Artifact, model: str, seconds: float, threads: int | None) -> Sustained:
        interval = min(10.0, max(1.0, seconds / 60))
        before = self._conditions()
        intervals: list[LoadInterval] = []
        settings: Mapping[str, Any] = {}
        begin = now = time.monotonic()
        while now - begin < seconds - 1e-3:
            span = min(interval, seconds - (now - begin))
            self.progress.update(
                f"{self.device.name}: {artifact.title}, sustained load for {now - begin:.0f} of {seconds:.0f} s"
            )
            command = (
                *self._command(model, threads), *self._choosing(BACKENDS[0]), "--num_runs=1", f"--min_secs={span:g}",
                f"--max_secs={span + 30:g}", "--warmup_runs=0", "--warmup_min_secs=0",
            )  # fmt: skip
            run, _ = self._tool(command)
            end = time.monotonic()
            settings = self._settings(run, threads)
            printed = _statistics([run])
            intervals.append(
                LoadInterval(round(now - begin, 3), round(end - begin, 3), self._conditions(), statistics=printed)
            )
            now = time.monotonic()
        return Sustained(seconds, tuple(intervals), "graph", settings, before)

    def _settings(self, run: benchmark_model.BenchmarkRun, threads: int | None) -> Mapping[str, Any]:
        by = {one.name: f"{one.nodes} of {one.of} operations" if one.of else one.share for one in run.delegates}
        return {
            "tool": f"{'classic' if run.tool == 'tflite' else 'LiteRT'} benchmark_model",
            "threads": threads or min(THREADS, self.found["environment"]["cores"]), "delegates": by, "input": "random",
        }  # fmt: skip

    def _peak(self, model: str, threads: int | None) -> int | None:
        """A run of its own: looking at the memory disturbs the clock. None where it fails, which costs no measurement."""
        command = (
            *self._command(model, threads), *self._choosing(BACKENDS[0]), "--num_runs=3",
            "--min_secs=0.2", "--warmup_min_secs=0", "--report_peak_memory_footprint=true",
        )  # fmt: skip
        try:
            return self._again(lambda: self._tool(command)[0]).peak_bytes
        except DeviceLost:
            raise
        except (ArtifactError, DeviceError):
            return None

    def _command(self, model: str, threads: int | None) -> tuple[str, ...]:
        count = threads or min(THREADS, self.found["environment"]["cores"])
        return (self._program, f"--graph={model}", f"--num_threads={count}")

    def _tool(self, command: Sequence[str]) -> tuple[benchmark_model.BenchmarkRun, str]:
        """One call of the tool, and the end of what it said.

        Raises:
            ArtifactError: it failed.
        """
        done = self._transport.run(command, seconds=RUN_SECONDS)
        text = done.out + b"\n" + done.err
        self._keep(command, text)
        try:
            run = benchmark_model.parse(text, done.code)
        except DeviceError as error:
            raise ArtifactError(f"device '{self.device.name}': {error} (its output is in {self._log})") from error
        return run, " ".join(list(lines(text))[-2:])

    def _keep(self, command: Sequence[str], text: bytes) -> None:
        """What the tool said, at most so much of one call and of all."""
        with open_log(self._log) as log:
            if log.tell() < LOG_LIMIT:
                said = "\n".join(lines(text[:LOG_CALL]))
                log.write(" ".join(command).encode() + b"\n" + said.encode(errors="replace") + b"\n")

    # The phone

    def _probe(self) -> dict[str, Any]:
        properties = dict(re.findall(r"\[([\w.]+)\]: \[([^\]]*)\]", "\n".join(lines(self._read("getprop")))))
        memory = re.search(r"MemTotal:\s{0,40}([0-9]+) kB", "\n".join(lines(self._read("cat", "/proc/meminfo"))))
        cpuinfo = "\n".join(lines(self._read("cat", "/proc/cpuinfo")))
        clusters = [
            (shortened(row[1], 80), shortened(row[2], 40), row[3].strip())
            for row in map(_POLICY.fullmatch, lines(self._read("sh", "-c", _POLICIES)))
            if row is not None
        ]

        def of(*names: str) -> str:
            return next((shortened(properties[name], 100) for name in names if properties.get(name)), UNAVAILABLE)

        environment = {
            "board": f"{of('ro.product.manufacturer')} {of('ro.product.model')}",
            "cpu": ", ".join(
                filter(None, (of("ro.soc.model", "ro.board.platform", "ro.hardware"), shortened(arm_cores(cpuinfo))))
            ),
            "cpu_flags": cpu_flags(cpuinfo),
            "cores": _cores([cores for cores, _, _ in clusters], cpuinfo),
            "clusters": [cluster(*row) for row in clusters] or UNAVAILABLE,
            "governor": ", ".join(dict.fromkeys(governor for _, governor, _ in clusters)) or UNAVAILABLE,
            "architecture": of("ro.product.cpu.abi"),
            "memory_bytes": _kilobytes(memory[1]) if memory else None,
            "os": f"Android {of('ro.build.version.release')} (API {of('ro.build.version.sdk')})",
            "build": of("ro.build.fingerprint"),
        }
        self._checked(("mkdir", "-p", self._folder), "the folder for what is sent")
        name = self._bring_tool()
        return {
            "system": "android", "machine": environment["architecture"], "environment": environment,
            "benchmark_model": name, "conditions": plain(self._conditions()),
            "boot": self._boot(),
            "free_bytes": self._free(), "backends": [backend.name for backend in self.backends()],
            "cache": {"folder": self._folder, "bytes": sum(size for size, _ in self._held()),
                      "limit": self.device.cache_megabytes << 20},
        }  # fmt: skip

    def _bring_tool(self) -> str | None:
        if not self.device.benchmark_model:
            return None
        path = Path(self.device.benchmark_model)
        if not path.is_file():
            raise DeviceError(
                f"device '{self.device.name}': there is no {path}: correct benchmark_model in devices.toml"
            )
        with path.open("rb") as file:
            if not file.read(4).startswith((b"\x7fELF", b"#!")):
                raise DeviceError(
                    f"device '{self.device.name}': {path} is no program, and nothing else is sent to a phone: correct benchmark_model in devices.toml"
                )
        self._program = self._send(path)
        self._checked(("chmod", "755", self._program), "the tool cannot be made executable")
        done = self._transport.run((self._program, "--help"), seconds=60)
        try:
            self._flags = benchmark_model.flags_of(done.out + b"\n" + done.err)
        except DeviceError as error:
            raise DeviceError(f"device '{self.device.name}': {error}") from error
        return f"benchmark_model {sha256_path(path)[:8]}"

    def _conditions(self) -> Conditions:
        """Heat, the clocks that are allowed, and battery now; what the phone does not tell is left out."""
        clocks: dict[str, int] = {}
        for row in map(_POLICY.fullmatch, lines(self._read("sh", "-c", _POLICIES))):
            if row is not None and re.fullmatch(r"[0-9]{4,8}", row[4]):
                clocks["-".join(row[1].split())] = int(row[4])
        temperatures: Mapping[str, float] = {}
        try:
            heat = thermalservice.parse(self._read("dumpsys", "thermalservice"))
            temperatures, status = dict(heat.celsius), heat.name
        except DeviceError as error:
            status = f"unavailable: {error}"
        charge: Any
        try:
            charge = asdict(battery.parse(self._read("dumpsys", "battery")))
        except DeviceError as error:
            charge = f"unavailable: {error}"
        return Conditions(clocks, temperatures, status, charge)

    def _read(self, *command: str) -> bytes:
        """What a command prints; nothing where the phone refuses it."""
        return self._transport.run(command, limit=4 << 20).out

    def _boot(self) -> str:
        """Changes with every start of the phone."""
        return clean_text(self._read("cat", "/proc/sys/kernel/random/boot_id"), 64)

    def _free(self) -> int | None:
        rows = [line.split() for line in lines(self._read("df", "-k", self._folder))]
        last = rows[-1] if rows else []
        return _kilobytes(last[3]) if len(last) >= 4 else None

    def _held(self) -> list[tuple[int, str]]:
        """Size and path of every file of edgekit's, what was used least recently last.

        By their names: the folder may be one that the user keeps other things in.
        """
        script = 'ls -t "$1" | while read -r f; do echo "$(stat -c %s "$1/$f") $f"; done'
        found = []
        for line in lines(self._read("sh", "-c", script, "sh", self._folder), endless_numbers=True):
            size, _, name = line.partition(" ")
            if _COUNT.fullmatch(size) and _OWN.fullmatch(name):
                found.append((int(size), f"{self._folder}/{name}"))
        return found

    def _send(self, source: Path) -> str:
        """Have a file there under its content's hash; what lies there already is not sent again."""
        return self._again(lambda: self._sent(source))

    def _sent(self, source: Path) -> str:
        content = sha256_path(source)
        remote = f"{self._folder}/{content}"
        done = self._transport.run(("sha256sum", remote))
        if done.code == 0 and done.out.split()[:1] == [content.encode()]:
            self._transport.run(("touch", remote))
            return remote
        self._make_room(source.stat().st_size)
        self.progress.update(f"{self.device.name}: sending {source.name}, {source.stat().st_size / 1e6:.1f} MB")
        self._transport.push(source, remote)
        done = self._transport.run(("sha256sum", remote))
        if done.out.split()[:1] != [content.encode()]:
            self._transport.run(("rm", "-f", remote))
            raise DeviceError(f"device '{self.device.name}': a file arrived damaged: run again")
        return remote

    def _make_room(self, size: int) -> None:
        limit = self.device.cache_megabytes << 20
        held = self._held()
        while held and sum(of for of, _ in held) + size > limit:
            _, name = held.pop()
            if name != self._program:
                self._transport.run(("rm", "-f", name))
        if size > limit:
            raise DeviceError(f"device '{self.device.name}': {size / 1e6:.0f} MB are more than cache_megabytes allows")

    def _checked(self, command: Sequence[str], what: str, data: bytes = b"") -> None:
        done = self._transport.run(command, data)
        if done.code:
            said = shortened(" ".join(lines(done.err + b"\n" + done.out)), 200)
            if "No space left" in said:
                raise self._full()
            raise DeviceError(f"device '{self.device.name}': {what} ({said}): see that its folder can be written")

    def _full(self) -> DeviceError:
        name = self.device.name
        return DeviceError(f"device '{name}': no space is left there: free some, or run edgekit devices clean {name}")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """This phone for this process, until the block or the process ends.

        Raises:
            DeviceError: somebody else measures on it all the time.
        """
        try:
            self._lock.take(LOCK_SECONDS, lambda holder: self.progress.say(f"{self.device.name}: waiting for {holder}"))
        except Busy as busy:
            raise DeviceError(f"device '{self.device.name}' is in use ({busy}): run again when that is done") from None
        if self._lock.remark:
            self.progress.say(f"{self.device.name}: {self._lock.remark}")
        try:
            yield
        finally:
            self._lock.release()

    def _again(self, work: Callable[[], Answer]) -> Answer:
        """Do something there; when the connection goes, wait for the phone and do it once more."""
        for attempt in range(ATTEMPTS):
            try:
                return work()
            except DeviceLost as error:
                if self._closed or attempt + 1 == ATTEMPTS:
                    raise
                self.progress.say(f"{error}: waiting for it")
                self._connect_again(error)
        raise AssertionError("unreachable")

    def _connect_again(self, lost: DeviceLost) -> None:
        self._transport.close()
        until = time.monotonic() + RECONNECT_SECONDS
        while True:
            try:
                self._transport = adb.connect(self.device)
                if self._closed:
                    self._transport.close()
                break
            except DeviceError as error:
                if self._closed or time.monotonic() > until:
                    raise DeviceLost(f"{lost} ({error})") from error
                time.sleep(2)
        before, now = self.found.get("boot", ""), self._boot()
        if before and now and before != now:
            self.found["boot"] = now
            self.notes.append(f"device '{self.device.name}' was started anew during the run")


def _kilobytes(text: str) -> int | None:
    """Bytes of so many kB; None for what is no number, or more than any device has."""
    found = int(text) * 1024 if _COUNT.fullmatch(text) else None
    return found if is_bytes(found) else None


def _cores(clusters: Sequence[str], cpuinfo: str) -> int:
    """Cores by their clusters, and by cpuinfo, which lists those that are awake."""
    listed = sum(len(cores.split()) for cores in clusters)
    return min(MOST_CORES, max(1, listed, len(re.findall(r"(?m)^processor", cpuinfo))))


def _tensor(artifact: Artifact) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """The output's type and shape by the manifest.

    Raises:
        ArtifactError: it does not say them, as those of earlier versions, which had a sentence.
    """
    try:
        form = TensorForm.from_json(artifact.manifest["native_output"])
    except ValueError as error:
        raise ArtifactError(
            f"{artifact.title} does not say what its output is, so a phone's cannot be read ({error}): convert it again"
        ) from error
    return np.dtype(form.dtype), form.shape


def _statistics(runs: Sequence[benchmark_model.BenchmarkRun]) -> Statistics:
    """Statistics of some rounds together, milliseconds: means are weighted, medians are those of the rounds'."""
    rounds = [run.inference for run in runs]
    count = sum(one.count for one in rounds)
    mean = sum(one.count * one.mean_ms for one in rounds) / count
    deviations = [one.std_ms for one in rounds]
    spread = None
    if None not in deviations:
        squares = sum(one.count * ((one.std_ms or 0.0) ** 2 + (one.mean_ms - mean) ** 2) for one in rounds)
        spread = math.sqrt(squares / count)
    medians = [one.median_ms for one in rounds if one.median_ms is not None]
    tails = [one.p95_ms for one in rounds if one.p95_ms is not None]
    return Statistics(
        mean, count,
        p50=statistics.median(medians) if len(medians) == len(rounds) else None,
        p95=statistics.median(tails) if len(tails) == len(rounds) else None,
        cv=spread / mean if spread is not None and mean else None,
        first=runs[0].first_ms,
    )  # fmt: skip


def _unit(runs: list[benchmark_model.BenchmarkRun] | EdgekitError) -> Unit:
    """One backend as a report shows it."""
    if isinstance(runs, EdgekitError):
        return Unit(failed=str(runs))
    taken = _statistics(runs)
    shares = {one.name: f"{one.nodes} of {one.of}" for one in runs[0].delegates if one.of}
    # Old tools print no median.
    return Unit(taken.p50, taken.mean if taken.p50 is None else None, shares or None)
