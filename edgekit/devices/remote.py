"""The host's half of the talk with an agent: what is sent, and a strict reading of what comes back.

A device is not trusted: lines, totals and values are bounded and checked, and nothing that it says becomes a path here.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit import __version__
from edgekit.core.contract import Terms
from edgekit.core.errors import ArtifactError, DeviceError, DeviceLost, EdgekitError
from edgekit.core.files import open_log
from edgekit.core.measurement import Conditions, Counted, Counts, Latency, LoadInterval, Placement
from edgekit.core.quantities import (
    MOST_CORES,
    MOST_MS,
    MOST_ROUNDS,
    are_milliseconds,
    is_bytes,
    is_celsius,
    is_khz,
    is_milliseconds,
    is_number,
    is_share,
    is_whole,
)
from edgekit.core.record import plain
from edgekit.core.text import parse_json
from edgekit.core.values import Float64, Int64, Provenance
from edgekit.devices.agent import MARK, PROTOCOL
from edgekit.devices.agent import SILENCE as AGENT_SILENCE
from edgekit.devices.formats.text import clean_text, lines
from edgekit.devices.inventory import Device
from edgekit.devices.local import LOCK_SECONDS
from edgekit.devices.pack import pack_agent
from edgekit.devices.ssh import ERRORS, SshTransport, end

LINE = 16 << 20
"""The longest line that is taken."""
TOTAL = 1 << 28
"""Bytes that one command's answers may have together."""
ALIVE = 10.0
"""Seconds between the lines that tell the agent that somebody is there."""
SILENCE = 120.0
"""Seconds without a line from the agent, which answers those, after which it counts as gone."""
OLDEST = (3, 9)

LOOK = """
import sys
sys.path[:] = [p for p in sys.path if p]
import hashlib, json, os
home = sys.argv[2] or os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
root = os.path.join(home, "edgekit")
agent = os.path.join(root, sys.argv[3])
found = ""
if os.path.isfile(agent):
    with open(agent, "rb") as file:
        found = hashlib.sha256(file.read()).hexdigest()
numpy = False
try:
    import numpy as module
    numpy = str(module.__version__)
    from numpy.typing import NDArray
    numpy = True
except ImportError:
    pass
said = {"python": list(sys.version_info[:3]), "root": root, "agent": found, "numpy": numpy, "program": sys.executable}
sys.stdout.write("\\n%s%s\\n" % (sys.argv[1], json.dumps(said)))
"""
"""What a device is asked first, in words that any Python understands."""

Event = Mapping[str, Any]


