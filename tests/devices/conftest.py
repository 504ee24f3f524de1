"""Fixtures of the device tests: boards behind a real sshd, and phones that a real adb client talks to."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sshd
from adbd import Adbd, Phones
from boards import Made, Project, make_run
from parts import missing
from seam import short_latency


@pytest.fixture(scope="session")
def adb_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An adb server of the tests' own, with keys of its own: the user's stays alone."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANDROID_ADB_SERVER_PORT", str(port))
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.delenv("ADB", raising=False)
        yield
        subprocess.run(["adb", "kill-server"], check=False, capture_output=True, timeout=30)


@pytest.fixture
def phones(adb_server: None, tmp_path: Path) -> Iterator[Phones]:
    """``phones()`` starts another device."""
    started: list[Adbd] = []

    def start(port: int = 0) -> Adbd:
        root = tmp_path / f"phone{len(started)}"
        (root / "data/local/tmp").mkdir(parents=True)
        (root / "bin").mkdir()
        started.append(Adbd(root, port=port).start())
        return started[-1]

    yield start
    for phone in started:
        subprocess.run(["adb", "disconnect", phone.address], check=False, capture_output=True, timeout=30)
        phone.stop()
        assert phone.errors == []


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, small_checkpoint: Path) -> Made:
    """A whole run here and on the device ``board``, every target in float. Copy its folder ``out``; do not write to it."""
    if reason := missing("sshd"):
        pytest.skip(reason)
    return make_run(tmp_path_factory.mktemp("made"), small_checkpoint)


@pytest.fixture
def project(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Project]:
    """Its sshd is running. Afterwards nothing may be left of it on either side, and nothing outside the project."""
    folder = tmp_path / "project"
    shutil.copytree(made.folder / "out", folder / "out")
    monkeypatch.chdir(folder)
    short_latency(monkeypatch)
    server = sshd.make_server(tmp_path / "sshd")
    server.start()
    sockets = Path(tempfile.mkdtemp(dir="/tmp"))
    monkeypatch.setattr("edgekit.devices.ssh.SOCKETS", str(sockets))
    yield Project(folder, server, made, monkeypatch, capfd)
    until = time.monotonic() + 15
    while left := [*server.sessions(), *server.others_with(str(tmp_path))]:
        assert time.monotonic() < until, [Path(f"/proc/{process}/cmdline").read_bytes() for process in left]
        time.sleep(0.05)
    server.stop()
    sockets.rmdir()  # empty: no connection's socket was left
    assert {entry.name for entry in tmp_path.iterdir()} <= {"project", "sshd", "device"}, "written outside the project"
