"""A real adb client and a small adbd on loopback: what edgekit's transport makes of a phone, and of one that misbehaves."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import pytest
from adbd import Adbd, Phones
from parts import missing

from edgekit.core.errors import DeviceError, DeviceLost
from edgekit.devices import adb
from edgekit.devices.inventory import Device

pytestmark = pytest.mark.skipif(missing("adb") is not None, reason=str(missing("adb")))


def device(phone: Adbd | str) -> Device:
    return Device("pixel", "adb", phone if isinstance(phone, str) else phone.address)


def test_commands_keep_their_exit_code_and_their_two_outputs(phones: Phones) -> None:
    transport = adb.connect(device(phones()))
    done = transport.run(["sh", "-c", "echo out; printf err >&2; exit 42"])
    assert (done.code, done.out, done.err) == (42, b"out\n", b"err")
    assert transport.run(["cat"], data=bytes(range(256)) * 3000).out == bytes(range(256)) * 3000
    # Arguments reach the program as they are: no shell takes them apart.
    hostile = ["$(touch /tmp/owned)", "; rm -rf /", "a'b\"c", "with space", "", "*", "\\"]
    printed = transport.run(["printf", "%s\n", *hostile]).out.decode().split("\n")[:-1]
    assert printed == hostile
    assert transport.run(["no-such-program"]).code == 127
    transport.close()


@pytest.mark.parametrize("size", [0, 1, 65536, 3_000_001])
def test_files_travel_byte_for_byte(size: int, phones: Phones, tmp_path: Path) -> None:
    phone = phones()
    transport = adb.connect(device(phone))
    source = tmp_path / "source"
    source.write_bytes(os.urandom(size))
    transport.push(source, "/data/local/tmp/edgekit/new folder/it's.bin")
    assert (phone.root / "data/local/tmp/edgekit/new folder/it's.bin").read_bytes() == source.read_bytes()
    assert transport.run(["cat", "/data/local/tmp/edgekit/new folder/it's.bin"]).out == source.read_bytes()
    assert sorted(path.name for path in (phone.root / "data/local/tmp/edgekit/new folder").iterdir()) == ["it's.bin"]
    transport.close()


def test_a_phone_that_does_not_know_this_computer(phones: Phones) -> None:
    phone = phones()
    phone.faults.unauthorized = True
    with pytest.raises(DeviceError, match=r"device 'pixel': it is (unauthorized|authorizing|offline): .*run again"):
        adb.connect(device(phone))


def test_an_offline_phone(phones: Phones) -> None:
    phone = phones()
    transport = adb.connect(device(phone))
    phone.faults.offline = True
    with pytest.raises(DeviceError, match="took more than 1 s"):
        transport.run(["echo"], seconds=1)
    phone.vanish()
    with pytest.raises(DeviceLost, match="device 'pixel': the connection broke"):
        transport.run(["echo"], seconds=20)


def test_a_phone_that_takes_a_connection_and_says_nothing(phones: Phones) -> None:
    phone = phones()
    phone.faults.mute = True
    begin = time.monotonic()
    with pytest.raises(DeviceError, match=r"device 'pixel': (it is offline: unplug it|adb cannot connect to 127)"):
        adb.connect(device(phone))
    assert time.monotonic() - begin < 60
    phone.faults.mute = False
    assert adb.connect(device(phone)).run(["echo", "here"]).out == b"here\n"


def test_no_phone_and_nobody_at_the_address(phones: Phones) -> None:
    with pytest.raises(DeviceError, match="adb lists no device with the serial R5CT123"):
        adb.connect(device("R5CT123"))
    phone = phones()
    phone.stop()
    with pytest.raises(DeviceError, match=f"adb cannot connect to {phone.address}"):
        adb.connect(device(phone))


def _pair() -> tuple[int, int]:
    """Two free ports, one of which begins with the other."""
    for port in range(2000, 6000):
        try:
            with socket.create_server(("127.0.0.1", port)), socket.create_server(("127.0.0.1", 10 * port)):
                return port, 10 * port
        except OSError:
            continue
    raise AssertionError("no free ports")


def test_of_two_phones_whose_serials_begin_alike_the_named_one_is_meant(phones: Phones) -> None:
    short, long = _pair()
    first, second = phones(short), phones(long)
    (first.root / "data/local/tmp/name").write_text("first")
    (second.root / "data/local/tmp/name").write_text("second")
    one, other = adb.connect(device(first)), adb.connect(device(second))
    assert one.run(["cat", "/data/local/tmp/name"]).out == b"first"
    assert other.run(["cat", "/data/local/tmp/name"]).out == b"second"
    for nearly in ("127.0.0.1", f"127.0.0.1:{short}"[:-1], "model:StandIn", "device:standin"):
        with pytest.raises(DeviceError, match=f"no device with the serial {nearly}|cannot connect to {nearly}"):
            adb.connect(device(nearly))


def test_a_push_that_is_cut_leaves_nothing_under_the_files_name(phones: Phones, tmp_path: Path) -> None:
    phone = phones()
    transport = adb.connect(device(phone))
    source = tmp_path / "source"
    source.write_bytes(os.urandom(1 << 20))
    transport.push(source, "/data/local/tmp/model")
    before = (phone.root / "data/local/tmp/model").read_bytes()
    phone.faults.cut_push_after = 200_000
    source.write_bytes(os.urandom(1 << 20))
    with pytest.raises(DeviceError, match="device 'pixel'"):
        transport.push(source, "/data/local/tmp/model")
    assert (phone.root / "data/local/tmp/model").read_bytes() == before
    phone.faults.cut_push_after = None  # the cable is back
    again = adb.connect(device(phone))
    again.push(source, "/data/local/tmp/model")
    assert (phone.root / "data/local/tmp/model").read_bytes() == source.read_bytes()


def test_a_full_phone(phones: Phones, tmp_path: Path) -> None:
    phone = phones()
    transport = adb.connect(device(phone))
    phone.faults.full = True
    source = tmp_path / "source"
    source.write_bytes(b"x" * 100_000)
    with pytest.raises(DeviceError, match="no space is left there: free some, or run edgekit devices clean pixel"):
        transport.push(source, "/data/local/tmp/model")
    assert list((phone.root / "data/local/tmp").iterdir()) == []


def test_output_that_breaks_off_is_no_result(phones: Phones) -> None:
    """adb's own client ends with 0 then."""
    phone = phones()
    transport = adb.connect(device(phone))
    phone.faults.cut_shell_after = 1000
    with pytest.raises(DeviceLost, match=r"the connection broke .* what was finished is kept"):
        transport.run(["sh", "-c", "seq 1 100; sleep 0.2; seq 1 100000; exit 3"])


