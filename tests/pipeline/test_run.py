"""A whole run: what it leaves, how it goes on, and what stops it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from seam import MOMENT, Done, call, edgekit, environment, files, own_network, partials, plug_in, short_latency, start

from edgekit.core import registry
from edgekit.core.files import new_folder, sha256_path
from edgekit.core.progress import Progress
from edgekit.core.values import Size
from edgekit.networks.checkpoint import load_checkpoint
from edgekit.pipeline.artifacts import lazy_graph, make_artifact, recipe_for
from edgekit.pipeline.plans import Order
from reports.document import validate

OWN = (
    "run", "own.pth", "--network", "ownnet:factory", "--data", "streets", "--size", "64x96", "--frames", 2, "--samples", 2,
    "--threads", 1,
)  # fmt: skip
BLOCK = """
import sys
from importlib.machinery import PathFinder
class Without:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.split(".")[0] == "coremltools" else PathFinder.find_spec(name, path, target)
    find_distributions = PathFinder.find_distributions
    invalidate_caches = PathFinder.invalidate_caches
sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a user's network, a plug-in, and one whose fault a variable names."""
    folder = tmp_path_factory.mktemp("run")
    plug_in(folder, "edgekit_torchscript", "torchscript")
    plug_in(folder, "edgekit_faulty", "faulty")
    own_network(folder)
    return folder


@pytest.fixture
def run_here(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Done]]:
    """``run_here(*OWN, ...)`` in this process, with the plug-ins and a measurement of a moment."""
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(place)
    monkeypatch.setenv("PYTHONPATH", environment(place)["PYTHONPATH"])
    short_latency(monkeypatch)
    registry._entries.cache_clear()
    registry.load_target.cache_clear()
    yield lambda *arguments: call(monkeypatch, capfd, *arguments)
    registry._entries.cache_clear()
    registry.load_target.cache_clear()


def rows_of(run: Path) -> dict[str, dict[str, object]]:
    document = json.loads((run / "report" / "report.json").read_text())
    validate(document)
    return {f"{row['target']} {row['precision']}": row for row in document["rows"] if row["device"] == "local"}


# The whole way, with SPSSN on two runtimes


ARTIFACTS = tuple(
    f"{target}-{precision}-96x160" for target in ("onnxruntime", "openvino") for precision in ("fp32", "int8")
)


def test_whole_run(whole: tuple[Path, Callable[[], Done], Done]) -> None:
    out, _, done = whole
    assert done.code == 0, done.err
    assert done.document["failed"] == []
    assert {entry.name for entry in (out / "artifacts").iterdir()} == set(ARTIFACTS)
    for name in ARTIFACTS:
        manifest = json.loads((out / "artifacts" / name / "manifest.json").read_text())
        assert manifest["size"] == [96, 160]
        assert (out / "artifacts" / name / manifest["model"]).exists()
        assert manifest["files"]
        assert manifest["command"].startswith("edgekit run ")
        assert bool(manifest["calibration"]) == ("int8" in name)
        measurement = json.loads((out / "measurements" / f"{name}.local.json").read_text())
        assert measurement["latency"]["rounds_ms"]
        assert measurement["environment"]["cpu"]
    for page in ("index", "local", "apple", "jetson", "android"):
        assert (out / "report" / f"{page}.md").read_text().strip()
    for page in ("apple", "jetson", "android"):
        assert "no device connected" in (out / "report" / f"{page}.md").read_text()
    assert list((out / "report" / "figures").iterdir())
    assert not partials(out)


