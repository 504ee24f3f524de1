"""What goes wrong with devices: one clear sentence, what is finished is kept, the rest goes on, and nothing is left anywhere.

The fixture ``project`` holds after each test that no process is left on either side and nothing was written beside it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sshd
from boards import MOMENT, RUN, Project
from seam import Done, environment, files, start

from edgekit.core.contract import LATENCY_CONTRACTS, LatencyContract
from edgekit.devices import board as boards
from edgekit.devices import remote, ssh

ARTIFACT = "out/artifacts/onnxruntime-fp32-64x128"


def odd_python(project: Project, site: str = "", shell: str = "") -> str:
    """A Python for the device: what its shell does first, and what all its processes import first."""
    folder = project.folder.parent / "device"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(site)
    (folder / "python").write_text(f'#!/bin/sh\n{shell}\nexport PYTHONPATH={folder}\nexec {sys.executable} "$@"\n')
    (folder / "python").chmod(0o755)
    return str(folder / "python")


@contextmanager
def meanwhile(work: Callable[[], None]) -> Iterator[None]:
    """Something that happens beside the test; its error is the test's."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join(60)
    assert not thread.is_alive()
    assert not failed, failed


def until(true: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def longer(project: Project, seconds: float = 1.5) -> None:
    """Measurements in whose middle something can happen."""
    project.patch.setitem(LATENCY_CONTRACTS, "quick", LatencyContract(1, 0.0, 8, seconds, 1))


def agents(cache: Path) -> list[int]:
    return sshd.processes_with(f"{cache}/agent-")


def workers(cache: Path) -> list[int]:
    return [one for one in agents(cache) if b"\0worker\0" in _command(one)]


def _command(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def rows(project: Project, device: str = "board") -> dict[str, dict[str, Any]]:
    document = json.loads((project.folder / "out" / "report" / "report.json").read_text())
    return {row["target"]: row for row in document["rows"] if row["device"] == device}


def failed(done: Done, *parts: str) -> None:
    """One sentence of edgekit's on one line, which says these things."""
    assert done.code == 1, (done.code, done.err[-2000:])
    assert "\x1b" not in done.err
    assert len(done.sentence) < 1200
    for part in parts:
        assert part in done.sentence, done.sentence


# Before anything is measured


def unknown(project: Project, config: Path) -> None:
    (config.parent / "nobody").write_text("")
    sshd.write_config(project.server, config, UserKnownHostsFile=str(config.parent / "nobody"))


def changed(project: Project, config: Path) -> None:
    folder = project.server.folder
    (config.parent / "before").write_text(f"[127.0.0.1]:{project.server.port} {(folder / 'stranger.pub').read_text()}")
    sshd.write_config(project.server, config, UserKnownHostsFile=str(config.parent / "before"))


def wrong_key(project: Project, config: Path) -> None:
    sshd.write_config(project.server, config, IdentityFile=str(project.server.folder / "stranger"))


def wrong_password(project: Project, config: Path) -> None:
    server = project.server
    text = (server.folder / "sshd_config").read_text()
    (server.folder / "sshd_config").write_text(text.replace("PasswordAuthentication no", "PasswordAuthentication yes"))
    server.stop()
    server.start()
    sshd.write_config(server, config, PreferredAuthentications="password", PubkeyAuthentication="no")


def refused(project: Project, config: Path) -> None:
    sshd.write_config(project.server, config, Port="1")


def nowhere(project: Project, config: Path) -> None:
    sshd.write_config(project.server, config, HostName="nowhere.invalid")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (unknown, "unknown host key: connect once by hand"),
        (changed, "another host key than before"),
        (wrong_key, "refuses the login"),
        (wrong_password, "refuses the login"),
        (refused, "cannot be reached"),
        (nowhere, "cannot be reached"),
    ],
)  # fmt: skip
def test_a_device_that_lets_nobody_in(fault: Callable[[Project, Path], None], said: str, project: Project) -> None:
    """It is told before hours of work, and the run's folder stays as it was."""
    folder = project.folder.parent / "device"
    folder.mkdir()
    config = folder / "ssh_config"
    fault(project, config)
    project.device("board", config=str(config))
    before = files(project.folder / "out")
    failed(project.run("--device", "board"), "device 'board'", said)
    after = {name: size for name, size in files(project.folder / "out").items() if "/logs/" not in name}
    assert after == {name: size for name, size in before.items() if "/logs/" not in name}
    sshd.write_config(project.server, config)
    assert project.edgekit("devices", "probe", "board").code == 0


