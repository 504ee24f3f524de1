"""Devices by ssh: the user's own OpenSSH as a subprocess, so that their configuration, keys and jump hosts just work."""

from __future__ import annotations

import contextlib
import os
import selectors
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from edgekit.core.errors import DeviceError, DeviceLost
from edgekit.devices.formats.text import clean_text
from edgekit.devices.inventory import Device
from edgekit.devices.transport import OUTPUT_LIMIT, Done

FAILED = 255
"""ssh's own exit code; any other is the command's."""
ERRORS = 64 << 10
"""Bytes of standard error that are kept."""
SOCKETS = "/tmp"
"""Where connections' sockets lie: short, since a socket's path may have about 100 characters."""
OPTIONS = (
    "BatchMode=yes", "ConnectTimeout=15", "ServerAliveInterval=5", "ServerAliveCountMax=3", "ClearAllForwardings=yes",
    "RequestTTY=no", "RemoteCommand=none", "PermitLocalCommand=no", "ForwardX11=no", "LogLevel=ERROR",
)  # fmt: skip
"""Nobody can answer a question, a dead network is noticed in 15 s, and nothing of an interactive session is set up."""

RECEIVE = """
import errno, os, shutil, sys
path, size = sys.argv[1], int(sys.argv[2])
partial = "%s.%d.partial" % (path, os.getpid())
try:
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    with open(partial, "wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file, 1 << 20)
    if os.path.getsize(partial) != size:
        raise EOFError
    os.replace(partial, path)
except (OSError, EOFError) as error:
    if os.path.exists(partial):
        os.unlink(partial)
    if isinstance(error, EOFError):
        sys.exit(4)
    sys.stderr.write("edgekit: %s (%s)" % (error.strerror, error.filename))
    sys.exit(3 if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else 2)
"""
"""What the device runs to take a file: exit code 2 refused, 3 no space (or over a limit), 4 cut off."""

_LOST = ("closed by", "Broken pipe", "Connection reset", "not responding", "disconnect", "client_loop", "mux_client")
_UNREACHABLE = (
    "Could not resolve", "Connection refused", "No route to host", "timed out", "Network is unreachable",
    "Name or service not known", "Host is down", "banner exchange",
)  # fmt: skip


