"""A whole run through a real sshd: accuracy and latency by the agent, pages, the ways of OpenSSH, and commands on devices."""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from boards import Made, Project

from reports.document import validate

RAN = ("onnxruntime", "openvino", "tflite")
"""Targets whose runtimes the test's own Python has; Core ML and TensorRT it has not."""


def rows_of(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    document = json.loads((folder / "report" / "report.json").read_text())
    validate(document)
    return {(row["device"], row["target"]): row for row in document["rows"]}


def document_of(folder: Path, target: str, device: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "measurements" / f"{target}-fp32-64x128.{device}.json").read_text())
    return found


# A whole run


def test_accuracy_and_latency_are_the_devices(made: Made) -> None:
    rows = rows_of(made.folder / "out")
    for target in RAN:
        there, here = rows["board", target], rows["local", target]
        assert there["provenance"]["miou"]["kind"] == there["provenance"]["latency"]["kind"] == "measured"
        version = there["provenance"]["miou"]["by"].rpartition(" ")[2]
        assert version in here["provenance"]["miou"]["by"], "one Python, one runtime"
        assert there["miou"] == here["miou"]
        assert there["miou_drop_ci"] == here["miou_drop_ci"]
        assert there["latency_scope"] == "frame-to-labels"
        assert there["latency_ms"]["n"] >= 64
        assert there["peak_rss_bytes"] > 1 << 20
    assert ("board", "coreml") not in rows, "nobody expects Core ML on Linux"


def test_the_device_has_a_page(made: Made) -> None:
    report = made.folder / "out" / "report"
    page = (report / "board.md").read_text()
    assert "no device connected" not in page
    assert len(re.findall(r"\| measured by [\w ]+ [\d.]+ +\|", page)) == len(RAN), page
    assert (report / "figures" / "board-scatter.svg").is_file()
    assert "board.md" in (report / "index.md").read_text()
    assert "no device connected" in (report / "jetson.md").read_text(), "there is still none"
    document = document_of(made.folder / "out", "onnxruntime", "board")
    assert document["environment"]["architecture"] == os.uname().machine
    assert len(document["latency"]["conditions"]) == len(document["latency"]["rounds_ms"])


def test_nothing_is_done_twice(project: Project) -> None:
    before = document_of(project.folder / "out", "onnxruntime", "board")
    project.device()
    done = project.run("--device", "local,board", targets="onnxruntime,openvino,tflite")
    assert done.code == 0, done.err
    assert "already evaluated" in done.err
    assert document_of(project.folder / "out", "onnxruntime", "board")["accuracy"] == before["accuracy"]


def test_files_are_sent_once(project: Project) -> None:
    cache = project.device("new")
    assert project.run("--device", "new").code == 0
    sent = {path.name: path.stat().st_ino for path in cache.rglob("*") if path.is_file() and path.suffix != ".log"}
    assert len([name for name in sent if name.endswith(".npz")]) == 1
    (project.folder / "out" / "measurements" / "onnxruntime-fp32-64x128.new.accuracy.json").unlink()
    assert project.run("--device", "new").code == 0
    again = {path.name: path.stat().st_ino for path in cache.rglob("*") if path.is_file() and path.suffix != ".log"}
    assert again == sent


def test_two_devices_side_by_side(project: Project) -> None:
    """They are one machine here, which measures one thing at a time: the lock is in the machine's own folder."""
    project.device("left", address="left")
    project.device("right", address="right", runs=["onnxruntime"])
    done = project.run("--device", "left,right", targets="onnxruntime,openvino")
    assert done.code == 0, done.err
    rows = rows_of(project.folder / "out")
    assert {target for device, target in rows if device == "left"} == {"onnxruntime", "openvino"}
    assert {target for device, target in rows if device == "right"} == {"onnxruntime"}
    done = project.edgekit("bench", "out/artifacts/onnxruntime-fp32-64x128", "--device", "left,left")
    assert done.code == 0, "a device named twice is one"
    project.device("same", address="left")
    done = project.run("--device", "left,same")
    assert done.code == 2
    assert "one machine" in done.sentence


# The commands


def test_probe_and_clean(project: Project) -> None:
    cache = project.device()
    found = project.edgekit("devices", "probe", "board", "--json").document
    assert found["environment"]["cores"] >= 1
    assert found["runs"]["onnxruntime"].startswith("ONNX Runtime 1.")
    assert found["runtimes"].keys() == {"onnxruntime", "openvino", "tensorrt", "tflite"}
    assert found["free_bytes"] > 0
    text = project.edgekit("devices", "probe", "board").out
    assert "LiteRT" in text
    assert "free space" in text
    assert "trtexec" in text, "what is missing"
    assert (
        project.edgekit("evaluate", "out/artifacts/onnxruntime-fp32-64x128", "--frames", 2, "--device", "board").code
        == 0
    )
    (cache / "mine.txt").write_text("the user's own")
    done = project.edgekit("devices", "clean", "board", "--json")
    assert done.code == 0, done.err
    assert done.document["bytes"] > 10_000
    assert [entry.name for entry in cache.iterdir()] == ["mine.txt"], "only what edgekit put there"


