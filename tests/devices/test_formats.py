# ruff: noqa: E501 - the lines are the tools' own
"""Readers of vendors' output, on text in the tools' own forms, version by version, and on what devices add to it."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.core.errors import DeviceError
from edgekit.devices.formats import battery, benchmark_model, tegrastats, thermalservice, trtexec
from edgekit.devices.formats.text import LINE_LIMIT, clean_text, lines

# TensorFlow Lite 2.4's benchmark_model: no percentiles, no log prefix.
TFLITE_24 = """STARTING!
Log parameter values verbosely: [0]
Num threads: [4]
Graph: [/data/local/tmp/model.tflite]
#threads used for CPU inference: [4]
Loaded model /data/local/tmp/model.tflite
The input model file size (MB): 16.9008
Initialized session in 17.187ms.
Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
count=1 curr=3512391

Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
count=50 first=2990275 curr=2913402 min=2727568 max=3189954 avg=2.95034e+06 std=109798

Inference timings in us: Init: 17187, First inference: 3512391, Warmup (avg): 3.51239e+06, Inference (avg): 2.95034e+06
Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE to the actual memory footprint of the model at runtime. Take the information at your discretion.
Memory footprint delta from the start of the tool (MB): init=4.21094 overall=46.0859
"""

# LiteRT's classic tool with the GPU delegate on the whole graph, peak memory and a profile.
LITERT_CLASSIC_GPU = """INFO: STARTING!
INFO: Log parameter values verbosely: [0]
INFO: Num threads: [4]
INFO: Report the peak memory footprint: [1]
INFO: Graph: [/data/local/tmp/model.tflite]
INFO: Signature to run: []
INFO: Enable op profiling: [1]
INFO: Use gpu: [1]
INFO: Loaded model /data/local/tmp/model.tflite
INFO: Initialized TensorFlow Lite runtime.
INFO: Created TensorFlow Lite delegate for GPU.
INFO: GPU delegate created.
INFO: Loaded OpenCL library with dlopen.
VERBOSE: Replacing 58 out of 58 node(s) with delegate (TfLiteGpuDelegateV2) node, yielding 1 partitions for subgraph 0.
INFO: Initialized OpenCL-based API.
INFO: Created 1 GPU delegate kernels.
INFO: Explicitly applied GPU delegate, and the model graph will be completely executed by the delegate.
INFO: The input model file size (MB): 16.1527
INFO: Initialized session in 842.225ms.
INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
INFO: count=13 first=115098 curr=36666 min=32079 max=115098 avg=40199.8 std=21694 p5=32079 median=33000 p95=115098

INFO: Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
INFO: count=1694 first=35688 curr=33419 min=30394 max=42335 avg=35134.9 std=1733 p5=32100 median=35001 p95=38010

