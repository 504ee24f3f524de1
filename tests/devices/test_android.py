"""The measurement on a phone, over a real adb client: a stand-in for benchmark_model runs the artifact where labels matter."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adbd import Adbd, Phones
from hypothesis import given, settings
from hypothesis import strategies as st
from parts import missing
from test_formats import BATTERY, CLASSIC_HELP, LITERT_CLASSIC_GPU, THERMAL_PIXEL, damaged

from calibration.datasets import open_split
from edgekit.core.contract import Terms
from edgekit.core.errors import ArtifactError, DeviceError, EdgekitError
from edgekit.core.measurement import Timed, Unit
from edgekit.core.progress import Progress
from edgekit.core.record import plain
from edgekit.core.registry import load_target, require
from edgekit.core.text import printable
from edgekit.core.values import Artifact, SessionOptions, Size
from edgekit.devices.android import CACHE, Phone
from edgekit.devices.inventory import Device
from edgekit.devices.transport import Done
from edgekit.devices.worker import count_pack
from edgekit.networks.checkpoint import load_checkpoint
from edgekit.pipeline.accuracy import Frames
from edgekit.pipeline.artifacts import lazy_graph, make_artifact, recipe_for
from edgekit.pipeline.devices import frame_packs
from edgekit.pipeline.plans import Order

pytestmark = pytest.mark.skipif(missing("adb") is not None, reason=str(missing("adb")))
BIN = Path(__file__).parent / "bin"
SIZE = Size(64, 128)
FRAMES = 3
TERMS = Terms("quick", "graph", 2)

GETPROP = """[ro.build.version.release]: [15]
[ro.build.version.sdk]: [35]
[ro.product.cpu.abi]: [arm64-v8a]
[ro.product.manufacturer]: [Stand-in]
[ro.product.model]: [No phone]
[ro.soc.model]: [none]
"""
CPUINFO = "".join(
    f"processor\t: {core}\nFeatures\t: fp asimd asimdhp asimddp i8mm\nCPU implementer\t: 0x41\nCPU part\t: {part}\n\n"
    for core, part in enumerate(["0xd05"] * 4 + ["0xd41"] * 3)  # the eighth is asleep
)
DUMPSYS = """case "$1" in
thermalservice) cat <<'EOF'
IsStatusOverride: false
Thermal Status: 1
Current temperatures from HAL:
	Temperature{mValue=39.5, mType=3, mName=skin, mStatus=1}
EOF
;;
battery) cat <<'EOF'
Current Battery Service state:
  AC powered: false
  USB powered: true
  status: 2
  level: 80
  scale: 100
  temperature: 301
EOF
;;
esac
"""


@pytest.fixture(scope="module")
def artifact(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A float TFLite artifact, logits out."""
    checkpoint, target, progress = load_checkpoint(str(small_checkpoint)), require("tflite"), Progress(silent=True)
    order = Order(checkpoint, SIZE, tmp_path_factory.mktemp("phone"), "test")
    graph = lazy_graph(checkpoint, SIZE, progress)
    return make_artifact(target, order, recipe_for(target, "fp32", None, 1), graph, progress)


def furnish(phone: Adbd) -> Adbd:
    """Gives a phone what Android has that this machine has not."""
    for name, text in (("getprop", f"cat <<'EOF'\n{GETPROP}EOF\n"), ("dumpsys", DUMPSYS)):
        (phone.root / "bin" / name).write_text(f"#!/bin/sh\n{text}")
        (phone.root / "bin" / name).chmod(0o755)
    (phone.root / "proc/cpuinfo").write_text(CPUINFO)
    for first, part in (
        (0, ("0 1 2 3", "schedutil", "1785600", "1785600")),
        (4, ("4 5 6 7", "walt", "2419200", "2400000")),
    ):
        policy = phone.root / f"sys/devices/system/cpu/cpufreq/policy{first}"
        policy.mkdir(parents=True)
        for name, text in zip(
            ("related_cpus", "scaling_governor", "cpuinfo_max_freq", "scaling_max_freq"), part, strict=True
        ):
            (policy / name).write_text(f"{text}\n")
    return phone