def test_report_rows(whole: tuple[Path, Callable[[], Done], Done]) -> None:
    rows = rows_of(whole[0])
    assert len(rows) == 5
    reference = rows.pop("pytorch fp32")
    assert reference["miou_drop"] is None
    for name, row in rows.items():
        assert row["provenance"]["miou"]["kind"] == "measured", name
        assert row["provenance"]["miou"]["by"], name
        assert row["provenance"]["latency"]["kind"] == "measured", name
        assert row["latency_scope"] == "frame-to-labels"
        assert row["latency_ms"]["n"] >= 64
        assert row["peak_rss_bytes"] > 1e6
        assert row["model_bytes"] > 1e5
        low, high = row["miou_drop_ci"]
        assert low <= row["miou_drop"] <= high
        if "fp32" in name:
            assert abs(row["miou_drop"]) < 0.002, name
    assert rows["openvino int8"]["model_bytes"] < rows["openvino fp32"]["model_bytes"]


def test_nothing_is_done_twice(whole: tuple[Path, Callable[[], Done], Done]) -> None:
    out, again, first = whole
    kept = lambda: {name: changed for name, changed in files(out).items() if name.startswith("artifacts/")}  # noqa: E731
    samples = out / "measurements" / "latency.local.json"
    accuracies = {path: path.stat().st_mtime_ns for path in (out / "measurements").glob("*.accuracy.json")}
    before, latency = kept(), samples.stat().st_mtime_ns
    done = again()
    assert done.code == 0
    assert kept() == before
    assert samples.stat().st_mtime_ns == latency
    assert {path: path.stat().st_mtime_ns for path in accuracies} == accuracies
    assert done.err.count("already converted") == 4
    assert done.err.count("already evaluated") == 4
    assert done.err.count("already measured") == 1
    assert "ms a frame" not in done.err
    assert done.document["rows"] == first.document["rows"]


def test_progress_is_all_a_terminal_sees(whole: tuple[Path, Callable[[], Done], Done]) -> None:
    known = (
        "calibrating", "exporting", "ONNX Runtime", "OpenVINO", "onnxruntime", "openvino", "PyTorch", "float PyTorch", "labelling",
        "writing", "loading", "measuring", "latency of",
    )  # fmt: skip
    assert [line for line in whole[2].err.splitlines() if not line.startswith(known)] == []


# Stopped and gone on


@pytest.mark.slow
def test_killed_and_gone_on(place: Path, tmp_path: Path) -> None:
    """Killed in a conversion, killed in an evaluation, interrupted in a measurement: each time the rest is kept."""
    (tmp_path / "sitecustomize.py").write_text(MOMENT)
    out = tmp_path / "out"
    arguments = (*OWN, "--targets", "torchscript,faulty", "--out", out)

    def stopped(fault: str, how: signal.Signals) -> Done:
        reached = tmp_path / f"{fault}-{how}"
        env = environment(tmp_path, place, EDGEKIT_FAULT=fault, EDGEKIT_FAULT_REACHED=str(reached))
        process = start(*arguments, cwd=place, env=env)
        try:
            deadline = time.monotonic() + 120
            while not reached.exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            assert process.poll() is None, process.communicate()
            os.killpg(process.pid, how)
            done, err = process.communicate(timeout=60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        return Done(process.returncode, done, err)

    assert stopped("convert-sleep", signal.SIGKILL).code == -signal.SIGKILL
    assert [path.parent.name for path in out.rglob("manifest.json")] == ["torchscript-fp32-64x96"]
    made = (out / "artifacts" / "torchscript-fp32-64x96" / "model.pt").stat().st_mtime_ns
    report = edgekit("report", out, cwd=place, env=environment(tmp_path, place))
    assert report.code == 2
    assert "a run that was finished" in report.sentence

    interrupted = stopped("convert-sleep", signal.SIGINT)
    assert interrupted.code == 130
    assert "interrupted" in interrupted.sentence
    assert "already converted" in interrupted.err
    assert interrupted.out == ""
    assert not partials(out), "an interrupted run leaves nothing half-written, and clears what a killed one left"

    assert stopped("evaluate-sleep", signal.SIGKILL).code == -signal.SIGKILL
    assert (out / "measurements" / "torchscript-fp32-64x96.local.accuracy.json").is_file()
    assert not (out / "measurements" / "faulty-fp32-64x96.local.accuracy.json").exists()
    for leftover in (out, out / "measurements", out / "artifacts", out / "cache"):
        (leftover / ".something.abc.partial").write_text("as a kill during a write leaves it")

    interrupted = stopped("bench-sleep", signal.SIGINT)
    assert interrupted.code == 130
    assert "interrupted" in interrupted.sentence
    assert not (out / "measurements" / "latency.local.json").exists()
    assert not partials(out)

    ended = edgekit(*arguments, cwd=place, env=environment(tmp_path, place))
    assert ended.code == 0, ended.err
    assert ended.err.count("already converted") == 2
    assert ended.err.count("already evaluated") == 2
    assert not partials(out)
    assert set(rows_of(out)) == {"pytorch fp32", "torchscript fp32", "faulty fp32"}
    assert (out / "artifacts" / "torchscript-fp32-64x96" / "model.pt").stat().st_mtime_ns == made


def test_two_commands_may_make_one_folder(tmp_path: Path) -> None:
    """The later takes the place of the earlier, or leaves it where the name says what is inside; none of them fails."""

    def made(who: str, keep: bool = False) -> None:
        with new_folder(tmp_path / "made", keep=keep) as folder:
            (folder / who).touch()

    with new_folder(tmp_path / "made") as outer:
        (outer / "outer").touch()
        made("inner")
        assert (tmp_path / "made" / "inner").exists()
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["outer"]
    made("later", keep=True)
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["outer"]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(made, map(str, range(400))))
    assert len(list((tmp_path / "made").iterdir())) == 1
    assert not partials(tmp_path)