INFO: Inference timings in us: Init: 842225, First inference: 115098, Warmup (avg): 40199.8, Inference (avg): 35134.9
INFO: Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE to the actual memory footprint of the model at runtime. Take the information at your discretion.
INFO: Memory footprint delta from the start of the tool (MB): init=98.0977 overall=99.2031
INFO: Overall peak memory footprint (MB) via periodic monitoring: 74.6641
INFO: Memory status at the end of exeution:
INFO: - VmRSS              : 118 MB
INFO: Profiling Info for Benchmark Initialization:
============================== Run Order ==============================
\t             [node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\t ModifyGraphWithDelegate\t  839.149\t  839.149\t 99.992%\t 99.992%\t 46900.000\t        1\tModifyGraphWithDelegate/0
\t         AllocateTensors\t    0.067\t    0.067\t  0.008%\t100.000%\t     0.000\t        1\tAllocateTensors/0

Number of nodes executed: 2
INFO: Operator-wise Profiling Info for Regular Benchmark Runs:
============================== Run Order ==============================
\t             [node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\t                 CONV_2D\t    4.198\t    3.861\t 75.000%\t 75.000%\t     0.000\t        1\t[features/conv 0; relu]:0
\t       DEPTHWISE_CONV_2D\t    1.300\t    1.287\t 25.000%\t100.000%\t     0.000\t        1\t[features/conv 1]:1

============================== Top by Computation Time ==============================
\t             [node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\t                 CONV_2D\t    4.198\t    3.861\t 75.000%\t 75.000%\t     0.000\t        1\t[features/conv 0; relu]:0

Number of nodes executed: 2
============================== Summary by node type ==============================
\t             [Node type]\t  [count]\t  [avg ms]\t    [avg %]\t    [cdf %]\t  [mem KB]\t[times called]
\t                 CONV_2D\t        1\t     3.861\t    75.000%\t    75.000%\t     0.000\t        1

Timings (microseconds): count=1694 first=5498 curr=5100 min=5000 max=5600 avg=5148 std=90
Memory (bytes): count=0
2 nodes observed
"""

# NNAPI was asked for and does not exist: the tool runs on the CPU and does not fail.
NNAPI_MISSING = """INFO: STARTING!
INFO: Num threads: [4]
INFO: Graph: [m.tflite]
INFO: Use NNAPI: [1]
INFO: Loaded model m.tflite
WARN: NNAPI acceleration is unsupported on this platform.
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
VERBOSE: Replacing 58 out of 60 node(s) with delegate (TfLiteXNNPackDelegate) node, yielding 3 partitions for the whole graph.
INFO: count=9 first=81913 curr=55502 min=55502 max=81913 avg=58984.7 std=8115
INFO: count=3 curr=56000(all same)
INFO: Inference timings in us: Init: 3337, First inference: 81913, Warmup (avg): 58984.7, Inference (avg): 56000
"""

# LiteRT's own tool (litert/tools/benchmark_litert_model.h).
LITERT_OWN = """INFO: [benchmark_litert_model.cc:195] Loading model from: /data/local/tmp/model.tflite
VERBOSE: Replacing 284 out of 290 node(s) with delegate (DispatchDelegate) node, yielding 4 partitions for subgraph 0.
INFO: The input model file size (MB): 1.9
INFO: Initialized session in 120.5ms.
INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
INFO: count=40 first=20100 curr=12010 min=11990 max=20100 avg=12400 std=1200 p5=11995 median=12020 p95=13000

INFO: Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
INFO: count=83 first=12011 curr=12004 min=11980 max=12990 avg=12048.2 std=101 p5=11990 median=12030 p95=12200

INFO: [benchmark_litert_model.h:84]
========== BENCHMARK RESULTS ==========
INFO: [benchmark_litert_model.h:85] Model initialization: 120.50 ms
INFO: [benchmark_litert_model.h:86] Warmup (first):       20.10 ms
INFO: [benchmark_litert_model.h:88] Warmup (avg):         12.40 ms (40 runs)
INFO: [benchmark_litert_model.h:90] Inference (avg):      12.05 ms (83 runs)
INFO: [benchmark_litert_model.h:94] Inference (min):      11.98 ms
INFO: [benchmark_litert_model.h:96] Inference (max):      12.99 ms
INFO: [benchmark_litert_model.h:98] Inference (std):      0.10
INFO: [benchmark_litert_model.h:106] Throughput:           36.70 MB/s
INFO: [benchmark_litert_model.h:115]
Memory Usage:
INFO: [benchmark_litert_model.h:116] Init footprint:       10.00 MB
INFO: [benchmark_litert_model.h:118] Overall footprint:    20.50 MB
INFO: [benchmark_litert_model.h:123] Peak memory:          31.25 MB
======================================
"""


def test_an_old_classic_tool_prints_no_percentiles_and_large_numbers_in_exponents() -> None:
    run = benchmark_model.parse(TFLITE_24)
    assert (run.tool, run.init_ms, run.first_ms) == ("tflite", 17.187, 3512.391)
    assert (run.inference.count, run.inference.mean_ms, run.inference.median_ms) == (50, 2950.34, None)
    assert run.inference.cv == pytest.approx(109.798 / 2950.34)
    assert run.warmup is not None and (run.warmup.count, run.warmup.mean_ms) == (1, 3512.391)
    assert run.footprint_bytes == int(46.0859 * (1 << 20)) and run.peak_bytes is None
    assert run.delegates == () and run.operations == ()


def test_the_classic_tool_on_the_gpu_with_memory_and_a_profile() -> None:
    run = benchmark_model.parse(LITERT_CLASSIC_GPU)
    assert run.inference.count == 1694  # not the profile's own count= line, nor the warm-up's
    assert (run.inference.median_ms, run.inference.p5_ms, run.inference.p95_ms) == (35.001, 32.1, 38.01)
    assert run.peak_bytes == int(74.6641 * (1 << 20))
    assert run.delegates == (benchmark_model.Delegated("GPU", "all", 58, 58),)
    assert benchmark_model.fallback(run, "GPU") is None
    assert [(one.kind, one.name, one.mean_ms) for one in run.operations] == [
        ("CONV_2D", "[features/conv 0; relu]:0", 3.861),
        ("DEPTHWISE_CONV_2D", "[features/conv 1]:1", 1.287),
    ]
    assert run.operations[0].share == 0.75


def test_a_delegate_that_did_not_load_is_the_cpus_run() -> None:
    run = benchmark_model.parse(NNAPI_MISSING)
    assert benchmark_model.fallback(run, "NNAPI") == "NNAPI acceleration is unsupported on this platform"
    assert run.delegates[1] == benchmark_model.Delegated("XNNPACK", "part", 58, 60)
    assert (run.inference.count, run.inference.mean_ms, run.inference.std_ms) == (3, 56.0, 0.0)


@pytest.mark.parametrize(
    ("line", "share"),
    [
        ("INFO: Explicitly applied GPU delegate, and the model graph will be partially executed by the delegate w/ 3 delegate kernels.", "part"),
        ("Applied GPU delegate, and the model graph will be completely executed w/ the delegate", "all"),
        ("INFO: Though GPU delegate is explicitly applied, the model graph will not be executed by the delegate.", "none"),
        ("WARN: GPU acceleration is unsupported on this platform.", "none"),
    ],
)  # fmt: skip
def test_what_a_delegate_got_of_the_graph(line: str, share: str) -> None:
    run = benchmark_model.parse(f"{line}\n{TFLITE_24}")
    assert [one.share for one in run.delegates] == [share]
    assert (benchmark_model.fallback(run, "GPU") is None) == (share != "none")


def test_old_and_logged_forms_of_the_classic_tool() -> None:
    """TensorFlow 2.2 to 2.4 on Android: no share of how many, another memory line, and a start in the profile."""
    text = TFLITE_24.replace("Memory footprint delta from the start of the tool (MB)", "Peak memory footprint (MB)")
    text = "INFO: Replacing 1 node(s) with delegate (TfLiteGpuDelegateV2) node, yielding 1 partitions.\n" + text
    text += """Operator-wise Profiling Info for Regular Benchmark Runs:
============================== Run Order ==============================
\t             [node type]\t          [start]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\t                 CONV_2D\t            0.000\t    4.269\t    4.269\t  0.107%\t  0.107%\t     0.000\t        1\t[conv]:0
"""
    run = benchmark_model.parse(text)
    assert run.delegates == (benchmark_model.Delegated("GPU", "part", 1, None),)
    assert run.footprint_bytes == int(46.0859 * (1 << 20))
    assert run.operations == (benchmark_model.Operation("CONV_2D", "[conv]:0", 4.269, 0.00107),)
    logged = "".join(f"I tflite  : {line}\n" for line in TFLITE_24.splitlines())
    assert benchmark_model.parse(logged) == benchmark_model.parse(TFLITE_24)


@pytest.mark.parametrize(
    ("delegate", "name"),
    [
        ("LITERT_CL", "GPU"), ("TfLiteGpuDelegateV2", "GPU"), ("DispatchDelegate", "NPU"), ("TfLiteNnapiDelegate", "NNAPI"),
        ("TfLiteXNNPackDelegate", "XNNPACK"), ("TfLiteQnnDelegate", "TfLiteQnnDelegate"),
    ],
)  # fmt: skip
def test_delegates_have_one_name_whatever_the_runtime_calls_them(delegate: str, name: str) -> None:
    run = benchmark_model.parse(LITERT_OWN.replace("DispatchDelegate", delegate))
    assert [one.name for one in run.delegates] == [name] and benchmark_model.fallback(run, name) is None


def test_litert_has_a_tool_of_its_own() -> None:
    run = benchmark_model.parse(LITERT_OWN)
    assert run.tool == "litert"
    assert (run.init_ms, run.first_ms) == (120.5, 20.1)
    assert (run.inference.count, run.inference.median_ms) == (83, 12.03)
    assert run.warmup is not None and run.warmup.count == 40
    assert (run.footprint_bytes, run.peak_bytes) == (int(20.5 * (1 << 20)), int(31.25 * (1 << 20)))
    assert run.delegates == (benchmark_model.Delegated("NPU", "part", 284, 290),)


CLASSIC_HELP = """usage: ./benchmark_model <flags>
Flags:
\t--num_runs=50                              \tint32\toptional\texpected number of runs, see also min_secs, max_secs
\t--graph=                                   \tstring\toptional\tgraph file name
\t--input_layer_value_files=                 \tstring\toptional\tA map-like string representing value file.
\t--output_filepath=                         \tstring\toptional\tFile path to export outputs layer as binary data.
\t--use_gpu=false                            \tbool\toptional\tuse gpu
"""
OWN_HELP = CLASSIC_HELP.replace("input_layer_value_files", "use_npu").replace("output_filepath", "gpu_backend")


def test_help_tells_the_two_tools_apart_and_what_a_version_can_do() -> None:
    classic, own = benchmark_model.flags_of(CLASSIC_HELP), benchmark_model.flags_of(OWN_HELP)
    assert (benchmark_model.tool_of(classic), benchmark_model.tool_of(own)) == ("tflite", "litert")
    assert "output_filepath" in classic and "output_filepath" not in own
    with pytest.raises(DeviceError, match=r"give LiteRT's benchmark_model .*not found"):
        benchmark_model.flags_of("/system/bin/sh: benchmark_model: not found\n")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("INFO: STARTING!\nERROR: Failed to initialize model loader with path x\nERROR: Benchmarking failed.\n", "Failed to initialize model loader"),
        ("ERROR: Failed to apply GPU delegate.\nERROR: Benchmarking failed.", "Failed to apply GPU delegate"),
        ("E tflite  : The size of f.bin is 3 bytes. It should be 393216 bytes.", "It should be 393216 bytes"),
        ("CANNOT LINK EXECUTABLE \"./benchmark_model\": library \"libOpenCL.so\" not found", "CANNOT LINK EXECUTABLE"),
        (TFLITE_24.replace("2.95034e+06", "-2.95034e+06"), "which is no time"),
        ("INFO: count=0\nInference timings in us: Init: 1, First inference: 0, Warmup (avg): 0, Inference (avg): 0", "without a result"),
        ("", "nothing"),
    ],
)  # fmt: skip
def test_a_run_without_a_result_says_why(text: str, why: str) -> None:
    with pytest.raises(DeviceError, match=why):
        benchmark_model.parse(text)


def test_flags_that_a_version_does_not_know_are_told() -> None:
    run = benchmark_model.parse("WARN: Unconsumed cmdline flags: --output_filepath=/x --y=1\n" + TFLITE_24)
    assert run.ignored_flags == ("output_filepath", "y")


def test_a_summary_and_statistics_that_differ_are_not_believed() -> None:
    with pytest.raises(DeviceError, match="contradicts itself"):
        benchmark_model.parse(TFLITE_24.replace("Inference (avg): 2.95034e+06", "Inference (avg): 1"))


RUNS_24 = next(line for line in TFLITE_24.splitlines() if line.startswith("count=50"))
FULL = "count=50 first=2990275 curr=2913402 min=2727568 max=3189954 avg=2.95034e+06 std=109798 p5=2727600 median=2950000 p95=3189900"


@pytest.mark.timeout(20)
def test_a_field_that_nobody_knows_costs_neither_time_nor_the_result() -> None:
    """A newer version may print more: its line is read by its words, in time that grows with its length."""
    for more in (" unit=us", " p99=3189952", " p99.9=-", " unit=us" * 8000):
        assert benchmark_model.parse(TFLITE_24.replace(RUNS_24, RUNS_24 + more)) == benchmark_model.parse(TFLITE_24)
        run = benchmark_model.parse(TFLITE_24.replace(RUNS_24, FULL + more))
        assert (run.inference.median_ms, run.inference.p95_ms) == (2950.0, 3189.9)


@pytest.mark.parametrize(
    ("said", "instead", "why"),
    [
        (" avg=2.95034e+06", "", "no mean"), (" avg=2.95034e+06", " avg=nan", "avg=nan is no number"),
        ("median=2950000", "median=-5000", "median is -5 ms"), ("std=109798", "std=1e99", "std is 1e[+]96 ms"),
        ("count=50", "count=100000000000000000", "more than a day"), ("min=2727568", "min=3100000", "p5|between"),
        ("p5=2727600", "p5=3000000", "p5 is above median"), ("max=3189954", "max=3189800", "p95 is above max"),
        ("first=2990275", "first=990275", "first is not between"), ("min=2727568", "min=0", "min is 0 ms"),
        ("avg=2.95034e+06", "avg=3.95034e+06", "avg is not between"), ("median=2950000", "median=slow", "no number"),
        ("first=2990275", "first=5e-324", "first is"), ("max=3189954", "max=9.9e14", "max is 9.9e[+]11 ms"),
    ],
)  # fmt: skip
def test_statistics_that_no_runs_have_are_refused(said: str, instead: str, why: str) -> None:
    assert said in FULL
    with pytest.raises(DeviceError, match=rf"benchmark_model prints statistics that no runs have .*({why}).*count="):
        benchmark_model.parse(TFLITE_24.replace(RUNS_24, FULL.replace(said, instead)))


@pytest.mark.parametrize("name", ["first", "curr", "min", "max", "std", "p5", "median", "p95"])
def test_a_version_that_prints_less_is_read_all_the_same(name: str) -> None:
    run = benchmark_model.parse(TFLITE_24.replace(RUNS_24, re.sub(rf" {name}=\S+", "", FULL)))
    assert run.inference.mean_ms == 2950.34


@pytest.mark.parametrize(
    ("said", "instead"),
    [
        ("Init: 17187", "Init: 1e60"), ("First inference: 3512391", "First inference: -3512391"),
        ("Warmup (avg): 3.51239e+06", "Warmup (avg): 9.9e14"),
    ],
)  # fmt: skip
def test_a_summary_that_no_run_has_is_refused(said: str, instead: str) -> None:
    assert said in TFLITE_24
    with pytest.raises(DeviceError, match=r"benchmark_model prints times that no run has: 'Inference timings"):
        benchmark_model.parse(TFLITE_24.replace(said, instead))


def test_the_warm_up_is_never_taken_for_the_inference() -> None:
    """Old tools print the root of a rounded zero, which may be -nan, and a series may have been cut off."""
    warm = "count=29 first=17100 curr=17300 min=17000 max=17400 avg=17210 std=80"
    runs = "count=50 first=17200 curr=17300 min=17100 max=17400 avg=17220 std=-nan"
    text = (
        "STARTING!\nRunning benchmark for at least 1 iterations and at least 0.5 seconds\n{warm}\n\n"
        "Running benchmark for at least 50 iterations and at least 1 seconds\n{runs}\n\n{summary}\n"
    )
    new = "Inference timings in us: Init: 3000, First inference: 17100, Warmup (avg): 17210, Inference (avg): 17220"
    run = benchmark_model.parse(text.format(warm=warm, runs=runs, summary=new))
    assert (run.inference.count, run.inference.std_ms, run.inference.mean_ms) == (50, None, 17.22)
    assert run.warmup is not None and run.warmup.count == 29
    for old in ("no stats", "Inference"):
        summary = f"Average inference timings in us: Warmup: 17210, Init: 3000, {old}: 17220"
        run = benchmark_model.parse(text.format(warm=warm, runs=runs, summary=summary))
        assert (run.inference.count, run.init_ms, run.first_ms) == (50, 3.0, None)
    for cut in ("", "count=0", runs[:30]):
        with pytest.raises(DeviceError, match=r"without a result|no runs have"):
            benchmark_model.parse(text.format(warm=warm, runs=cut, summary=new))


def test_memory_that_nothing_has_is_not_told_and_the_times_stand() -> None:
    for text, said in ((TFLITE_24, "overall=46.0859"), (LITERT_OWN, "Overall footprint:    20.50")):
        for instead in ("-3.5", "1e30"):
            assert said in text
            run = benchmark_model.parse(text.replace(said, re.sub(r"[0-9.]+$", instead, said)))
            assert run.footprint_bytes is None and run.inference.mean_ms > 0
    with pytest.raises(DeviceError, match=r"a time that no run has: .*Model initialization"):
        benchmark_model.parse(LITERT_OWN.replace("initialization: 120.50", "initialization: -120.50"))


UNSUPPORTED = """INFO: Created TensorFlow Lite delegate for GPU.
ERROR: Following operations are not supported by GPU delegate:
ARG_MAX: Operation is not supported.
RESIZE_BILINEAR: Half pixel centers are not supported.
63 operations will run on the GPU, and the remaining 5 operations will run on the CPU.
INFO: Initialized OpenCL-based API.
"""


@pytest.mark.parametrize(
    "prefix", ["", "E tflite  : ", "05-31 10:38:42.607 22206 22206 E tflite  : ", "E/tflite ( 2220): "]
)
def test_operations_that_a_delegate_lacks_and_a_crash_are_told(prefix: str) -> None:
    text = UNSUPPORTED if not prefix else "".join(
        f"{prefix if not line.startswith('INFO') else prefix.replace('E', 'I')}{line.removeprefix('ERROR: ')}\n"
        for line in UNSUPPORTED.splitlines()
    )  # fmt: skip
    with pytest.raises(DeviceError) as error:
        benchmark_model.parse(f"{text}Segmentation fault\n", 139)
    said = str(error.value)
    assert "ended without a result (ended by SIGSEGV, exit code 139)" in said
    assert "GPU delegate: ARG_MAX: Operation is not supported.; RESIZE_BILINEAR: Half pixel centers" in said
    assert "63 operations will run on the GPU" in said and said.endswith("the last it said: Segmentation fault")
    # Where it goes on without the GPU, the reason is the same.
    run = benchmark_model.parse(text + TFLITE_24)
    assert "ARG_MAX: Operation is not supported." in str(benchmark_model.fallback(run, "GPU"))


# trtexec.

TRT_10 = """&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # /usr/src/tensorrt/bin/trtexec --loadEngine=m.engine --useCudaGraph
[05/13/2025-10:36:40] [I] === Device Information ===
[05/13/2025-10:36:40] [I] Available Devices:
[05/13/2025-10:36:40] [I]   Device 0: "Orin" UUID: GPU-00000000-0000-0000-0000-000000000000
[05/13/2025-10:36:40] [I] Selected Device: Orin
[05/13/2025-10:36:40] [I] Selected Device ID: 0
[05/13/2025-10:36:40] [I] Compute Capability: 8.7
[05/13/2025-10:36:40] [I] SMs: 16
[05/13/2025-10:36:40] [I] TensorRT version: 10.3.0
[05/13/2025-10:36:40] [I] [TRT] Loaded engine size: 3 MiB
[05/13/2025-10:36:40] [I] Engine deserialized in 0.0155 sec.
[05/13/2025-10:36:40] [I] [TRT] [MemUsageChange] TensorRT-managed allocation in IExecutionContext creation: CPU +0, GPU +28, now: CPU 0, GPU 30 (MiB)
[05/13/2025-10:36:43] [I] Warmup completed 310 queries over 1000 ms
[05/13/2025-10:36:46] [I] Timing trace has 956 queries over 3.00622 s
[05/13/2025-10:36:46] [I]
[05/13/2025-10:36:46] [I] === Performance summary ===
[05/13/2025-10:36:46] [I] Throughput: 318.007 qps
[05/13/2025-10:36:46] [I] Latency: min = 3.12671 ms, max = 3.15479 ms, mean = 3.14068 ms, median = 3.14062 ms, percentile(50%) = 3.14062 ms, percentile(90%) = 3.14587 ms, percentile(99%) = 3.15039 ms
[05/13/2025-10:36:46] [I] Enqueue Time: min = 0.844238 ms, max = 2.05505 ms, mean = 0.887139 ms, median = 0.872437 ms, percentile(50%) = 0.87 ms, percentile(90%) = 0.932861 ms, percentile(99%) = 1.0658 ms
[05/13/2025-10:36:46] [I] H2D Latency: min = 0 ms, max = 0 ms, mean = 0 ms, median = 0 ms, percentile(50%) = 0 ms, percentile(90%) = 0 ms, percentile(99%) = 0 ms
[05/13/2025-10:36:46] [I] GPU Compute Time: min = 3.12671 ms, max = 3.15479 ms, mean = 3.14068 ms, median = 3.14062 ms, percentile(50%) = 3.14062 ms, percentile(90%) = 3.14587 ms, percentile(99%) = 3.15039 ms
[05/13/2025-10:36:46] [I] D2H Latency: min = 0 ms, max = 0 ms, mean = 0 ms, median = 0 ms, percentile(50%) = 0 ms, percentile(90%) = 0 ms, percentile(99%) = 0 ms
[05/13/2025-10:36:46] [I] Total Host Walltime: 3.00622 s
[05/13/2025-10:36:46] [I] Total GPU Compute Time: 3.00249 s
[05/13/2025-10:36:46] [W] * GPU compute time is unstable, with coefficient of variance = 4.21%.
[05/13/2025-10:36:46] [W]   If not already in use, locking GPU clock frequency or adding --useSpinWait may improve the stability.
[05/13/2025-10:36:46] [I] Explanations of the performance metrics are printed in the verbose logs.
[05/13/2025-10:36:46] [I]
&&&& PASSED TensorRT.trtexec [TensorRT v100300] # /usr/src/tensorrt/bin/trtexec --loadEngine=m.engine --useCudaGraph
"""
TRT_11_BUILD = """&&&& RUNNING TensorRT.trtexec [TensorRT v110401] [b12] # trtexec --onnx=m.onnx --saveEngine=m.engine --skipInference
[11/20/2026-10:00:00] [I] TensorRT version: 11.4.1
[11/20/2026-10:00:09] [I] [TRT] Total Host Persistent Memory: 18976
[11/20/2026-10:00:09] [I] [TRT] Total Device Persistent Memory: 1024
[11/20/2026-10:00:09] [I] [TRT] Total Scratch Memory: 512 bytes
[11/20/2026-10:00:09] [I] [TRT] Total Activation Memory: 31744 bytes
[11/20/2026-10:00:09] [I] [TRT] Total Weights Memory: 25704 bytes
[11/20/2026-10:00:10] [I] Engine built in 9.87 sec.
[11/20/2026-10:00:10] [I] Skipped inference phase since --skipInference is added.
&&&& PASSED TensorRT.trtexec [TensorRT v110401] [b12] # trtexec --onnx=m.onnx --saveEngine=m.engine --skipInference
"""


def test_a_timing_run_of_tensorrt_10() -> None:
    run = trtexec.parse_output(TRT_10)
    assert (run.version, run.gpu, run.compute_capability) == ((10, 3, 0), "Orin", "8.7")
    assert (run.queries, run.throughput, run.seconds) == (956, 318.007, 0.0155)
    compute = run.metrics["GPU Compute Time"]
    assert (compute.median, compute.percentiles[90.0]) == (3.14062, 3.14587)
    assert run.gpu_bytes == 30 << 20
    assert trtexec.unstable(run) == pytest.approx(0.0421)


def test_tensorrt_8_prints_another_latency_too() -> None:
    """8.0 to 8.2: the end to end one overlaps queries, and is not the latency."""
    latency = next(line for line in TRT_10.splitlines() if "] Latency:" in line)
    other = latency.replace("Latency:", "End-to-End Host Latency:").replace("3.1", "9.9")
    old = TRT_10.replace(latency, f"{latency}\n{other}").replace("v100300", "v8201").replace("10.3.0", "8.2.1")
    run = trtexec.parse_output(old)
    assert run.version == (8, 2, 1) and run.metrics == trtexec.parse_output(TRT_10).metrics


def test_a_build_of_tensorrt_11() -> None:
    run = trtexec.parse_output(TRT_11_BUILD)
    assert (run.version, run.seconds, run.queries, run.metrics) == ((11, 4, 1), 9.87, None, {})
    assert run.gpu_bytes == 1024 + 512 + 31744 + 25704
    assert trtexec.unstable(run) is None


@pytest.mark.parametrize(
    ("banner", "version"),
    [
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v8502] # trtexec --help", (8, 5, 2)),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v8.6.1]", (8, 6, 1)),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v11.1.0.106] [b48] # trtexec --help", (11, 1, 0)),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec --help", (10, 3, 0)),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v101303] [b9]", (10, 13, 3)),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v110100] [b106] # trtexec --help", (11, 1, 0)),
        ("[I] TensorRT version: 11.2.1", (11, 2, 1)),
    ],
)
def test_versions_of_trtexec(banner: str, version: tuple[int, int, int]) -> None:
    assert trtexec.parse_version(f"\x1b[32m{banner}\x1b[0m\r\n=== Model Options ===\n") == version


def test_commands_mean_the_same_on_10_and_11() -> None:
    ten, eleven = (
        trtexec.build_command(version, "m.onnx", "e", "cache", "layers.json") for version in ((10, 3, 0), (11, 4, 1))
    )
    assert set(ten) - set(eleven) == {"--stronglyTyped"} and not set(eleven) - set(ten)
    for transfers, extra in ((False, {"--noDataTransfers"}), (True, {"--includeDataTransfers"})):
        ten, eleven = (
            trtexec.time_command(version, "e", trtexec.Timing(3, 2, 1, transfers, True), "t", "p")
            for version in ((10, 3, 0), (11, 4, 1))
        )
        assert set(ten) ^ set(eleven) == (extra if transfers else set())
        assert {"--useCudaGraph", "--useSpinWait", "--separateProfileRun"} <= set(ten) & set(eleven)
    with pytest.raises(DeviceError, match="JetPack 6"):
        trtexec.build_command((8, 5, 2), "m.onnx", "e", "cache", "layers.json")


def test_failures_say_what_failed_first() -> None:
    text = """&&&& RUNNING TensorRT.trtexec [TensorRT v110201] [b3] # trtexec --onnx=m.onnx
[09/25/2026-10:00:02] [E] [TRT] ITensor::getDimensions: Error Code 4: API Usage Error (/Sub: must have same input types.)
[09/25/2026-10:00:02] [E] Failed to parse onnx file
[09/25/2026-10:00:02] [E] Engine set up failed
&&&& FAILED TensorRT.trtexec [TensorRT v110201] [b3] # trtexec --onnx=m.onnx
"""
    with pytest.raises(DeviceError, match=r"trtexec failed: \[TRT\] ITensor.*; Failed to parse onnx file$"):
        trtexec.parse_output(text)
    unknown = """[10/05/2025-10:46:31] [E] Unknown option: --buildOnly \n[10/05/2025-10:46:31] [E] Unknown option: --fp8 1
&&&& FAILED TensorRT.trtexec [TensorRT v100300] # trtexec --buildOnly"""
    with pytest.raises(DeviceError, match="does not know --buildOnly, --fp8"):
        trtexec.parse_output(unknown)
    with pytest.raises(DeviceError, match="trtexec failed: sh: 1: trtexec: not found"):
        trtexec.parse_output("sh: 1: trtexec: not found\n")
    with pytest.raises(DeviceError, match="trtexec failed"):  # killed before its last line
        trtexec.parse_output(TRT_10.partition("&&&& PASSED")[0])


PARSING = """&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec --onnx=m.onnx
[06/13/2025-19:41:36] [I] [TRT] ----------------------------------------------------------------
[06/13/2025-19:41:36] [E] [TRT] parsers/onnx/ModelImporter.cpp:961: While parsing node number 267 [Conv -> "/layers.0/Conv_output_0"]:
[06/13/2025-19:41:36] [E] [TRT] parsers/onnx/ModelImporter.cpp:964: --- Begin node ---
input: "/Reshape_output_0"
name: "/layers.0/Conv"
attribute {
  name: "strides"
}
[06/13/2025-19:41:36] [E] [TRT] parsers/onnx/ModelImporter.cpp:965: --- End node ---
[06/13/2025-19:41:36] [E] [TRT] parsers/onnx/ModelImporter.cpp:967: ERROR: parsers/onnx/ModelImporter.cpp:202 In function parseNode:
[6] Invalid Node - /layers.0/Conv
[graphShapeAnalyzer.cpp::processCheck::581] Error Code 4: Internal Error (two inputs of /layers.0/Conv do not fit.)
[06/13/2025-19:41:36] [E] Failed to parse onnx file
[06/13/2025-19:41:36] [I] Finished parsing network model. Parse time: 0.1
[06/13/2025-19:41:36] [E] Engine set up failed
&&&& FAILED TensorRT.trtexec [TensorRT v100300] # trtexec --onnx=m.onnx
"""


def test_a_parsers_error_is_told_with_its_reason() -> None:
    """Of TensorRT 10.3 on an Orin (NVIDIA/TensorRT#4488); older versions print the node behind their prefix."""
    older = PARSING.replace(
        'input: "/Reshape', '[06/13/2025-19:41:36] [E] [TRT] parsers/onnx/ModelImporter.cpp:742: input: "/Reshape'
    )
    for text in (PARSING, older):
        with pytest.raises(DeviceError) as error:
            trtexec.parse_output(text)
        said = str(error.value)
        assert 'While parsing node number 267 [Conv -> "/layers.0/Conv_output_0"]: ' in said
        assert "[6] Invalid Node - /layers.0/Conv [graph" in said and "two inputs of /layers.0/Conv do not fit" in said
        assert "strides" not in said and "Begin node" not in said and len(said) < 700
        assert trtexec.why(text) in said


@pytest.mark.parametrize(
    ("said", "instead", "why"),
    [
        ("max = 3.15479", "max = 3.0", "between min and max"), ("mean = 3.14068", "mean = -3.14068", "mean is no time"),
        ("median = 3.14062", "median = inf", "median is no time"), ("mean = 3.14068", "mean = 9.9e8", "mean is no time"),
        ("percentile(99%) = 3.15039", "percentile(99%) = 3.13", "percentiles do not rise"),
        ("median = 3.14062 ms, ", "", "there is no median"), ("Throughput: 318.007", "Throughput: -1", "throughput"),
        ("has 956 queries", "has 999999999999999999 queries", "number of queries"),
        ("deserialized in 0.0155", "deserialized in 1e30", "a time"),
    ],
)  # fmt: skip
def test_what_no_run_of_trtexec_has_is_refused(said: str, instead: str, why: str) -> None:
    assert said in TRT_10
    with pytest.raises(DeviceError, match=rf"trtexec prints what no run has, .*{why}"):
        trtexec.parse_output(TRT_10.replace(said, instead))


@pytest.mark.parametrize(
    "line",
    [
        "[E] [TRT] 6: The engine plan file is generated on an incompatible device, expecting compute 8.7 got compute 7.2, please rebuild.",
        "[E] [TRT] IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (The engine plan file is not compatible with this version of TensorRT, expecting library version 10.3.0.30 got 10.7.0.23, please rebuild.)",
        "[W] [TRT] Using an engine plan file across different models of devices is not recommended and is likely to affect performance or even cause errors.",
    ],
)  # fmt: skip
def test_an_engine_of_another_gpu_is_known(line: str) -> None:
    assert trtexec.built_elsewhere(line)
    assert not trtexec.built_elsewhere(TRT_10)


def test_exports() -> None:
    profile = """[
  { "count" : 310 }
, { "name" : "/head/conv/Conv + /head/relu/Relu", "timeMs" : 310.5, "averageMs" : 1.0, "medianMs" : 0.99, "percentage" : 80.0 }
, { "name" : "argmax", "timeMs" : 77.6, "averageMs" : 0.25, "medianMs" : 0.25, "percentage" : 20.0 }
]
"""
    layers = trtexec.parse_profile(profile)
    assert [(layer.name, layer.share) for layer in layers] == [
        ("/head/conv/Conv + /head/relu/Relu", 0.8),
        ("argmax", 0.2),
    ]
    info = {
        "Layers": [
            {"Name": "a", "Outputs": [{"Name": "x", "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}]},
            {"Name": "b", "Outputs": [{"Name": "y", "Format/Datatype": "Row major linear FP16 format"}]},
            {"Name": "c", "Outputs": [{"Name": "z", "Format/Datatype": "Int8"}]},
            {"Name": "d", "Outputs": []},
            "e",
        ],
        "Bindings": ["frame", "labels"],
    }  # fmt: skip
    assert trtexec.parse_layers(json.dumps(info)) == {"a": "INT8", "b": "FP16", "c": "INT8", "d": "", "e": ""}
    for reader, text in (
        (trtexec.parse_profile, profile[:100]), (trtexec.parse_profile, "[]"), (trtexec.parse_profile, "[{}]"),
        (trtexec.parse_layers, "[]"), (trtexec.parse_profile, "[" * 100000),
    ):  # fmt: skip
        with pytest.raises(DeviceError, match="trtexec's --export"):
            reader(text)


# tegrastats.

XAVIER_JP5 = (
    "RAM 2722/31007MB (lfb 6780x4MB) SWAP 0/15503MB (cached 0MB) CPU [2%@1190,1%@1190,off,off,0%@1190,0%@1190,off,off] "
    "EMC_FREQ 0%@1600 GR3D_FREQ 0%@114 VIC_FREQ 115 APE 150 AUX@33C CPU@34.5C thermal@33.35C AO@33C GPU@33C PMIC@50C "
    "GPU 0mW/0mW CPU 310mW/310mW SOC 1086mW/1086mW CV 0mW/0mW VDDRQ 155mW/155mW SYS5V 1480mW/1480mW"
)
ORIN_NANO_JP6 = (
    "05-13-2026 10:00:01 RAM 3172/6284MB (lfb 22x4MB) SWAP 0/3142MB (cached 0MB) CPU [6%@1510,6%@1510,10%@729,7%@729,29%@729,18%@729] "
    "EMC_FREQ 0%@2133 GR3D_FREQ 26%@[306] NVDEC off NVJPG off VIC_FREQ off APE 200 cpu@46.41C soc2@45.34C soc0@43.62C gpu@46.03C "
    "cv0@-256C tj@46.41C soc1@44.38C VDD_IN 4900mW/5000mW VDD_CPU_GPU_CV 924mW/939mW VDD_SOC 1500mW/1600mW"
)
AGX_ORIN_JP6 = (
    "11-21-2025 08:49:48 RAM 13983/62780MB (lfb 424x4MB) SWAP 126/31390MB (cached 0MB) CPU [90%@2201,100%@2201] EMC_FREQ 1%@2133 "
    "GR3D_FREQ 14%@[407,405] VIC_FREQ 115 NVDLA0_FREQ @1600 APE 174 CV0@73.625C CPU@77.281C Tboard@62C GPU@69.125C tj@77.281C "
    "VDD_GPU_SOC 3150mW/2971mW VDD_CPU_CV 14312mW/12415mW VIN_SYS_5V0 4968mW/5048mW VDDQ_VDD2_1V8AO 1091mW/1091mW"
)
THOR_JP7 = (
    "07-02-2026 13:45:44 RAM 36529/125749MB (lfb 12x4MB) SWAP 11/4096MB (cached 9MB) CPU [2%@972,1%@972,0%@972] cpu@60.406C tj@63.281C "
    "soc012@58.468C gpu@62.906C VDD_GPU -392mW/37528mW/37528mW VDD_CPU_SOC_MSS 18961mW/18961mW/18961mW "
    "VIN_SYS_5V0 18331mW/18331mW/18331mW VIN 87426mW/43713mW/87426mW"
)
THOR_R38 = THOR_JP7.replace(
    "cpu@60.406C", "EMC_FREQ 0%@2750 GR3D_FREQ @[314,315,314] NVENC0_FREQ @314 VIC off APE 300 cpu@60.406C"
)
NANO_L4T32 = (
    "RAM 1908/3964MB (lfb 130x4MB) SWAP 0/1982MB (cached 0MB) CPU [10%@1479,8%@1479,5%@1479,11%@1479] EMC_FREQ 0% GR3D_FREQ 99% "
    "PLL@28C CPU@31.5C PMIC@100C GPU@29C AO@36C thermal@30C POM_5V_IN 2532/2698 POM_5V_GPU 83/107 POM_5V_CPU 498/602"
)


def test_tegrastats_of_every_jetpack() -> None:
    xavier, nano, agx, thor, r38, old = tegrastats.parse(
        "\r\n".join([XAVIER_JP5, ORIN_NANO_JP6, AGX_ORIN_JP6, THOR_JP7, THOR_R38, NANO_L4T32])
    )
    assert (xavier.time, xavier.ram_bytes, xavier.gpu_load, xavier.gpu_clock) == (None, 2722 << 20, 0, 114)
    assert xavier.cores[1] == tegrastats.Core(1, 1190) and xavier.cores[2] is None and len(xavier.cores) == 8
    assert xavier.rails["SOC"] == tegrastats.Rail(1086, 1086) and xavier.watts == pytest.approx(3.031)
    assert (nano.time, nano.gpu_load, nano.gpu_clock, nano.watts) == ("05-13-2026 10:00:01", 26, 306, 4.9)
    assert nano.celsius == {"cpu": 46.41, "soc2": 45.34, "soc0": 43.62, "gpu": 46.03, "tj": 46.41, "soc1": 44.38}
    assert (agx.gpu_clock, agx.rails["VDD_GPU_SOC"]) == (407, tegrastats.Rail(3150, 2971))
    assert (thor.gpu_load, thor.gpu_clock, thor.watts) == (None, None, 87.426)
    assert thor.rails["VDD_GPU"].milliwatts == -392
    assert (r38.gpu_load, r38.gpu_clock) == (None, 315)
    assert (old.gpu_load, old.watts, old.rails["POM_5V_GPU"]) == (99, 2.532, tegrastats.Rail(83, 107))


XAVIER_JP4 = (
    "RAM 1545/31919MB (lfb 7400x4MB) SWAP 2/15959MB (cached 1MB) CPU [0%@1190,1%@1190] EMC_FREQ 1%@408 GR3D_FREQ 12%@318 AO@38C "
    "GPU@39.5C CPU@40C thermal@38.8C GPU 120/100 CPU 468/450 SOC 937/900 CV 5/0 VDDRQ 312/234 SYS5V 1458/1400"
)
AGX_ORIN_JP5 = (
    "04-24-2023 00:01:24 RAM 1282/62795MB (lfb 15152x4MB) SWAP 0/31398MB (cached 0MB) CPU [0%@729,0%@729] EMC_FREQ 0%@2133 GR3D_FREQ "
    "0%@0 GR3D2_FREQ 0%@0 VIC_FREQ 729 APE 174 CV0@-256C CPU@42.593C Tboard@32C GPU@-256C tj@42.593C VDD_GPU_SOC 2399mW/2399mW "
    "VDD_CPU_CV 400mW/400mW VIN_SYS_5V0 4032mW/4032mW NC 0mW/0mW VDDQ_VDD2_1V8AO 301mW/301mW NC 0mW/0mW"
)


def test_rails_whose_names_are_short_and_those_that_are_not_connected() -> None:
    xavier, orin = tegrastats.parse(f"{XAVIER_JP4}\n{AGX_ORIN_JP5}")
    assert {name: rail.milliwatts for name, rail in xavier.rails.items()} == {
        "GPU": 120, "CPU": 468, "SOC": 937, "CV": 5, "VDDRQ": 312, "SYS5V": 1458,
    }  # fmt: skip
    assert xavier.watts == pytest.approx(3.3) and xavier.gpu_load == 12
    assert list(orin.rails) == ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"]
    assert orin.celsius == {"CPU": 42.593, "Tboard": 32.0, "tj": 42.593} and orin.gpu_clock == 0


def test_tegrastats_without_root_prints_no_power_and_cut_lines_are_left_out() -> None:
    (sample,) = tegrastats.parse(
        "EMC_FREQ 0%@2133 tj@46C\n" + ORIN_NANO_JP6.partition(" VDD_IN")[0] + "\n05-13-2026 10:00:02 RAM 31"
    )
    assert sample.rails == {} and sample.watts is None
    with pytest.raises(DeviceError, match="command not found"):
        tegrastats.parse("bash: tegrastats: command not found\n")


# Android.

THERMAL_PIXEL = """IsStatusOverride: false
ThermalEventListeners:
\tcallbacks: 2
\tkilled: false
\tbroadcasts count: -1
ThermalStatusListeners:
\tcallbacks: 3
\tkilled: false
\tbroadcasts count: -1
Thermal Status: 2
Cached temperatures:
\tTemperature{mValue=52.0, mType=3, mName=VIRTUAL-SKIN, mStatus=0}
HAL Ready: true
HAL connection:
\tThermalHAL AIDL 1  connected: yes
Current temperatures from HAL:
\tTemperature{mValue=61.25, mType=0, mName=BIG, mStatus=0}
\tTemperature{mValue=41.5, mType=3, mName=VIRTUAL-SKIN, mStatus=2}
\tTemperature{mValue=32.2, mType=2, mName=battery, mStatus=0}
\tTemperature{mValue=-99.9, mType=5, mName=TYPE_POWER_AMPLIFIER, mStatus=0}
\tTemperature{mValue=4.1, mType=6, mName=vbat, mStatus=0}
\tTemperature{mValue=NaN, mType=9, mName=TPU, mStatus=0}
Current cooling devices from HAL:
\tCoolingDevice{mValue=0, mType=2, mName=thermal-cpufreq-0}
Temperature static thresholds from HAL:
\tTemperatureThreshold{mType=3, mName=VIRTUAL-SKIN, mHotThrottlingThresholds=[NaN, 39.0, 43.0], mColdThrottlingThresholds=[NaN]}
"""


def test_thermal_service() -> None:
    heat = thermalservice.parse(THERMAL_PIXEL)
    assert (heat.status, heat.name, heat.fresh) == (2, "moderate", True)
    assert heat.celsius == {"BIG": 61.25, "VIRTUAL-SKIN": 41.5, "battery": 32.2}
    cached = thermalservice.parse(THERMAL_PIXEL.partition("HAL Ready")[0] + "HAL Ready: false\n")
    assert (cached.celsius, cached.fresh) == ({"VIRTUAL-SKIN": 52.0}, False)
    with pytest.raises(DeviceError, match="Android 10"):
        thermalservice.parse("Can't find service: thermalservice\r\n")


BATTERY = """Current Battery Service state:
  AC powered: false
  USB powered: true
  Wireless powered: false
  Dock powered: false
  Max charging current: 500000
  Charge counter: 3012000
  status: 2
  health: 2
  present: true
  level: 85
  scale: 100
  voltage: 4211
  temperature: 285
  technology: Li-ion
"""


def test_batteries_of_other_makers_and_versions() -> None:
    """Android 9 has no dock; others append what they like."""
    old = BATTERY.replace("  Dock powered: false\n", "").replace("USB powered: true", "USB powered: false")
    assert battery.parse(old).plugged == ()
    more = BATTERY + "  Charging state: 0\n  Charging policy: 0\n  mSavedBatteryAsoc: 100\n  level: 3\n  status: 5\n"
    assert battery.parse(more) == battery.parse(BATTERY)


def test_battery() -> None:
    assert battery.parse(BATTERY) == battery.Battery(85.0, 28.5, "charging", ("USB",), False)
    faked = BATTERY.replace("  AC", "  (UPDATES STOPPED -- use 'reset' to restart)\n  AC").replace(
        "status: 2", "status: 3"
    )
    assert battery.parse(faked).faked and battery.parse(faked).status == "discharging"
    assert battery.parse(BATTERY.replace("temperature: 285", "temperature: 0")).celsius is None
    with pytest.raises(DeviceError, match="Can't find service"):
        battery.parse("Can't find service: battery\n")


@pytest.mark.parametrize(
    ("said", "instead", "why"),
    [
        ("level: 85", "level: 850", "a level of 850 in 100"), ("level: 85", "level: -1", "a level of -1"),
        ("scale: 100", "scale: 0", "85 in 0"),
    ],
)  # fmt: skip
def test_a_charge_that_no_battery_has_is_refused(said: str, instead: str, why: str) -> None:
    with pytest.raises(DeviceError, match=why):
        battery.parse(BATTERY.replace(said, instead))


def test_temperatures_loads_and_powers_that_nothing_has_are_left_out() -> None:
    assert battery.parse(BATTERY.replace("temperature: 285", "temperature: 99999")).celsius is None
    heat = thermalservice.parse(THERMAL_PIXEL.replace("mValue=61.25", "mValue=6.1E30"))
    assert heat.celsius == {"VIRTUAL-SKIN": 41.5, "battery": 32.2}
    with pytest.raises(DeviceError, match="thermal status 9"):
        thermalservice.parse(THERMAL_PIXEL.replace("Thermal Status: 2", "Thermal Status: 9"))
    (sample,) = tegrastats.parse(
        ORIN_NANO_JP6.replace("26%@[306]", "260%@[999999999]").replace("tj@46.41C", "tj@999999C")
        .replace("VDD_SOC 1500mW", "VDD_SOC 999999999999mW").replace("6%@1510,6%", "600%@1510,6%")
    )  # fmt: skip
    assert (sample.gpu_load, sample.gpu_clock, sample.cores[0]) == (None, None, None)
    assert "tj" not in sample.celsius and "VDD_SOC" not in sample.rails and sample.watts == 4.9
    with pytest.raises(DeviceError, match="no sample"):
        tegrastats.parse(ORIN_NANO_JP6.replace("3172/6284MB", "6285/6284MB"))


@pytest.mark.timeout(20)
def test_a_line_of_blanks_costs_a_battery_no_time() -> None:
    assert battery.parse(f"{BATTERY}  note: a{' ' * 65000}b\n") == battery.parse(BATTERY)


# What devices add.

READERS = (
    (benchmark_model.parse, LITERT_CLASSIC_GPU), (trtexec.parse_output, TRT_10), (tegrastats.parse, THOR_JP7),
    (thermalservice.parse, THERMAL_PIXEL), (battery.parse, BATTERY),
)  # fmt: skip


@pytest.mark.parametrize(("reader", "text"), READERS)
def test_colours_carriage_returns_and_noise_change_nothing(reader, text) -> None:  # type: ignore[no-untyped-def]
    expected = reader(text)
    noisy = "".join(f"\x1b[1;32m{line}\x1b[0m\x00\r\n\x1b]0;title\x07\r" for line in text.splitlines())
    assert reader(noisy) == reader(noisy.encode()) == expected
    assert reader(text.encode() + b"\n\xff\xfe garbage \x1b[" + b"\n") == expected


def test_a_devices_words_are_plain_text() -> None:
    said = b"\x1b[31mred\x1b[0m \x1b]0;title\x07 \r\n two\x00 " + "a\u009b2Jb\u202eevil \u200bz".encode() + b" \xff"
    assert clean_text(said) == "red two a2Jbevil z \ufffd"
    assert clean_text("half \ud800 a sign").encode() == b"half a sign"
    assert clean_text("1" * 64) == "1" * 64 and len(clean_text("x" * 5000, 100)) == 100


@pytest.mark.parametrize(("reader", "text"), READERS)
def test_an_endless_line_is_cut_and_costs_no_time(reader, text) -> None:  # type: ignore[no-untyped-def]
    expected = reader(text)
    begin = time.monotonic()
    for part in (
        "A1 ",
        "count=1 a=1",
        "Temperature{mValue=1",
        "VDD_X 1mW/",
        "1.1.1.",
        " ",
        "\x1b[",
        "\x1b]0;",
        "[W] ",
        "--a",
    ):
        endless = part * ((1 << 20) // len(part))
        if part != "[W] ":  # a warning is a warning
            assert reader(f"{endless}\n{text}") == expected
    assert time.monotonic() - begin < 30
    assert max(len(line) for line in lines("x" * (1 << 20))) == LINE_LIMIT


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=400) | st.binary(max_size=400))
def test_anything_else_is_one_clear_error(text: str | bytes) -> None:
    for reader, _ in READERS:
        with pytest.raises(DeviceError) as error:
            reader(text)
        assert len(str(error.value)) < 1000 and "\n" not in str(error.value)


NUMBERS = st.one_of(
    st.integers().map(str), st.floats(allow_subnormal=False).map(str), st.sampled_from(["1e999", "-1e999", "1e-999", "nan", "inf", "-", "0", ""]),
    st.sampled_from([19, 400, 4301]).map(lambda digits: "9" * digits),  # than a float holds, and than int() takes
)  # fmt: skip
JUNK = st.text(max_size=20) | st.sampled_from(["\x1b[31m", "\r", "\u2028", "%s", "mName=", "count=", "{", "]", " = ms"])


@st.composite
def damaged(draw: st.DrawFn, text: str) -> str:
    """A tool's text with numbers exchanged, pieces cut out, doubled or replaced."""
    for _ in range(draw(st.integers(1, 4))):
        found = list(re.finditer(r"-?\d+(?:\.\d+)?", text))
        if found and draw(st.booleans()):
            match = found[draw(st.integers(0, len(found) - 1))]
            text = text[: match.start()] + draw(NUMBERS) + text[match.end() :]
        else:
            first, last = sorted(draw(st.integers(0, len(text))) for _ in range(2))
            text = text[:first] + draw(JUNK) + text[last if draw(st.booleans()) else first :]
    return text


def numbers_in(value: object) -> Iterator[float]:
    if isinstance(value, (int, float)):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from numbers_in(part)
    elif isinstance(value, tuple):
        for part in value:
            yield from numbers_in(part)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from numbers_in(getattr(value, field.name))


PROFILE = '[{"count": 100}, {"name": "conv", "timeMs": 31.4, "averageMs": 0.31, "medianMs": 0.3, "percentage": 100.0}]'
LAYERS = (
    '{"Layers": [{"Name": "conv", "Outputs": [{"Name": "y", "Format/Datatype": "Int8 NC/32HW32"}]}], "Bindings": ["x"]}'
)
DAMAGED = [
    *READERS, (benchmark_model.parse, LITERT_OWN), (benchmark_model.parse, TFLITE_24), (tegrastats.parse, XAVIER_JP4),
    (tegrastats.parse, THOR_R38), (trtexec.parse_output, TRT_11_BUILD), (trtexec.parse_version, TRT_10),
    (trtexec.parse_profile, PROFILE), (trtexec.parse_layers, LAYERS),
    (benchmark_model.flags_of, CLASSIC_HELP),
]  # fmt: skip


@pytest.mark.parametrize(("reader", "text"), DAMAGED)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_damaged_output_is_read_or_refused(reader, text: str, data: st.DataObject) -> None:  # type: ignore[no-untyped-def]
    """No number that comes of it is endless or undefined: reports are JSON."""
    try:
        found = reader(data.draw(damaged(text)))
    except DeviceError as error:
        assert len(str(error)) < 1000 and "\n" not in str(error) and "\x1b" not in str(error)
    else:
        assert all(math.isfinite(number) for number in numbers_in(found))
