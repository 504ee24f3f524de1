"""Fixtures of the device tests: phones that a real adb client talks to."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from adbd import Adbd, Phones


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
