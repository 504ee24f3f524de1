"""A fuzzer of everything that edgekit reads and did not write itself: what tools print, the agent's talk, files that people pass on.

``make fuzz`` gives each reader 25,000 damaged samples, ``python tests/devices/fuzz.py [INPUTS] [READER...]`` as many as asked for. The rule: a
reader returns a value within its bounds, or raises an EdgekitError of one plain line, in time that grows with its input and no faster.
"""

from __future__ import annotations

import copy
import json
import math
import random
import re
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import test_formats as printed

from edgekit.core.contract import Terms
from edgekit.core.errors import EdgekitError
from edgekit.core.files import sha256_bytes
from edgekit.core.measurement import Failure, Latency, read_row
from edgekit.core.quantities import LONGEST_MS, MOST_CORES, MOST_RUNS, SHORTEST_MS
from edgekit.core.text import parse_json, printable
from edgekit.core.values import ClassSet
from edgekit.devices import environment, inventory, remote
from edgekit.devices.agent import tools
from edgekit.devices.agent.serve import read_command
from edgekit.devices.formats import battery, benchmark_model, tegrastats, thermalservice, trtexec
from edgekit.devices.formats.text import clean_text
from edgekit.devices.inventory import EXAMPLE, Device, read_inventory
from edgekit.devices.ssh import explain
from edgekit.networks.checkpoint import read_metadata
from edgekit.pipeline.artifacts import MANIFEST_SCHEMA, load_artifact
from reports import markdown
from reports.counts import shown
from reports.document import ReportContext, analyse, build

INPUTS = 25_000
SECONDS = 2.0
"""Of processor time, that one input may take: none has more than some 100 KB."""
LINE = 1 << 15
"""Characters of one line that is one piece over and over."""
NOTICED = 0.08
"""Seconds for such a line below which nobody waits; a reader takes about a tenth of it."""
GROWTH = 3.0
"""By which time may grow where an input doubles; 2 is linear, and a machine that others use measures not exactly."""
Input = str | bytes


class Fault(Exception):
    """What a reader did that it must not do."""


@dataclass(frozen=True)
class Reader:
    """Something that reads.

    Attributes:
        read: of one input, its value; whatever it raises but an EdgekitError is a fault.
        samples: real ones, to damage.
        good: whether a value has what such a value can have.
        plain: whether its texts were made fit for a terminal already, and not at the border.
        bounded: it takes no more than 64 KB, and Python's own reader of its form, whose time may grow faster, does the rest.
    """

    read: Callable[[Input], Any]
    samples: Sequence[Input]
    good: Callable[[Any], bool] = lambda value: True
    plain: bool = True
    bounded: bool = False


# What is read --------------------------------------------------------------------------------------------------------