@pytest.fixture
def handset(phones: Phones) -> Adbd:
    """A phone."""
    return furnish(phones())


@pytest.fixture
def device(handset: Adbd, tmp_path: Path) -> Device:
    tool = tmp_path / "benchmark_model"
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} {BIN / "benchmark_model"} "$@"\n')
    return Device("pixel", "adb", handset.address, benchmark_model=str(tool))


def connect(device: Device, tmp_path: Path) -> Phone:
    return Phone(device, tmp_path / "logs", Progress(silent=True))


def fault(handset: Adbd, text: str) -> None:
    (handset.root / "fault").write_text(text)


def folder(handset: Adbd) -> Path:
    return handset.root / CACHE.lstrip("/")


def test_what_is_there(device: Device, handset: Adbd, tmp_path: Path) -> None:
    with connect(device, tmp_path) as phone:
        assert phone.environment["board"] == "Stand-in No phone" and phone.environment["os"] == "Android 15 (API 35)"
        assert phone.environment["cores"] == 8 and phone.environment["memory_bytes"] > 1 << 20
        assert phone.environment["cpu"] == "none, 4 x Cortex-A55, 3 x Cortex-A78"
        assert phone.environment["cpu_flags"] == ["asimdhp", "asimddp", "i8mm"]
        assert phone.environment["clusters"] == [
            "cores 0 1 2 3: schedutil, to 1.79 GHz", "cores 4 5 6 7: walt, to 2.42 GHz",
        ]  # fmt: skip
        assert phone.environment["governor"] == "schedutil, walt"
        assert phone.found["conditions"]["clock_khz"] == {"0-1-2-3": 1785600, "4-5-6-7": 2400000}
        assert phone.found["backends"] == ["CPU", "GPU", "NNAPI"] and phone.found["free_bytes"] > 0
        assert phone.found["conditions"]["thermal_status"] == "light"
        assert phone.found["conditions"]["battery"]["plugged"] == ["USB"]
        assert phone.lacks("tflite") is None
        assert "TFLite artifacts only" in str(phone.lacks("tensorrt"))
        assert phone.clean() > 0 and not folder(handset).exists()
    with connect(Device("pixel", "adb", handset.address), tmp_path) as phone:
        assert "name LiteRT's benchmark_model for arm64-v8a" in str(phone.lacks("tflite"))
    fault(handset, "abi")
    with pytest.raises(DeviceError, match=r"device 'pixel': .*give LiteRT's benchmark_model .*not executable"):
        connect(device, tmp_path)


@pytest.mark.parametrize("noise", ["", "noise"])
def test_labels_of_the_phone_are_those_of_its_model(
    noise: str, device: Device, handset: Adbd, artifact: Artifact, tmp_path: Path
) -> None:
    split = open_split("streets", "test", size=SIZE).first(FRAMES)
    packs = frame_packs(Frames(split), SIZE, None, tmp_path / "packs")
    fault(handset, noise)
    with connect(device, tmp_path) as phone:
        assert phone.cannot_evaluate(artifact) is None
        counted, environment = phone.evaluate(artifact, packs, split.classes, None)
    with load_target("tflite").open(artifact, SessionOptions(threads=1)) as session:
        expected = [frame for pack in packs for frame in count_pack(session.run, pack(), split.classes)]
    assert counted == expected and len(counted) == FRAMES
    assert len(expected[0].counts.confusion) > 5  # not one class everywhere, which anything would match
    assert environment["architecture"] == "arm64-v8a"


def measured(phone: Phone, artifact: Artifact, terms: Terms) -> Any:
    """The latency of one artifact, which was taken."""
    (timed,) = phone.measure([artifact], Path("none.npy"), terms)
    assert isinstance(timed, Timed), timed
    return timed.latency