class Refused(DeviceError):
    """The agent says that something is wrong there.

    Attributes:
        kind: ``space``, ``busy``, ``missing``, ``artifact``, ``refused`` or ``bug``.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Agent:
    """A running agent on a device; use it as a context manager.

    Attributes:
        hello: who is there: system, runtimes, boot; see ``hello`` of :mod:`edgekit.devices.agent.commands`.
    """

    def __init__(self, device: Device, log: Path) -> None:
        """Connect, send the agent when it is not there, start it, and shake hands.

        Args:
            log: receives what the device writes beside the talk, bounded.

        Raises:
            DeviceError: any of it did not work.
        """
        self.device = device
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._writing = threading.Lock()
        self._transport = SshTransport(device)
        try:
            root = self._prepare()
            self._start(root)
            self.hello = self._greet()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the talk; the agent and all it started end with it."""
        if self._process is not None:
            self._ended.set()
            with contextlib.suppress(OSError):
                assert self._process.stdin is not None
                self._process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(3)
            self._keep_noise()
            end(self._process)
            self._process = None
        self._transport.close()

    def _prepare(self) -> str:
        """The cache's folder there, after the agent was put into it."""
        device, packed = self.device, pack_agent()
        mark = f"{MARK}{secrets.token_hex(8)}:"
        done = self._transport.run((device.python, "-c", LOOK, mark, device.cache, packed.name))
        found = next((part for part in done.out.decode(errors="replace").split("\n") if mark in part), None)
        if found is None:
            said = clean_text(done.err or done.out) or f"exit code {done.code}"
            raise DeviceError(
                f"device '{device.name}' has no Python by the name {device.python} ({said}): install python3 there, "
                "or name it with python = in the inventory"
            )
        said_there = _object(device, found[found.index(mark) + len(mark) :])
        version, root = said_there.get("python"), said_there.get("root")
        if not isinstance(version, list) or not 1 < len(version) < 9 or not all(is_whole(n, 0, 9999) for n in version):
            raise _nonsense(device, "its Python's version")
        if tuple(version) < OLDEST:
            raise DeviceError(
                f"device '{device.name}' has Python {'.'.join(map(str, version))}, and the agent needs 3.9 or newer: "
                "install one there and name it with python = in the inventory"
            )
        if isinstance(older := said_there.get("numpy"), str):  # without numpy.typing.NDArray, which came with 1.21
            raise DeviceError(
                f"device '{device.name}' has numpy {clean_text(older)}, and the agent needs 1.21 or newer: "
                f"run {device.python} -m pip install --upgrade numpy there"
            )
        if said_there.get("numpy") is not True:
            raise DeviceError(
                f"device '{device.name}' has no numpy for {device.python}: run {device.python} -m pip install numpy there"
            )
        # It only ever goes back to the device, as one quoted argument.
        if not isinstance(root, str) or not root.startswith("/") or not root.isprintable() or len(root) > 4096:
            raise _nonsense(device, "its cache's folder")
        if said_there.get("agent") != packed.sha256:
            with tempfile.NamedTemporaryFile(prefix="edgekit-agent-") as file:
                file.write(packed.data)
                file.flush()
                self._transport.push(Path(file.name), f"{root}/{packed.name}")
        return root

    def _start(self, root: str) -> None:
        self._mark = f"{MARK}{secrets.token_hex(8)}:"
        token = self._mark[len(MARK) : -1]
        limit = str(self.device.cache_megabytes << 20)
        command = (
            self.device.python, f"{root}/{pack_agent().name}", "serve", token, root, limit, __version__, str(AGENT_SILENCE),
        )  # fmt: skip
        self._process = self._transport.open(command)
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._buffer = bytearray()
        self._noise = bytearray()
        self._number = 0
        self._heard = time.monotonic()
        self._ended = threading.Event()
        threading.Thread(target=self._keep_alive, args=(self._process, self._ended), daemon=True).start()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._process.stdout, selectors.EVENT_READ)
        self._selector.register(self._process.stderr, selectors.EVENT_READ)

    def _keep_alive(self, process: subprocess.Popen[bytes], ended: threading.Event) -> None:
        """Tell the agent that somebody is there, also while files are sent beside the talk."""
        while not ended.wait(ALIVE):
            try:
                self._write(process, {"do": "alive"})
            except (OSError, ValueError):  # it is gone, or being closed: whoever asks next is told
                return

    def _write(self, process: subprocess.Popen[bytes], command: Event) -> None:
        assert process.stdin is not None
        with self._writing:
            process.stdin.write(json.dumps(command).encode() + b"\n")
            process.stdin.flush()

    def _greet(self) -> Event:
        hello = self.ask({"do": "hello"})
        if hello.get("protocol") != PROTOCOL or hello.get("edgekit") != __version__:
            raise DeviceError(
                f"the agent on device '{self.device.name}' is of edgekit {clean_text(str(hello.get('edgekit')), 40)} (protocol "
                f"{clean_text(str(hello.get('protocol')), 10)}), not {__version__} ({PROTOCOL}): run edgekit devices clean {self.device.name}"
            )
        runtimes = hello.get("runtimes")
        if not isinstance(runtimes, dict) or not all(
            value is None or isinstance(value, str) for value in runtimes.values()
        ):
            raise _nonsense(self.device, "its runtimes")
        return hello

    # Talk

    def ask(self, command: Event, on_event: Callable[[Event], None] = lambda _: None) -> Event:
        """One command to its end.

        Args:
            on_event: called with each event on the way.

        Raises:
            Refused: the agent says why not.
            DeviceLost: it is gone, or silent for too long.
            DeviceError: it answers what it should not.
        """
        self._number += 1
        self._send({**command, "id": self._number})
        received = 0
        while True:
            line, size = self._line()
            received += size
            if received > TOTAL:
                raise DeviceError(
                    f"device '{self.device.name}' does not stop answering: nothing of this answer was kept"
                )
            if line is None:
                continue
            message = _object(self.device, line)
            if message.get("id") != self._number:
                continue  # of a command before, or a sign of life
            event = message.get("event")
            if isinstance(event, dict):
                on_event(event)
            elif isinstance(message.get("done"), dict):
                done: Event = message["done"]
                return done
            elif isinstance(message.get("error"), dict):
                raise self._refusal(message["error"])
            else:
                raise _nonsense(self.device, "a line of the talk")

    def _refusal(self, error: Event) -> Refused:
        kind, text = str(error.get("kind"))[:20], clean_text(str(error.get("text")), 600)
        name = self.device.name
        if kind == "space":
            text = f"device '{name}' is out of space: {text}: free some there, or run edgekit devices clean {name}"
        elif kind == "busy":
            text = f"device '{name}' is in use by {text}: wait until that measurement is done"
        else:
            text = f"device '{name}': {text}"
        return Refused(kind, text)

    def _send(self, command: Event) -> None:
        assert self._process is not None
        try:
            self._write(self._process, command)
        except OSError:
            raise self._lost() from None

    def _line(self) -> tuple[str | None, int]:
        """The next line that is of the talk, without its mark, and the bytes read for it; None when none came in a while."""
        assert self._process is not None
        assert self._process.stderr is not None
        size = 0
        while True:
            index = self._buffer.find(b"\n")
            if index >= 0:
                line = bytes(self._buffer[:index])
                del self._buffer[: index + 1]
                place = line.find(self._mark.encode())
                if place >= 0:
                    self._heard = time.monotonic()
                    return line[place + len(self._mark) :].decode(errors="replace").rstrip("\r"), size
                if len(self._noise) < ERRORS:
                    self._noise += line[: ERRORS - len(self._noise)] + b"\n"
                continue
            if time.monotonic() - self._heard > SILENCE:
                raise DeviceLost(
                    f"device '{self.device.name}' has not answered for {SILENCE:.0f} s: see whether it hangs, then run again"
                )
            for key, _ in self._selector.select(1.0):
                chunk = os.read(key.fd, 1 << 16)
                if not chunk:
                    if key.fileobj is self._process.stdout:
                        raise self._lost()
                    self._selector.unregister(key.fileobj)
                elif key.fileobj is self._process.stderr:
                    self._noise += chunk[: max(0, ERRORS - len(self._noise))]
                else:
                    size += len(chunk)
                    self._buffer += chunk
                    if len(self._buffer) > LINE:
                        raise DeviceError(
                            f"device '{self.device.name}' sent a line of more than {LINE >> 20} MB, which no agent does: "
                            "nothing of it was kept"
                        )
            if size > TOTAL or not self._buffer:
                return None, size

    def _lost(self) -> DeviceError:
        """Why the talk ended: ssh's own words, or the agent's exit code."""
        assert self._process is not None
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            code = None
        assert self._process.stderr is not None
        os.set_blocking(self._process.stderr.fileno(), False)
        rest = self._process.stderr.read(ERRORS) or b""
        self._noise += rest[: max(0, ERRORS - len(self._noise))]
        if code == 255:
            error = self._transport.failure(bytes(rest or self._noise[-600:]))
            return error if isinstance(error, DeviceLost) else DeviceLost(str(error))
        last = clean_text(bytes(self._noise).strip().rpartition(b"\n")[2])
        how = "was killed" if code in (137, 143, -9) else f"ended with code {code}"
        return DeviceLost(
            f"the agent on device '{self.device.name}' {how}{f' ({last})' if last else ''}: run again, what is finished is kept"
        )

    def _keep_noise(self) -> None:
        if self._noise:
            with contextlib.suppress(OSError, EdgekitError), open_log(self._log) as file:
                file.write("\n".join([*lines(bytes(self._noise), endless_numbers=True), ""]).encode())

    # Files

    def send(
        self,
        artifacts: Mapping[str, tuple[Path, Event]] | None = None,
        packs: Mapping[str, Path] | None = None,
        frames: Mapping[str, Path] | None = None,
    ) -> int:
        """Have files on the device: each is sent once, by what it holds.

        Args:
            artifacts: folder and manifest, by key.
            packs, frames: files by their sha256.

        Returns:
            How many bytes were sent.
        """
        artifacts, packs, frames = artifacts or {}, packs or {}, frames or {}
        missing = self.ask({"do": "have", "artifacts": list(artifacts), "packs": list(packs), "frames": list(frames)})
        if not all(isinstance(missing.get(kind), list) for kind in ("artifacts", "packs", "frames")):
            raise _nonsense(self.device, "what it has")
        wanted: dict[str, Path] = {}
        whole: dict[str, Any] = {}
        for key, (folder, manifest) in artifacts.items():
            if key in missing["artifacts"]:
                files = dict(manifest["files"])
                whole[key] = {"files": files, "manifest": manifest}
                wanted.update({content: folder / name for name, content in files.items()})
        lost_packs = [key for key in packs if key in missing["packs"]]
        lost_frames = [key for key in frames if key in missing["frames"]]
        wanted.update({key: packs[key] for key in lost_packs})
        wanted.update({key: frames[key] for key in lost_frames})
        if not wanted:
            return 0
        size = sum(path.stat().st_size for path in wanted.values())
        (place,) = told(self.device, self.ask({"do": "room", "bytes": size}), "folder")
        if not place.startswith("/"):
            raise _nonsense(self.device, "folder")
        for key, path in wanted.items():
            self._transport.push(path, f"{place}/{key}")
        self._heard = time.monotonic()  # nobody listened meanwhile
        self.ask({"do": "keep", "artifacts": whole, "packs": lost_packs, "frames": lost_frames})
        return size

    def take(self, waiting: Callable[[str], None], seconds: float = LOCK_SECONDS) -> str:
        """Have the device alone; told once who has it.

        Returns:
            What a user must know of that, as a rule nothing.
        """

        def told(event: Event) -> None:
            if "busy" in event:
                waiting(clean_text(str(event["busy"]), 100))

        return clean_text(str(self.ask({"do": "take", "seconds": seconds}, told).get("remark") or ""))


