"""A "Jetson" behind a real sshd: engines are built, kept and timed by a trtexec that takes and refuses the flags of its version.

The trtexec is a stand-in that prints what the real one prints; its numbers are nobody's measurement and stay in the tests.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from boards import Project

from edgekit.core.contract import LATENCY_CONTRACTS, Terms
from edgekit.core.errors import ArtifactError, DeviceError, DeviceLost
from edgekit.devices import jetson as jetson_module

BIN = Path(__file__).parent / "bin"
ARTIFACT = "out/artifacts/tensorrt-fp32-64x128"


class Jetson:
    """The device: its tools in a folder that is first in its PATH."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.folder = project.folder.parent / "device"
        shutil.copytree(BIN, self.folder / "bin")
        (self.folder / "python").write_text(
            f'#!/bin/sh\nexport PATH={self.folder}/bin:$PATH\nexec {sys.executable} "$@"\n'
        )
        (self.folder / "python").chmod(0o755)
        self.cache = project.device("orin", python=str(self.folder / "python"), runs=["tensorrt"])

    def setting(self, name: str, text: str) -> None:
        (self.folder / "bin" / f"trtexec.{name}").write_text(text)

    def with_python(self) -> None:
        """TensorRT's Python package is there too: labels and frame-to-labels latency are the engine's own."""
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("a C compiler makes the stand-in for CUDA's runtime")
        library = self.folder / "lib"
        library.mkdir()
        stand_ins = Path(__file__).parent / "stand_ins"
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-o", library / "libcudart.so", stand_ins / "cudart.c"], check=True
        )  # fmt: skip
        shutil.copy(stand_ins / "tensorrt.py", library)
        information = library / "tensorrt-10.3.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text("Metadata-Version: 2.1\nName: tensorrt\nVersion: 10.3.0\n")
        script = self.folder / "python"
        more = f"export PYTHONPATH={library} LD_LIBRARY_PATH={library}\nexec"
        script.write_text(script.read_text().replace("exec", more, 1))

    def engines(self) -> list[Path]:
        return sorted(self.cache.glob("engines/*/model.engine"))

    def bench(self, *more: object) -> dict[str, Any]:
        done = self.project.edgekit("bench", ARTIFACT, "--device", "orin", "--json", *more)
        assert done.code == 0, done.err
        (row,) = done.document["rows"]
        assert isinstance(row, dict)
        return row


@pytest.fixture
def jetson(project: Project) -> Jetson:
    return Jetson(project)


@pytest.mark.parametrize("version", ["10.3.0", "11.4.1"])
def test_an_engine_is_built_once_and_timed(version: str, jetson: Jetson) -> None:
    jetson.setting("version", version)
    row = jetson.bench("--sustained", "2s")
    latency = row["latency"]
    assert latency["scope"] == "graph", "trtexec times the bare graph"
    assert latency["provenance"] == {"kind": "measured", "by": f"TensorRT {version}", "why": ""}
    assert len(latency["rounds_ms"][0]) >= 8
    told = latency["trtexec"]
    assert told["with_copies_ms"] > row["summary"]["p50"]
    assert told["gpu_bytes"] > 1 << 20
    assert told["layers"] and 0 < sum(layer["share"] for layer in told["layers"]) <= 1.0001
    assert set(told["precisions"]) == {"INT8", "FP32", "UINT8"}
    assert told["tegrastats"]["mean_watts"] > 0
    assert told["built_seconds"] is None or told["built_seconds"] > 0
    assert row["sustained"]["intervals"]
    page = (jetson.project.folder / "runs/bench/report/orin.md").read_text()
    assert "## TensorRT" in page and "The slowest layers" in page
    (engine,) = jetson.engines()
    built = engine.stat().st_mtime_ns
    jetson.bench()
    assert [one.stat().st_mtime_ns for one in jetson.engines()] == [built], "it is kept"


def test_another_tensorrt_or_gpu_has_its_own_engine(jetson: Jetson) -> None:
    jetson.bench()
    jetson.setting("version", "10.7.0")
    jetson.bench()
    assert len(jetson.engines()) == 2
    # A GPU that does not tell its name apart: TensorRT itself refuses the engine, and it is built again.
    before = jetson.engines()[0].read_text(), jetson.engines()[1].read_text()
    jetson.setting("gpu", "Thor 11.0")
    row = jetson.bench()
    assert row["latency"]["settings"]["GPU"] == "Thor"
    assert len(jetson.engines()) == 2
    changed = [now for now in (one.read_text() for one in jetson.engines()) if now not in before]
    assert [json.loads(one)["gpu"] for one in changed] == ["Thor"]


@pytest.mark.parametrize(
    ("fault", "said"),
    [("crash", "cannot run the engine"), ("space", "No space left on device"), ("profile", "exported no profile.json")],
)  # fmt: skip
def test_a_tool_that_fails(fault: str, said: str, jetson: Jetson) -> None:
    jetson.setting("fault", fault)
    done = jetson.project.edgekit("bench", ARTIFACT, "--device", "orin")
    assert done.code == 1
    assert said in done.sentence
    (jetson.folder / "bin" / "trtexec.fault").unlink()
    assert jetson.bench()["latency"]["provenance"]["kind"] == "measured"