def old(project: Project) -> str:
    folder = project.folder.parent / "device"
    folder.mkdir()
    answer = '{"python": [3, 6, 9], "root": "/tmp", "agent": "", "numpy": true, "program": "python3"}'
    (folder / "python").write_text(f"#!/bin/sh\nprintf '\\n%s%s\\n' \"$3\" '{answer}'\n")
    (folder / "python").chmod(0o755)
    return str(folder / "python")


def bare(project: Project) -> str:
    folder = project.folder.parent / "device"
    venv.create(folder, with_pip=False)
    return str(folder / "bin" / "python")


def old_numpy(project: Project) -> str:
    python = bare(project)
    (packages,) = Path(python).parent.parent.glob("lib/python*/site-packages")
    (packages / "numpy").mkdir()
    (packages / "numpy" / "__init__.py").write_text('__version__ = "1.19.5"\n')
    return python


@pytest.mark.parametrize(
    ("python", "said"),
    [
        (lambda _: "/nowhere/python3", "has no Python by the name /nowhere/python3"),
        (old, "has Python 3.6.9, and the agent needs 3.9 or newer"),
        (bare, "-m pip install numpy"),
        (old_numpy, "has numpy 1.19.5, and the agent needs 1.21 or newer: run"),
    ],
)  # fmt: skip
def test_another_python(python: Callable[[Project], str], said: str, project: Project) -> None:
    project.device(python=python(project))
    failed(project.run("--device", "board"), "device 'board'", said)


def test_a_missing_runtime(project: Project) -> None:
    """numpy and nothing else, then one runtime of two: what is missing is said with the command that adds it."""
    python = bare(project)
    here = Path(np.__file__).parents[1]
    there = Path(sysconfig.get_path("purelib", vars={"base": str(project.folder.parent / "device")}))

    def bring(pattern: str) -> None:
        for found in here.glob(pattern):
            (there / found.name).symlink_to(found)

    bring("numpy")
    bring("numpy.libs")
    project.device(python=python)
    failed(project.edgekit("bench", ARTIFACT, "--device", "board"), f"run there {python} -m pip install onnxruntime")
    failed(project.run("--device", "board"), "none of this run's targets", f"{python} -m pip install onnxruntime")
    bring("onnxruntime")
    bring("onnxruntime-*.dist-info")
    done = project.run("--device", "board", targets="onnxruntime,openvino")
    assert done.code == 0, done.err
    assert rows(project)["onnxruntime"]["provenance"]["latency"]["kind"] == "measured"
    row = rows(project)["openvino"]
    assert row["provenance"]["latency"] == row["provenance"]["miou"]
    assert row["provenance"]["latency"]["kind"] == "not measured"
    assert f"{python} -m pip install openvino" in row["provenance"]["latency"]["why"]


# In the middle


def test_the_default_outlasts_half_a_minute() -> None:
    assert boards.RECONNECT_SECONDS >= 60


def test_cut_and_back(project: Project) -> None:
    """The network goes while latency is measured, for a while: the run goes on by itself and is whole."""
    cache = project.device()
    longer(project)

    def cut() -> None:
        until(lambda: workers(cache))
        project.server.stop()
        until(lambda: not agents(cache))
        time.sleep(2.5)
        project.server.start()

    with meanwhile(cut):
        done = project.run("--device", "board", targets="onnxruntime,openvino")
    assert done.code == 0, done.err
    assert "connecting again" in done.err
    for row in rows(project).values():
        assert row["provenance"]["latency"]["kind"] == "measured"
        assert row["provenance"]["miou"]["kind"] == "measured"