def test_latency_on_every_backend(device: Device, handset: Adbd, artifact: Artifact, tmp_path: Path) -> None:
    fault(handset, "gpu partly, no nnapi")
    with connect(device, tmp_path) as phone:
        latency = measured(phone, artifact, Terms("quick"))
    assert latency.scope == "graph" and latency.rounds_ms is None
    numbers = latency.statistics
    assert numbers is not None
    assert numbers.n >= 64 and numbers.mean == 20.0 and numbers.p50 == pytest.approx(19.8) and numbers.p90 is None
    assert numbers.cv == pytest.approx(0.02)
    assert latency.first_ms == pytest.approx(26.4) and latency.peak_rss_bytes == int(74.6641 * (1 << 20))
    assert latency.settings["delegates"] == {"XNNPACK": "58 of 60 operations"}
    assert len(latency.rounds) == 4 and len(latency.conditions) == 5
    assert all(entry.thermal_status == "light" and entry.battery["level"] == 80 for entry in latency.conditions)
    units = latency.compute_units
    assert units["GPU"] == Unit(p50=pytest.approx(8.91), operations={"GPU": "50 of 60"})
    assert str(units["NNAPI"].failed).endswith("NNAPI acceleration is unsupported on this platform")


def test_files_are_sent_once_and_the_folder_is_bounded(
    device: Device, handset: Adbd, artifact: Artifact, tmp_path: Path
) -> None:
    def pushes() -> int:
        return sum(service.startswith("sync:") for service in handset.received)

    with connect(device, tmp_path) as phone:
        label = phone.labeller(artifact, None)
        sent = pushes()
        phone.labeller(artifact, None)
        assert pushes() == sent == 2  # the tool and the model
        held = next(
            path for path in folder(handset).iterdir() if path.stat().st_size == artifact.model_path.stat().st_size
        )
        held.write_bytes(b"damaged")  # by whom ever: what does not have its hash is sent again
        assert label is not None and phone.labeller(artifact, None) is not None and pushes() == sent + 1
    held.unlink()
    small = Device("pixel", "adb", handset.address, cache_megabytes=1, benchmark_model=device.benchmark_model)
    with connect(small, tmp_path) as phone:
        with pytest.raises(DeviceError, match="more than cache_megabytes allows"):
            phone.labeller(artifact, None)
        assert sum(path.stat().st_size for path in folder(handset).iterdir()) < 1 << 20


@pytest.mark.parametrize(
    ("trouble", "text"),
    [
        ("crash", r"without a result \(ended by SIGABRT, exit code 134\)"),
        ("short", "bytes where .* were due"),
        ("old", "writes no outputs"),
    ],
)
def test_an_artifact_that_fails_there_fails_alone(
    trouble: str, text: str, device: Device, handset: Adbd, artifact: Artifact, tmp_path: Path
) -> None:
    fault(handset, trouble)
    split = open_split("streets", "test", size=SIZE).first(1)
    packs = frame_packs(Frames(split), SIZE, None, tmp_path / "packs")
    with connect(device, tmp_path) as phone, pytest.raises(ArtifactError, match=text):
        phone.evaluate(artifact, packs, split.classes, None)


def test_what_is_not_edgekits_stays_on_the_phone(
    device: Device, handset: Adbd, artifact: Artifact, tmp_path: Path
) -> None:
    """The folder may be one that the user chose, with other things in it."""
    with connect(device, tmp_path) as phone:
        phone.labeller(artifact, None)(np.zeros((1, SIZE.height, SIZE.width, 3), np.uint8))
        (folder(handset) / ("1234567890" * 7)[:64]).write_text("a hash of digits")
        photo = folder(handset) / "photo.jpg"
        photo.write_bytes(b"x" * (2 << 20))
        assert phone.clean() >= artifact.model_path.stat().st_size
    assert [path.name for path in folder(handset).iterdir()] == ["photo.jpg"]
    small = Device("pixel", "adb", handset.address, cache_megabytes=1, benchmark_model=device.benchmark_model)
    with connect(small, tmp_path) as phone, pytest.raises(DeviceError):
        phone.labeller(artifact, None)
    assert photo.stat().st_size == 2 << 20


