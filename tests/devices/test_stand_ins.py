"""The stand-ins speak as the tools do: edgekit's command lines are taken by the version they are for, refused by no other's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.core.errors import DeviceError
from edgekit.devices.agent.tools import exported_times
from edgekit.devices.formats import tegrastats, trtexec

BIN = Path(__file__).parent / "bin"
ONNX = b"\x08\x0a\x12\x07edgekit"


def call(folder: Path, command: tuple[str, ...], **settings: str) -> tuple[int, str]:
    environment = {
        "PATH": "/usr/bin:/bin",
        **{f"EDGEKIT_STANDIN_{name.upper()}": value for name, value in settings.items()},
    }
    done = subprocess.run(
        [sys.executable, str(BIN / "trtexec"), *command[1:]], cwd=folder, env=environment, check=False, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return done.returncode, done.stdout


def version_of(folder: Path, version: str) -> trtexec.Version:
    code, text = call(folder, ("trtexec", "--help"), trtexec=version)
    assert code == 0
    return trtexec.parse_version(text)


@pytest.mark.parametrize("named", ["10.3.0", "10.13.3", "11.4.1"])
@pytest.mark.parametrize("transfers", [False, True])
def test_build_and_time(named: str, transfers: bool, tmp_path: Path) -> None:
    version = version_of(tmp_path, named)
    assert ".".join(map(str, version)) == named
    (tmp_path / "m.onnx").write_bytes(ONNX)
    code, text = call(
        tmp_path, trtexec.build_command(version, "m.onnx", "m.engine", "cache", "layers.json"), trtexec=named
    )
    assert code == 0 and trtexec.parse_output(text).gpu_bytes == 1024 + 4096 + 3174400 + len(ONNX)
    precisions = trtexec.parse_layers((tmp_path / "layers.json").read_text())
    assert set(precisions.values()) == {"INT8", "FP32", "UINT8"}
    asked = trtexec.Timing(64, 1, 10, transfers, True)
    timing = trtexec.time_command(version, "m.engine", asked, "t.json", "p.json")
    code, text = call(tmp_path, timing, trtexec=named, fault="noise")
    run = trtexec.parse_output(text)
    compute, latency, copy = (
        exported_times(tmp_path / "t.json", field, 100) for field in ("computeMs", "latencyMs", "h2dMs")
    )
    assert code == 0 and run.queries == len(compute) == len(latency) == 64 and run.version == version
    assert run.metrics["GPU Compute Time"].mean == pytest.approx(sum(compute) / 64, rel=1e-4)
    assert (copy[0] > 0) == (latency[0] > compute[0]) == transfers
    profile = trtexec.parse_profile((tmp_path / "p.json").read_text())
    assert {layer.name for layer in profile} == set(precisions) and sum(
        layer.share for layer in profile
    ) == pytest.approx(1)


def test_each_version_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    for named, flag in (
        ("11.4.1", "--int8"),
        ("11.4.1", "--fp16"),
        ("10.3.0", "--includeDataTransfers"),
        ("10.3.0", "--buildOnly"),
    ):
        code, text = call(tmp_path, ("trtexec", "--onnx=m.onnx", flag), trtexec=named)
        assert code == 1 and trtexec.unknown_options(text) == (flag,)
        with pytest.raises(DeviceError, match=f"does not know {flag}"):
            trtexec.parse_output(text)


def test_an_engine_of_another_gpu_or_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(ONNX)
    call(tmp_path, trtexec.build_command((10, 3, 0), "m.onnx", "m.engine", "cache", "layers.json"))
    timing = trtexec.time_command((10, 3, 0), "m.engine", trtexec.Timing(64, 1, 10, profiled=True), "t.json", "p.json")
    for settings in ({"gpu": "Xavier 7.2"}, {"trtexec": "10.7.0"}):
        code, text = call(tmp_path, timing, **settings)
        assert code == 1 and trtexec.built_elsewhere(text)
    assert trtexec.unstable(trtexec.parse_output(call(tmp_path, timing, fault="unstable")[1])) > 0.025  # type: ignore[operator]
    with pytest.raises(DeviceError, match="trtexec failed"):
        trtexec.parse_output(call(tmp_path, timing, fault="crash")[1])
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(DeviceError, match="Failed to parse"):
        trtexec.parse_output(call(tmp_path, ("trtexec", "--onnx=m.onnx"))[1])


def test_tegrastats(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, str(BIN / "tegrastats"), "--interval", "20"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    text = b"".join(process.stdout.readline() for _ in range(3))
    process.kill()
    process.communicate()
    idle, *loaded = tegrastats.parse(text)
    assert (idle.watts, idle.gpu_load, idle.gpu_clock) == (4.9, 0, 306), "it begins before what it watches"
    assert [(sample.watts, sample.gpu_load, sample.gpu_clock) for sample in loaded] == [(14.9, 99, 918)] * 2
