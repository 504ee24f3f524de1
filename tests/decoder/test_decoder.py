"""The decoder: its C header in every form, the numpy path, and the way from one to the other."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from calibration import streets
from edgekit import decoder
from edgekit.core.errors import DataError
from edgekit.core.values import Size
from edgekit.decoder import compiled, plain

COMPILERS = [name for name in ("gcc", "clang") if shutil.which(name)] or ([] if not shutil.which("cc") else ["cc"])
FEATURES = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text())) if Path("/proc/cpuinfo").is_file() else set()
FORMS = {
    "scalar": ["-DEDGEKIT_DECODE_NO_SIMD"],
    "baseline": [],  # SSE2 or NEON
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mfma"],
}
"""What the header is compiled for. -mfma, so that GCC would fuse products and sums if it were let to."""

Decode = Callable[[np.ndarray, tuple[int, int]], np.ndarray]


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing of the tests stays in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def build(arguments: list[str], output: Path, source: str = "") -> None:
    """Run a compiler; a failure shows what it said."""
    done = subprocess.run([*arguments, "-o", str(output)], input=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, compiled.Library]:
    """The header as a library in every form that this machine can run; none where there is no compiler."""
    folder, built = tmp_path_factory.mktemp("libraries"), {}
    if not COMPILERS:
        return {}
    for form, flags in FORMS.items():
        if form.startswith("avx") and not {flag[2:] for flag in flags} <= FEATURES:
            continue
        contract = ["-ffp-contract=off"] if form == "scalar" else ["-ffp-contract=fast"]
        if COMPILERS[0] == "clang":
            contract = []
        command = [COMPILERS[0], "-O2", *flags, *contract, "-fPIC", "-shared", "-DEDGEKIT_DECODE_IMPLEMENTATION"]
        build([*command, "-x", "c", str(decoder.HEADER)], folder / f"{form}.so")
        built[form] = compiled.Library(folder / f"{form}.so")
    assert built["scalar"].instructions == "scalar"
    return built


@pytest.fixture(scope="module")
def every(libraries: dict[str, compiled.Library]) -> Decode:
    """Decode in every way there is, hold all to the same labels, and give them."""

    def decode(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        labels = np.full(size, 255, np.uint8)
        plain.decode(logits, labels)
        for form, library in libraries.items():
            other = np.full(size, 254, np.uint8)
            library.decode(logits, other, 1)
            assert np.array_equal(other, labels), f"{form}: {(other != labels).sum()} of {labels.size} pixels differ"
        return labels

    return decode


# ---- an independent reference ------------------------------------------------------------------------------------


def matrix(length: int, target: int) -> np.ndarray:
    """Bilinear interpolation with half-pixel centres along one axis: float64 [target, length]."""
    source = np.maximum((np.arange(target) + 0.5) * length / target - 0.5, 0)
    low = np.minimum(np.floor(source).astype(int), length - 1)
    result = np.zeros((target, length))
    for index in range(target):
        part = source[index] - low[index]
        result[index, low[index]] += 1 - part
        result[index, min(low[index] + 1, length - 1)] += part
    return result


def reference(logits: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and where they are clear: the best two classes differ by more than 1e-5 of the logits around them."""
    values = np.clip(np.nan_to_num(logits.astype(np.float64), nan=-1e38, posinf=1e38, neginf=-1e38), -1e38, 1e38)
    rows, columns = matrix(values.shape[1], size[0]), matrix(values.shape[2], size[1])
    full = rows @ values @ columns.T
    magnitude = (rows > 0).astype(float) @ np.abs(values).max(0) @ (columns > 0).astype(float).T
    best = np.sort(full, 0)[-2:]
    # 1e-37: this process may flush subnormals
    clear = (best[-1] - best[0] > 1e-5 * magnitude + 1e-37) if len(full) > 1 else np.ones(size, bool)
    return full.argmax(0), clear