def test_a_phone_without_space(device: Device, handset: Adbd, artifact: Artifact, tmp_path: Path) -> None:
    frame = np.zeros((1, SIZE.height, SIZE.width, 3), np.uint8)
    text = "device 'pixel': no space is left there: free some, or run edgekit devices clean pixel"
    with connect(device, tmp_path) as phone:
        label = phone.labeller(artifact, None)
        (folder(handset) / "frame.bin").symlink_to("/dev/full")
        with pytest.raises(DeviceError, match=text):
            label(frame)
        (folder(handset) / "frame.bin").unlink()
        fault(handset, "short")  # the tool does not say that it could not write everything
        df = handset.root / "bin/df"
        df.write_text(
            "#!/bin/sh\necho 'Filesystem 1K-blocks Used Available Use% Mounted on\n/dev/x 9 9 0 100% /data'\n"
        )
        df.chmod(0o755)
        with pytest.raises(DeviceError, match=text):
            label(frame)
        df.unlink()
        fault(handset, "")
        assert label(frame).shape == (1, SIZE.height, SIZE.width)


def calls(handset: Adbd) -> list[str]:
    return (handset.root / "calls").read_text().splitlines()


def test_a_phone_that_starts_anew_goes_on_where_it_was(
    device: Device, handset: Adbd, artifact: Artifact, tmp_path: Path
) -> None:
    """Rounds that were finished are kept, and the report says that it happened."""
    with connect(device, tmp_path) as phone:
        fault(handset, "slow")

        def restart() -> None:
            while len(calls(handset)) < 5:  # in the second round
                time.sleep(0.05)
            handset.vanish()
            handset.reboot()
            time.sleep(3)
            handset.faults.gone = False

        thread = threading.Thread(target=restart)
        (handset.root / "calls").touch()
        thread.start()
        latency = measured(phone, artifact, TERMS)
        thread.join()
        assert len(latency.rounds) == 4
        assert phone.notes == ["device 'pixel' was started anew during the run"]
    # Four rounds of three backends, the one that was cut once more (or three times, as adb finds its way), the memory's.
    assert 14 <= len(calls(handset)) <= 16