def test_an_interruption_between_two_renames_keeps_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_folder(tmp_path / "made") as folder:
        (folder / "old").touch()
    renamed = []

    def replaced(source: str | Path, target: str | Path, rename: Callable[..., None] = os.replace) -> None:
        renamed.append(target)
        if len(renamed) == 2:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "replace", replaced)
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "made") as folder:
        (folder / "new").touch()
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["old"]
    assert not partials(tmp_path)


@pytest.fixture
def kept(run_here: Callable[..., Done], place: Path, tmp_path: Path) -> Path:
    """A finished run of one target, a copy for every test."""
    original = place / "kept"
    if not original.exists():
        done = run_here(*OWN, "--targets", "torchscript", "--out", "kept")
        assert done.code == 0, done.err
    shutil.copytree(original, tmp_path / "kept")
    return tmp_path / "kept"


def test_the_folder_may_be_named_in_another_way(run_here: Callable[..., Done], kept: Path) -> None:
    done = run_here(*OWN, "--targets", "torchscript,torchscript", "--out", kept)
    assert done.code == 0, done.err
    assert done.err.count("already") == 3
    assert rows_of(kept)["torchscript fp32"]["latency_ms"]


def test_an_artifact_changed_by_hand(run_here: Callable[..., Done], kept: Path, tmp_path: Path) -> None:
    artifact = kept / "artifacts" / "torchscript-fp32-64x96"
    model = artifact / "model.pt"
    with model.open("ab") as file:
        file.write(b"one byte more")
    Image.new("RGB", (96, 64)).save(tmp_path / "frame.png")
    for command in (
        ("evaluate", artifact, "--data", "streets"), ("bench", artifact), ("predict", artifact, tmp_path / "frame.png")
    ):  # fmt: skip
        done = run_here(*command)
        assert done.code == 1
        assert str(model) in done.sentence
        assert "manifest.json" in done.sentence
        assert done.out == ""
    done = run_here(*OWN, "--targets", "torchscript", "--out", kept)
    assert done.code == 0, done.err
    assert "made again" in done.err
    manifest = json.loads((artifact / "manifest.json").read_text())
    assert manifest["files"]["model.pt"] == sha256_path(model)
    assert run_here("evaluate", artifact, "--data", "streets", "--frames", 1).code == 0


