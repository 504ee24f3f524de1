"""A real sshd on 127.0.0.1 with keys of its own, started for tests, and the ssh configuration that reaches it."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"


@dataclass
class Server:
    """A running sshd.

    Attributes:
        folder: with the keys, configurations and logs.
        port: on 127.0.0.1.
        config: the client's configuration, in which the server is ``board``.
    """

    folder: Path
    port: int
    config: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return "board"

    def start(self) -> None:
        """Run it; returns when it answers."""
        log = self.folder / "sshd.log"
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")], stdin=subprocess.DEVNULL, stdout=out,
                stderr=out, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + 20
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                    assert connection.recv(4) == b"SSH-"
                return
            except OSError:
                assert self.process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)

    def sessions(self) -> list[int]:
        """Processes of connections that are open."""
        if self.process is None:
            return []
        return [process for process in descendants(self.process.pid) if process != self.process.pid]

    def others_with(self, text: str) -> list[int]:
        """Processes in whose command line a text stands, the server's own left out."""
        own = None if self.process is None else self.process.pid
        return [process for process in processes_with(text) if process != own]

    def cut(self) -> None:
        """Drop every connection, as a network that goes does: the server's half is gone without a word."""
        for process in self.sessions():
            name = _name(process)
            if name.startswith("sshd"):
                try:
                    os.kill(process, signal.SIGKILL)
                except ProcessLookupError:
                    continue

    def stop(self) -> None:
        """End it and every connection."""
        if self.process is None:
            return
        for process in [*self.sessions(), self.process.pid]:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()
        self.process = None


def _name(process: int) -> str:
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except OSError:
        return ""


def descendants(process: int) -> list[int]:
    """A process and all below it, by /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [process]
    while waiting:
        found.append(waiting.pop())
        waiting += children.get(found[-1], [])
    return found


def processes_with(text: str) -> list[int]:
    """Running processes in whose command line a text stands, this one left out."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if text.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def make_server(folder: Path) -> Server:
    """Keys and configurations in a folder, not started."""
    folder.mkdir(parents=True, exist_ok=True)
    for key in ("host", "user", "stranger"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", key, "-f", str(folder / key)], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    (folder / "authorized_keys").write_text((folder / "user.pub").read_text())
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile none\nUsePAM no\nStrictModes no\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        "PermitRootLogin yes\nMaxStartups 100\nMaxSessions 100\nPrintMotd no\nPermitUserEnvironment yes\n"
    )
    server = Server(folder, port, folder / "ssh_config")
    write_config(server, server.config)
    return server


def write_config(server: Server, path: Path, **more: str) -> None:
    """A client's configuration that reaches the server as ``board``; keywords replace single options."""
    options = {
        "HostName": "127.0.0.1", "Port": str(server.port), "User": getpass.getuser(),
        "IdentityFile": str(server.folder / "user"), "IdentitiesOnly": "yes",
        "UserKnownHostsFile": str(server.folder / "known_hosts"), "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes", **more,
    }  # fmt: skip
    path.write_text("Host board left right\n" + "".join(f"  {key} {value}\n" for key, value in options.items()))


def inventory(folder: Path, server: Server, name: str = "board", **more: str | int | list[str]) -> Path:
    """``devices.toml`` with the server as a device; the device's Python is this one."""
    values: dict[str, str | int | list[str]] = {
        "kind": "ssh", "address": "board", "config": str(server.config), "python": sys.executable,
        "cache": str(folder / f"cache-{name}"), **more,
    }  # fmt: skip
    lines = [f"[{name}]"]
    for key, value in values.items():
        lines.append(f"{key} = {toml_text(value) if isinstance(value, str) else value}")
    path = folder / "devices.toml"
    with path.open("a") as file:
        file.write("\n".join(lines) + "\n\n")
    return path


def toml_text(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
