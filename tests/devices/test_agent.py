"""The agent without a network: what it is made of, its talk over pipes, its cache, its lock, and its ends."""

from __future__ import annotations

import ast
import errno
import json
import os
import queue
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sshd import processes_with

from edgekit.core.errors import EdgekitError
from edgekit.core.files import sha256_bytes
from edgekit.devices.agent.cache import Cache, NoSpace
from edgekit.devices.agent.lock import Busy, DeviceLock
from edgekit.devices.pack import pack_agent

PYENV = Path.home() / ".pyenv"  # found here, before a test has a home of its own
ALLOWED = {"numpy", "openvino", "onnxruntime", "ai_edge_litert", "tflite_runtime", "tensorrt", "coremltools", "torch"}
"""What a packed module may import besides the standard library; torch only where types are checked."""


@pytest.fixture(scope="module")
def agent_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("agent") / pack_agent().name
    path.write_bytes(pack_agent().data)
    return path


@pytest.fixture(scope="session")
def old_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The oldest Python that the agent runs on, with numpy and nothing else."""
    found = shutil.which("python3.9")
    versions = sorted(PYENV.glob("versions/3.9.*/bin/python"))
    if versions:
        found = str(versions[-1])
    if found is None:
        pytest.skip("there is no Python 3.9 here")
    if not os.environ.get("EDGEKIT_TEST_DEVICES"):
        pytest.skip("numpy is installed for Python 3.9 by make test-devices")
    folder = tmp_path_factory.mktemp("python39") / "venv"
    subprocess.run([found, "-m", "venv", folder], check=True)
    subprocess.run([folder / "bin" / "pip", "install", "-q", "numpy"], check=True)
    return folder / "bin" / "python"


class Talk:
    """A host as simple as can be."""

    def __init__(self, python: str | Path, agent: Path, cache: Path, *more: str, limit: int = 1 << 30) -> None:
        self.process = subprocess.Popen(
            [str(python), str(agent), "serve", "token", str(cache), str(limit), "0.1.0", *more],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.number = 0
        self.events: list[dict[str, Any]] = []

    def ask(self, do: str, **more: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.number += 1
        self.process.stdin.write(json.dumps({"id": self.number, "do": do, **more}) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        while True:
            line = self.process.stdout.readline()
            assert line.startswith("@edgekit:token:"), (line, self.process.poll())
            message: dict[str, Any] = json.loads(line[len("@edgekit:token:") :])
            if message["id"] != self.number:
                continue
            if "event" not in message:
                return message
            self.events.append(message["event"])

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.kill()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        return self.process.wait(20)


@pytest.fixture
def talk(agent_file: Path, tmp_path: Path) -> Iterator[Callable[..., Talk]]:
    started: list[Talk] = []

    def start(*more: str, python: str | Path = sys.executable, limit: int = 1 << 30) -> Talk:
        started.append(Talk(python, agent_file, tmp_path / "cache", *more, limit=limit))
        return started[-1]

    yield start
    for one in started:
        one.end()


# What it is made of


def test_the_same_bytes_again() -> None:
    first = pack_agent()
    pack_agent.cache_clear()
    assert pack_agent() == first
    assert len(first.data) < 200_000


def sources() -> list[tuple[str, str]]:
    with zipfile.ZipFile(BytesIO(pack_agent().data)) as archive:
        return [(name, archive.read(name).decode()) for name in archive.namelist() if name.endswith(".py")]


@pytest.mark.parametrize(("name", "source"), sources(), ids=[name for name, _ in sources()])
def test_it_is_python_39_with_numpy_alone(name: str, source: str) -> None:
    tree = ast.parse(source, feature_version=(3, 9))  # no match, no parenthesized with
    inside = {part for part, _ in sources()}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "zip":
            assert not any(keyword.arg == "strict" for keyword in node.keywords), "zip has no strict in Python 3.9"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            assert not isinstance(node.args[1], ast.BinOp), "types cannot be joined by | in Python 3.9"
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        for module in names:
            top = module.partition(".")[0]
            if top == "edgekit":
                path = module.replace(".", "/")
                assert f"{path}.py" in inside or f"{path}/__init__.py" in inside, f"{name} needs {module}, left behind"
            else:
                assert top in sys.stdlib_module_names or top in ALLOWED or top == "__future__", f"{name} needs {module}"


# Its talk


def test_hello(talk: Callable[..., Talk]) -> None:
    hello = talk().ask("hello")["done"]
    assert hello["protocol"] == 1
    assert hello["runtimes"]["onnxruntime"]
    assert "coreml" not in hello["runtimes"], "there is no Core ML on this system"


def test_the_oldest_python(talk: Callable[..., Talk], old_python: Path) -> None:
    one = talk(python=old_python)
    hello = one.ask("hello")["done"]
    assert hello["python"].startswith("3.9.")
    assert hello["runtimes"]["onnxruntime"] is None
    assert hello["missing"]["onnxruntime"].endswith("-m pip install onnxruntime")
    assert one.ask("probe")["done"]["environment"]["packages"].keys() == {"numpy"}
    assert one.ask("take", seconds=300) == {"id": one.number, "done": {}}


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ({"do": "nothing"}, "does not know 'nothing'"),
        ({"do": "have", "artifacts": ["../../etc"], "packs": [], "frames": []}, "is no hash"),
        ({"do": "have", "artifacts": [], "packs": ["/etc/passwd"], "frames": []}, "is no hash"),
        ({"do": "read", "key": "a" * 32, "name": "../../secret", "limit": 10}, "is no file's name"),
        ({"do": "tool", "program": "sh", "arguments": [], "seconds": 1, "watched": False}, "is not installed"),
        ({"do": "evaluate", "step": "pack", "pack": "a" * 32, "classes": {}}, "no artifact is open"),
        (
            {"do": "bench", "subjects": [{"artifact": "a" * 32, "title": "t"}], "frames": "b" * 32, "mode": "quick",
             "scope": "graph", "threads": 1, "contract": {}},
            "send it first",
        ),
    ],
)  # fmt: skip
def test_what_it_refuses(talk: Callable[..., Talk], command: dict[str, Any], said: str) -> None:
    one = talk()
    answer = one.ask(**command)
    assert said in answer["error"]["text"]
    assert one.ask("hello")["done"], "it goes on after a refusal"


# Its ends


def test_it_ends_with_its_host(talk: Callable[..., Talk]) -> None:
    one = talk()
    one.ask("hello")
    assert one.process.stdin is not None
    one.process.stdin.close()
    assert one.process.wait(20) == 0


def test_it_ends_when_the_network_went(talk: Callable[..., Talk]) -> None:
    """The line stays open but nothing comes: as when a cable was pulled."""
    one = talk("1.5")
    one.ask("hello")
    assert one.process.wait(20) == 3


def test_signs_of_life_keep_it(talk: Callable[..., Talk]) -> None:
    one = talk("1.5")
    one.ask("hello")
    assert one.process.stdin is not None
    for _ in range(8):
        time.sleep(0.4)
        one.process.stdin.write('{"do": "alive"}\n')
        one.process.stdin.flush()
    assert one.ask("hello")["done"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread looks once a second")
@pytest.mark.parametrize("how", ["kill", "end"])
def test_what_it_started_ends_with_it(
    talk: Callable[..., Talk], agent_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    tool = tmp_path / "bin" / "trtexec"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\nexec sleep 3141.{os.getpid()}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    one = talk()
    asked = threading.Thread(target=_ignored, args=(one,))
    asked.start()
    deadline = time.monotonic() + 20
    while not processes_with(f"3141.{os.getpid()}"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if how == "kill":
        os.kill(one.process.pid, signal.SIGKILL)
    else:
        assert one.process.stdin is not None
        one.process.stdin.close()
    while processes_with(f"3141.{os.getpid()}"):
        assert time.monotonic() < deadline, "trtexec is still there"
        time.sleep(0.05)
    asked.join(20)


def _ignored(one: Talk) -> None:
    try:
        one.ask("tool", program="trtexec", arguments=["x"], seconds=60, watched=False)
    except (AssertionError, ValueError):
        return


def test_a_tool_that_does_not_end(talk: Callable[..., Talk], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "bin" / "trtexec"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho begun\nexec sleep 1000\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    done = talk().ask("tool", program="trtexec", arguments=[], seconds=1, watched=True)["done"]
    assert done["code"] is None
    assert done["output"] == "begun\n"
    assert done["tegrastats"] is None


ROWS = """[
  { "startEnqMs" : 1000.1, "startComputeMs" : 1000.2, "endComputeMs" : 1003.3, "h2dMs" : 0, "computeMs" : 3.1, "d2hMs" : 0, "latencyMs" : 3.4 }
, { "startEnqMs" : 1003.4, "startComputeMs" : 1003.5, "endComputeMs" : 1006.7, "h2dMs" : 0, "computeMs" : 3.2, "d2hMs" : 0, "latencyMs" : 3.5 }
]
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (ROWS, ""), (ROWS.replace("\n", ""), ""), (json.dumps(json.loads(ROWS)), ""), (None, ""),
        (ROWS[:200], "cut short"), ("", "cut short"), ("[]", "no timed query"), (ROWS.replace("3.1", "nan"), "no timed query"),
        (ROWS.replace("3.1", "1e999"), "no timed query"), (ROWS.replace("3.1", "[3.1]"), "no number"),
    ],
)  # fmt: skip
def test_times_that_trtexec_exported(talk: Callable[..., Talk], tmp_path: Path, text: str | None, said: str) -> None:
    """Only the numbers that are asked for are sent, at most as many as are taken."""
    one = talk()
    one.ask("have", artifacts=[], packs=[], frames=[])
    folder = tmp_path / "cache" / "engines" / ("e" * 32)
    folder.mkdir()
    if text is not None:
        (folder / "times.json").write_text(text)
    for field, limit, times in (("computeMs", 9, [3.1, 3.2]), ("latencyMs", 9, [3.4, 3.5]), ("computeMs", 1, [3.1])):
        answer = one.ask("times", key="e" * 32, name="times.json", field=field, limit=limit)
        if said and field == "computeMs":
            assert answer["error"]["kind"] == "artifact"
            assert said in answer["error"]["text"]
        elif not said:
            assert answer["done"]["times"] == (None if text is None else times)