@pytest.mark.parametrize("damage", ["cut short", "without its key", "with a file more"])
def test_a_damaged_artifact_is_made_again(damage: str, run_here: Callable[..., Done], kept: Path) -> None:
    artifact = kept / "artifacts" / "torchscript-fp32-64x96"
    path = artifact / "manifest.json"
    manifest = json.loads(path.read_text())
    if damage == "cut short":
        path.write_text(path.read_text()[:100])
    elif damage == "without its key":
        path.write_text(json.dumps({key: value for key, value in manifest.items() if key != "key"}))
    else:
        (artifact / "more.txt").write_text("more")
    done = run_here(*OWN, "--targets", "torchscript", "--out", kept)
    assert done.code == 0, done.err
    assert "TorchScript fp32: converting" in done.err
    assert json.loads(path.read_text())["key"] == manifest["key"]
    assert {entry.name for entry in artifact.iterdir()} == {"model.pt", "manifest.json"}


def test_another_size_or_checkpoint_gives_another_artifact(
    run_here: Callable[..., Done], kept: Path, place: Path, tmp_path: Path
) -> None:
    first = json.loads((kept / "artifacts" / "torchscript-fp32-64x96" / "manifest.json").read_text())
    done = run_here(*OWN, "--targets", "torchscript", "--out", kept, "--size", "96x64")
    assert done.code == 0, done.err
    assert (kept / "artifacts" / "torchscript-fp32-64x96").is_dir()
    other = json.loads((kept / "artifacts" / "torchscript-fp32-96x64" / "manifest.json").read_text())
    assert other["size"] == [96, 64]
    assert other["key"] != first["key"]

    state = torch.load(place / "own.pth", weights_only=True)
    state["head.weight"] = state["head.weight"].flip(0)
    torch.save(state, tmp_path / "own.pth")
    arguments = [tmp_path / "own.pth" if part == "own.pth" else part for part in OWN]
    done = run_here(*arguments, "--targets", "torchscript", "--out", kept)
    assert done.code == 1
    assert "--replace" in done.sentence
    done = run_here(*arguments, "--targets", "torchscript", "--out", kept, "--replace")
    assert done.code == 0, done.err
    assert "already converted" not in done.err
    third = json.loads((kept / "artifacts" / "torchscript-fp32-64x96" / "manifest.json").read_text())
    assert third["key"] != first["key"]
    assert third["checkpoint"]["sha256"] != first["checkpoint"]["sha256"]
    assert abs(rows_of(kept)["torchscript fp32"]["miou_drop"]) < 1e-3, "measured against the new checkpoint"


# What stops a target, or the run


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["convert-raise", "convert-missing-file"])
def test_a_failing_target(
    fault: str, run_here: Callable[..., Done], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKIT_FAULT", fault)
    out = tmp_path / "out"
    done = run_here(*OWN, "--targets", "faulty,torchscript", "--out", out)
    reason = "unsupported operation: flux" if fault == "convert-raise" else "/opt/flux/compiler"
    assert done.code == 1
    assert reason in done.sentence
    assert "nobody needs" not in done.sentence
    assert "noise" not in done.err + done.out
    assert "noise of a converter\nnative noise" in (out / "logs" / "faulty-fp32-64x96.log").read_text()
    rows = rows_of(out)
    assert reason in rows["faulty fp32"]["provenance"]["miou"]["why"]
    assert rows["faulty fp32"]["miou"] is None
    assert rows["torchscript fp32"]["latency_ms"]["n"] >= 8
    assert reason in (out / "report" / "local.md").read_text()
    assert not partials(out)
    assert [entry.name for entry in (out / "artifacts").iterdir()] == ["torchscript-fp32-64x96"]
    monkeypatch.delenv("EDGEKIT_FAULT")
    assert run_here(*OWN, "--targets", "faulty,torchscript", "--out", out).code == 0


def test_a_missing_dependency(place: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BLOCK + MOMENT)
    env = environment(tmp_path, place)
    listed = edgekit("targets", "--json", cwd=place, env=env)
    row = next(row for row in listed.document["targets"] if row["target"] == "coreml")
    assert not row["available"]
    assert "pip install 'edgekit[coreml]'" in row["missing"]
    done = edgekit(*OWN, "--targets", "coreml,torchscript", "--out", tmp_path / "out", "--json", cwd=place, env=env)
    assert done.code == 1
    assert "pip install 'edgekit[coreml]'" in done.sentence
    validate({key: done.document[key] for key in ("schema", "checkpoint", "dataset", "rows")})
    failed = [row for row in done.document["rows"] if row["target"] == "coreml" and row["device"] == "local"]
    assert {row["precision"] for row in failed} == {"fp16", "int8"}
    assert all("pip install" in row["provenance"]["miou"]["why"] for row in failed)
    assert rows_of(tmp_path / "out")["torchscript fp32"]["miou"] is not None


FULL = """
import errno
import os
from pathlib import Path
def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")
"""


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def in_conversions(patch: pytest.MonkeyPatch, folder: Path, source: str) -> None:
    """Run ``source`` at the start of every process that edgekit starts."""
    (folder / "sitecustomize.py").write_text(source)
    patch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ['PYTHONPATH']}")