DEVICE = Device("board", "ssh", "board.local")
TRUTH = remote.Truth(np.array([5, 0, 7]), np.array([0.0, 0.0, 3.5]), np.array([3.5, 0.0]), True)
CLASSES = ClassSet(("a", "b", "c"), ("x", "x", "y"), ((0, 0, 0),) * 3)
CPUINFO = "processor\t: 0\nCPU part\t: 0xd05\nFeatures\t: fp asimd asimdhp i8mm\nprocessor\t: 1\nCPU part\t: 0xd44\n"
INVENTORY = (
    '[orin]\nkind = "ssh"\naddress = "me@orin.local"\nport = 22\nruns = ["tensorrt"]\ncache = "/data"\nemulated = "qemu"\n'
    '[pixel]\nkind = "adb"\naddress = "1A2B"\nbenchmark_model = "tools/benchmark_model"\nnotes = "mine"\ncache_megabytes = 100\n'
)
LATENCY = {
    "scope": "graph", "mode": "quick", "rounds_ms": [[1.0, 1.5], [2.0]], "warmup_ms": [1.0], "first_ms": 3.0, "load_ms": 4.0,
    "peak_rss_bytes": 1 << 20, "settings": {"threads": 4, "delegates": {"XNNPACK": "all"}}, "clock_set_seconds": 3.0,
    "conditions": [{"clock_khz": {"0-3": 1800000}, "temperature_c": {"cpu": 55.5}}],
}  # fmt: skip
INTERVAL = {"begin_s": 0.0, "end_s": 1.5, "samples_ms": [3.0, 4.0], **LATENCY["conditions"][0]}  # type: ignore[index]
FRAME = {
    "counts": {
        "confusion": [[0, 0, 4], [0, 2, 1], [2, 2, 7]], "class_hits": [0, 0, 3.0], "class_misses": [0, 0, 0.5],
        "category_hits": [3.5, 0], "category_misses": [0.0, 0.0],
    },
    "agreement": 0.75,
}  # fmt: skip
PROBE = {
    "python": "3.11", "system": "linux", "machine": "aarch64", "runtimes": {"onnxruntime": "1.2", "tflite": None}, "free_bytes": 10**9,
    "missing": {"tflite": "pip install x"}, "environment": {"cpu": "A", "cores": 4, "memory_bytes": 1 << 33, "packages": {"a": "1"}},
    "cache": {"folder": "/c", "bytes": 1, "limit": 2}, "conditions": LATENCY["conditions"][0],  # type: ignore[index]
    "tensorrt": {"gpu": "Orin", "trtexec": None},
}  # fmt: skip
PLACEMENT = {
    "ALL": {"operations": {"CPU": 3}, "cost": {"CPU": 1.0}, "elsewhere": {"conv": 1}},
    "CPU_ONLY": {"failed": "no"},
}
MEASUREMENT = {
    "schema": 1, "artifact": "onnxruntime-int8-24x48", "target": "onnxruntime", "title": "ONNX Runtime", "precision": "int8",
    "size": [24, 48], "output": "labels", "output_stride": 1, "model_bytes": 1000, "device": "board", "device_pages": [],
    "kept_float": ["head"], "notes": {"a": "b"}, "calibration": {"frames": 3, "dataset": "streets", "split": "train"},
    "environment": {"cpu": "A", "packages": {"a": "1"}},
    "accuracy": {
        "frames": ["a"], "counts": [FRAME["counts"]], "agreement": [0.75], "provenance": {"kind": "measured", "by": "x", "why": ""},
    },
    "latency": {**LATENCY, "provenance": {"kind": "measured", "by": "x", "why": ""}},
    "sustained": {"seconds": 3.0, "intervals": [INTERVAL], "settings": {}},
}  # fmt: skip
UNTIMED = {"provenance": {"kind": "not measured", "by": "", "why": "not asked for"}}
ABOUT = ReportContext(
    {"name": "net", "classes": ["a", "b", "c"]}, {"name": "streets", "split": "test", "frames": 1}, CLASSES.names, CLASSES, "edgekit run",
    "2026-01-01", "0.1",
)  # fmt: skip
MANIFEST = {
    "schema": MANIFEST_SCHEMA, "key": "ab", "target": "onnxruntime", "precision": "int8", "size": [64, 128], "class_names": ["a", "b"],
    "output": "labels", "output_stride": 1, "model": "model.onnx", "files": {"model.onnx": sha256_bytes(b"0")},
    "model_bytes": 1, "checkpoint": {"name": "net", "sha256": "ab"}, "training": {}, "recipe": {}, "calibration": {"frames": ["a"]},
    "kept_float": ["head"], "no_int8": [], "notes": {"a": "b"}, "tools": {}, "rewrites": [], "native_input": "x", "native_output": "y",
    "edgekit": "0.1.0", "command": "edgekit convert", "created": "2026-01-01",
}  # fmt: skip


def talk(use: Callable[[Any], Any]) -> Callable[[Input], Any]:
    """A line of an agent's, and what is made of it."""

    def read(text: Input) -> Any:
        message = remote.read_message(_text(text))
        return None if message is None else use(message)

    return read


def measurement(text: Input) -> Any:
    """As ``edgekit report`` takes one."""
    try:
        document = parse_json(text)
    except ValueError:
        return None
    row = read_row(document)
    return row if isinstance(row, Failure) else shown(row, CLASSES, TRUTH.pixels[None])


def page(text: Input) -> Any:
    """A device's page of a report, whose charts are not drawn, with a damaged measurement among good ones."""
    try:
        document = parse_json(text)
    except ValueError:
        return None
    good = {**MEASUREMENT, "device": "other"}
    floats = {
        **MEASUREMENT, "target": "pytorch", "precision": "fp32", "device": "local", "latency": UNTIMED, "sustained": None,
    }  # fmt: skip
    results = analyse([read_row(one) for one in (floats, good, document)], ABOUT)
    rows = build(results, ABOUT)["rows"]
    own = [result for result in results if result.row.artifact == document.get("artifact")]
    return (
        rows,
        markdown._measured_page("board", own, results, ABOUT, {}),
        markdown._index({"board": own}, results, ABOUT),
    )