# Its lock


def test_one_measurement_at_a_time(tmp_path: Path) -> None:
    first, second = DeviceLock("first", tmp_path / "lock"), DeviceLock("second", tmp_path / "lock")
    told: queue.Queue[str] = queue.Queue()
    first.take(0)
    with pytest.raises(Busy, match="first"):
        second.take(0.3, told.put)
    assert "first" in told.get_nowait()
    waiting = threading.Thread(target=second.take, args=(20,))
    waiting.start()
    time.sleep(0.3)
    assert waiting.is_alive()
    first.release()
    waiting.join(10)
    assert not waiting.is_alive()
    with pytest.raises(Busy, match="second"):
        first.take(0)


def test_a_lock_survives_no_crash(talk: Callable[..., Talk]) -> None:
    """The agent that holds the device is killed: the next one has it at once."""
    first, second = talk(), talk()
    assert "done" in first.ask("take", seconds=300)
    answer = second.ask("take", seconds=0.3)
    assert answer["error"]["kind"] == "busy"
    assert "a process of" in answer["error"]["text"]
    os.kill(first.process.pid, signal.SIGKILL)
    assert "done" in second.ask("take", seconds=300)


def test_another_users_lock_file_serves_too(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("")
    path.chmod(0o666)
    lock = DeviceLock("me", path)
    lock.take(0)
    lock.release()
    assert lock.remark == ""


def closed(path: Path) -> None:
    path.write_text("another\x1b[2J's")
    path.chmod(0)


def to_read(path: Path) -> None:
    path.write_text("another's")
    path.chmod(0o444)


def linked(path: Path) -> None:
    (path.parent / "work").write_text("a thesis")
    os.link(path.parent / "work", path)


@pytest.mark.parametrize(
    "lay", [closed, to_read, linked, Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path.parent / "elsewhere")],
    ids=["closed", "to be read", "linked", "a folder", "a pipe", "a link"],
)  # fmt: skip
def test_nobodys_file_in_a_shared_folder_blocks_a_measurement(lay: Callable[[Path], None]) -> None:
    """Whatever another user lays out under the lock's name: it is taken all the same, by file or beside it, and said."""
    with tempfile.TemporaryDirectory(dir="/tmp") as given:
        folder, path = Path(given), Path(given, "lock")
        folder.chmod(0o777)
        lay(path)
        home = folder / "home"
        home.mkdir(mode=0o777)
        home.chmod(0o777)
        child = os.fork()
        if child == 0:
            try:
                if os.getuid() == 0:
                    os.setuid(65534)  # root may open everything
                os.environ["XDG_CACHE_HOME"] = str(home)
                first, second = DeviceLock("first", path), DeviceLock("second", path)
                first.take(0)
                remarked = "are not waited for" in first.remark
                try:
                    second.take(0)
                except Busy as busy:
                    held = "\x1b" not in str(busy)
                else:
                    held = False
                first.release()
                second.take(0)
                os._exit(0 if held and remarked == (lay is not to_read) else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert not (folder / "elsewhere").exists(), "a link that somebody laid out is not followed"
        assert lay is not linked or (folder / "work").read_text() == "a thesis"


# Its cache


def pushed(cache: Cache, data: bytes) -> str:
    key = sha256_bytes(data)
    cache.incoming(key).write_bytes(data)
    return key


def test_files_are_kept_by_what_they_hold(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 1 << 20)
    key = pushed(cache, b"frames")
    cache.keep(key, cache.pack(key))
    assert cache.has(cache.pack(key))
    damaged = "0" * 64
    cache.incoming(damaged).write_bytes(b"other bytes")
    with pytest.raises(EdgekitError, match="arrived damaged"):
        cache.keep(damaged, cache.pack(damaged))
    assert not cache.has(cache.pack(damaged))
    assert not cache.incoming(damaged).exists()


def test_without_hard_links_half_a_copy_is_never_taken_for_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a file system (FAT, some network mounts) fills up in the middle of a copy; with space it is copied whole."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    def fill(source: Path, target: Path) -> None:
        Path(target).write_bytes(Path(source).read_bytes()[:3])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", refuse)
    cache = Cache(tmp_path / "cache", 1 << 20)
    key = pushed(cache, b"frames")
    with monkeypatch.context() as full:
        full.setattr(shutil, "copyfile", fill)
        with pytest.raises(OSError, match="No space left"):
            cache.keep(key, cache.pack(key))
    assert not cache.has(cache.pack(key))
    assert not list((cache.root / "packs").iterdir()), "nothing of it is left"
    cache.keep(key, cache.pack(key))
    assert cache.pack(key).read_bytes() == b"frames"
    assert [entry.name for entry in (cache.root / "packs").iterdir()] == [f"{key}.npz"]


def test_an_engine_beside_its_model_is_held_once(tmp_path: Path) -> None:
    """An artifact only has a link to its engine, which lies with the engines: both fit where both are allowed."""
    cache = Cache(tmp_path / "cache", 5000)
    engine = cache.engine("e" * 32)
    engine.mkdir()
    (engine / "model.engine").write_bytes(b"x" * 2000)
    cache.keep_artifact("a" * 32, {"model.onnx": pushed(cache, b"model")}, {})
    (cache.artifact("a" * 32) / "model.engine").symlink_to(engine / "model.engine")
    cache.empty_incoming()
    assert 2000 < cache.size() < 2500
    cache.make_room(2000)
    assert (cache.artifact("a" * 32) / "model.engine").is_file(), "nothing had to go"


@pytest.mark.parametrize("name", ["../out", "/etc/out", "a/../../out", "a//b", "", ".", "..\\out", "a/."])
def test_no_artifact_leads_out_of_its_folder(tmp_path: Path, name: str) -> None:
    cache = Cache(tmp_path / "cache", 1 << 20)
    key = pushed(cache, b"model")
    with pytest.raises(EdgekitError, match="no name of an artifact's file"):
        cache.keep_artifact("a" * 32, {name: key}, {})
    assert not list(tmp_path.rglob("out"))
    assert not cache.has(cache.artifact("a" * 32))


def test_an_artifact_whose_files_are_alike(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 1 << 20)
    key = pushed(cache, b"the same")
    cache.keep_artifact("a" * 32, {"one": key, "deep/er/two": key}, {"target": "x"})
    assert cache.has(cache.artifact("a" * 32))
    assert (cache.artifact("a" * 32) / "deep" / "er" / "two").read_bytes() == b"the same"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(sizes=st.lists(st.integers(1, 900), min_size=1, max_size=12), limit=st.integers(900, 2500))
def test_it_never_holds_more_than_it_may(sizes: list[int], limit: int, tmp_path: Path) -> None:
    root = tmp_path / f"cache-{limit}-{len(sizes)}"
    shutil.rmtree(root, ignore_errors=True)
    cache = Cache(root, limit)
    for index, size in enumerate(sizes):
        cache.make_room(size)
        key = pushed(cache, bytes([index]) * size)
        cache.keep(key, cache.pack(key))
        cache.empty_incoming()
        assert cache.size() <= limit
        assert cache.has(cache.pack(key)), "what came last is there"


def test_what_was_used_least_recently_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 250)
    keys = []
    for index in range(2):
        key = pushed(cache, bytes([index]) * 100)
        cache.keep(key, cache.pack(key))
        os.utime(cache.pack(key), (index, index))
        keys.append(key)
    assert cache.has(cache.pack(keys[0]))  # used now
    cache.make_room(100)
    assert cache.has(cache.pack(keys[0]))
    assert not cache.has(cache.pack(keys[1]))
    with pytest.raises(NoSpace, match="do not fit"):
        cache.make_room(251)


