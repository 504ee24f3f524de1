"""What leaves edgekit is plain: on the terminal, in JSON, on pages. And what is asked of the machine is what it has."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from measurements import context, measurement, pages, phone, run
from seam import call

from edgekit.core.errors import UsageError, first_line
from edgekit.core.progress import Progress
from edgekit.core.text import json_text, printable
from edgekit.core.values import SessionOptions
from edgekit.devices.inventory import Device
from edgekit.pipeline import devices
from edgekit.runtimes.common import available_cores, threads
from reports.figures import ClassDrops, Point, class_drops, scatter

NASTY = "\x1b[2J\x1b]0;owned\x07red\x1b[31m \u202eevil\u2066 \x9b1m\u200b \u061c\x00\ud800\U000e0041"
COMMANDS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u202a-\u202e\u2060-\u206f\ud800-\udfff\ufeff]"
)


def test_text_keeps_its_letters_and_loses_its_commands() -> None:
    assert printable(NASTY) == "red evil 1m "
    assert printable("a\tb\nc Grüße 道路 عربى 🚗") == "a\tb\nc Grüße 道路 عربى 🚗"
    assert printable("\x1b]0;a title without an end\nthe next line") == "\nthe next line"
    assert first_line(ValueError("\x1b[31mno\x1b[0m\nmore")) == "no"


@given(st.text() | st.lists(st.text()))
def test_json_holds_every_sign_and_commands_nothing(value: Any) -> None:
    text = json_text({"value": value})
    assert json.loads(text) == {"value": value}
    assert not COMMANDS.search(text)
    assert "道" in json_text("道"), "letters are written as they are"


def test_progress_is_plain_text(capfd: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    progress.say(f"waiting for {NASTY}")
    with progress.stage(NASTY):
        pass
    err = capfd.readouterr().err
    assert "waiting for red evil" in err and not COMMANDS.search(err)


def test_errors_and_results_are_plain_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    done = call(monkeypatch, capfd, "evaluate", tmp_path / f"{NASTY[:-2].replace(chr(0), '')}.pth", "--data", "streets")
    assert done.code in (1, 2) and "red evil" in done.sentence and not COMMANDS.search(done.err)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("edgekit.devices.inventory.load_inventory", lambda: {"a": Device("a", "adb", "b", notes=NASTY)})
    assert not COMMANDS.search(call(monkeypatch, capfd, "devices").out)
    done = call(monkeypatch, capfd, "devices", "--json")
    assert not COMMANDS.search(done.out) and done.document["devices"][0]["notes"] == NASTY


def test_pages_are_plain_text() -> None:
    """In whatever place a name, a command or a device's word stands."""
    nasty = phone(lambda: NASTY) | {"title": NASTY, "kept_float": [NASTY], "notes": {NASTY: NASTY}}
    failed = {**measurement("ncnn", NASTY, "int8", []), "failed": NASTY}
    about = context(
        command=NASTY, created=NASTY, dataset={"name": NASTY, "split": NASTY, "frames": 24, "trained_on": None}
    )
    for name, content in pages([*run()[:2], nasty, failed], about).items():
        if isinstance(content, str) and name.endswith(".md"):
            assert not COMMANDS.search(content), name
            assert "red" in content


def test_charts_can_be_read_by_a_browser() -> None:
    """A control sign in a name would make the SVG no XML at all."""
    import xml.etree.ElementTree as xml

    import numpy as np

    colours = {"tflite": "#000000"}
    charts = [
        scatter([Point(NASTY, "tflite", "int8", 3.0, 0.5)], 0.6, colours),
        class_drops([ClassDrops(NASTY, "tflite", "int8", np.array([0.1, 0.2]))], (NASTY, f"{NASTY} b"), colours),
    ]
    for chart in charts:
        xml.fromstring(chart)
        assert not COMMANDS.search(chart.decode())


@pytest.mark.parametrize(
    "arguments",
    [
        ("run",), ("quantize", "spssn-streets", "--target", "onnxruntime", "--calib", "streets"), ("evaluate", "spssn-streets"),
        ("bench", "nowhere"), ("predict", "spssn-streets", "nothing.png"), ("train", "--data", "streets"),
        ("run", "--device", "local"),
    ],
    ids=lambda arguments: " ".join(arguments),
)  # fmt: skip
def test_more_threads_than_cores_are_refused(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(monkeypatch, capfd, *arguments, "--threads", 100_000)
    cores = available_cores()
    assert done.code == 2
    assert f"this machine has {cores} core" in done.sentence and f"give --threads {cores} or fewer" in done.sentence
    assert list(tmp_path.iterdir()) == []


def test_no_session_starts_more_threads_than_there_are_cores() -> None:
    assert threads(SessionOptions(threads=2000)) == threads(SessionOptions()) == available_cores()
    assert threads(SessionOptions(threads=1)) == 1


def test_more_threads_than_a_device_has_are_refused_when_it_is_connected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = SimpleNamespace(device=Device("pi", "ssh", "pi.local"), environment={"cores": 4}, close=lambda: None)
    monkeypatch.setattr(devices, "connect_device", lambda *_: board)
    with ExitStack() as stack:
        assert devices.connect([board.device], stack, tmp_path, Progress(silent=True), 4) == [board]
        with pytest.raises(UsageError, match="device 'pi' has 4 cores to offer, not 5"):
            devices.connect([board.device], stack, tmp_path, Progress(silent=True), 5)