def test_cut_while_evaluating(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on with the frames that it was at: every frame is counted once."""
    monkeypatch.setattr("edgekit.pipeline.devices.PACK_FRAMES", 1)
    cache = project.device()

    def cut() -> None:
        until(lambda: len(list(cache.glob("packs/*.npz"))) > 1)
        project.server.cut()

    with meanwhile(cut):
        done = project.edgekit("evaluate", ARTIFACT, "--frames", 24, "--device", "board", "--json")
    assert done.code == 0, done.err
    assert "connecting again" in done.err
    here = project.edgekit("evaluate", ARTIFACT, "--frames", 24, "--json").document
    assert done.document["miou"] == here["miou"]


def test_cut_without_a_word(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection stays open but nothing comes any more, as when a cable is pulled; the agent there ends by itself."""
    monkeypatch.setattr(remote, "AGENT_SILENCE", 4.0)
    monkeypatch.setattr(remote, "ALIVE", 0.5)
    monkeypatch.setattr(
        "edgekit.devices.ssh.OPTIONS",
        [*(one for one in ssh.OPTIONS if "ServerAlive" not in one), "ServerAliveInterval=1", "ServerAliveCountMax=2"],
    )  # fmt: skip
    cache = project.device()
    longer(project, 3)
    frozen: list[int] = []

    def freeze() -> None:
        until(lambda: workers(cache))
        frozen.extend(one for one in project.server.sessions() if _command(one).startswith(b"sshd"))
        for process in frozen:
            os.kill(process, signal.SIGSTOP)

    with meanwhile(freeze):
        done = project.run("--device", "board")
    for process in frozen:
        os.kill(process, signal.SIGKILL)
    assert done.code == 0, done.err
    assert "connecting again" in done.err
    assert rows(project)["onnxruntime"]["provenance"]["latency"]["kind"] == "measured"


def test_cut_for_good(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boards, "RECONNECT_SECONDS", 0.5)
    monkeypatch.setattr(boards, "RETRY_SECONDS", 0.2)
    cache = project.device()
    longer(project)

    def cut() -> None:
        until(lambda: list((project.folder / "out/measurements").glob("*.board.accuracy.json")) and workers(cache))
        project.server.stop()

    with meanwhile(cut):
        done = project.run("--device", "local,board")
    failed(done, "device 'board'", "holds what was finished")
    row = rows(project)["onnxruntime"]
    assert row["provenance"]["miou"]["kind"] == "measured", "accuracy was finished"
    assert row["provenance"]["latency"]["kind"] == "not measured"
    assert "board" in row["provenance"]["latency"]["why"]
    assert rows(project, "local")["onnxruntime"]["provenance"]["latency"]["kind"] == "measured"
    project.server.start()
    done = project.run("--device", "local,board")
    assert done.code == 0, done.err
    assert "board: onnxruntime fp32 already evaluated" in done.err
    assert rows(project)["onnxruntime"]["provenance"]["latency"]["kind"] == "measured"


def test_the_agent_is_killed(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boards, "RETRY_SECONDS", 0.2)
    cache = project.device()
    longer(project)

    def kill(times: int) -> None:
        for _ in range(times):
            until(lambda: workers(cache))
            running = set(agents(cache))
            (agent,) = [one for one in running if b"\0serve\0" in _command(one)]
            os.kill(agent, signal.SIGKILL)
            until(lambda running=running: not running & set(agents(cache)))

    with meanwhile(lambda: kill(boards.ATTEMPTS)):
        done = project.edgekit("bench", ARTIFACT, "--device", "board")
    failed(done, "device 'board' ended the talk without a word (what ran there was killed")
    with meanwhile(lambda: kill(1)):
        done = project.edgekit("bench", ARTIFACT, "--device", "board")
    assert done.code == 0, done.err
    assert "connecting again" in done.err


@pytest.mark.parametrize(
    ("how", "whom"), [(signal.SIGINT, os.kill), (signal.SIGINT, os.killpg), (signal.SIGKILL, os.kill)],
    ids=["interrupted", "interrupted at a terminal", "killed"],
)  # fmt: skip
def test_the_host_ends(how: signal.Signals, whom: Callable[[int, int], None], project: Project) -> None:
    """Ctrl-C, which a terminal sends to what edgekit called too, or a kill: nothing runs on, and the next run goes on."""
    cache = project.device()
    (project.folder / "sitecustomize.py").write_text(MOMENT.replace("64, 0.0", "64, 30.0"))
    process = start(
        "run", project.made.checkpoint, "--targets", "onnxruntime", *RUN, "--device", "board",
        cwd=project.folder, env=environment(project.folder),
    )  # fmt: skip
    until(lambda: list((project.folder / "out/measurements").glob("*.board.accuracy.json")) and workers(cache))
    whom(process.pid, how)
    _, err = process.communicate(timeout=30)
    assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL), err
    assert "Traceback" not in err
    until(lambda: not agents(cache), 20)
    (project.folder / "sitecustomize.py").unlink()
    if how == signal.SIGKILL:
        for client in project.server.others_with(str(project.server.config)):  # the shared connection ends in 10 s
            os.kill(client, signal.SIGKILL)
    done = project.run("--device", "board")
    assert done.code == 0, done.err
    assert "already evaluated" in done.err