def _object(device: Device, text: str) -> Event:
    value = read_message(text)
    if value is None:
        raise _nonsense(device, "a line of the talk")
    return value


def read_message(text: str) -> Event | None:
    """A line of an agent's as an object; None for anything else."""
    try:
        value = parse_json(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _nonsense(device: Device, what: str, said: Any = None) -> DeviceError:
    shown = "" if said is None else f" ({clean_text(said if isinstance(said, str) else repr(said), 80)})"
    return DeviceError(
        f"device '{device.name}' answers nonsense for {what}{shown}: nothing of it was kept; "
        f"run edgekit devices clean {device.name}"
    )


def checked_probe(device: Device, value: Any) -> dict[str, Any]:
    """What an agent's ``probe`` says, as plain values of the types that are read; fields of other types are left out.

    Raises:
        DeviceError: it is no object at all.
    """
    if not isinstance(value, dict):
        raise _nonsense(device, "a probe")
    found = plain_values(value, 4)
    checked: dict[str, Any] = {}
    for key, kind in _PROBE.items():
        if isinstance(found.get(key), kind):
            checked[key] = found[key]
    for key in ("runtimes", "missing", "programs"):
        checked[key] = {
            name: text for name, text in checked.get(key, {}).items() if text is None or isinstance(text, str)
        }
    checked["environment"] = checked_environment(found.get("environment"))
    checked["conditions"] = plain(checked_conditions(found.get("conditions")))
    if not is_bytes(checked.get("free_bytes")):
        checked.pop("free_bytes", None)
    cache = checked.get("cache", {})
    if not (isinstance(cache.get("folder"), str) and all(is_bytes(cache.get(key)) for key in ("bytes", "limit"))):
        checked.pop("cache", None)
    return checked


def checked_environment(value: Any) -> dict[str, Any]:
    """A device's description of its machine; what is of another type than reports read is left out."""
    environment = plain_values(value)
    for key, good in (
        ("memory_bytes", is_bytes), ("cores", lambda cores: is_whole(cores, 1, MOST_CORES)),
        ("cpu_flags", lambda flags: isinstance(flags, list)), ("packages", lambda found: isinstance(found, dict)),
    ):  # fmt: skip
        if not good(environment.get(key)):
            environment.pop(key, None)
    return environment


def checked_conditions(value: Any) -> Conditions:
    """Clocks and temperatures at one moment: what no device has is left out."""
    found = plain_values({key: _mapping(value).get(key) for key in ("clock_khz", "temperature_c")})
    clocks, temperatures = (
        {name: number for name, number in _mapping(found[key]).items() if good(number)}
        for key, good in (("clock_khz", is_khz), ("temperature_c", is_celsius))
    )
    return Conditions(clocks, temperatures)


def checked_placement(value: Any) -> dict[str, Placement]:
    """Where Core ML runs operations, by compute units: counts and shares, or why there is no plan."""
    checked: dict[str, Placement] = {}
    for units, plan in plain_values(value, 4).items():
        if isinstance(plan, dict):
            operations, cost, elsewhere = (
                {name: number for name, number in _mapping(plan.get(key)).items() if good(number)}
                for key, good in (("operations", _is_operations), ("cost", is_share), ("elsewhere", _is_operations))
            )
            failed = plan["failed"] if isinstance(plan.get("failed"), str) else None
            checked[units] = Placement(operations, cost, elsewhere, failed)
    return checked


def _is_operations(value: Any) -> bool:
    return is_whole(value, 0, 10**6)


_PROBE: Mapping[str, type] = {
    "python": str, "system": str, "machine": str, "host": str, "boot": str, "runtimes": dict, "missing": dict,
    "compiler": str, "free_bytes": int, "jetpack": str, "tensorrt": dict,
    "programs": dict, "cache": dict,
}  # fmt: skip


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def told(device: Device, answer: Event, *names: str) -> list[str]:
    """Texts that an answer must have.

    Raises:
        DeviceError: it has not.
    """
    texts = [answer.get(name) for name in names]
    if not all(isinstance(text, str) and text.isprintable() and len(text) <= 4096 for text in texts):
        raise _nonsense(device, " and ".join(names))
    return [str(text) for text in texts]


def checked_latency(device: Device, value: Any, terms: Terms, by: str) -> Latency:
    """A latency of the agent's, with nothing in it that a measurement does not have.

    Args:
        terms: that were asked for.
        by: what runs the artifact there.

    Raises:
        DeviceError: samples that are no times, or another shape.
    """
    if not isinstance(value, dict):
        raise _nonsense(device, "a latency", value)
    rounds = value.get("rounds_ms")
    if rounds is not None and (value.get("scope") != terms.scope or value.get("mode") != terms.mode):
        raise _nonsense(device, "a latency's scope", value.get("scope"))
    if not isinstance(rounds, list) or not rounds or not all(isinstance(part, list) and part for part in rounds):
        raise _nonsense(device, "latency samples", rounds)
    if len(rounds) > MOST_ROUNDS:
        raise _nonsense(device, "latency samples", f"{len(rounds)} rounds")
    for part in (*rounds, value.get("warmup_ms"), [value.get("first_ms"), value.get("load_ms")]):
        _check_times(device, part)
    if sum(map(sum, rounds)) > MOST_MS:
        raise _nonsense(device, "latency samples, which are more than a day of them")
    peak = value.get("peak_rss_bytes")
    if peak is not None and not is_bytes(peak):
        raise _nonsense(device, "its memory", peak)
    jump = value.get("clock_set_seconds")
    return Latency(
        Provenance("measured", by), terms.mode, terms.scope, tuple(map(tuple, rounds)), warmup_ms=tuple(value["warmup_ms"]),
        first_ms=value["first_ms"], load_ms=value["load_ms"], peak_rss_bytes=peak,
        settings=plain_values(value.get("settings")),
        conditions=tuple(checked_conditions(entry) for entry in _list(value.get("conditions"))),
        clock_set_seconds=jump if jump is not None and is_number(jump) and abs(jump) < 1e10 else None,
    )  # fmt: skip


def _check_times(device: Device, value: Any) -> None:
    """Raise DeviceError for what is no list of times, with the first that is none."""
    if not isinstance(value, list):
        raise _nonsense(device, "latency samples", value)
    if not are_milliseconds(value):
        wrong = next(item for item in value if not is_milliseconds(item))
        raise _nonsense(device, "latency samples", wrong)


def checked_interval(device: Device, value: Any) -> LoadInterval:
    """One interval of a sustained load; see :func:`checked_latency`."""
    if not isinstance(value, dict) or not isinstance(value.get("samples_ms"), list) or not value["samples_ms"]:
        raise _nonsense(device, "latency samples")
    _check_times(device, value["samples_ms"])
    times: list[Any] = [value.get("begin_s"), value.get("end_s")]
    if not all(map(is_number, times)) or not 0 <= times[0] < times[1] <= MOST_MS / 1e3:
        raise _nonsense(device, "the times of an interval", times)
    return LoadInterval(times[0], times[1], checked_conditions(value), tuple(value["samples_ms"]))


@dataclass(frozen=True)
class Truth:
    """What of a frame's counts its labels alone decide, whatever is predicted.

    Attributes:
        pixels: int64 [C], of each class.
        class_weight, category_weight: float64 [C] and [K], the instances', hits and misses together.
        compared: whether the frame is also compared with float PyTorch's labels.
    """

    pixels: Int64
    class_weight: Float64
    category_weight: Float64
    compared: bool


def checked_frame(device: Device, value: Any, truth: Truth) -> Counted:
    """One frame's counts; see :func:`checked_latency`.

    Raises:
        DeviceError: another shape, or counts of other pixels than the frame's: too few, too many, or of other classes.
    """
    counts = value.get("counts") if isinstance(value, dict) else None
    if not isinstance(counts, dict):
        raise _nonsense(device, "a frame's counts")
    classes = len(truth.pixels)
    confusion, listed = np.zeros((classes, classes), np.int64), counts.get("confusion")
    if not isinstance(listed, list) or len(listed) > classes * classes:
        raise _nonsense(device, "a frame's counts")
    for entry in listed:
        if not isinstance(entry, list) or len(entry) != 3:
            raise _nonsense(device, "a frame's counts", entry)
        row, column, pixels = entry
        if not (is_whole(row, 0, classes - 1) and is_whole(column, 0, classes - 1) and is_whole(pixels, 1, 1 << 40)):
            raise _nonsense(device, "a frame's counts", entry)
        if confusion[row, column]:
            raise _nonsense(device, "a frame's counts, which has a pair of classes twice", entry)
        confusion[row, column] = pixels
    if not np.array_equal(confusion.sum(1), truth.pixels):
        said = f"{confusion.sum()} pixels where {truth.pixels.sum()} are labelled"
        raise _nonsense(device, "a frame's counts, which are not of the frame's pixels", said)
    hits: list[tuple[float, ...]] = []
    for kind, weight in (("class", truth.class_weight), ("category", truth.category_weight)):
        found = []
        for key in (f"{kind}_hits", f"{kind}_misses"):
            numbers = counts.get(key)
            if not isinstance(numbers, list) or len(numbers) != len(weight):
                raise _nonsense(device, "a frame's counts")
            if not all(is_number(number) and number >= 0 for number in numbers):
                raise _nonsense(device, "a frame's counts", numbers)
            hits.append(tuple(numbers))
            found.append(np.asarray(numbers, np.float64))
        if not np.allclose(sum(found), weight, rtol=1e-6, atol=1e-6):
            raise _nonsense(device, "a frame's counts, which are not of the frame's instances")
    agreement = value.get("agreement")
    if not (is_share(agreement) if truth.compared else agreement is None):
        raise _nonsense(device, "a frame's agreement", agreement)
    return Counted(Counts(listed, *hits), agreement)


def plain_values(value: Any, depth: int = 3) -> dict[str, Any]:
    """A device's own description of itself, as far as a report can hold it: short texts, numbers, lists and objects."""
    if not isinstance(value, dict):
        return {}
    return {clean_text(str(key), 60): _plain(item, depth) for key, item in list(value.items())[:200]}


def _plain(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool) or (is_number(value) and abs(value) < 1e15):
        return value  # no device has a quantity beyond it, and any text and any picture can show it
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, dict) and depth:
        return plain_values(value, depth - 1)
    if isinstance(value, list) and depth:
        return [_plain(item, depth - 1) for item in value[:200]]
    return "unavailable"


def _list(value: Any) -> Sequence[Any]:
    return value[:100_000] if isinstance(value, list) else []


def failure_of(device: Device, value: Any) -> ArtifactError:
    """Why one artifact could not be measured there."""
    text = value.get("text") if isinstance(value, dict) else value
    return ArtifactError(f"device '{device.name}': {clean_text(str(text), 600)}")
