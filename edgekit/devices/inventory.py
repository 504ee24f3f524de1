"""The devices that a user has: ``devices.toml`` in the project's folder, or in the user's configuration folder."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from edgekit.core.errors import UsageError

FILE = "devices.toml"
LOCAL = "local"
Kind = Literal["local", "ssh", "adb"]
KINDS: tuple[Kind, ...] = get_args(Kind)

EXAMPLE = """[orin]
kind = "ssh"
address = "me@orin.local"
"""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ADDRESS = re.compile(r"[A-Za-z0-9_\[][A-Za-z0-9_.:@%\[\]-]{0,254}")
_RESERVED = ("index", "apple", "jetson", "android", "report", "latency", "accuracy")
"""Names of a report's own pages and files."""


@dataclass(frozen=True)
class Device:
    """One device of the inventory.

    Attributes:
        name: as typed after ``--device``; also its report page's.
        kind: ``local``, ``ssh`` or ``adb``.
        address: ssh: a host, ``user@host`` or a name from the user's ssh configuration; adb: a serial, or host:port.
        port: of ssh, where the configuration does not say it.
        config: an ssh configuration file instead of the user's own.
        python: the interpreter there, 3.9 or newer with numpy and the runtime.
        cache: folder there in which ``edgekit`` is made for what is sent (of a phone: that folder itself); empty means ``~/.cache``.
        cache_megabytes: the most that the folder may hold.
        runs: targets that are meant to run there; empty means what is found.
        emulated: what emulates the processor, as ``qemu``: its times then say nothing, and its accuracy is a reference.
        benchmark_model: adb: LiteRT's benchmark_model for the phone, on this machine.
        notes: for people.
    """

    name: str
    kind: Kind
    address: str = ""
    port: int | None = None
    config: str = ""
    python: str = "python3"
    cache: str = ""
    cache_megabytes: int = 4096
    runs: tuple[str, ...] = ()
    emulated: str = ""
    benchmark_model: str = ""
    notes: str = ""


THIS_MACHINE = Device(LOCAL, "local", notes="this machine")
_KEYS: Mapping[Kind, tuple[str, ...]] = {
    "local": ("kind", "notes"),
    "ssh": ("kind", "address", "port", "config", "python", "cache", "cache_megabytes", "runs", "emulated", "notes"),
    "adb": ("kind", "address", "cache", "cache_megabytes", "runs", "benchmark_model", "notes"),
}


def inventory_file() -> Path | None:
    """The file in use: ``devices.toml`` here, else in the user's configuration folder; None where neither is."""
    given = os.environ.get("XDG_CONFIG_HOME", "")
    home = Path(given) if os.path.isabs(given) else Path(os.path.expanduser("~")) / ".config"
    return next((path for path in (Path(FILE), home / "edgekit" / FILE) if path.is_file()), None)


def load_inventory() -> dict[str, Device]:
    """All devices by name, ``local`` first.

    Raises:
        UsageError: the file is not what it should be; the sentence names the place.
    """
    path = inventory_file()
    return {LOCAL: THIS_MACHINE} if path is None else read_inventory(path)


def read_inventory(path: Path) -> dict[str, Device]:
    """The devices of one file; see :func:`load_inventory`."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML ({error}): mend that line") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): check its permissions") from None
    devices = {LOCAL: THIS_MACHINE}
    for name, entry in document.items():
        if not isinstance(entry, dict):
            raise UsageError(f"{path}: '{name}' is no device: devices are tables, as in [orin]")
        device = _device(path, name, entry)
        if clash := next((known for known in devices if known != name and known.lower() == name.lower()), None):
            raise UsageError(f"{path}: [{name}] and [{clash}] would share a report page: rename one")
        devices[name] = device
    return devices


def chosen_devices(names: list[str] | None) -> list[Device]:
    """The devices of these names; None means this machine.

    Raises:
        UsageError: one is not in the inventory.
    """
    devices = load_inventory()
    for name in names or ():
        if name not in devices:
            where = inventory_file() or FILE
            raise UsageError(
                f"there is no device '{name}': choose from {', '.join(devices)}, or add it to {where} (see edgekit devices)"
            )
    return [devices[name] for name in dict.fromkeys(names or [LOCAL])]


def _device(path: Path, name: str, entry: Mapping[str, Any]) -> Device:
    where = f"{path}: [{name}]"
    if _NAME.fullmatch(name) is None or name.lower() in _RESERVED or ".." in name:
        raise UsageError(
            f"{path}: {name!r} cannot be a device's name: use letters, digits, '-', '_' and '.', and none of {', '.join(_RESERVED)}"
        )
    kind = entry.get("kind")
    if kind not in KINDS:
        raise UsageError(f"{where} kind must be one of {', '.join(KINDS)}, not {kind!r}")
    if (name == LOCAL) != (kind == "local"):
        raise UsageError(f"{where} '{LOCAL}' is this machine and nothing else: give the device another name or kind")
    for key in entry:
        if key not in _KEYS[kind]:
            raise UsageError(f"{where} has the unknown key '{key}': {kind} devices have {', '.join(_KEYS[kind])}")
    types = {field.name: str(field.type) for field in fields(Device)}
    values: dict[str, Any] = {"name": name}
    for key, value in entry.items():
        values[key] = _value(where, key, value, types[key])
    device = Device(**values)
    if kind != "local":
        _check(where, device)
    if device.config and not os.path.isabs(device.config):
        values["config"] = str(path.parent / os.path.expanduser(device.config))
    if device.benchmark_model:
        values["benchmark_model"] = str(path.parent / os.path.expanduser(device.benchmark_model))
    return Device(**values)


def _value(where: str, key: str, value: Any, kind: str) -> Any:
    if kind.startswith("int"):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UsageError(f"{where} {key} must be a whole number from 1, not {value!r}")
        return value
    if kind.startswith("tuple"):
        if not isinstance(value, list) or not all(isinstance(part, str) and _NAME.fullmatch(part) for part in value):
            raise UsageError(f'{where} {key} must be a list of targets, as in {key} = ["tflite"], not {value!r}')
        return tuple(value)
    # Control characters would reach terminals, logs and command lines.
    if not isinstance(value, str) or not value.isprintable():
        raise UsageError(f"{where} {key} must be one line of text, not {value!r}")
    return value


def _check(where: str, device: Device) -> None:
    if _ADDRESS.fullmatch(device.address) is None:
        raise UsageError(
            f"{where} address must be a host, user@host or serial without spaces and signs of a shell, not {device.address!r}"
        )
    if device.port is not None and device.port > 65535:
        raise UsageError(f"{where} port must be at most 65535, not {device.port}")
    if device.cache and (not os.path.isabs(device.cache) or ".." in device.cache.split("/") or device.cache == "/"):
        raise UsageError(f"{where} cache must be an absolute path without '..', not {device.cache!r}")
    if not device.python or device.python.startswith("-"):
        raise UsageError(f"{where} python must be a program's name or path, not {device.python!r}")