def test_full_disk_in_a_converter(run_here: Callable[..., Done], kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_FAULT", "convert-full")
    before = sha256_path(kept / "artifacts")
    done = run_here(*OWN, "--targets", "torchscript,faulty", "--out", kept)
    assert done.code == 1
    assert "no space left" in done.sentence
    assert "free some disk space" in done.sentence
    assert not partials(kept)
    assert sha256_path(kept / "artifacts") == before


@pytest.mark.parametrize("where", ["os.fsync", "os.replace", "PIL.Image.Image.save"])
def test_full_disk_while_writing(
    where: str, run_here: Callable[..., Done], kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sha256_path(kept / "artifacts")
    with monkeypatch.context() as patch:
        patch.setattr(where, full)
        if where.startswith("os."):
            in_conversions(patch, tmp_path, f"{FULL}{where} = full")
        done = run_here(*OWN, "--targets", "torchscript,faulty", "--frames", 1, "--out", kept)
    assert done.code == 1, done.err
    assert "space" in done.sentence
    assert done.out == ""
    assert not partials(kept)
    assert sha256_path(kept / "artifacts" / "torchscript-fp32-64x96")
    if where != "PIL.Image.Image.save":
        assert sha256_path(kept / "artifacts") == before
    done = run_here(*OWN, "--targets", "torchscript,faulty", "--frames", 1, "--out", kept)
    assert done.code == 0, done.err
    assert len(rows_of(kept)) == 3


def test_a_full_disk_when_an_artifact_is_put_in_place(
    run_here: Callable[..., Done], kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step of a conversion fails: the artifact of before is whole, or is not there; never in between."""
    replace = (
        "real = os.replace\nos.replace = lambda a, b: full() if Path(b).parent.name == 'artifacts' else real(a, b)"
    )
    in_conversions(monkeypatch, tmp_path, FULL + replace)
    done = run_here(*OWN, "--targets", "torchscript,faulty", "--size", "64x128", "--out", kept)
    assert done.code == 1
    assert "no space left" in done.sentence
    assert not partials(kept)
    assert [entry.name for entry in (kept / "artifacts").iterdir()] == ["torchscript-fp32-64x96"]


def test_a_place_that_cannot_be_written(run_here: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    done = run_here(*OWN, "--targets", "torchscript", "--out", tmp_path / "file" / "out")
    assert done.code == 1
    assert str(tmp_path / "file") in done.sentence


def test_a_converter_that_dies(run_here: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when native code crashes or memory runs out: its artifact fails, the others are made."""
    monkeypatch.setenv("EDGEKIT_FAULT", "convert-die")
    out = tmp_path / "out"
    done = run_here(*OWN, "--targets", "faulty,torchscript", "--out", out)
    assert done.code == 1
    assert "Faulty could not convert to fp32: its process was killed" in done.sentence
    assert "choose a smaller --size" in done.sentence
    assert "noise of a converter" in (out / "logs" / "faulty-fp32-64x96.log").read_text()
    assert "was killed" in rows_of(out)["faulty fp32"]["provenance"]["miou"]["why"]
    assert [entry.name for entry in (out / "artifacts").iterdir()] == ["torchscript-fp32-64x96"]
    assert not partials(out)


def test_a_runtime_that_crashes_while_it_is_evaluated(
    run_here: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails its own artifact, with a sentence; the others stand in the report, which is made."""
    monkeypatch.setenv("EDGEKIT_FAULT", "evaluate-die")
    out = tmp_path / "out"
    done = run_here(*OWN, "--targets", "faulty,torchscript", "--out", out)
    assert done.code == 1
    assert "faulty fp32 crashed its runtime (SIGSEGV)" in done.sentence
    rows = rows_of(out)
    assert "SIGSEGV" in rows["faulty fp32"]["provenance"]["miou"]["why"]
    assert rows["torchscript fp32"]["miou"] is not None
    monkeypatch.delenv("EDGEKIT_FAULT")
    assert run_here(*OWN, "--targets", "faulty,torchscript", "--out", out).code == 0


KILLED = """
import os, signal, sys
if "edgekit.pipeline.converter" in sys.orig_argv:
    import calibration.ranges
    calibration.ranges.calibrate = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_calibration_that_dies(small_checkpoint: Path, tmp_path: Path) -> None:
    """What int8 is to represent cannot be worked out: int8 fails, float artifacts are made; the next run goes on."""
    (tmp_path / "sitecustomize.py").write_text(KILLED)
    arguments = ("convert", small_checkpoint, "--target", "onnxruntime", "--size", "96x160", "--out", "out")
    quantize = ("quantize", small_checkpoint, "--target", "onnxruntime", "--size", "96x160", "--calib", "streets",
                "--samples", 2, "--frames", 2, "--out", "out")  # fmt: skip
    env = environment(tmp_path)
    done = edgekit(*quantize, cwd=tmp_path, env=env)
    assert done.code == 1
    assert "its process was killed" in done.sentence
    assert "conversion.log" in done.sentence
    assert edgekit(*arguments, cwd=tmp_path, env=env).code == 0
    assert not list((tmp_path / "out" / "cache").glob("quantization*"))
    (tmp_path / "sitecustomize.py").write_text("")
    done = edgekit(*quantize, cwd=tmp_path, env=env)
    assert done.code == 0, done.err
    (kept,) = (tmp_path / "out" / "cache").glob("quantization*.npz")
    manifest = json.loads((tmp_path / "out" / "artifacts" / "onnxruntime-int8-96x160" / "manifest.json").read_text())
    calibration = manifest["calibration"]
    assert calibration["scheme"] == "asymmetric"
    assert calibration["expected_drop"][calibration["estimator"]] == min(calibration["expected_drop"].values())
    assert len(manifest["calibration"]["frames"]) == 2
    # Damaged, it is worked out again, to the same.
    before = np.load(kept)["probe"]
    kept.write_bytes(kept.read_bytes()[:1000])
    shutil.rmtree(tmp_path / "out" / "artifacts" / "onnxruntime-int8-96x160")
    done = edgekit(*quantize, cwd=tmp_path, env=env)
    assert done.code == 0, done.err
    assert (np.load(kept)["probe"] == before).all()


def test_a_conversion_ends_with_its_command(place: Path, tmp_path: Path) -> None:
    """Only edgekit itself is killed, while its converter works: the converter ends too, and a rerun goes on."""
    out, reached = tmp_path / "out", tmp_path / "reached"
    arguments = (
        "convert", "own.pth", "--network", "ownnet:factory", "--classes", "streets", "--size", "64x96",
        "--target", "torchscript,faulty", "--out", out,
    )  # fmt: skip
    env = environment(place, EDGEKIT_FAULT="convert-sleep", EDGEKIT_FAULT_REACHED=str(reached))
    process = start(*arguments, cwd=place, env=env)
    try:
        deadline = time.monotonic() + 120
        while not (reached.exists() and reached.read_text()) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert process.poll() is None, process.communicate()
        process.kill()
        process.communicate(timeout=60)
        while Path("/proc", reached.read_text()).exists():
            assert time.monotonic() < deadline, "the converter is still there"
            time.sleep(0.05)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    ended = edgekit(*arguments, cwd=place, env=environment(place))
    assert ended.code == 0, ended.err
    assert ended.err.count("already converted") == 1
    assert not partials(out)


def test_the_same_bytes_as_in_one_process(
    whole: tuple[Path, Callable[[], Done], Done], small_checkpoint: Path, tmp_path: Path
) -> None:
    progress = Progress(silent=True)
    checkpoint, size = load_checkpoint(str(small_checkpoint)), Size(96, 160)
    target = registry.load_target("openvino")
    another = lazy_graph(checkpoint, Size(64, 96), progress)  # what a process did before must not show
    recipe = recipe_for(target, "fp32", None, 1)
    make_artifact(target, Order(checkpoint, Size(64, 96), tmp_path, ""), recipe, another, progress)
    made = make_artifact(
        target, Order(checkpoint, size, tmp_path, ""), recipe, lazy_graph(checkpoint, size, progress), progress
    )
    manifest = json.loads((whole[0] / "artifacts" / made.folder.name / "manifest.json").read_text())
    assert manifest["files"] == made.manifest["files"]
    assert manifest["key"] == made.manifest["key"]


def test_a_worker_that_dies(
    run_here: Callable[..., Done], kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKIT_FAULT", "bench-die")
    out = tmp_path / "out"
    done = run_here(*OWN, "--targets", "torchscript,faulty", "--out", out)
    assert "Traceback" not in done.err
    rows = rows_of(out)
    assert rows["torchscript fp32"]["latency_ms"], "the other one is measured all the same"
    assert rows["faulty fp32"]["latency_ms"] is None
    assert rows["faulty fp32"]["miou"] is not None
    assert "ended its process with code 9" in rows["faulty fp32"]["provenance"]["latency"]["why"]
    done = run_here(
        "bench", out / "artifacts" / "faulty-fp32-64x96", out / "artifacts" / "torchscript-fp32-64x96", "--threads", 1,
        "--out", tmp_path / "bench", "--json",
    )  # fmt: skip
    assert done.code == 1
    assert "ended its process with code 9" in done.sentence
    assert ".bench.log" in done.sentence
    assert [("summary" in row) for row in done.document["rows"]] == [False, True]


def test_a_users_own_network(run_here: Callable[..., Done], place: Path, tmp_path: Path) -> None:
    """A tuple at stride 4 with two channels more than classes, from a plain state dict."""
    done = run_here(*OWN, "--targets", "onnxruntime", "--out", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    rows = rows_of(tmp_path / "out")
    assert set(rows) == {"pytorch fp32", "onnxruntime fp32", "onnxruntime int8"}
    assert abs(rows["onnxruntime fp32"]["miou_drop"]) < 1e-3
    assert abs(rows["onnxruntime int8"]["miou_drop"]) < 0.1
    pictures = tmp_path / "out" / "cache" / "pictures"
    with Image.open(pictures / "onnxruntime-fp32-64x96" / "00000.png") as image:
        labels = np.asarray(image)
    assert len(np.unique(labels)) > 3, "a network that answers one class everywhere would prove nothing"
    assert labels.max() < 19
    assert done.document["checkpoint"]["network"] == "ownnet:factory"
