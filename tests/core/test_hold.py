"""A folder is worked in by one command at a time, and belongs to one checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from seam import Done, call, edgekit, environment, own_network, start

from edgekit.core.errors import EdgekitError
from edgekit.core.files import clean_partials
from edgekit.core.hold import held, is_held

HOLD = """
import sys, time
from pathlib import Path
from edgekit.core.hold import held
with held(Path(sys.argv[1]), "edgekit run first.pth"):
    print("holds", flush=True)
    time.sleep(60)
"""


def holding(folder: Path, *before: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [*before, sys.executable, "-c", HOLD, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "holds\n"
    return process


def test_the_second_is_told_who_holds_it_and_a_kill_lets_go(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = holding(folder)
    with (
        pytest.raises(EdgekitError, match=rf"in use by edgekit run first\.pth \(process {process.pid} on .*--out"),
        held(folder, "b"),
    ):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    with held(folder, "b"), held(folder, "b"):
        assert is_held(folder / "artifacts")
    assert not is_held(folder)


def test_it_crosses_containers(tmp_path: Path) -> None:
    """In a process namespace of its own, where the holder's number means something else."""
    unshare = shutil.which("unshare")
    command = [unshare or "", "--user", "--map-root-user", "--pid", "--fork"]
    if unshare is None or subprocess.run([*command, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no namespaces can be made here")
    process = holding(tmp_path, *command)
    try:
        with pytest.raises(EdgekitError, match="in use by edgekit run first"), held(tmp_path, "b"):
            pass
    finally:
        process.kill()
        process.wait()


def test_who_waits_gets_it(tmp_path: Path) -> None:
    process, told = holding(tmp_path), []

    def waiting(holder: str) -> None:
        told.append(holder)
        process.kill()

    with held(tmp_path, "b", waiting):
        assert len(told) == 1
    process.wait()


def test_a_forked_process_keeps_no_folder(tmp_path: Path) -> None:
    """A loader's worker lives on for a moment after a training was killed."""
    with held(tmp_path, "a"):
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
    try:
        with held(tmp_path, "b"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_folder_made_for_nothing_is_gone(tmp_path: Path) -> None:
    with pytest.raises(KeyError), held(tmp_path / "a" / "run", "a"):
        raise KeyError
    assert not (tmp_path / "a" / "run").exists()


def test_what_another_container_writes_is_no_leftover_while_nobody_else_may_write(tmp_path: Path) -> None:
    """Process 1 is alive here and nothing of ours: alone in the folder its leftover is one, otherwise it may be writing."""
    leftover = tmp_path / f".model.onnx.{os.getppid()}-abc.partial"
    leftover.write_text("half")
    clean_partials(tmp_path)
    assert leftover.exists()
    clean_partials(tmp_path, alone=True)
    assert not leftover.exists()


def run_of(path: Path, folder: Path, *more: object) -> tuple[object, ...]:
    return (
        "run", path, "--network", "ownnet:factory", "--data", "streets", "--size", "64x64", "--frames", 2, "--samples", 2,
        "--targets", "onnxruntime", "--precisions", "fp32", "--threads", 1, "--out", folder, *more,
    )  # fmt: skip


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Two checkpoints of one name, in folders of their own, of a network that both can import."""
    first = own_network(tmp_path)
    (tmp_path / "other").mkdir()
    second = tmp_path / "other" / "own.pth"
    torch.save(
        {key: value * 0.5 if value.is_floating_point() else value for key, value in torch.load(first).items()}, second
    )
    return first, second


def test_two_runs_in_one_folder_at_once(tmp_path: Path, two: tuple[Path, Path]) -> None:
    """The second, begun while the first was at work, neither waits in silence nor mixes its numbers with the first's."""
    env = environment(tmp_path)
    process = start(*run_of(two[0], tmp_path / "run", "--json"), cwd=tmp_path, env=env)
    lock = tmp_path / "run" / ".edgekit.lock"
    until = time.monotonic() + 60
    while not lock.exists() and time.monotonic() < until:
        time.sleep(0.05)
    second = edgekit(*run_of(two[1], tmp_path / "run"), cwd=tmp_path, env=env)
    out, err = process.communicate(timeout=120)
    assert second.code == 1
    assert "is in use by edgekit run" in second.sentence
    first = Done(process.returncode, out, err)
    assert first.code == 0, err
    from edgekit.networks.checkpoint import load_checkpoint

    assert first.document["checkpoint"]["file_sha256"] == load_checkpoint(str(two[0]), "spssn", ("a",)).file_sha256


def test_a_folder_belongs_to_one_checkpoint(
    tmp_path: Path, two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    convert: Callable[..., Done] = lambda path, *more: call(  # noqa: E731 - one call, twice
        monkeypatch, capfd, "convert", path, "--network", "ownnet:factory", "--classes", "streets", "--size", "64x64",
        "--target", "onnxruntime", "--out", folder, *more,
    )  # fmt: skip
    assert convert(two[0]).code == 0
    manifest = (folder / "artifacts" / "onnxruntime-fp32-64x64" / "manifest.json").read_text()
    done = convert(two[1])
    assert done.code == 1
    assert "belongs to another checkpoint, 'own'" in done.sentence
    assert "--replace" in done.sentence
    assert (folder / "artifacts" / "onnxruntime-fp32-64x64" / "manifest.json").read_text() == manifest
    (folder / "artifacts" / "onnxruntime-fp32-32x32").mkdir()
    assert convert(two[1], "--replace").code == 0
    assert [path.name for path in (folder / "artifacts").iterdir()] == ["onnxruntime-fp32-64x64"]
    assert (folder / "artifacts" / "onnxruntime-fp32-64x64" / "manifest.json").read_text() != manifest


# What is kept heals, or is not believed


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data[: len(data) - 3])


@pytest.mark.slow
def test_damaged_caches_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Labels of float PyTorch, frames for the latency, int8's ranges, pictures and decoded frames: all of them, without a word of
    the user's."""
    from seam import short_latency

    path = own_network(tmp_path)
    monkeypatch.chdir(tmp_path)
    short_latency(monkeypatch)
    arguments = [part if part != "fp32" else "fp32,int8" for part in run_of(path, tmp_path / "run", "--json")]
    first = call(monkeypatch, capfd, *arguments)
    assert first.code == 0, first.err
    cache = tmp_path / "run" / "cache"
    kept = [file for file in cache.rglob("*") if file.is_file() and file.name != "report.json"]
    assert {file.suffix for file in kept} == {".png", ".npy", ".npz", ".json", ".sha256"}
    for file in kept:
        damage(file)
    shutil.rmtree(tmp_path / "run" / "artifacts")
    shutil.rmtree(tmp_path / "run" / "measurements")
    again = call(monkeypatch, capfd, *arguments)
    assert again.code == 0, again.err
    for one, other in zip(first.document["rows"], again.document["rows"], strict=True):
        assert (one["miou"], one["miou_drop"]) == (other["miou"], other["miou_drop"])


def test_edited_measurements_are_not_shown_as_measured(
    whole: tuple[Path, Callable[[], Done], Done],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(whole[0], folder)
    path = next((folder / "measurements").glob("onnxruntime-int8-*.local.json"))
    document = json.loads(path.read_text())
    document["latency"]["rounds_ms"] = [[0.1] * 8] * 8
    path.write_text(json.dumps(document))
    done = call(monkeypatch, capfd, "report", folder)
    assert done.code == 1
    assert f"{path} was changed after it was written" in done.sentence
    path.write_text("[" * 100_000)
    done = call(monkeypatch, capfd, "report", folder)
    assert done.code == 1
    assert "nests without end" in done.sentence


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd", "a/b", "..", "", 5])
def test_a_runs_file_names_no_file_elsewhere(
    whole: tuple[Path, Callable[[], Done], Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    name: object,
) -> None:  # fmt: skip
    (tmp_path / "run").mkdir()
    description = json.loads((whole[0] / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**description, "artifacts": [name]}))
    done = call(monkeypatch, capfd, "report", tmp_path / "run")
    assert done.code == 1
    assert "is no artifact's or device's name" in done.sentence


def test_what_the_user_withholds_from_others(tmp_path: Path) -> None:
    script = (
        "import os, sys; os.umask(0o077)\nfrom pathlib import Path\nfrom edgekit.core.files import new_folder, write_text\n"
        "write_text(Path('a.txt'), 'a')\nwith new_folder(Path('b')) as folder: (folder / 'c').write_text('c')\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, env=environment(tmp_path))
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {"a.txt": 0o600, "b": 0o700}