# The device


@contextmanager
def small_disk(project: Project) -> Iterator[dict[str, Any]]:
    cache = project.folder / "cache-board"
    cache.mkdir(exist_ok=True)
    mounted = (
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(cache)], check=False).returncode == 0
    )
    if not mounted:
        pytest.skip("a small file system cannot be mounted here")
    try:
        yield {}
    finally:
        subprocess.run(["umount", str(cache)], check=True)


@contextmanager
def small_files(project: Project) -> Iterator[dict[str, Any]]:
    yield {"python": odd_python(project, shell="ulimit -f 1000")}


@contextmanager
def small_cache(project: Project) -> Iterator[dict[str, Any]]:
    yield {"cache_megabytes": 1}


@pytest.mark.parametrize("small", [small_disk, small_files, small_cache])
def test_out_of_space(small: Callable[[Project], Any], project: Project) -> None:
    with small(project) as more:
        cache = project.device(**more)
        done = project.run("--device", "local,board")
        failed(done, "device 'board'", "space", "edgekit devices clean board")
        assert not list(cache.rglob("*.partial"))
    assert rows(project, "local")["onnxruntime"]["provenance"]["latency"]["kind"] == "measured"
    (project.folder / "devices.toml").unlink()
    project.device()
    assert project.run("--device", "local,board").code == 0, "with space it goes on"


BOOT = """
import pathlib
real = pathlib.Path.read_text
def read_text(self, *more, **named):
    if str(self) == "/proc/sys/kernel/random/boot_id":
        self = pathlib.Path({boot!r})
    return real(self, *more, **named)
pathlib.Path.read_text = read_text
"""


def test_rebooted(project: Project) -> None:
    """It comes back without what it held in memory; the report says so."""
    boot = project.folder / "boot"
    boot.write_text("first\n")
    cache = project.device(python=odd_python(project, BOOT.format(boot=str(boot))))
    longer(project)

    def reboot() -> None:
        until(lambda: workers(cache))
        project.server.stop()
        until(lambda: not agents(cache))
        shutil.rmtree(cache)
        boot.write_text("second\n")
        project.server.start()

    with meanwhile(reboot):
        done = project.run("--device", "board")
    assert done.code == 0, done.err
    assert "started anew" in done.err
    assert rows(project)["onnxruntime"]["provenance"]["latency"]["kind"] == "measured"
    assert "was started anew during the run" in (project.folder / "out" / "report" / "board.md").read_text()


