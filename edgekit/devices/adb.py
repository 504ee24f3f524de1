"""Android by adb: the user's own adb binary as a subprocess, so that its server, keys and wireless pairing just work.

No adb library: their clients read whatever a device sends into memory, and a second adb of another version would kill the
server that the user's Android Studio runs.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from edgekit.core.errors import DeviceError, DeviceLost
from edgekit.devices.formats.text import lines, shortened
from edgekit.devices.inventory import Device
from edgekit.devices.transport import OUTPUT_LIMIT, Done

CONNECT_SECONDS = 30.0
SETTLE_SECONDS = 5.0
PUSH_SECONDS_PER_BYTE = 1 / 100_000
"""No link that is worth using is slower."""

_NETWORK = re.compile(r"(?:\[[0-9A-Fa-f:]+\]|[A-Za-z0-9_.-]+):\d{1,5}")
_STATES: Mapping[str, str] = {
    "unauthorized": "allow this computer's key on the device's screen (USB debugging), then run again",
    "authorizing": "wait until the device's screen asks and allow this computer's key, then run again",
    "offline": "unplug it and plug it in again, or run adb reconnect offline",
    "connecting": "wait some seconds and run again",
    "recovery": "start Android, it is in recovery",
    "sideload": "start Android, it is in sideload",
    "bootloader": "start Android, it is in the bootloader",
    "host": "choose the device's serial, this is the host",
}
_NO_SPACE = re.compile(r"No space left on device|ENOSPC", re.IGNORECASE)
_SDKS = ("Android/Sdk", "Library/Android/sdk", "AppData/Local/Android/Sdk")

# The program runs in the background so that the shell, whom adbd sends SIGHUP when the connection goes, can end it: nothing
# stays running on a phone. The last line tells an end from a connection that broke: adb's client then ends with 0 too.
_WRAPPER = (
    "exec 3<&0; {command} <&3 & child=$!; exec 3<&-; trap 'kill -9 $child; exit 129' HUP TERM; "
    "wait $child; code=$?; echo; echo '@{token}:'$code >&2; exit $code"
)


def find_adb() -> str:
    """The adb to call: ``ADB``, PATH, or the Android SDK's.

    Raises:
        DeviceError: there is none.
    """
    given = os.environ.get("ADB")
    roots = [os.environ.get(name) for name in ("ANDROID_HOME", "ANDROID_SDK_ROOT")]
    roots += [os.path.join(os.path.expanduser("~"), sdk) for sdk in _SDKS]
    folders = os.pathsep.join(os.path.join(root, "platform-tools") for root in roots if root)
    found = shutil.which(given) if given else shutil.which("adb") or shutil.which("adb", path=folders)
    if found is None:
        raise DeviceError(
            "adb is not installed: install Android's platform-tools (apt install adb, brew install android-platform-tools), "
            "or name its path in the environment variable ADB"
        )
    return found


def connect(device: Device) -> AdbTransport:
    """A connection to a phone that is there and lets this computer in.

    Raises:
        DeviceError: it is not, with what to do about it.
    """
    transport = AdbTransport(device)
    transport.check()
    return transport


class AdbTransport:
    """One phone by its exact serial. See :class:`edgekit.devices.transport.Transport`."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._adb = find_adb()
        self._seen = False
        self._closed = False
        self._process: subprocess.Popen[bytes] | None = None

    def check(self) -> None:
        """Raise DeviceError unless the phone is there, lets this computer in, and its shell tells exit codes."""
        if _NETWORK.fullmatch(self.device.address):
            self._connect()
        state = self._settled()
        if state != "device":
            raise self._unusable(state)
        self._seen = True
        features = self._call(("-s", self.device.address, "features"), b"", CONNECT_SECONDS, OUTPUT_LIMIT)
        if b"shell_v2" not in features.out.split():
            raise self._error("its adb does not tell exit codes: Android 7 or newer does")

    def run(self, command: Sequence[str], data: bytes = b"", seconds: float = 60.0, limit: int = OUTPUT_LIMIT) -> Done:
        """See :class:`edgekit.devices.transport.Transport`."""
        token = secrets.token_hex(8)
        script = _WRAPPER.format(command=shlex.join(command), token=token)
        done = self._call(("-s", self.device.address, "shell", "-T", script), data, seconds, limit)
        # The device's own bytes stand before it, and need not end with a newline.
        match = re.search(rb"(?s)\A(.*)@" + token.encode() + rb":(\d{1,3})\r?\n\Z", done.err)
        if match is None or not done.out.endswith(b"\n"):
            raise self._lost(done)
        return Done(int(match[2]), done.out[:-1], match[1])

    def push(self, source: Path, remote: str) -> None:
        """See :class:`edgekit.devices.transport.Transport`."""
        folder, partial = remote.rpartition("/")[0] or "/", f"{remote}.{secrets.token_hex(4)}.partial"
        self._checked(("mkdir", "-p", folder), f"{folder} cannot be made there")
        seconds = CONNECT_SECONDS + source.stat().st_size * PUSH_SECONDS_PER_BYTE
        done = self._call(("-s", self.device.address, "push", str(source), partial), b"", seconds, OUTPUT_LIMIT)
        if done.code:
            self._failed_push(done, partial, remote)
        self._checked(("mv", "-f", partial, remote), f"{remote} cannot be written there")

    def close(self) -> None:
        """See :class:`edgekit.devices.transport.Transport`.

        adb's own connection to a wireless device stays: others may use it too.
        """
        self._closed = True
        if (process := self._process) is not None:
            process.kill()

    def _connect(self) -> None:
        done = self._call(("connect", self.device.address), b"", CONNECT_SECONDS, OUTPUT_LIMIT)
        said = " ".join(lines(done.out + b"\n" + done.err))
        # "already connected to" too; one that fails to authenticate waits for its user, and is listed
        if "connected to" not in said and "authenticate" not in said:
            raise self._error(
                f"adb cannot connect to {self.device.address} ({shortened(said, 200)}): "
                "check the address, and that wireless debugging is on"
            )

    def _settled(self) -> str:
        """The state once it is not a passing one: a phone that was just plugged in, or comes back, is offline at first."""
        deadline, renewed = time.monotonic() + SETTLE_SECONDS, False
        while (state := self._state()) in ("offline", "connecting", "authorizing") and time.monotonic() < deadline:
            if state == "offline" and not renewed and _NETWORK.fullmatch(self.device.address):
                renewed = True  # adb keeps a dead connection by the same address, and says that it is connected
                self._call(("disconnect", self.device.address), b"", CONNECT_SECONDS, OUTPUT_LIMIT)
                self._connect()
            time.sleep(0.2)
        return state

    def _state(self) -> str:
        """What ``adb devices`` says of the serial; empty when it is not among them.

        ``adb -s`` alone would also take a host without its port, a model's name or a USB path.
        """
        done = self._call(("devices",), b"", CONNECT_SECONDS, OUTPUT_LIMIT)
        if done.code:
            raise self._error(f"adb does not work here ({_said(done)}): run adb devices by hand and look")
        for line in lines(done.out, endless_numbers=True):
            serial, tab, state = line.partition("\t")
            if tab and serial == self.device.address:
                return state.strip()
        return ""

    def _checked(self, command: Sequence[str], what: str) -> None:
        done = self.run(command)
        if done.code:
            raise self._refused(what, _said(done))

    def _failed_push(self, done: Done, partial: str, remote: str) -> None:
        """Leave nothing of it there, and say why."""
        said = _said(done)
        try:
            self.run(("rm", "-f", partial))
        except DeviceError:
            raise self._lost(done) from None
        raise self._refused(f"{remote} cannot be sent", said)

    def _refused(self, what: str, said: str) -> DeviceError:
        if _NO_SPACE.search(said):
            return self._error(f"no space is left there: free some, or run edgekit devices clean {self.device.name}")
        return self._error(f"{what} ({said}): choose another folder with cache in devices.toml")

    def _lost(self, done: Done) -> DeviceError:
        """The connection broke, or was never there: what the device is now says what to do."""
        try:
            state = self._state()
        except DeviceError as error:
            return DeviceLost(str(error))
        if not self._seen and state != "device":
            return self._unusable(state)
        hint = _STATES.get(state, "see that it is there again" if state != "device" else f"adb said: {_said(done)}")
        return DeviceLost(
            f"device '{self.device.name}': the connection broke ({hint}); run again, what was finished is kept"
        )

    def _unusable(self, state: str) -> DeviceError:
        if not state:
            return self._error(
                f"adb lists no device with the serial {self.device.address}: plug it in, switch USB debugging on, and look at adb devices"
            )
        if state.startswith("no permissions"):
            return self._error(
                "this user may not use it: install Android's udev rules (android-sdk-platform-tools-common)"
            )
        return self._error(f"it is {shortened(state, 60)}: {_STATES.get(state, 'run adb devices by hand and look')}")

    def _error(self, text: str) -> DeviceError:
        return DeviceError(f"device '{self.device.name}': {text}")

    def _call(self, arguments: Sequence[str], data: bytes, seconds: float, limit: int) -> Done:
        """The adb client to its end, with at most ``limit`` bytes of output and never longer than ``seconds``."""
        process = self._process = subprocess.Popen(
            (self._adb, *arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is edgekit's, which ends it; a terminal would send it to both
        )  # fmt: skip
        if self._closed:  # meanwhile, by another thread
            process.kill()
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        out, err = _Reader(process.stdout, process, limit), _Reader(process.stderr, process, limit)
        writer = threading.Thread(target=_write, args=(process.stdin, data), daemon=True)
        workers = (out, err, writer)
        try:
            for worker in workers:
                worker.start()
            deadline = time.monotonic() + seconds
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                raise self._error(
                    f"'{shortened(' '.join(arguments[2:] or arguments), 80)}' took more than {seconds:.0f} s: look at the device, and run again"
                ) from None
            for worker in workers:
                # The adb server that a first call starts may hold the pipes open.
                worker.join(max(1.0, min(5.0, deadline - time.monotonic())))
        finally:
            self._process = None
            if process.poll() is None:
                process.kill()
                process.wait()
        if self._closed:
            raise DeviceLost(f"device '{self.device.name}': the measurement was ended")
        if out.exceeded or err.exceeded:
            raise self._error(f"it sent more than {limit} bytes where less was due: see what runs there, and run again")
        return Done(process.returncode, bytes(out.taken), bytes(err.taken))


class _Reader(threading.Thread):
    """Takes what a process writes, and ends it when that is too much."""

    def __init__(self, pipe: IO[bytes], process: subprocess.Popen[bytes], limit: int) -> None:
        super().__init__(daemon=True)
        self.taken = bytearray()
        self.exceeded = False
        self._pipe, self._process, self._limit = pipe, process, limit

    def run(self) -> None:
        with self._pipe:
            while chunk := os.read(self._pipe.fileno(), 1 << 16):
                self.taken += chunk
                if len(self.taken) > self._limit + 4096:  # the wrapper's own lines
                    self.exceeded = True
                    self._process.kill()
                    return


def _write(pipe: IO[bytes], data: bytes) -> None:
    try:
        with pipe:
            pipe.write(data)
    except OSError:  # it ended without reading everything, as its exit code tells
        pass


def _said(done: Done) -> str:
    """What it complained of: a line with "error" in it, or else the last one. A push's complaints are on standard output."""
    for text in (done.err, done.out):
        told = [line for line in lines(text) if line.strip() and not line.startswith("* daemon")]
        if told:
            return shortened(next((line for line in told if "error" in line.lower()), told[-1]), 300)
    return f"exit code {done.code}"