def test_bench_with_everything(project: Project) -> None:
    project.device()
    artifact = project.folder / "out" / "artifacts" / "onnxruntime-fp32-64x128"
    done = project.edgekit(
        "bench", artifact, "--device", "board", "--data", "streets", "--frames", 2, "--sustained", "3s", "--json"
    )  # fmt: skip
    assert done.code == 0, done.err
    (row,) = done.document["rows"]
    assert row["device"] == "board"
    assert row["accuracy"]["provenance"]["kind"] == "measured"
    assert row["accuracy"]["frames"] == 2
    assert row["summary"]["p50"] > 0
    intervals = row["sustained"]["intervals"]
    assert len(intervals) == 3
    assert intervals[-1]["end_s"] == pytest.approx(3, abs=1)
    page = (project.folder / "runs" / "bench" / "report" / "board.md").read_text()
    assert "## Sustained load" in page
    assert (project.folder / "runs" / "bench" / "report" / "figures" / "board-sustained.svg").is_file()
    here = project.edgekit("evaluate", artifact, "--frames", 2, "--json").document
    assert here["miou"] == row["accuracy"]["miou"]


def test_an_emulated_device_is_not_timed(project: Project) -> None:
    project.device(emulated="qemu")
    artifact = project.folder / "out" / "artifacts" / "onnxruntime-fp32-64x128"
    arguments = (
        "bench",
        artifact,
        "--device",
        "board",
        "--data",
        "streets",
        "--frames",
        2,
        "--sustained",
        "3s",
        "--json",
    )
    done = project.edgekit(*arguments)
    assert done.code == 0, done.err
    (row,) = done.document["rows"]
    assert (
        row["latency"]["provenance"]["kind"] == "not measured"
        and "emulated by qemu" in row["latency"]["provenance"]["why"]
    )
    assert row["accuracy"]["provenance"]["kind"] == "reference" and "sustained" not in row


def test_what_cannot_run_there(project: Project) -> None:
    project.device()
    done = project.edgekit("bench", "out/artifacts/coreml-fp32-64x128", "--device", "board")
    assert done.code == 1
    assert "has no Core ML: it does not exist for that system" in done.sentence
    done = project.edgekit("bench", "out/artifacts/tensorrt-fp32-64x128", "--device", "board")
    assert done.code == 1
    assert "apt install nvidia-jetpack" in done.sentence
    done = project.run("--device", "board", targets="coreml,tensorrt")
    assert done.code == 1
    assert "device 'board' runs none of this run's targets" in done.sentence
    project.device("typo", address="left", runs=["tflte"])
    done = project.run("--device", "typo")
    assert done.code == 2
    assert "'tflte' is no target" in done.sentence
    done = project.edgekit("evaluate", project.made.checkpoint, "--device", "board")
    assert done.code == 2
    assert "give an artifact" in done.sentence


# OpenSSH's own ways


def test_a_jump_host_and_shared_connections(project: Project) -> None:
    server = project.server
    short = tempfile.mkdtemp(dir="/tmp")  # a socket's path may have about 100 characters
    with server.config.open("a") as file:
        file.write(
            "Host inner\n  HostName 127.0.0.1\n  ProxyJump board\n"
            f"  Port {server.port}\n  User {getpass.getuser()}\n  IdentityFile {server.folder}/user\n"
            f"  UserKnownHostsFile {server.folder}/known_hosts\n"
            f"Host shared\n  HostName 127.0.0.1\n  Port {server.port}\n  User {getpass.getuser()}\n"
            f"  IdentityFile {server.folder}/user\n  UserKnownHostsFile {server.folder}/known_hosts\n"
            f"  ControlMaster auto\n  ControlPath {short}/%C\n  ControlPersist 1\n"
        )
    for name in ("inner", "shared"):
        project.device(name, address=name)
        found = project.edgekit("devices", "probe", name, "--json")
        assert found.code == 0, found.err
        assert found.document["machine"] == os.uname().machine
    shutil.rmtree(short)


def test_nothing_of_a_device_reaches_a_shell(project: Project) -> None:
    """Signs of a shell in the inventory's paths are signs of a path."""
    strange = "with space $(touch pwned) `touch pwned` ; touch pwned & ' \" \\ *"
    folder = project.folder / strange
    folder.mkdir()
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    project.device("board", cache=str(folder / "cache"), python=str(python))
    done = project.edgekit("bench", "out/artifacts/onnxruntime-fp32-64x128", "--device", "board", "--json")
    assert done.code == 0, done.err
    assert list((folder / "cache" / "edgekit" / "artifacts").iterdir())
    for place in (project.folder, Path.home(), folder):
        assert not (place / "pwned").exists()
