"""A small adbd: Android's own protocol on loopback, for a real adb client to talk to, with a folder for a device.

What it speaks: CNXN, AUTH (which it can leave unanswered), OPEN, OKAY, WRTE, CLSE; the services ``shell`` and ``shell,v2``
(exit codes, separate error output, standard input) and ``sync:`` (STAT, STA2, LST2, LIST, SEND, RECV). Frames and ids are
those of AOSP's ``packages/modules/adb/protocol.txt``, ``SYNC.TXT`` and ``shell_protocol.h``.

Faults: ``unauthorized``, ``mute`` (it takes connections and says nothing), ``offline`` (connected, then never an answer),
``cut_push_after`` (bytes of a SEND after which the connection breaks), ``cut_shell_after`` (bytes of a shell's output),
``full`` (no space for files), ``no_shell_v2``, ``gone`` (the connection is dropped and no new one taken).
"""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import subprocess
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

A_CNXN, A_AUTH, A_OPEN, A_OKAY, A_WRTE, A_CLSE = (
    int.from_bytes(name, "little") for name in (b"CNXN", b"AUTH", b"OPEN", b"OKAY", b"WRTE", b"CLSE")
)
VERSION, MAXIMUM = 0x01000001, 1 << 18
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = 0, 1, 2, 3, 4
SYNC_CHUNK = 64 << 10
PLACES = ("/data/local/tmp", "/proc/sys/kernel/random/boot_id", "/proc/cpuinfo", "/sys/devices/system/cpu")
"""What commands see of a device's own; the rest is this machine's."""


@dataclass
class Faults:
    unauthorized: bool = False
    mute: bool = False
    offline: bool = False
    cut_push_after: int | None = None
    cut_shell_after: int | None = None
    full: bool = False
    no_shell_v2: bool = False
    gone: bool = False