def test_a_backend_that_hangs_costs_only_itself(
    device: Device, handset: Adbd, artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit.devices.android.RUN_SECONDS", 15.0)
    fault(handset, "gpu hangs")
    with connect(device, tmp_path) as phone:
        latency = measured(phone, artifact, TERMS)
    assert latency.statistics.mean == 20.0
    assert "took more than 15 s" in str(latency.compute_units["GPU"].failed)
    assert latency.compute_units["NNAPI"].p50 == pytest.approx(6.93)
    assert sum("--use_gpu=true" in call for call in calls(handset)) == 1


def test_an_old_tool_times_without_percentiles_and_litert_has_its_own(
    device: Device, handset: Adbd, artifact: Artifact, tmp_path: Path
) -> None:
    fault(handset, "old")
    with connect(device, tmp_path) as phone:
        latency = measured(phone, artifact, TERMS)
        assert latency.statistics.p50 is None and latency.statistics.mean == 20.0
        assert latency.compute_units["GPU"] == Unit(mean=9.0, operations={"GPU": "60 of 60"})
    fault(handset, "litert")
    with connect(device, tmp_path) as phone:
        assert phone.found["backends"] == ["CPU", "GPU", "NPU"] and phone.cannot_evaluate(artifact)
        latency = measured(phone, artifact, TERMS)
        assert latency.statistics.p50 == pytest.approx(19.8)
        assert latency.settings["tool"] == "LiteRT benchmark_model"
        assert latency.compute_units["NPU"].operations == {"NPU": "58 of 60"}
        assert latency.compute_units["GPU"].operations == {"GPU": "60 of 60"}


def test_sustained_load(device: Device, handset: Adbd, artifact: Artifact, tmp_path: Path) -> None:
    fault(handset, "slow")
    with connect(device, tmp_path) as phone:
        load = phone.sustain(artifact, tmp_path / "none.npy", 3, None)
    assert load.scope == "graph" and 2 <= len(load.intervals) <= 3
    ends = [interval.end_s for interval in load.intervals]
    assert ends == sorted(ends) and ends[-1] >= 3
    assert all(
        interval.conditions.temperature_c == {"skin": 39.5} and interval.statistics and interval.statistics.n
        for interval in load.intervals
    )


def test_a_load_that_was_cut_begins_anew(device: Device, handset: Adbd, artifact: Artifact, tmp_path: Path) -> None:
    """A phone cools while nobody asks anything of it."""
    fault(handset, "slow")

    def back() -> None:
        handset.faults.gone = False

    with connect(device, tmp_path) as phone:
        threading.Timer(2.0, handset.vanish).start()
        threading.Timer(4.0, back).start()
        load = phone.sustain(artifact, tmp_path / "none.npy", 3, None)
    spans = [(interval.begin_s, interval.end_s) for interval in load.intervals]
    assert spans[0][0] < 0.1 and all(end - begin < 2.5 for begin, end in spans) and 3 <= spans[-1][1] < 6


def test_a_phone_that_is_let_go_stops_at_once(
    device: Device, handset: Adbd, artifact: Artifact, tmp_path: Path
) -> None:
    """From another thread, as on Ctrl-C: nothing goes on, and nobody else gets the phone before."""
    fault(handset, "slow")
    ended: list[Exception] = []
    with connect(device, tmp_path) as phone:

        def measure() -> None:
            try:
                phone.measure([artifact], tmp_path / "none.npy", TERMS)
            except DeviceError as error:
                ended.append(error)

        thread = threading.Thread(target=measure)
        (handset.root / "calls").touch()
        thread.start()
        while len(calls(handset)) < 3:
            time.sleep(0.05)
        phone.close()
        thread.join(10)
        assert not thread.is_alive() and "was ended" in str(ended[0])
        made = len(calls(handset))
        time.sleep(1.5)
        assert len(calls(handset)) == made


def test_a_hostile_phone_is_cut_off(device: Device, handset: Adbd, artifact: Artifact, tmp_path: Path) -> None:
    fault(handset, "huge")
    with connect(device, tmp_path) as phone:
        begin = time.monotonic()
        with pytest.raises(DeviceError, match="sent more than"):
            phone.measure([artifact], tmp_path / "none.npy", TERMS)
        assert time.monotonic() - begin < 60


def test_a_cable_that_is_pulled_and_put_back(device: Device, handset: Adbd, artifact: Artifact, tmp_path: Path) -> None:
    split = open_split("streets", "test", size=SIZE).first(FRAMES)
    packs = frame_packs(Frames(split), SIZE, None, tmp_path / "packs")

    def back() -> None:
        handset.faults.gone = False

    with connect(device, tmp_path) as phone:
        whole, _ = phone.evaluate(artifact, packs, split.classes, None)
        fault(handset, "slow")
        threading.Timer(1.5, handset.vanish).start()
        threading.Timer(4.0, back).start()
        again, _ = phone.evaluate(artifact, packs, split.classes, None)
    assert again == whole


def test_one_phone_does_one_thing_at_a_time(device: Device, handset: Adbd, artifact: Artifact, tmp_path: Path) -> None:
    def log(number: int) -> Path:
        return tmp_path / str(number) / "pixel.device.log"

    def measure(number: int) -> None:
        with Phone(device, tmp_path / str(number), Progress(silent=True)) as phone:
            phone.measure([artifact], tmp_path / "none.npy", TERMS)

    fault(handset, "slow")
    first, second = (threading.Thread(target=measure, args=(number,)) for number in (1, 2))
    first.start()
    while not log(1).exists():
        time.sleep(0.05)
    second.start()
    while first.is_alive():
        waits = not log(2).exists()
        time.sleep(0.05)
    second.join(120)
    assert waits and log(2).exists()


@pytest.mark.parametrize(
    "form",
    [
        "float32 [1,2,2,19]",
        {"dtype": "object", "shape": [1], "axes": "N"},
        {"dtype": "int8", "shape": [1, -2], "axes": "NH"},
    ],
)
def test_an_output_that_cannot_be_read_is_said(
    form: object, device: Device, artifact: Artifact, tmp_path: Path
) -> None:
    from dataclasses import replace

    odd = replace(artifact, manifest={**artifact.manifest, "native_output": form})
    with connect(device, tmp_path) as phone, pytest.raises(ArtifactError, match="convert it again"):
        phone.labeller(odd, None)(np.zeros((1, SIZE.height, SIZE.width, 3), np.uint8))


class Liar:
    """A transport whose answers are right but for one."""

    def __init__(self, device: Device, data: st.DataObject) -> None:
        self.device, self.data, self.asked = device, data, 0
        self.lie = data.draw(st.integers(0, 40))

    def run(self, command: Sequence[str], data: bytes = b"", seconds: float = 60.0, limit: int = 1 << 24) -> Done:
        first, last = command[0], command[-1]
        answers = {
            "getprop": GETPROP, "df": "Filesystem 1K-blocks Used Available Use% Mounted on\n/dev/x 9000 1 8999 1% /data\n",
            "sha256sum": f"{last.rpartition('/')[2]}  {last}\n", "dumpsys": THERMAL_PIXEL if last == "thermalservice" else BATTERY,
            "cat": {"/proc/cpuinfo": CPUINFO, "/proc/meminfo": "MemTotal: 8000000 kB\n"}.get(last, "0d1f\n"),
            "sh": f"1234 {'a' * 64}\n" if "ls -t" in " ".join(command) else "0 1 2 3:walt:1785600:1785600\n",
        }  # fmt: skip
        text = answers.get(first, "")
        if first.startswith(CACHE):
            text = CLASSIC_HELP + "\t--use_gpu=false\tbool\n" if last == "--help" else LITERT_CLASSIC_GPU
        self.asked += 1
        if self.asked == self.lie:
            text = self.data.draw(damaged(text) | st.text())
            return Done(self.data.draw(st.integers(0, 255)), text.encode("utf-8", "replace"), b"")
        return Done(0, text.encode(), b"")

    def push(self, source: Path, remote: str) -> None:
        pass

    def pull(self, remote: str, destination: Path, limit: int) -> None:
        raise AssertionError("not called")

    def close(self) -> None:
        pass


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_phone_that_lies_once_is_an_error_or_a_result(
    data: st.DataObject, artifact: Artifact, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Never anything else, and never a number that JSON does not have."""
    logs = tmp_path_factory.mktemp("liar")
    device = Device("pixel", "adb", "R5CT123", benchmark_model=str(BIN / "benchmark_model"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgekit.devices.adb.connect", lambda device: Liar(device, data))
        try:
            with Phone(device, logs, Progress(silent=True)) as phone:
                found: list[Any] = [
                    phone.found,
                    phone.clean(),
                    phone.sustain(artifact, logs, 0.0011, 2),
                ]  # one interval
                found += phone.measure([artifact], logs, TERMS)
        except EdgekitError as error:
            assert "\n" not in str(error) and printable(str(error)) == str(error)
        else:
            json.dumps(plain([one for one in found if not isinstance(one, EdgekitError)]), allow_nan=False)