@pytest.mark.parametrize(("fault", "said"), [("copies-hang", "did not end"), ("copies-crash", "")])
def test_the_graphs_own_time_stays_where_the_one_with_copies_fails(
    fault: str, said: str, jetson: Jetson, monkeypatch: pytest.MonkeyPatch
) -> None:
    jetson.bench()  # the engine is there
    jetson.setting("fault", fault)
    # quick mode asks for seconds, which the stand-in does not take
    monkeypatch.setattr(jetson_module, "TIMING_SECONDS", 3.0 - 20 * LATENCY_CONTRACTS["quick"].seconds)
    row = jetson.bench()
    told = row["latency"]["trtexec"]
    assert row["latency"]["provenance"]["kind"] == "measured"
    assert row["summary"]["p50"] > 0
    assert told["with_copies_ms"] is None
    assert said in told["with_copies_failed"]
    page = (jetson.project.folder / "runs/bench/report/orin.md").read_text()
    assert "trtexec failed when it timed the copies: " in page


def test_old_times_are_never_read(jetson: Jetson) -> None:
    """A run that exports nothing must not be given the numbers of the one before it."""
    jetson.bench()
    (times,) = jetson.cache.glob("engines/*/times.json")
    tool = jetson.folder / "bin" / "trtexec"
    tool.write_text(tool.read_text().replace('if path := flags.get("--exportTimes"):', "if False:"))
    done = jetson.project.edgekit("bench", ARTIFACT, "--device", "orin")
    assert done.code == 1
    assert "exported no times.json" in done.sentence
    assert not times.exists()


def test_clock_and_power_are_those_under_load(jetson: Jetson) -> None:
    """tegrastats begins before trtexec: its first sample is of an idle board with idle clocks, in each interval."""
    jetson.setting("fault", "slow")
    row = jetson.bench("--sustained", "2s")
    watched = row["latency"]["trtexec"]["tegrastats"]
    assert watched["under_load"] is True
    assert watched["mean_watts"] == 14.9
    assert watched["gpu_clock_mhz"] == {"median": 918, "min": 918, "max": 918}
    assert [entry["clock_khz"] for entry in row["sustained"]["intervals"]] == [{"GPU": 918_000}] * len(
        row["sustained"]["intervals"]
    )
    page = (jetson.project.folder / "runs/bench/report/orin.md").read_text()
    assert "The clock is the GPU's under load" in page
    assert "0.92 to 0.92 " in page
    assert "moments without may be among these" not in page
    # One that tells no load, as on Thor: the page says what the numbers are of.
    (jetson.folder / "bin" / "tegrastats.mute").write_text("")
    row = jetson.bench("--sustained", "2s")
    assert row["latency"]["trtexec"]["tegrastats"]["under_load"] is False
    assert "moments without may be among these" in (jetson.project.folder / "runs/bench/report/orin.md").read_text()


def test_a_fast_engine_exports_more_than_a_line_of_the_talk_holds(jetson: Jetson) -> None:
    """In full mode a minute of an engine of 1 ms has 60 000 queries, 17 MB of JSON: only the times leave the device."""
    jetson.setting("queries", "60000")
    row = jetson.bench("--sustained", "2s")
    (times,) = jetson.cache.glob("engines/*/times.json")
    assert times.stat().st_size > 12 << 20
    assert [len(part) for part in row["latency"]["rounds_ms"]] == [60_000]
    assert row["latency"]["trtexec"]["with_copies_ms"] > row["summary"]["p50"]
    assert len(row["sustained"]["intervals"][0]["samples_ms"]) == 60_000


def test_trtexecs_own_warning_stands_beside_its_number(jetson: Jetson) -> None:
    jetson.setting("fault", "unstable")
    assert jetson.bench()["latency"]["trtexec"]["unstable_cv"] > 0.025
    assert "unstable by trtexec's own word" in (jetson.project.folder / "runs/bench/report/orin.md").read_text()


def test_a_headline_stays_where_trtexec_fails(jetson: Jetson) -> None:
    """What the engine's own Python measured is good, whatever becomes of trtexec's figures beside it."""
    jetson.with_python()
    jetson.setting("fault", "crash")  # only when it times: engines are built
    row = jetson.bench()
    assert row["latency"]["scope"] == "frame-to-labels"
    assert row["latency"]["provenance"]["kind"] == "measured"
    assert row["summary"]["p50"] > 0
    assert "cannot run the engine" in row["latency"]["trtexec"]["failed"]
    page = (jetson.project.folder / "runs/bench/report/orin.md").read_text()
    assert "trtexec failed: device 'orin' cannot run the engine" in page