def in_file(
    read: Callable[[Path], Any], name: str, beside: Mapping[str, bytes] | None = None
) -> Callable[[Input], Any]:
    """A reader of a file, alone in a folder or beside others."""
    folder = Path(_FOLDER.name, f"{len(list(Path(_FOLDER.name).iterdir()))}")
    folder.mkdir()
    for other, content in (beside or {}).items():
        (folder / other).write_bytes(content)

    def from_file(content: Input) -> Any:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode(errors="surrogatepass"))
        return read(folder / name)

    return from_file


_FOLDER = tempfile.TemporaryDirectory(prefix="edgekit-fuzz-")


def _text(content: Input) -> str:
    return content.decode(errors="replace") if isinstance(content, bytes) else content


def safetensors(metadata: Mapping[str, str]) -> bytes:
    header = {"__metadata__": metadata, "a.weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(8)


def _runs(run: benchmark_model.BenchmarkRun) -> bool:
    series = [run.inference, *([run.warmup] if run.warmup else [])]
    times = [run.init_ms, run.first_ms]
    for one in series:
        order = [v for v in (one.minimum_ms, one.p5_ms, one.median_ms, one.p95_ms, one.maximum_ms) if v is not None]
        if order != sorted(order) or not 1 <= one.count <= MOST_RUNS or (one.std_ms is not None and one.std_ms < 0):
            return False
        times += [*order, one.mean_ms, one.first_ms]
    return (
        all(value is None or SHORTEST_MS <= value <= LONGEST_MS for value in times)
        and all(0 <= one.share <= 1 and 0 <= one.mean_ms <= LONGEST_MS for one in run.operations)
        and all(size is None or size >= 0 for size in (run.footprint_bytes, run.peak_bytes))
        and all(one.nodes is None or one.of is None or one.nodes <= one.of for one in run.delegates)
    )


def _trtexec(run: trtexec.TrtexecRun) -> bool:
    return all(
        0 <= one.minimum <= one.median <= one.maximum <= LONGEST_MS
        and all(one.minimum <= value <= one.maximum for value in one.percentiles.values())
        for one in run.metrics.values()
    ) and (run.gpu_bytes is None or run.gpu_bytes >= 0)


def _latency(value: Any) -> bool:
    return value is None or all(SHORTEST_MS <= item <= LONGEST_MS for part in value.rounds_ms for item in part)


def _conditions(value: Any) -> bool:
    return value is None or all(-40 < heat < 200 for heat in value.temperatures)


def _counts(value: Any) -> bool:
    return value is None or sum(entry[2] for entry in value.counts.confusion) == TRUTH.pixels.sum()


def _shown(value: Any) -> bool:
    if value is None or isinstance(value, Failure):
        return True
    latency = value.latency
    timed = isinstance(latency, Latency) and latency.rounds_ms is not None
    return (not timed or _latency(latency)) and (value.accuracy is not None or value.accuracy_why != "")


READERS: dict[str, Reader] = {
    "benchmark_model": Reader(
        benchmark_model.parse,
        [printed.TFLITE_24, printed.LITERT_CLASSIC_GPU, printed.NNAPI_MISSING, printed.LITERT_OWN, printed.UNSUPPORTED + printed.TFLITE_24,
         printed.TFLITE_24.replace(printed.RUNS_24, printed.FULL)],
        _runs,
    ),
    "benchmark_model --help": Reader(benchmark_model.flags_of, [printed.CLASSIC_HELP, printed.OWN_HELP]),
    "trtexec": Reader(trtexec.parse_output, [printed.TRT_10, printed.TRT_11_BUILD, printed.PARSING], _trtexec),
    "trtexec, why": Reader(trtexec.why, [printed.PARSING, printed.TRT_10]),
    "trtexec --help": Reader(
        trtexec.parse_version, [printed.TRT_10, printed.TRT_11_BUILD], lambda version: all(0 <= part < 10000 for part in version)
    ),
    "trtexec --exportProfile": Reader(
        trtexec.parse_profile, [printed.PROFILE], lambda layers: all(0 <= one.mean_ms <= LONGEST_MS for one in layers)
    ),
    "trtexec --exportLayerInfo": Reader(trtexec.parse_layers, [printed.LAYERS]),
    "trtexec --exportTimes": Reader(
        in_file(lambda path: tools.exported_times(path, "computeMs", 1000), "times.json"),
        ['[\n  { "startMs" : 1, "computeMs" : 3.25, "latencyMs" : 4 }\n, { "computeMs" : 3.5 }\n]\n'],
    ),
    "tegrastats": Reader(
        tegrastats.parse,
        [printed.XAVIER_JP5, printed.ORIN_NANO_JP6, printed.AGX_ORIN_JP6, printed.THOR_JP7, printed.THOR_R38, printed.NANO_L4T32, printed.XAVIER_JP4],
        lambda samples: all(
            one.ram_bytes <= one.ram_total_bytes and len(one.cores) <= MOST_CORES and (one.gpu_load is None or one.gpu_load <= 100)
            and all(-40 < heat < 200 for heat in one.celsius.values()) and (one.watts is None or abs(one.watts) < 1e8)
            for one in samples
        ),
    ),
    "dumpsys thermalservice": Reader(
        thermalservice.parse, [printed.THERMAL_PIXEL],
        lambda heat: heat.name in thermalservice.STATUSES and all(-40 < value < 200 for value in heat.celsius.values()),
    ),
    "dumpsys battery": Reader(battery.parse, [printed.BATTERY], lambda found: 0 <= found.level <= 100),
    "words of a device": Reader(lambda text: clean_text(text, 200), ["ssh: connect to host\r\n\x1b[31mno\x1b[0m"], lambda text: len(text) <= 200),
    "ssh, why": Reader(
        lambda text: str(explain(DEVICE, clean_text(text, 600))), ["Permission denied (publickey).", "Host key verification failed."]
    ),
    "cpuinfo": Reader(
        lambda text: (environment.arm_cores(_text(text)), environment.cpu_flags(_text(text))), [CPUINFO], plain=False
    ),
    "cluster": Reader(lambda text: environment.cluster(*[*_text(text).split(":"), "", ""][:3]), ["0-3:schedutil:1800000"], plain=False),
    "devices.toml": Reader(in_file(read_inventory, "devices.toml"), [EXAMPLE, INVENTORY], bounded=True),
    "devices.toml, a device": Reader(
        talk(lambda value: inventory._device(Path("devices.toml"), "a", value)),
        [json.dumps(entry) for name, entry in tomllib.loads(INVENTORY).items()],
        lambda device: device is None or not device.address.startswith("-"),
    ),
    "agent: probe": Reader(talk(lambda value: remote.checked_probe(DEVICE, value)), [json.dumps(PROBE)]),
    "agent: latency": Reader(
        talk(lambda value: remote.checked_latency(DEVICE, value, Terms("quick", "graph"), "LiteRT")), [json.dumps(LATENCY)], _latency
    ),
    "agent: interval": Reader(talk(lambda value: remote.checked_interval(DEVICE, value)), [json.dumps(INTERVAL)]),
    "agent: frame": Reader(talk(lambda value: remote.checked_frame(DEVICE, value, TRUTH)), [json.dumps(FRAME)], _counts),
    "agent: conditions": Reader(talk(remote.checked_conditions), [json.dumps(LATENCY["conditions"][0])], _conditions),  # type: ignore[index]
    "agent: placement": Reader(talk(remote.checked_placement), [json.dumps(PLACEMENT)]),
    "agent: texts": Reader(talk(lambda value: remote.told(DEVICE, value, "folder", "key")), ['{"folder": "/a/b", "key": "ab"}']),
    "host: command": Reader(
        lambda text: read_command(_text(text)), ['{"do": "bench", "id": 3, "subjects": [{"artifact": "ab", "title": "t"}]}'],
        lambda command: command is None or isinstance(command["do"], str), plain=False,
    ),
    "measurement": Reader(measurement, [json.dumps(MEASUREMENT)], _shown, plain=False),
    "report": Reader(page, [json.dumps(MEASUREMENT)], lambda made: made is None or len(made[0]) >= 3, plain=False),
    "manifest": Reader(
        in_file(lambda path: load_artifact(path.parent), "manifest.json", {"model.onnx": b"0"}), [json.dumps(MANIFEST)], plain=False
    ),
    "safetensors": Reader(
        in_file(read_metadata, "a.safetensors"),
        [safetensors({"edgekit": json.dumps({"schema": 1, "network": "spssn", "classes": ["a"]})}), safetensors({})], plain=False,
    ),
}  # fmt: skip

# How it is damaged ---------------------------------------------------------------------------------------------------

NUMBERS = (
    "0", "-1", "1e999", "-1e999", "nan", "-nan", "inf", "5e-324", "9.9e8", "-5000", "1e99", "1000000000000000000", "9" * 19, "9" * 400,
    "9" * 5000, "1e+006", ".", "-", "1.", ".5", "0x10", "1_0", "٣", "²", "true", "",
)  # fmt: skip
PIECES = (
    "\x1b[31m", "\x1b]0;", "\r", "\n", "\0", "\u2028", "\u202e", "\ud800", "%s", "{0}", "count=", " avg=", "unit=us", "median=", "=", "==",
    "[", "]", "{", "}", '"', "\\", ":", ": ", ",", " ", "  " * 50, "mName=", " = ms", "(all same)", "ERROR: ", "[E] ", "&&&& PASSED",
    "--- Begin node ---", "a" * 300, "\\u0000", "../", "~", "$(touch x)", "'", ";",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, 10**400, 5e-324, 1e300, "x", "\x1b[2J\u202e", "", [], {}, [[]], [None], {"a": None}, -(10**20), 1 << 60,
    "9" * 5000, ["x"] * 3, "../../x",
)  # fmt: skip
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def damaged(sample: Input, random: random.Random) -> Input:
    """A sample with one to four things changed."""
    if isinstance(sample, bytes):
        return _damaged_bytes(sample, random)
    if sample.startswith(("{", "[{")) and random.random() < 0.5:
        return _damaged_json(sample, random)
    text = sample
    for _ in range(random.randint(1, 4)):
        first, last = sorted(random.randint(0, len(text)) for _ in range(2))
        kind = random.randrange(7)
        if kind <= 1 and (found := [match.span() for match in _NUMBER.finditer(text)]):
            begin, end = random.choice(found)
            text = text[:begin] + random.choice(NUMBERS) + text[end:]
        elif kind == 2:  # cut out
            text = text[:first] + text[last:]
        elif kind == 3:  # put in
            text = text[:first] + random.choice(PIECES) + text[first:]
        elif kind == 4:  # doubled, or many times over
            piece = text[first : min(last, first + 200)]
            text = text[:first] + piece * random.choice((2, 2, 3, 50)) + text[first:]
        elif kind == 5:  # moved
            piece = text[first:last]
            text = text[:first] + text[last:]
            place = random.randint(0, len(text))
            text = text[:place] + piece + text[place:]
        else:  # one sign
            text = (
                text[:first]
                + chr(random.choice((0, 9, 27, 32, 45, 58, 61, 123, 127, 155, 0x202E, random.randrange(0x3000))))
                + text[first + 1 :]
            )
    return text[: 1 << 17]


def _damaged_bytes(sample: bytes, random: random.Random) -> bytes:
    """As :func:`damaged`: of a file with a length at its beginning, whose header is JSON."""
    length = int.from_bytes(sample[:8], "little")
    if random.random() < 0.7:
        text = damaged(sample[8 : 8 + length].decode(), random)
        assert isinstance(text, str)
        header = text.encode(errors="surrogatepass")
        return len(header).to_bytes(8, "little") + header + sample[8 + length :]
    data = bytearray(sample)
    for _ in range(random.randint(1, 4)):
        place = random.randrange(len(data))
        if random.random() < 0.5:
            data[place] = random.choice((0, 1, 127, 128, 255))
        else:
            del data[place : place + random.randint(1, 40)]
        data = data or bytearray(1)
    return bytes(data)


def _damaged_json(sample: str, random: random.Random) -> str:
    """One value, anywhere in it, is another."""
    document = json.loads(sample)
    for _ in range(random.randint(1, 2)):
        places = list(_places(document))
        if not places:
            break
        inside, key = random.choice(places)
        if random.random() < 0.15:
            del inside[key]
        elif random.random() < 0.1 and isinstance(inside, list):
            inside *= 40
        else:
            inside[key] = copy.deepcopy(random.choice(VALUES))
    text = json.dumps(document)
    if random.random() < 0.05:
        text = text.replace("null", random.choice(("NaN", "Infinity", "1e999", "[" * 5000 + "]" * 5000, "9" * 5000)))
    return text


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key, item in list(
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield value, key
        yield from _places(item)


# What is held --------------------------------------------------------------------------------------------------------


def judged(reader: Reader, content: Input) -> str:
    """Read one input: ``read`` or ``refused``.

    Raises:
        Fault: the rule is broken.
    """
    try:
        with _limit(SECONDS):
            value = reader.read(content)
    except EdgekitError as error:
        said = str(error)
        if "\n" in said or len(said) > 4000 or not said or (reader.plain and printable(said) != said):
            raise Fault(f"its sentence is no plain line: {said!r:.300}") from error
        return "refused"
    except Fault:
        raise
    except Exception as error:
        raise Fault(f"{type(error).__name__}: {error!s:.200}") from error
    for part in _parts(value):
        if isinstance(part, float) and not math.isfinite(part):
            raise Fault(f"it gives {part}")
        if isinstance(part, str) and reader.plain and printable(part) != part:
            raise Fault(f"it gives the text {part!r:.100}")
    if not reader.good(value):
        raise Fault(f"it gives what cannot be: {value!r:.300}")
    return "read"


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from _parts(item)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            yield from _parts(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _parts(getattr(value, field.name))
    else:
        yield value


class _limit:
    """Processor time that the block may take; the regular expressions of Python look at signals, too."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        self._armed = True
        signal.signal(signal.SIGVTALRM, self._over)
        signal.setitimer(signal.ITIMER_VIRTUAL, self._seconds)

    def __exit__(self, *_: object) -> None:
        # The handler stays: a signal that comes late, to another thread, would end the process without one.
        self._armed = False
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)

    def _over(self, *_: object) -> None:
        if self._armed:
            raise Fault(f"it takes more than {self._seconds:g} s")


def fuzzed(reader: Reader, inputs: int, seed: int = 0) -> dict[str, int]:
    """How many inputs were read and refused.

    Raises:
        Fault: with the input.
    """
    counts = {"read": 0, "refused": 0}
    for number in range(inputs):
        generator = random.Random(f"{seed} {number}")
        content = damaged(generator.choice(reader.samples), generator)
        try:
            counts[judged(reader, content)] += 1
        except Fault as fault:
            raise Fault(f"{fault}; input {number}: {content!r:.2000}") from fault
    return counts


def pieces(reader: Reader, most: int | None = None) -> list[str]:
    """What lines are made of, one over and over: words of the samples, their halves, whole lines, and signs."""
    found: dict[str, None] = {}
    for sample in reader.samples:
        text = sample if isinstance(sample, str) else sample[8:].decode(errors="replace")
        for line in text.splitlines():
            words = re.findall(r"\s*\S+", line)
            for piece in (
                line,
                *words,
                *(a + b for a, b in pairwise(words)),
                *(word[:-1] for word in words),
            ):
                found.setdefault(piece)
    found |= dict.fromkeys((*PIECES, *"0 .-[{(\"'=", "1.", "1 ", "a=1 ", "0e", "-1", "\x1b[0"))
    listed = [piece for piece in found if piece]
    if most is not None and len(listed) > most:
        listed = random.Random(len(listed)).sample(listed, most)
    return listed


def grown(reader: Reader, most: int | None = None) -> int:
    """Hold that time grows no faster than the input, for lines of one piece over and over; how many were tried.

    Raises:
        Fault: with the piece.
    """
    tried = 0
    for piece in pieces(reader, most):
        for head, tail in (("", ""), ("count=5 ", " unit=us"), ("  level: 1", "x")):
            whole, half = (f"{head}{piece * (size // len(piece) + 1)}{tail}\n" for size in (LINE, LINE // 2))
            tried += 1
            if _seconds(reader, whole, piece) < NOTICED:
                continue
            took, before = (min(_seconds(reader, content, piece) for _ in range(3)) for content in (whole, half))
            if took > NOTICED and took > GROWTH * before and not reader.bounded:
                raise Fault(f"time grows from {before:.3f} s to {took:.3f} s where {head!r}{piece!r:.80}... doubles")
    return tried


def _seconds(reader: Reader, content: str, piece: str) -> float:
    begin = time.process_time()
    try:
        judged(reader, content)
    except Fault as fault:
        raise Fault(f"{fault}; a line of {piece!r:.100} over and over") from fault
    return time.process_time() - begin


def main() -> None:
    inputs = int(sys.argv[1]) if len(sys.argv) > 1 else INPUTS
    names = sys.argv[2:] or list(READERS)
    faults = 0
    for name in names:
        begin = time.monotonic()
        try:
            counts, tried = fuzzed(READERS[name], inputs), grown(READERS[name])
        except Fault as fault:
            faults += 1
            print(f"{name:26} FAULT {fault}", flush=True)
            continue
        print(
            f"{name:26}{sum(counts.values()):7} inputs: {counts['read']:6} read, {counts['refused']:6} refused; {tried:5} lines grown; "
            f"{time.monotonic() - begin:5.0f} s",
            flush=True,
        )
    print(f"{len(names) - faults} of {len(names)} readers keep the rule")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