@dataclass
class Adbd:
    """A device in a folder: its :data:`PLACES` lie below ``root``; ``PATH`` begins with ``root/bin``."""

    root: Path
    faults: Faults = field(default_factory=Faults)
    port: int = 0
    received: list[str] = field(default_factory=list)
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(32))
    errors: list[Exception] = field(default_factory=list)

    def start(self) -> Adbd:
        self.reboot()
        ready = threading.Event()
        self._loop = asyncio.new_event_loop()

        async def serve() -> None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]
            ready.set()

        def run() -> None:
            asyncio.set_event_loop(self._loop)
            self._loop.run_until_complete(serve())
            self._loop.run_forever()
            left = asyncio.all_tasks(self._loop)
            for task in left:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            self._loop.close()

        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        ready.wait(10)
        return self

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def reboot(self) -> None:
        """What tells one start of a device from another."""
        path = self.root / "proc/sys/kernel/random/boot_id"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{uuid.uuid4()}\n")

    def vanish(self) -> None:
        """As a cable that is pulled."""
        self.faults.gone = True
        self._loop.call_soon_threadsafe(self._drop)

    def stop(self) -> None:
        def end() -> None:
            self._drop()
            self._server.close()
            self._loop.call_later(0.2, self._loop.stop)

        if not self._thread.is_alive():
            return
        self._loop.call_soon_threadsafe(end)
        self._thread.join(5)
        self.threads.shutdown(wait=False)

    def _drop(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.faults.gone:
            writer.transport.abort()
            return
        self._writers.add(writer)
        try:
            await Connection(self, reader, writer).serve()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort()


Phones = Callable[..., Adbd]
"""Starts another device; a port of one's own may be given."""


class Stream:
    """One service of a connection: what came for it, and sending with one packet under way at a time."""

    def __init__(self, connection: Connection, local: int, remote: int) -> None:
        self.connection, self.local, self.remote = connection, local, remote
        self.incoming: asyncio.Queue[bytes] = asyncio.Queue()
        self.acknowledged = asyncio.Semaphore(0)
        self.rest = b""
        self.closed = asyncio.Event()

    async def write(self, data: bytes) -> None:
        for start in range(0, len(data), self.connection.maximum):
            await self.connection.send(A_WRTE, self.local, self.remote, data[start : start + self.connection.maximum])
            await self.acknowledged.acquire()
            if self.closed.is_set():
                raise ConnectionError("the stream was closed")

    async def read(self, size: int) -> bytes:
        while len(self.rest) < size:
            part = await self.incoming.get()
            if not part:
                raise ConnectionError("the stream was closed")
            self.rest += part
        data, self.rest = self.rest[:size], self.rest[size:]
        return data

    def end(self) -> None:
        self.closed.set()
        self.incoming.put_nowait(b"")
        self.acknowledged.release()


class Connection:
    def __init__(self, device: Adbd, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.device, self.reader, self.writer = device, reader, writer
        self.maximum = 4096
        self.streams: dict[int, Stream] = {}
        self.next = 1

    async def send(self, command: int, first: int, second: int, data: bytes = b"") -> None:
        head = struct.pack("<6I", command, first, second, len(data), sum(data) & 0xFFFFFFFF, command ^ 0xFFFFFFFF)
        self.writer.write(head + data)
        await self.writer.drain()

    async def serve(self) -> None:
        faults, tasks = self.device.faults, set()
        try:
            while True:
                command, first, second, length, _, magic = struct.unpack("<6I", await self.reader.readexactly(24))
                assert magic == command ^ 0xFFFFFFFF and length <= MAXIMUM
                data = await self.reader.readexactly(length)
                if faults.mute:
                    continue
                if command in (A_CNXN, A_AUTH):
                    if faults.unauthorized:  # it waits for a thumb on its screen, for ever
                        if command == A_CNXN or first == 2:
                            await self.send(A_AUTH, 1, 0, os.urandom(20))
                        continue
                    self.maximum = min(second or MAXIMUM, MAXIMUM)
                    features = "stat_v2,ls_v2,cmd" + ("" if faults.no_shell_v2 else ",shell_v2")
                    banner = f"device::ro.product.name=edgekit;ro.product.model=StandIn;ro.product.device=standin;features={features}"
                    await self.send(A_CNXN, VERSION, MAXIMUM, banner.encode())
                elif command == A_OPEN:
                    service = data.rstrip(b"\0").decode()
                    if faults.offline:
                        continue
                    stream = Stream(self, self.next, first)
                    self.next += 1
                    self.streams[stream.local] = stream
                    await self.send(A_OKAY, stream.local, stream.remote)
                    task = asyncio.ensure_future(self._service(stream, service))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                elif command == A_WRTE and second in self.streams:
                    self.streams[second].incoming.put_nowait(data)
                    await self.send(A_OKAY, second, first)
                elif command == A_OKAY and second in self.streams:
                    self.streams[second].acknowledged.release()
                elif command == A_CLSE and second in self.streams:
                    self.streams.pop(second).end()
        finally:
            for stream in self.streams.values():
                stream.end()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _service(self, stream: Stream, service: str) -> None:
        self.device.received.append(service)
        try:
            if service.startswith("sync:"):
                await Sync(self.device, stream).serve()
            elif service.startswith("shell"):
                await shell(self.device, stream, service)
        except (ConnectionError, asyncio.CancelledError):
            pass
        except Exception as error:  # a mistake of this file's, which the test that uses it shows
            self.device.errors.append(error)
        finally:
            if self.streams.pop(stream.local, None) is not None and not self.writer.transport.is_closing():
                await self.send(A_CLSE, stream.local, stream.remote)


def _place(device: Adbd, name: str) -> Path:
    """A device's path in its folder; what leads out of it is the device's own business, and stays in the folder."""
    path = Path(os.path.normpath("/" + name.lstrip("/"))).relative_to("/")
    return device.root / path


async def shell(device: Adbd, stream: Stream, service: str) -> None:
    kinds, _, command = service.partition(":")
    second = ",v2" in kinds
    # Commands name the device's paths: the folder stands in their place.
    for place in PLACES:
        command = command.replace(place, str(device.root) + place)
    process = subprocess.Popen(
        ["/bin/sh", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if second else subprocess.STDOUT,
        env={"PATH": f"{device.root}/bin:/usr/bin:/bin", "HOME": str(device.root), "DEVICE_ROOT": str(device.root)},
    )  # fmt: skip
    loop = asyncio.get_running_loop()
    sent = 0

    async def forward(pipe: IO[bytes], kind: int) -> None:
        nonlocal sent
        while data := await loop.run_in_executor(device.threads, os.read, pipe.fileno(), 1 << 15):
            limit = device.faults.cut_shell_after
            if limit is not None and sent + len(data) > limit:
                stream.connection.writer.transport.abort()
                raise ConnectionError("cut")
            sent += len(data)
            await stream.write(struct.pack("<BI", kind, len(data)) + data if second else data)

    async def feed() -> None:
        assert process.stdin is not None
        try:
            while True:
                kind, length = struct.unpack("<BI", await stream.read(5)) if second else (STDIN, 1)
                data = await stream.read(length)
                if kind == CLOSE_STDIN:
                    process.stdin.close()
                elif kind == STDIN:
                    await loop.run_in_executor(device.threads, process.stdin.write, data)
                    process.stdin.flush()
        except (ConnectionError, ValueError):  # the stream's end, or the program's
            pass

    assert process.stdout is not None
    outputs = [forward(process.stdout, STDOUT)] + ([forward(process.stderr, STDERR)] if process.stderr else [])
    reading = asyncio.gather(*outputs)
    reading.add_done_callback(lambda done: done.cancelled() or done.exception())  # looked at, whoever waited for it
    feeding, gone = asyncio.ensure_future(feed()), asyncio.ensure_future(stream.closed.wait())
    try:
        await asyncio.wait({reading, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not gone.done():
            await reading
            code = await loop.run_in_executor(device.threads, process.wait)
            if second:
                await stream.write(struct.pack("<BIB", EXIT, 1, code if code >= 0 else 128 - code))
    finally:
        if process.poll() is None:  # as adbd does when the other side is gone
            process.send_signal(signal.SIGHUP)
        for task in (reading, feeding, gone):
            task.cancel()


class Sync:
    def __init__(self, device: Adbd, stream: Stream) -> None:
        self.device, self.stream = device, stream

    async def serve(self) -> None:
        while True:
            name, length = struct.unpack("<4sI", await self.stream.read(8))
            if name == b"QUIT":
                return
            path = (await self.stream.read(length)).decode()
            await getattr(self, f"_{name.decode().lower()}")(path)

    async def _stat(self, path: str) -> None:
        mode, size, changed = self._facts(path)[:3]
        await self.stream.write(struct.pack("<4s3I", b"STAT", mode, size & 0xFFFFFFFF, changed))

    def _facts(self, path: str) -> tuple[int, int, int]:
        try:
            facts = os.stat(_place(self.device, path))
        except OSError:
            return 0, 0, 0
        return facts.st_mode, facts.st_size, int(facts.st_mtime)

    async def _sta2(self, path: str, name: bytes = b"STA2") -> None:
        mode, size, changed = self._facts(path)
        error = 0 if mode else 2
        await self.stream.write(
            struct.pack("<4sIQQIIIIQqqq", name, error, 0, 1, mode, 1, 0, 0, size, changed, changed, changed)
        )

    async def _lst2(self, path: str) -> None:
        await self._sta2(path, b"LST2")

    async def _send(self, path: str) -> None:
        place = _place(self.device, path.rpartition(",")[0])
        taken = bytearray()
        while True:
            name, length = struct.unpack("<4sI", await self.stream.read(8))
            if name == b"DONE":
                break
            taken += await self.stream.read(length)
            cut = self.device.faults.cut_push_after
            if cut is not None and len(taken) > cut:
                place.write_bytes(taken)  # half of it is there, as on a real device
                self.stream.connection.writer.transport.abort()
                raise ConnectionError("cut")
        if self.device.faults.full:
            await self._fail("write failed: No space left on device")
            return
        try:
            place.write_bytes(taken)
        except OSError as error:
            await self._fail(f"couldn't create file: {error.strerror}")
            return
        place.chmod(0o755)
        await self.stream.write(struct.pack("<4sI", b"OKAY", 0))

    async def _fail(self, text: str) -> None:
        await self.stream.write(struct.pack("<4sI", b"FAIL", len(text)) + text.encode())

    async def _recv(self, path: str) -> None:
        try:
            data = _place(self.device, path).read_bytes()
        except OSError as error:
            await self._fail(f"open failed: {error.strerror}")
            return
        for start in range(0, len(data), SYNC_CHUNK):
            part = data[start : start + SYNC_CHUNK]
            await self.stream.write(struct.pack("<4sI", b"DATA", len(part)) + part)
        await self.stream.write(struct.pack("<4sI", b"DONE", 0))