def test_a_phone_that_vanishes_leaves_nothing_running_on_either_side(phones: Phones) -> None:
    phone = phones()
    transport = adb.connect(device(phone))
    mark = phone.root / ALIVE.lstrip("/")
    threading.Timer(1.0, phone.vanish).start()
    begin = time.monotonic()
    with pytest.raises(DeviceLost):
        transport.run(["sh", "-c", f"while :; do echo >> {ALIVE}; sleep 0.05; done"], seconds=60)
    assert time.monotonic() - begin < 30
    size = _settled(mark)
    assert size > 0


ALIVE = "/data/local/tmp/alive"


def _settled(path: Path) -> int:
    """The file's size once nobody writes it any more."""
    before = -1
    for _ in range(100):
        size = path.stat().st_size
        if size == before:
            return size
        before = size
        time.sleep(0.3)
    raise AssertionError("the program still runs on the device")


def test_a_command_that_takes_too_long_is_ended_there_too(phones: Phones) -> None:
    phone = phones()
    transport = adb.connect(device(phone))
    mark = phone.root / ALIVE.lstrip("/")
    with pytest.raises(DeviceError, match="took more than 1 s"):
        transport.run(["sh", "-c", f"while :; do echo >> {ALIVE}; sleep 0.05; done"], seconds=1)
    _settled(mark)
    assert transport.run(["echo", "fine"]).out == b"fine\n"


def test_endless_output_is_cut_off(phones: Phones) -> None:
    transport = adb.connect(device(phones()))
    begin = time.monotonic()
    for command in (["cat", "/dev/zero"], ["sh", "-c", "cat /dev/zero >&2"]):  # one line, 10 GB of it in a minute
        with pytest.raises(DeviceError, match="sent more than 1000000 bytes"):
            transport.run(command, seconds=60, limit=1_000_000)
    assert time.monotonic() - begin < 40
    assert transport.run(["echo", "fine"]).out == b"fine\n"


def test_a_shell_without_exit_codes_is_not_trusted(phones: Phones) -> None:
    phone = phones()
    phone.faults.no_shell_v2 = True
    with pytest.raises(DeviceError, match="Android 7 or newer"):
        adb.connect(device(phone))


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ("unauthorized", "it is unauthorized: allow this computer's key on the device's screen"),
        ("offline", "it is offline: unplug it and plug it in again"),
        ("recovery", "it is recovery: start Android"),
        ("no permissions (user in plugdev group; are your udev rules wrong?); see [http://developer.android.com]", "udev rules"),
        ("rescue", "it is rescue: run adb devices by hand"),
        ("\x1b[31mdevice" * 40, r"it is device.*\.\.\.: run adb devices by hand"),
    ],
)  # fmt: skip
def test_what_a_phone_on_a_cable_can_be(state: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a cable brings most of these: the lines are adb's own, its program is not."""
    listed = f"* daemon started successfully\nList of devices attached\nR5CT1234\tdevice\nR5CT123\t{state}\r\n\n"
    (tmp_path / "list").write_text(listed)
    (tmp_path / "adb").write_text(f"#!/bin/sh\ncat {tmp_path}/list\n")
    (tmp_path / "adb").chmod(0o755)
    monkeypatch.setenv("ADB", str(tmp_path / "adb"))
    monkeypatch.setattr(adb, "SETTLE_SECONDS", 0.1)
    with pytest.raises(DeviceError, match=f"device 'pixel': .*{text}") as error:
        adb.connect(device("R5CT123"))
    assert "\x1b" not in str(error.value)


def test_without_adb_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADB", "/no/such/adb")
    with pytest.raises(DeviceError, match="apt install adb"):
        adb.connect(device("R5CT123"))