CLOCK = """
import pathlib, time
real = time.time
time.time = lambda: real() + (86400 if pathlib.Path({jump!r}).exists() else 0)
"""


def test_the_clock_jumps(project: Project) -> None:
    """Somebody sets the time of day by a day: the samples are of a clock that keeps on, and the report says it."""
    jump = project.folder / "jump"
    cache = project.device(python=odd_python(project, CLOCK.format(jump=str(jump))))
    longer(project)

    def set_clock() -> None:
        until(lambda: workers(cache))
        time.sleep(0.3)
        jump.touch()

    with meanwhile(set_clock):
        done = project.edgekit("bench", ARTIFACT, "--device", "board", "--json")
    assert done.code == 0, done.err
    (row,) = done.document["rows"]
    assert row["latency"]["clock_set_seconds"] == pytest.approx(86400, abs=2)
    assert max(max(part) for part in row["latency"]["rounds_ms"]) < 60_000
    assert any("the time of day was set" in warning for warning in row["summary"]["warnings"])


NOISE = """#!/bin/sh
printf '\\033[1;31mWelcome to \\007board\\033[0m\\r\\nlast login: never\\r\\n'
printf 'motd without an end' >&2
eval "$SSH_ORIGINAL_COMMAND"
"""


def test_noise_on_the_line(project: Project) -> None:
    """A login that prints colours, carriage returns and half lines before and beside everything."""
    folder = project.folder.parent / "device"
    folder.mkdir()
    (folder / "noise").write_text(NOISE)
    (folder / "noise").chmod(0o755)
    server = project.server
    with (server.folder / "sshd_config").open("a") as file:
        file.write(f"ForceCommand {folder}/noise\n")
    server.stop()
    server.start()
    project.device()
    done = project.edgekit("bench", ARTIFACT, "--data", "streets", "--frames", 2, "--device", "board", "--json")
    assert done.code == 0, done.err
    (row,) = done.document["rows"]
    assert row["accuracy"]["miou"] == project.edgekit("evaluate", ARTIFACT, "--frames", 2, "--json").document["miou"]
    log = (project.folder / "runs" / "bench" / "logs" / "board.device.log").read_text()
    assert "Welcome to" in log


HOSTILE = {
    "look": "more than", "line": "sent a line of more than 16 MB", "lines": "does not stop answering",
    "deep": "answers nonsense", "folder": "answers nonsense for folder", "version": "is of edgekit 9.9.9",
    "probe": "has no ONNX Runtime", "have": "what it has", "nan": "answers nonsense", "scope": "a latency's scope",
    "negative": "latency samples", "empty": "latency samples", "words": "latency samples", "memory": "its memory",
    "first": "latency samples", "counts": "a frame's counts", "hits": "a frame's counts",
    "short": "latency samples (1e-300)", "long": "latency samples (990000000.0)", "flat": "latency samples",
    "days": "more than a day", "null": "latency samples",
    "nothing": "not of the frame's pixels (0 pixels where", "twice": "a pair of classes twice", "absurd": "not of the frame's pixels",
    "minus": "a frame's counts", "shape": "a frame's counts", "instances": "not of the frame's instances",
    "agreement": "a frame's agreement", "more": "counts more frames than it was sent", "huge": "its memory", "mode": "a latency's scope",
}  # fmt: skip


COUNTED = ("counts", "hits", "agreement", "more", "nothing", "twice", "absurd", "minus", "shape", "instances")
"""What comes after the latencies."""