def test_it_can_be_removed(talk: Callable[..., Talk], tmp_path: Path) -> None:
    one = talk()
    folder = Path(one.ask("room", bytes=10)["done"]["folder"])
    (folder / ("a" * 64)).write_bytes(b"x" * 1000)
    assert one.ask("clean")["done"]["bytes"] >= 1000
    assert not (tmp_path / "cache").exists()


# Its numbers


def test_counts_as_on_the_host(tmp_path: Path, streets_frames: Any) -> None:
    """A pack's counts are those that edgekit makes of the same labels, instances and resizing included."""
    from calibration.datasets import open_split, resize_labels
    from edgekit.core.values import Size
    from edgekit.devices.worker import count_pack
    from edgekit.metrics.scores import count_frame, dense
    from edgekit.pipeline.accuracy import Frames
    from edgekit.pipeline.devices import frame_packs

    frames = Frames(open_split("streets", "test", None, Size(100, 180)).first(3))
    size = Size(64, 96)  # no divisor of the truth's
    generator = np.random.default_rng(0)
    labels = [generator.integers(0, 19, (1, size.height, size.width)).astype(np.uint8) for _ in range(3)]
    given_labels = iter(labels)
    packs = frame_packs(frames, size, None, tmp_path)
    counted = [
        frame for pack in packs for frame in count_pack(lambda _: next(given_labels), pack(), frames.split.classes)
    ]
    for index, frame in enumerate(counted):
        truth = frames[index]
        native = resize_labels(labels[index][0], Size(*truth.labels.shape))
        expected = count_frame(native, truth.labels, truth.instances, frames.split.classes)
        found = dense(frame.counts, 19)
        for key in ("confusion", "class_hits", "class_misses", "category_hits", "category_misses"):
            assert np.array_equal(getattr(found, key), getattr(expected, key)), key
        assert frame.agreement is None


def test_silence_while_it_works(talk: Callable[..., Talk], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of life are answered while a command is carried out, so that the host can tell slow from gone."""
    tool = tmp_path / "bin" / "trtexec"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\nexec sleep 2\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    one = talk()
    assert one.process.stdin is not None
    assert one.process.stdout is not None
    one.process.stdin.write(
        '{"id": 1, "do": "tool", "program": "trtexec", "arguments": [], "seconds": 60, "watched": false}\n'
    )
    one.process.stdin.flush()
    time.sleep(0.5)
    one.process.stdin.write('{"do": "alive"}\n')
    one.process.stdin.flush()
    alive = False
    begin = time.monotonic()
    while not alive and time.monotonic() - begin < 20:
        assert select.select([one.process.stdout], [], [], 20)[0]
        line = one.process.stdout.readline()
        assert '"done"' not in line, "it answered only after its work"
        alive = '"alive": true' in line
    assert alive