def assert_right(labels: np.ndarray, logits: np.ndarray, size: tuple[int, int]) -> None:
    expected, clear = reference(logits, size)
    assert labels.dtype == np.uint8 and labels.shape == size
    assert labels.max() < len(logits)
    wrong = (labels != expected) & clear
    assert not wrong.any(), f"{wrong.sum()} wrong of {clear.sum()} clear pixels"


# ---- maps --------------------------------------------------------------------------------------------------------


def smooth(generator: np.random.Generator, classes: int, height: int, width: int) -> np.ndarray:
    """Like a network's: blurred regions with noise."""
    values = generator.standard_normal((classes, height, width)).astype(np.float32)
    for axis in (1, 2):
        for _ in range(2):
            values = (np.roll(values, 1, axis) + 2 * values + np.roll(values, -1, axis)) / 4
    return (20 * values).astype(np.float32)


def made(kind: str, generator: np.random.Generator, classes: int, height: int, width: int) -> np.ndarray:
    """A map of a kind: float32 [C, h, w], or one of the other types."""
    shape = (classes, height, width)
    values = generator.standard_normal(shape).astype(np.float32)
    board = (np.indices((height, width)).sum(0) + np.arange(classes)[:, None, None]) % max(classes, 2)
    maps: dict[str, Callable[[], np.ndarray]] = {
        "random": lambda: values,
        "smooth": lambda: smooth(generator, *shape),
        "checkerboard": lambda: board.astype(np.float32),
        "constant": lambda: np.zeros(shape, np.float32) + np.arange(classes, dtype=np.float32)[:, None, None] % 3,
        "equal": lambda: np.full(shape, 0.3, np.float32),
        "huge": lambda: values * np.float32(1e37),
        "small": lambda: values * np.float32(1e-30),
        "subnormal": lambda: (values * 1e-40).astype(np.float32),
        "mixed": lambda: (values * 10.0 ** generator.integers(-20, 20, shape)).astype(np.float32),
        "few": lambda: generator.integers(-2, 3, shape).astype(np.float32),
        "odd": lambda: generator.choice(np.array([np.nan, np.inf, -np.inf, 0, -0.0, 1, 3e38, -3e38], np.float32), shape),
        "half": lambda: generator.integers(0, 1 << 16, shape).astype(np.uint16).view(np.float16),
        "half subnormal": lambda: (generator.integers(0, 1 << 16, shape) & 0x87FF).astype(np.uint16).view(np.float16),
        "float16": lambda: (values * 4).astype(np.float16),
        "int8": lambda: generator.integers(-128, 128, shape).astype(np.int8),
        "uint8": lambda: generator.integers(0, 256, shape).astype(np.uint8),
    }  # fmt: skip
    return maps[kind]()


KINDS = (
    "random", "smooth", "checkerboard", "constant", "equal", "huge", "small", "subnormal", "mixed", "few", "odd", "half",
    "half subnormal", "float16", "int8", "uint8",
)  # fmt: skip

LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "nchw": np.ascontiguousarray,
    "nhwc": lambda a: np.ascontiguousarray(a.transpose(1, 2, 0)).transpose(2, 0, 1),
    "padded": lambda a: np.pad(a, ((1, 2), (3, 1), (2, 5)))[1:-2, 3:-1, 2:-5],
    "flipped": lambda a: np.ascontiguousarray(a[::-1, ::-1, ::-1])[::-1, ::-1, ::-1],
    "sparse": lambda a: np.repeat(a, 3, axis=2)[:, :, 1::3],
    "turned": lambda a: np.ascontiguousarray(a.transpose(0, 2, 1)).transpose(0, 2, 1),
    "unaligned": lambda a: np.rec.fromarrays([np.zeros(a.shape, np.uint8), a], names="other,logits")["logits"],
    "foreign": lambda a: a.astype(a.dtype.newbyteorder(">")),
}