def hostile_python(project: Project, mode: str) -> Path:
    """The Python of a device that does one thing as no device should; see ``hostile.py``."""
    path = project.folder.parent / "device" / "python"
    path.parent.mkdir(exist_ok=True)
    script = Path(__file__).with_name("hostile.py")
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {script} {mode} "$@"\n')
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("mode", HOSTILE)
def test_a_hostile_device(mode: str, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that it says fills this machine's memory or disk, becomes a path, or a number in a report."""
    monkeypatch.setattr(remote, "TOTAL", 24 << 20)
    python = hostile_python(project, mode)
    project.device(python=str(python))
    before = files(project.folder)
    done = project.edgekit("bench", ARTIFACT, "--data", "streets", "--frames", 5, "--device", "board")
    failed(done, "device 'board'", HOSTILE[mode])
    new = [name for name in files(project.folder) if name not in before]
    assert all(re.match(r"(runs/bench/|cache-board/)", name) for name in new), new
    assert sum((project.folder / name).stat().st_size for name in new if name.startswith("runs/")) < 4 << 20
    page = project.folder / "runs" / "bench" / "report" / "board.md"
    if mode in COUNTED:  # its latency was one
        assert HOSTILE[mode] in page.read_text() and " 1.00 |" in page.read_text()
    else:
        assert not page.parent.exists(), "no page is made of it"


@pytest.mark.parametrize(("mode", "lost"), [("nothing", "miou"), ("short", "latency"), ("long", "latency")])
def test_a_run_reports_everything_but_nonsense(mode: str, lost: str, project: Project) -> None:
    """A device's empty counts, or times that nothing has, are told in its own row; this machine's rows are what they are."""
    project.device(python=str(hostile_python(project, mode)))
    done = project.run("--device", "local,board")
    failed(done, "device 'board'", HOSTILE[mode], "holds what was finished")
    told = rows(project)["onnxruntime"]["provenance"]
    assert told[lost]["kind"] == "not measured" and HOSTILE[mode] in told[lost]["why"]
    assert lost == "miou" or told["miou"]["kind"] == "measured"
    here = rows(project, "local")["onnxruntime"]
    assert here["provenance"]["latency"]["kind"] == here["provenance"]["miou"]["kind"] == "measured"


def test_endless_noise(project: Project) -> None:
    """What is no part of the talk is kept to a limit, empty lines too."""
    python = hostile_python(project, "newlines")
    project.device(python=str(python))
    done = project.edgekit("bench", ARTIFACT, "--device", "board")
    assert done.code == 0, done.err
    assert (project.folder / "runs" / "bench" / "logs" / "board.device.log").stat().st_size < 300_000


def test_what_is_finished_on_one_device_outlasts_anothers_failure(project: Project) -> None:
    python = hostile_python(project, "counts")
    project.device("good", address="left")
    project.device("bad", python=str(python), address="right")
    done = project.edgekit(
        "bench", ARTIFACT, "--data", "streets", "--frames", 5, "--device", "local,bad,good"
    )  # fmt: skip
    failed(done, "device 'bad'", "a frame's counts")
    assert "what was finished is in runs/bench/report" in done.err
    pages = {name: (project.folder / f"runs/bench/report/{name}.md").read_text() for name in ("local", "bad", "good")}
    assert "a frame's counts" in pages["bad"] and "a frame's counts" not in pages["good"] + pages["local"]
    assert all("| onnxruntime fp32 |" in page.lower().replace("onnx runtime", "onnxruntime") for page in pages.values())


def test_a_device_with_a_nasty_name(project: Project) -> None:
    """What it calls itself is plain text in the page."""
    python = hostile_python(project, "none")
    project.device(python=str(python))
    done = project.edgekit("bench", ARTIFACT, "--data", "streets", "--frames", 5, "--device", "board")
    assert done.code == 0, done.err
    page = (project.folder / "runs" / "bench" / "report" / "board.md").read_text()
    assert not re.search("[\x1b\x9b\u202e\ud800]", page + done.out)
    assert "<script>" not in page
    assert "\n# heading" not in page
    for mode in ("none", "probe"):
        hostile_python(project, mode)
        done = project.edgekit("devices", "probe", "board")
        assert done.code == 0, done.err
        assert "\x1b" not in done.out
    assert not list(project.folder.rglob("pwned"))