def test_a_tensorrt_that_is_too_old_ends_nothing_else(jetson: Jetson) -> None:
    """With or without its Python package: what else the device runs is evaluated, timed and kept under load."""
    jetson.with_python()
    jetson.setting("version", "8.5.2")
    jetson.project.device("nano", python=str(jetson.folder / "python"), runs=["tensorrt", "onnxruntime"])
    jetson.project.run("--device", "nano", "--sustained", "2s", targets="tensorrt,onnxruntime")
    folder = jetson.project.folder / "out"
    documents = {
        target: json.loads((folder / f"measurements/{target}-fp32-64x128.nano.json").read_text())
        for target in ("tensorrt", "onnxruntime")
    }
    good, old = documents["onnxruntime"], documents["tensorrt"]
    assert good["accuracy"]["provenance"]["kind"] == good["latency"]["provenance"]["kind"] == "measured"
    assert good["sustained"]["intervals"]
    assert old["accuracy"] is None and "TensorRT 8.5.2 is too old" in old["accuracy_why"]
    assert "TensorRT 8.5.2 is too old" in old["latency"]["failed"]


@pytest.mark.parametrize(
    ("error", "becomes"), [(DeviceLost("the cable"), DeviceLost), (DeviceError("it is odd"), ArtifactError)]
)  # fmt: skip
def test_only_a_lost_connection_is_the_devices_fault(error: DeviceError, becomes: type[Exception]) -> None:
    """A lost one is made again and the step done once more; all else fails one artifact."""

    class Broken:
        device = SimpleNamespace(name="orin")

        def ask(self, command: object) -> None:
            raise error

    for work in (
        lambda agent: jetson_module.build(agent, "a" * 32),
        lambda agent: jetson_module.measure(agent, "a" * 32, Terms("quick")),
        lambda agent: jetson_module.sustain(agent, "a" * 32, 1.0, 1.0),
    ):
        with pytest.raises(becomes, match=str(error)) as raised:
            work(Broken())
        assert type(raised.value) is becomes


def test_noise(jetson: Jetson) -> None:
    jetson.setting("fault", "noise")
    assert jetson.bench()["latency"]["trtexec"]["layers"]


def test_accuracy_by_tensorrts_python(jetson: Jetson) -> None:
    """With the Python package labels and the headline are the engine's own; trtexec tells the rest."""
    jetson.with_python()
    done = jetson.project.run("--device", "orin", targets="tensorrt")
    assert done.code == 0, done.err
    rows = json.loads((jetson.project.folder / "out/report/report.json").read_text())["rows"]
    here, there = (
        next(row for row in rows if row["device"] == name and row["target"] == "tensorrt") for name in ("local", "orin")
    )
    assert here["provenance"]["miou"]["kind"] == "reference"
    assert there["provenance"]["miou"] == {"kind": "measured", "by": "TensorRT 10.3.0", "why": ""}
    assert there["miou"] == here["miou"]
    assert there["latency_scope"] == "frame-to-labels"
    document = json.loads((jetson.project.folder / "out/measurements/tensorrt-fp32-64x128.orin.json").read_text())
    assert document["latency"]["trtexec"]["graph_ms"] > 0
    # An engine of another GPU beside the model is refused by TensorRT, in a sentence.
    (engine,) = jetson.engines()
    engine.write_bytes(b"of another GPU")
    done = jetson.project.edgekit("evaluate", ARTIFACT, "--frames", 2, "--device", "orin")
    assert done.code == 1
    assert "built for another GPU or TensorRT" in done.sentence
    assert jetson.project.edgekit("devices", "clean", "orin").code == 0
    assert jetson.project.edgekit("evaluate", ARTIFACT, "--frames", 2, "--device", "orin").code == 0


def test_the_jetsons_page(jetson: Jetson) -> None:
    """In a run the Jetson's own page takes the place of the page for a Jetson that is not there."""
    done = jetson.project.run("--device", "orin", targets="tensorrt")
    assert done.code == 0, done.err
    report = jetson.project.folder / "out" / "report"
    rows = json.loads((report / "report.json").read_text())["rows"]
    (row,) = [row for row in rows if row["device"] == "orin"]
    assert row["provenance"]["latency"]["kind"] == "measured"
    assert row["latency_scope"] == "graph"
    assert row["provenance"]["miou"]["kind"] == "reference", "without TensorRT's Python package labels come from here"
    assert "no Python package of TensorRT" in row["provenance"]["miou"]["why"]
    assert not any(row["device"] == "jetson" for row in rows)
    assert "orin.md" in (report / "index.md").read_text()
    assert "[jetson]" not in (report / "index.md").read_text()
    assert "no device connected" not in (report / "orin.md").read_text()
    text = jetson.project.edgekit("devices", "probe", "orin").out
    assert "TensorRT 10.3.0" in text


def test_what_was_measured_with_another_gpu_is_not_this_ones(jetson: Jetson) -> None:
    """A PC may get another one."""

    def run(gpu: str) -> str:
        tool = jetson.folder / "bin" / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\necho '{gpu}'\n")
        tool.chmod(0o755)
        done = jetson.project.run("--device", "orin", targets="tensorrt")
        assert done.code == 0, done.err
        return done.err

    known = "orin: latency of 1 artifacts already measured"
    assert known not in run("RTX 4070, 8.9")
    assert known in run("RTX 4070, 8.9")
    assert known not in run("RTX 5080, 12.0")