class SshTransport:
    """A device by ssh; see :class:`edgekit.devices.transport.Transport`.

    All commands share one connection, which is this object's own unless the user's configuration already shares one.
    """

    def __init__(self, device: Device) -> None:
        """Nothing is connected before the first command.

        Raises:
            DeviceError: there is no ssh here.
        """
        self.device = device
        program = shutil.which("ssh")
        if program is None:
            raise DeviceError(f"device '{device.name}' needs ssh on this machine: install openssh-client")
        self._program = program
        self._folder = Path(tempfile.mkdtemp(prefix="edgekit-ssh-", dir=SOCKETS))
        self._shared = self._shares_connections()

    def _destination(self) -> tuple[str, ...]:
        config = ("-F", self.device.config) if self.device.config else ()
        port = ("-p", str(self.device.port)) if self.device.port else ()
        return (*config, *port, "--", self.device.address)

    def _shares_connections(self) -> bool:
        """Whether the user's configuration shares connections by itself; then one that they opened by hand is used."""
        asked = (self._program, "-G", *self._destination())
        try:
            done = subprocess.run(asked, capture_output=True, text=True, errors="replace", check=False, timeout=30)
        except subprocess.TimeoutExpired:  # a Match exec that hangs, of which the connection itself will tell
            return False
        settings = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
        return settings.get("controlpath", "none") != "none" and settings.get("controlmaster", "false") != "false"

    def arguments(self, command: Sequence[str]) -> list[str]:
        """The ssh command line that runs ``command`` on the device, each argument quoted for its shell."""
        options = [f"-o{option}" for option in OPTIONS]
        if not self._shared:
            options += ["-oControlMaster=auto", f"-oControlPath={self._folder}/%C", "-oControlPersist=10"]
        return [self._program, *options, *self._destination(), shlex.join(command)]

    def run(self, command: Sequence[str], data: bytes = b"", seconds: float = 60.0, limit: int = OUTPUT_LIMIT) -> Done:
        """See :class:`~edgekit.devices.transport.Transport`."""
        with tempfile.TemporaryFile() as source:
            source.write(data)
            source.seek(0)
            out = bytearray()
            code, err = self._stream(command, source, seconds, limit, out.extend)
        return Done(code, bytes(out), err)

    def push(self, source: Path, remote: str) -> None:
        """See :class:`~edgekit.devices.transport.Transport`."""
        size = source.stat().st_size
        with source.open("rb") as file:
            code, err = self._stream(
                (self.device.python, "-c", RECEIVE, remote, str(size)), file, 120 + size / (100 << 10), ERRORS
            )
        if code == 3:
            raise DeviceError(
                f"device '{self.device.name}' has no space left for {size / 1e6:.1f} MB at {remote} ({clean_text(err)}): "
                f"free some there, or run edgekit devices clean {self.device.name}"
            )
        if code == 4:
            raise DeviceLost(f"device '{self.device.name}' got only a part of {source.name}: run again")
        if code != 0:
            raise DeviceError(
                f"device '{self.device.name}' did not take {remote} ({clean_text(err) or f'exit code {code}'}): "
                "set cache to a folder that the user there may write to"
            )

    def open(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a command whose streams stay open; the caller ends it."""
        return subprocess.Popen(
            self.arguments(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is edgekit's, which ends it; a terminal would send it to both
        )  # fmt: skip

    def close(self) -> None:
        """See :class:`~edgekit.devices.transport.Transport`."""
        if not self._shared and self._folder.is_dir() and any(self._folder.iterdir()):
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run(
                    (self._program, f"-oControlPath={self._folder}/%C", "-O", "exit", *self._destination()),
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False, timeout=10,
                )  # fmt: skip
        shutil.rmtree(self._folder, ignore_errors=True)

    def failure(self, err: bytes) -> DeviceError:
        """What ssh's own message means, and how to mend it."""
        return explain(self.device, clean_text(err, 600))

    def _stream(
        self,
        command: Sequence[str],
        source: IO[bytes],
        seconds: float,
        limit: int,
        take: Callable[[bytes], object] = lambda _: None,
    ) -> tuple[int, bytes]:
        """Exit code and standard error of a command; its output goes to ``take`` as it comes."""
        name = self.device.name
        process = subprocess.Popen(
            self.arguments(command),
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        err, received, until = bytearray(), 0, time.monotonic() + seconds
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ)
                selector.register(process.stderr, selectors.EVENT_READ)
                # The shared connection's own process may keep standard error open: the command has ended with its output.
                while process.stdout in {key.fileobj for key in selector.get_map().values()}:
                    ready = selector.select(max(0.0, min(1.0, until - time.monotonic())))
                    if time.monotonic() > until:
                        raise DeviceError(
                            f"device '{name}' did not finish {command[0]} in {seconds:.0f} s: see whether it hangs"
                        )
                    for key, _ in ready:
                        chunk = os.read(key.fd, 1 << 16)
                        if not chunk:
                            selector.unregister(key.fileobj)
                        elif key.fileobj is process.stderr:
                            err += chunk[: ERRORS - len(err)]
                        else:
                            received += len(chunk)
                            if received > limit:
                                raise DeviceError(
                                    f"device '{name}' sent more than {limit} bytes where less was expected: "
                                    "it is not what it should be, so nothing of it was kept"
                                )
                            take(chunk)
                code = process.wait(10)
                os.set_blocking(process.stderr.fileno(), False)
                rest = process.stderr.read(ERRORS) or b""
                err += rest[: ERRORS - len(err)]
        except subprocess.TimeoutExpired:
            raise DeviceLost(f"device '{name}': ssh does not end: run again") from None
        finally:
            end(process)
        if code == FAILED:
            raise self.failure(bytes(err))
        return code, bytes(err)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and close its streams, whatever state it is in."""
    if process.poll() is None:
        process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


def explain(device: Device, said: str) -> DeviceError:
    """One sentence for what ssh said when it failed."""
    name, config = device.name, f"-F {shlex.quote(device.config)} " if device.config else ""
    by_hand = f"ssh {config}{f'-p {device.port} ' if device.port else ''}{device.address}"
    if "IDENTIFICATION HAS CHANGED" in said:
        return DeviceError(
            f"device '{name}' shows another host key than before, as after a reinstallation or from another machine: "
            f"when you know why, remove the old one with ssh-keygen -R and connect once by hand with: {by_hand}"
        )
    if "Host key verification failed" in said or "host key is known" in said:
        return DeviceError(
            f"device '{name}' has an unknown host key: connect once by hand and check it, with: {by_hand}"
        )
    if "Permission denied" in said or "Too many authentication failures" in said:
        return DeviceError(
            f"device '{name}' refuses the login ({said}): edgekit asks no passwords, so set up a key with "
            f"ssh-copy-id and try: {by_hand}"
        )
    if any(part in said for part in _UNREACHABLE):
        return DeviceError(
            f"device '{name}' cannot be reached ({said}): check that it is on, its address and the network"
        )
    if any(part in said for part in _LOST):
        return DeviceLost(f"the connection to device '{name}' was cut ({said}): run again, what is finished is kept")
    if not said:
        return DeviceLost(
            f"device '{name}' ended the talk without a word (what ran there was killed, or the connection went): "
            "run again, what is finished is kept"
        )
    return DeviceError(f"ssh to device '{name}' failed ({said}): try by hand with: {by_hand}")