@settings(max_examples=400, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    layout=st.sampled_from(list(LAYOUTS)),
    classes=st.integers(1, 40),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    tall=st.integers(1, 70),
    wide=st.integers(1, 70),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_map(
    every: Decode, kind: str, layout: str, classes: int, height: int, width: int, tall: int, wide: int, seed: int
) -> None:
    """Every form gives the same labels, bit for bit, and the right ones; larger and smaller maps, any layout."""
    logits = LAYOUTS[layout](made(kind, np.random.default_rng(seed), classes, height, width))
    assert_right(every(logits, (tall, wide)), logits, (tall, wide))


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((11, 45, 60), (360, 480)),
        ((5, 23, 31), (181, 245)),
        ((19, 16, 32), (128, 256)),
        ((3, 1, 1), (7, 9)),
        ((4, 1, 9), (1, 300)),
        ((4, 9, 1), (300, 1)),
        ((256, 5, 6), (40, 48)),
        ((1, 4, 4), (9, 9)),
        ((33, 17, 64), (17, 64)),  # nothing to resize
        ((7, 40, 50), (9, 13)),  # smaller
        ((6, 2, 3), (200, 333)),  # cells higher and wider than a block
    ],
)
@pytest.mark.parametrize("kind", ["random", "smooth", "checkerboard", "int8", "odd"])
def test_sizes(every: Decode, kind: str, shape: tuple[int, int, int], size: tuple[int, int]) -> None:
    logits = made(kind, np.random.default_rng(0), *shape)
    for layout in ("nchw", "nhwc"):
        assert_right(every(LAYOUTS[layout](logits), size), logits, size)


