"""``edgekit run`` on a phone, over a real adb client: accuracy, latency and the page, and what goes wrong meanwhile."""

from __future__ import annotations

import json
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from adbd import Adbd, Phones
from parts import missing
from seam import Done, call, short_latency
from test_android import BIN, DUMPSYS, GETPROP, calls, fault, folder, furnish

from reports.document import validate

pytestmark = pytest.mark.skipif(missing("adb") is not None, reason=str(missing("adb")))
RUN = (
    "--targets", "tflite", "--precisions", "fp32", "--size", "64x128", "--frames", 3, "--samples", 2, "--threads", 1,
    "--out", "out", "--json",
)  # fmt: skip
ACCURACY = "out/measurements/tflite-fp32-64x128.pixel.accuracy.json"


@dataclass(frozen=True)
class Project:
    """A folder with an inventory that has the phone ``pixel``."""

    folder: Path
    handset: Adbd
    checkpoint: Path
    patch: pytest.MonkeyPatch
    capfd: pytest.CaptureFixture[str]

    def edgekit(self, *arguments: object) -> Done:
        return call(self.patch, self.capfd, *arguments)

    def run(self, *more: object) -> Done:
        return self.edgekit("run", self.checkpoint, *RUN, "--device", "pixel", *more)

    def page(self) -> str:
        return (self.folder / "out/report/pixel.md").read_text()

    def row(self) -> dict[str, Any]:
        document = json.loads((self.folder / "out/report/report.json").read_text())
        validate(document)
        (row,) = (row for row in document["rows"] if row["device"] == "pixel")
        found: dict[str, Any] = row
        return found


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose ``out`` the tests begin with, once one of them has made it."""
    return tmp_path_factory.mktemp("converted")


@pytest.fixture
def project(
    phones: Phones, small_checkpoint: Path, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Iterator[Project]:  # fmt: skip
    handset = furnish(phones())
    home = tmp_path / "project"
    home.mkdir()
    monkeypatch.chdir(home)
    short_latency(monkeypatch)
    found = Project(home, handset, small_checkpoint, monkeypatch, capfd)
    (home / "benchmark_model").write_text(f'#!/bin/sh\nexec {sys.executable} {BIN / "benchmark_model"} "$@"\n')
    (home / "devices.toml").write_text(
        f'[pixel]\nkind = "adb"\naddress = "{handset.address}"\nbenchmark_model = "benchmark_model"\n'
    )
    if not (converted / "out").is_dir():
        done = found.run()
        assert done.code == 0, done.err
        for path in (home / "out/measurements").glob("*pixel*"):
            path.unlink()
        (home / "out").rename(converted / "out")
        shutil.rmtree(folder(handset))
        (handset.root / "calls").unlink()
    shutil.copytree(converted / "out", home / "out")
    before = set(tmp_path.iterdir())
    yield found
    assert set(tmp_path.iterdir()) == before, "written outside the project"


def test_accuracy_and_latency_are_the_phones(project: Project) -> None:
    fault(project.handset, "gpu partly, no nnapi, noise")
    done = project.run()
    assert done.code == 0, done.err
    row = project.row()
    provenance = row["provenance"]
    assert provenance["miou"]["kind"] == provenance["latency"]["kind"] == "measured"
    assert re.fullmatch("LiteRT benchmark_model [0-9a-f]{8}", provenance["miou"]["by"])
    assert row["latency_scope"] == "graph" and row["latency_ms"]["p50"] == pytest.approx(19.8)
    assert row["latency_ms"]["p90"] is None, "the tool tells p95, which is not p90"
    document = json.loads((project.folder / "out/report/report.json").read_text())
    (local,) = (one for one in document["rows"] if (one["device"], one["target"]) == ("local", "tflite"))
    assert row["miou"] == local["miou"], "the stand-in runs the model by the same runtime"

    page = project.page()
    assert "no device connected" not in page and not (project.folder / "out/report/android.md").exists()
    assert "Android 15 (API 35)" in page and "Stand-in No phone" in page
    assert re.search(
        r"Fastest on pixel within 1 point of float: \*\*TFLite fp32\*\*, .*, p50 of `graph` 19\.8 ms \(measured\)", page
    )
    assert (project.folder / "out/report/figures/pixel-scatter.svg").is_file()
    units = page.partition("## Backends")[2].partition("\n## ")[0]
    assert "8.91" in units and "GPU took 50 of 60 operations" in units and "NNAPI acceleration is unsupported" in units
    heat = page.partition("## Heat and battery")[2].partition("\n## ")[0]
    when = re.findall(
        r"\| (before|after(?: round \d)?) +\| light +\| +39\.5 \| +2\.40 \| +80 \| +30\.1 \| +charging by USB \|", heat
    )
    assert when == ["before", "after round 1", "after round 2", "after round 3", "after"]

    asked = len(calls(project.handset))
    again = project.run()
    assert again.code == 0 and "pixel: tflite fp32 already evaluated" in again.err
    assert len(calls(project.handset)) == asked, "nothing is measured twice"
    assert project.row() == row


def test_a_phone_that_goes_for_good_keeps_what_was_finished(project: Project) -> None:
    project.patch.setattr("edgekit.devices.android.RECONNECT_SECONDS", 1.0)
    fault(project.handset, "slow")

    def pull() -> None:
        while not (project.folder / ACCURACY).is_file():
            time.sleep(0.05)
        time.sleep(1.5)
        project.handset.vanish()

    thread = threading.Thread(target=pull)
    thread.start()
    done = project.run()
    thread.join()
    assert done.code == 1
    assert re.match(r"edgekit: .*device 'pixel': the connection broke .*run again", done.sentence), done.sentence
    row = project.row()
    assert row["provenance"]["miou"]["kind"] == "measured" and row["provenance"]["latency"]["kind"] == "not measured"
    assert "the connection broke" in project.page()

    project.handset.faults.gone = False
    fault(project.handset, "")
    asked = len(calls(project.handset))
    again = project.run()
    assert again.code == 0, again.err
    assert "pixel: tflite fp32 already evaluated" in again.err
    assert not any("--output_filepath" in call for call in calls(project.handset)[asked:])
    assert project.row()["latency_ms"]["p50"] == pytest.approx(19.8)


def test_a_cable_that_is_put_back_is_no_failure(project: Project) -> None:
    fault(project.handset, "slow")
    begun = threading.Event()

    def pull() -> None:
        while len(calls(project.handset)) < 2:
            time.sleep(0.05)
        begun.set()
        project.handset.vanish()
        time.sleep(3)
        project.handset.faults.gone = False

    (project.handset.root / "calls").touch()
    thread = threading.Thread(target=pull)
    thread.start()
    done = project.run()
    thread.join()
    assert done.code == 0 and begun.is_set(), done.err
    assert "waiting for it" in done.err
    assert {key: value["kind"] for key, value in project.row()["provenance"].items()} == {
        "miou": "measured", "latency": "measured",
    }  # fmt: skip


@pytest.mark.parametrize("trouble", ["unauthorized", "gone"])
def test_a_phone_that_cannot_be_used_is_told_before_anything_is_done(trouble: str, project: Project) -> None:
    setattr(project.handset.faults, trouble, True)
    begin = time.monotonic()
    done = project.run()
    assert done.code == 1 and done.sentence.startswith("edgekit: device 'pixel': "), done.err
    assert ("allow this computer's key" if trouble == "unauthorized" else "adb cannot connect to") in done.sentence
    assert time.monotonic() - begin < 60 and "evaluat" not in done.err


def test_an_old_tool_gives_latency_without_accuracy(project: Project) -> None:
    """Where labels cannot be had there, the row says so; it never borrows this machine's as the phone's."""
    fault(project.handset, "litert")
    done = project.run()
    assert done.code == 0, done.err
    row = project.row()
    assert row["provenance"]["latency"]["kind"] == "measured" and row["provenance"]["miou"]["kind"] != "measured"
    assert "a benchmark_model that writes no outputs" in row["provenance"]["miou"]["why"]
    assert "NPU" in project.page()


def test_sustained_load_and_bench(project: Project) -> None:
    done = project.run("--sustained", "4s")
    assert done.code == 0, done.err
    load = project.page().partition("## Sustained load")[2].partition("\n## ")[0]
    assert "TFLite fp32" in load and "19.8" in load and "40 to 40" in load, load
    assert (project.folder / "out/report/figures/pixel-sustained.svg").is_file()
    (artifact,) = (project.folder / "out/artifacts").iterdir()
    bench = project.edgekit("bench", artifact, "--device", "pixel", "--json")
    assert bench.code == 0, bench.err
    assert '"graph"' in bench.out and "benchmark_model" in bench.out
    worded = project.edgekit("bench", artifact, "--device", "pixel")
    assert worded.code == 0 and "graph: p50 19.8 ms" in worded.out and "on GPU: 8.9 ms" in worded.out, worded.out


def test_probe_and_clean(project: Project) -> None:
    done = project.edgekit("devices", "probe", "pixel")
    assert done.code == 0, done.err
    for text in (
        "Stand-in No phone",
        "4 x Cortex-A55",
        "walt",
        "light",
        "80",
        "LiteRT benchmark_model",
        "CPU, GPU, NNAPI",
    ):
        assert text in done.out, done.out
    assert json.loads(project.edgekit("devices", "probe", "pixel", "--json").out)["environment"]["cores"] == 8
    held = sum(path.stat().st_size for path in folder(project.handset).iterdir())
    project.handset.faults.full = True  # cleaning is what a full phone is told to need
    (project.folder / "benchmark_model").write_text("another, which does not fit any more")
    cleaned = project.edgekit("devices", "clean", "pixel", "--json")
    assert cleaned.code == 0, cleaned.err
    assert json.loads(cleaned.out) == {"device": "pixel", "bytes": held} and not folder(project.handset).exists()


HOSTILE = "<script>alert(1)</script> | a | b | **x** [l](javascript:1) `c` \x1b[31m\x07\r\n# heading ../../etc"


def test_what_a_phone_says_of_itself_is_text_and_nothing_else(project: Project) -> None:
    for name, text in (
        ("getprop", re.sub(r"\]: \[.*?\]", lambda _: f"]: [{HOSTILE}]", GETPROP)),
        ("dumpsys", DUMPSYS.replace("skin", HOSTILE.split("\r")[0].replace(",", ""))),
    ):
        script = project.handset.root / "bin" / name
        script.write_text("#!/bin/sh\n" + (f"cat <<'EOF'\n{text}EOF\n" if name == "getprop" else text))
    done = project.run()
    assert done.code == 0, done.err
    for path in (project.folder / "out/report").rglob("*"):
        if path.suffix in (".md", ".json"):
            text = path.read_text()
            assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text), path
            if path.suffix == ".md":
                assert not re.search(r"(?<!\\)<script", text) and "\n# heading" not in text, path
                assert not re.search(r"(?<!\\)\]\(javascript", text), path
        elif path.suffix == ".svg":
            assert "<script" not in path.read_text()
    probed = project.edgekit("devices", "probe", "pixel")
    assert probed.code == 0 and "\x1b" not in probed.out and "\x07" not in probed.out