@pytest.mark.parametrize("kind", ["few", "int8", "uint8", "checkerboard", "constant", "equal"])
@pytest.mark.parametrize("ratio", [1, 2, 4, 8, 16, 32])
def test_exact_ties_go_to_the_lowest_class(every: Decode, kind: str, ratio: int) -> None:
    """Whole numbers and power-of-two ratios: no product or sum is rounded, so every pixel must be the reference's."""
    generator = np.random.default_rng(ratio)
    for classes in (2, 3, 9, 40):
        logits = made(kind, generator, classes, 6, 5)
        if kind in ("int8", "uint8"):
            logits = (logits // 64).astype(logits.dtype)  # many ties
        size = (6 * ratio, 5 * ratio)
        expected, _ = reference(logits, size)
        assert np.array_equal(every(logits, size), expected)


def test_not_finite(every: Decode) -> None:
    """A NaN and -infinity never lead where another class has a number; where all are NaN the lowest class stands."""
    logits = np.zeros((4, 3, 3), np.float32)
    logits[0], logits[1], logits[2] = np.nan, -np.inf, -5
    logits[3] = -6
    assert (every(logits, (24, 24)) == 2).all()
    assert (every(np.full((3, 2, 2), np.nan, np.float32), (5, 5)) == 0).all()
    logits[3, 1, 1] = np.inf
    assert every(logits, (24, 24))[12, 12] == 3
    logits[3] = np.inf
    assert (every(logits, (24, 24)) == 3).all()


def test_every_float16(every: Decode) -> None:
    """Each finite one against the next larger one."""
    values = np.sort(np.arange(1 << 16, dtype=np.uint16).view(np.float16))
    values = np.unique(values[np.isfinite(values)])  # -0 and 0 are one
    logits = np.stack([values[:-1], values[1:]])[:, None, :]
    assert (every(logits, (1, len(values) - 1)) == 1).all()
    assert (every(logits[::-1], (1, len(values) - 1)) == 0).all()


def test_a_class_that_leads_at_no_corner_can_win_between_them(every: Decode) -> None:
    logits = np.array([[[9, -9]], [[-9, 9]], [[5, 5]]], np.float32)
    assert every(logits, (1, 16)).tolist() == [[0] * 6 + [2] * 4 + [1] * 6]


def realistic(classes: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Logits like a network's for a drawn street at stride 8: float32 [C, h, w]."""
    labels = streets.draw("val", seed, max(64, 2 * height), max(64, 2 * width)).labels[: 2 * height, : 2 * width]
    one_hot = (labels[None] % classes == np.arange(classes)[:, None, None]).astype(np.float32)
    coarse = F.avg_pool2d(torch.from_numpy(one_hot)[None], 3, 2, 1)
    noise = torch.randn(coarse.shape, generator=torch.Generator().manual_seed(seed))
    return np.asarray((12 * F.avg_pool2d(coarse, 3, 1, 1) + 0.5 * noise)[0])


@pytest.mark.parametrize(("shape", "size"), [((19, 64, 128), (512, 1024)), ((11, 45, 60), (360, 480))])
def test_equals_pytorch(every: Decode, shape: tuple[int, int, int], size: tuple[int, int]) -> None:
    logits = realistic(*shape)
    labels = every(logits, size)
    assert len(np.unique(labels)) > 5
    full = F.interpolate(torch.from_numpy(logits)[None], size=size, mode="bilinear", align_corners=False)[0]
    best = full.topk(2, 0).values
    clear = (best[0] - best[1] > 1e-4).numpy()
    assert clear.mean() > 0.999
    assert np.array_equal(labels[clear], full.argmax(0).numpy()[clear])


# ---- the Python interface ----------------------------------------------------------------------------------------


def test_decode_and_path() -> None:
    logits = realistic(19, 32, 64)
    labels = decoder.decode(logits, Size(256, 512))
    expected = np.empty((256, 512), np.uint8)
    plain.decode(logits, expected)
    assert np.array_equal(labels, expected)
    assert np.array_equal(decoder.decode(logits, (256, 512)), expected)
    assert re.fullmatch(r"compiled by \S+.* \((avx512|avx2|sse2|neon|scalar)\)|numpy: .+", decoder.path())
    if COMPILERS and not os.environ.get("CC"):
        assert decoder.path().startswith("compiled by")


def test_out_is_written_in_place() -> None:
    logits = realistic(5, 8, 16)
    frame = np.full((70, 140), 77, np.uint8)
    out = frame[3:67, 5:133]
    assert decoder.decode(logits, (64, 128), out=out) is out
    assert np.array_equal(out, decoder.decode(logits, (64, 128)))
    frame[3:67, 5:133] = 77
    assert (frame == 77).all()


@pytest.mark.parametrize("threads", [1, 2, 3, 5, 64])
def test_threads_give_the_same_map(threads: int) -> None:
    logits = realistic(19, 23, 31)
    expected = decoder.decode(logits, (181, 245))
    assert np.array_equal(decoder.decode(logits, (181, 245), threads=threads), expected)
    assert np.array_equal(
        decoder.decode(logits[:, :1], (2, 245), threads=threads), decoder.decode(logits[:, :1], (2, 245))
    )


def test_calls_from_many_threads() -> None:
    logits = [realistic(7, 16, 16, seed) for seed in range(4)]
    expected = [decoder.decode(item, (100, 100)) for item in logits]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            found = pool.map(lambda item: decoder.decode(item, (100, 100), threads=2), logits)
            assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


FORK = """
import os, signal
import numpy as np
from edgekit import decoder

logits = np.random.default_rng(0).normal(size=(7, 16, 16)).astype(np.float32)
expected = decoder.decode(logits, (100, 100), threads=2)
child = os.fork()
if child == 0:
    signal.alarm(20)  # a child that waits for its parent's threads would wait for ever
    os._exit(0 if np.array_equal(decoder.decode(logits, (100, 100), threads=2), expected) else 1)
raise SystemExit(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_process_gets_threads_of_its_own() -> None:
    """In a process that holds nothing else: a fork of this one could go on as a second pytest."""
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"logits": [[[1.0]]]}, "not list"),
        ({"logits": np.zeros((2, 3))}, r"not float64 \[2, 3\]"),
        ({"logits": np.zeros((1, 2, 3, 4), np.float32)}, r"\[1, 2, 3, 4\]"),
        ({"logits": np.zeros((2, 3, 3), np.int64)}, "int64"),
        ({"logits": np.zeros((257, 2, 2), np.float32)}, "1 to 256 classes, not 257"),
        ({"logits": np.zeros((0, 2, 2), np.float32)}, "not 0"),
        ({"logits": np.zeros((2, 0, 2), np.float32)}, "0x2 cannot become"),
        ({"size": (0, 5)}, "0x5"),
        ({"size": (5, 65537)}, "5x65537"),
        ({"size": (5.5, 5)}, "5.5x5"),
        ({"threads": 0}, "at least 1"),
        ({"out": np.zeros((8, 9), np.uint8)}, r"\[8, 8\]"),
        ({"out": np.zeros((8, 8), np.int8)}, "uint8"),
        ({"out": np.zeros((8, 16), np.uint8)[:, ::2]}, "beside one another"),
        ({"out": np.zeros((8, 8), np.uint8)[::-1]}, "beside one another"),
        ({"out": np.broadcast_to(np.zeros(8, np.uint8), (8, 8))}, "writable"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], text: str) -> None:
    given_arguments = {"logits": np.zeros((2, 2, 2), np.float32), "size": (8, 8), **arguments}
    with pytest.raises(DataError, match=text) as caught:
        decoder.decode(**given_arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


# ---- the header --------------------------------------------------------------------------------------------------


def need_compiler() -> None:
    if not COMPILERS:
        pytest.skip("no C compiler on this machine")


def test_header_refuses_bad_arguments(libraries: dict[str, compiled.Library]) -> None:
    need_compiler()
    library = libraries["scalar"]
    numbers = dict(re.findall(r"(EDGEKIT_DECODE_[A-Z0-9_]+) = (-?\d+)", decoder.HEADER.read_text()))
    logits, labels, scratch = np.zeros((2, 3, 4), np.float32), np.zeros((8, 8), np.uint8), np.zeros(1 << 20, np.uint8)

    def call(
        data: int | None = logits.ctypes.data, type_: int = 0, classes: int = 2, height: int = 3, width: int = 4,
        to: int | None = labels.ctypes.data, tall: int = 8, wide: int = 8, stride: int = 8, first: int = 0, end: int = 8,
        memory: int | None = scratch.ctypes.data, size: int | None = None, nothing: int = 0,
    ) -> int:  # fmt: skip
        source = compiled._Logits(data, type_, classes, height, width, 12, 4, 1)
        target = compiled._Labels(to, tall, wide, stride)
        size = library._scratch_bytes(source, target) if size is None else size
        return int(library._decode(
            None if nothing == 1 else ctypes.byref(source), None if nothing == 2 else ctypes.byref(target), first, end,
            memory, size,
        ))  # fmt: skip

    assert call() == 0 and call(first=3, end=3) == 0
    for name, wrong in {
        "NULL_POINTER": [{"data": None}, {"to": None}, {"memory": None}, {"nothing": 1}, {"nothing": 2}],
        "UNKNOWN_TYPE": [{"type_": -1}, {"type_": 4}],
        "UNALIGNED": [{"data": logits.ctypes.data + 1}, {"data": logits.ctypes.data + 1, "type_": 3}],
        "CLASSES": [{"classes": 0}, {"classes": -1}, {"classes": 257}],
        "SIDES": [{side: bad} for side in ("height", "width", "tall", "wide") for bad in (0, -5, 65537, 2**31 - 1)],
        "LABEL_ROW_STRIDE": [{"stride": 7}, {"stride": -8}, {"stride": 0}],
        "ROWS": [{"first": -1}, {"end": 9}, {"first": 5, "end": 4}],
        "SCRATCH_TOO_SMALL": [{"size": 0}, {"size": 1000}],
    }.items():
        for arguments in wrong:
            labels[:] = 99
            status = call(**arguments)  # type: ignore[arg-type]
            assert status == int(numbers[f"EDGEKIT_DECODE_{name}"]), (name, arguments)
            assert (labels == 99).all()
            text = library._status_text(status).decode()
            assert text and text != "unknown status"
    assert library._status_text(-99) == b"unknown status"
    source, target = compiled._Logits(None, 9, 2, 3, 4, 0, 0, 0), compiled._Labels(None, 8, 8, 8)
    assert library._scratch_bytes(source, target) == 0
    source.type = 0
    exact = library._scratch_bytes(source, target)
    assert call(size=exact) == 0 and call(size=exact - 1) == int(numbers["EDGEKIT_DECODE_SCRATCH_TOO_SMALL"])


STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror", "-O2"]


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("language", [["-x", "c", "-std=c99"], ["-x", "c++", "-std=c++11"]], ids=["c99", "c++11"])
def test_header_compiles_without_a_warning(compiler: str, language: list[str], tmp_path: Path) -> None:
    if not shutil.which(compiler):
        pytest.skip(f"{compiler} is not installed")
    probe = subprocess.run([compiler, *language, "-fsyntax-only", "-"], input="", text=True, check=False)
    if probe.returncode != 0:
        pytest.skip(f"{compiler} has no {language[1]} compiler")
    twice = f'#include "{decoder.HEADER}"\n' * 2 + "int unused(void);\nint unused(void) { return 0; }\n"
    implementation = f"#define EDGEKIT_DECODE_IMPLEMENTATION\n{twice}"
    forms = [form for form in FORMS.values() if not form or form[0].startswith("-D") or FEATURES & {"avx2"}]
    for flags in forms:
        build([compiler, *language, *STRICT, *flags, "-c", "-"], tmp_path / "out.o", implementation)
    build([compiler, *language, *STRICT, "-c", "-"], tmp_path / "out.o", twice)  # what includes it gets no code
    private = "#define EDGEKIT_DECODE_FUNCTION static\n" + implementation
    build([compiler, *language, "-c", "-"], tmp_path / "out.o", private)


DRIVER = """
#define EDGEKIT_DECODE_IMPLEMENTATION
#include "edgekit_decode.h"
#include <stdio.h>
#include <stdlib.h>

static uint32_t state = 1;
static uint32_t below(uint32_t limit) {
    state = state * 1664525u + 1013904223u;
    return (uint32_t)(((uint64_t)(state >> 8) * limit) >> 24);
}
#define CHECK(condition) do { if (!(condition)) { printf("line %d: %s\\n", __LINE__, #condition); exit(1); } } while (0)

static const uint32_t odd[] = {0x7fc00000u, 0xffc00000u, 0x7f800001u, 0x7f800000u, 0xff800000u, 0x7f7fffffu, 0xff7fffffu,
                               0u, 0x80000000u, 1u, 0x807fffffu, 0x3f800000u, 0xbf800000u};

int main(void) {
    uint32_t sum = 0;
    for (int round = 0; round < 400; round++) {
        static const size_t sizes[] = {4, 1, 1, 2};
        const int32_t type = (int32_t)below(4), classes = 1 + (int32_t)below(round % 20 ? 40 : 256);
        const int32_t h = 1 + (int32_t)below(12), w = 1 + (int32_t)below(12);
        const int32_t H = 1 + (int32_t)below(60), W = 1 + (int32_t)below(60);
        const size_t count = (size_t)classes * (size_t)h * (size_t)w, bytes = count * sizes[type];
        const uint32_t kind = below(4);
        uint8_t *data = malloc(bytes), *map, *split, *scratch;
        edgekit_decode_logits logits = below(2) ? edgekit_decode_planar(data, type, classes, h, w)
                                                : edgekit_decode_interleaved(data, type, classes, h, w);
        edgekit_decode_labels labels = {NULL, H, W, W + (ptrdiff_t)below(5)};
        const size_t need = edgekit_decode_scratch_bytes(&logits, &labels);
        const size_t room = (size_t)labels.row_stride * (size_t)(H - 1) + (size_t)W, shift = below(64);
        CHECK(data && need > 0);
        for (size_t i = 0; i < bytes; i++) data[i] = (uint8_t)below(256); /* as floats: anything, NaN among it */
        for (size_t i = 0; type == 0 && kind != 0 && i < count; i++) {
            float value = kind == 1 ? (float)below(1000) - 500.0f : (float)below(3);
            memcpy(data + 4 * i, kind == 3 ? (const void *)&odd[below(13)] : (const void *)&value, 4);
        }
        if (below(4) == 0) { /* upside down and mirrored */
            logits.data = data + sizes[type] * (size_t)((h - 1) * logits.row_stride + (w - 1) * logits.column_stride);
            logits.row_stride = -logits.row_stride;
            logits.column_stride = -logits.column_stride;
        }
        map = malloc(room);
        split = malloc(room);
        scratch = malloc(need + shift);
        CHECK(map && split && scratch);
        memset(map, 0xee, room);
        memset(split, 0xee, room);
        labels.data = map;
        CHECK(edgekit_decode(&logits, &labels, 0, H, scratch + shift, need) == EDGEKIT_DECODE_OK);
        labels.data = split;
        for (int32_t y = 0; y < H;) {
            const int32_t end = y + 1 + (int32_t)below((uint32_t)(H - y));
            memset(scratch, (int)below(256), need + shift);
            CHECK(edgekit_decode(&logits, &labels, y, end, scratch + shift, need) == EDGEKIT_DECODE_OK);
            y = end;
        }
        CHECK(memcmp(map, split, room) == 0);
        for (size_t i = 0; i < room; i++) {
            CHECK((ptrdiff_t)i % labels.row_stride < W ? map[i] < classes : map[i] == 0xee);
            sum = sum * 31u + map[i];
        }
        free(data);
        free(map);
        free(split);
        free(scratch);
    }
    printf("%08x\\n", (unsigned)sum);
    return 0;
}
"""


def test_header_under_sanitizers(tmp_path: Path) -> None:
    """Random and odd maps in exactly as much memory as is asked for, whole and in pieces; the same with SIMD and without."""
    need_compiler()
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    program = tmp_path / "driver"
    probe = subprocess.run(
        [COMPILERS[0], *sanitize, "-x", "c", "-", "-o", str(program)], input="int main(void) { return 0; }", text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    if probe.returncode != 0 or subprocess.run([program], capture_output=True, check=False).returncode != 0:
        pytest.skip(f"{COMPILERS[0]} has no sanitizers here")
    sums = set()
    for flags in (["-DEDGEKIT_DECODE_NO_SIMD"], ["-march=native"]):
        command = [COMPILERS[0], "-std=c99", "-g", "-O0", *flags, *sanitize, f"-I{decoder.HEADER.parent}"]
        build([*command, "-x", "c", "-"], program, DRIVER)
        done = subprocess.run([program], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr[-3000:]
        sums.add(done.stdout)
    assert len(sums) == 1


# ---- compiling on first use --------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "edgekit" / "decoder"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile without optimization: these tests are about files."""
    need_compiler()
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(compiled, "OPTIMIZED", (("-O0",),))


def test_library_is_kept_and_found_again(cache: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiled._load().library is not None
    files = {path.name: path.read_bytes() for path in cache.iterdir()}
    assert sorted(Path(name).suffix for name in files) == [".sha256", ".so"]
    monkeypatch.setattr(compiled, "_compile", None)  # would raise
    assert compiled._load().library is not None
    assert files == {path.name: path.read_bytes() for path in cache.iterdir()}


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "unsealed", "another"])
def test_damaged_library_is_built_again(cache: Path, quick: None, damage: str) -> None:
    assert compiled._load().library is not None
    file = next(cache.glob("*.so"))
    whole, seal = file.read_bytes(), Path(f"{file}.sha256")
    file.unlink()  # not in place: this process has it mapped
    file.write_bytes({"cut": whole[:5000], "changed": whole[:-9] + b"x" + whole[-8:], "empty": b""}.get(damage, whole))
    if damage == "unsealed":
        seal.unlink()
    if damage == "another":  # sealed, but no library: it must not be trusted for its seal alone
        file.write_bytes(b"not a library")
        seal.write_text(compiled.sha256_bytes(b"not a library"))
    assert compiled._load().library is not None
    assert compiled.sha256_bytes(file.read_bytes()) == seal.read_text().strip()


def test_cache_that_cannot_be_used(tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert compiled._load().library is not None
    open_to_all = tmp_path / "cache" / "edgekit" / "decoder"
    open_to_all.mkdir(parents=True)
    open_to_all.chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert compiled._load().library is not None
    assert not list(open_to_all.iterdir())


def test_two_processes_at_once(cache: Path, quick: None) -> None:
    program = (
        "from edgekit.decoder import compiled; compiled.OPTIMIZED = (('-O0',),); print(compiled.load().description)"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]  # fmt: skip
    answers = [process.communicate()[0] for process in running]
    assert all(answer.startswith("compiled by") for answer in answers), answers
    assert sorted(path.suffix for path in cache.iterdir()) == [".sha256", ".so"]


def script(path: Path, text: str) -> Path:
    path.write_text("#!/bin/sh\n" + textwrap.dedent(text))
    path.chmod(0o755)
    return path


VERSION = 'if [ "$1" = --version ]; then echo "odd 1.2.3"; exit 0; fi\n'


@pytest.mark.skipif(os.name != "posix", reason="shell scripts")
@pytest.mark.parametrize(
    ("program", "text"),
    [
        ("exit 1", "failed"),
        (VERSION + "echo 'x.h:3: error: no such thing' >&2; exit 1", "error: no such thing"),
        (VERSION + "exit 0", "could not be made"),  # claims success, writes nothing
        (VERSION + 'for last; do :; done; while [ "$1" != -o ]; do shift; done; echo junk > "$2"', "cannot be loaded"),
    ],
)
def test_compiler_that_fails(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, text: str
) -> None:
    monkeypatch.setenv("CC", str(script(tmp_path / "odd", program)))
    loaded = compiled._load()
    assert loaded.library is None
    assert loaded.description.startswith("numpy: ") and text in loaded.description


def test_wrong_labels_are_not_trusted(
    cache: Path, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.which(COMPILERS[0])
    wrong = script(tmp_path / "wrong", f'[ "$1" = --version ] && exec {real} "$@"\nsed "s/_CMP_GT_OQ/_CMP_LT_OQ/; s/cmpgt/cmplt/; s/vcgtq/vcltq/; s/> best->/< best->/" | {real} "$@"')  # fmt: skip  # noqa: E501
    monkeypatch.setenv("CC", str(wrong))
    assert compiled._load().description == "numpy: the compiled decoder gives other labels than numpy"


def test_compiler_with_arguments_and_without_native(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_compiler()
    real = shutil.which(COMPILERS[0])
    monkeypatch.setattr(compiled, "OPTIMIZED", (("-O0", "-march=native"), ("-O0",)))
    old = script(
        tmp_path / "old", f'case "$*" in *native*) echo "error: no native" >&2; exit 1;; esac\nexec {real} "$@"'
    )
    monkeypatch.setenv("CC", f"{old} -g0")
    loaded = compiled._load()
    assert loaded.library is not None and loaded.description.startswith("compiled by old -g0 ")


CHILD = """
import sys
import numpy as np
from edgekit import decoder
assert not {"torch", "numba"} & set(sys.modules)
labels = decoder.decode(np.load(sys.argv[1]), (181, 245), threads=2)
np.save(sys.argv[2], labels)
print(decoder.path())
"""


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        ("/nonexistent", "$CC names '/nonexistent', which is not there"),
        ("", "no C compiler found (looked for cc, gcc, clang)"),
    ],
)
def test_process_without_a_compiler(tmp_path: Path, chosen: str, reason: str) -> None:
    logits = realistic(11, 23, 31)
    np.save(tmp_path / "logits.npy", logits)
    environment = {**os.environ, "PATH": "", "CC": chosen}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "logits.npy"), str(tmp_path / "labels.npy")], env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"numpy: {reason}"
    assert np.array_equal(np.load(tmp_path / "labels.npy"), decoder.decode(logits, (181, 245)))


def test_the_wheel_holds_the_header() -> None:
    import tomllib

    root = decoder.HEADER.parent.parent.parent
    if not (root / "pyproject.toml").is_file():
        pytest.skip("installed, no pyproject.toml to look at")
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["edgekit"]
    assert decoder.HEADER in {path for pattern in patterns for path in (root / "edgekit").glob(pattern)}
