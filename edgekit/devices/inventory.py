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
from edgekit.core.measurement import LOCAL
from edgekit.core.quantities import is_whole

FILE = "devices.toml"
LARGEST = 64 << 10
"""Bytes of an inventory: hundreds of devices."""
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
        config: an ssh configuration file instead of the user's own; of a project's inventory one that runs no program.
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


HARMLESS = (
    "addressfamily", "batchmode", "bindaddress", "bindinterface", "casignaturealgorithms", "certificatefile",
    "checkhostip", "ciphers", "compression", "connectionattempts", "connecttimeout", "controlmaster", "controlpath",
    "controlpersist", "globalknownhostsfile",
    "hashknownhosts", "host", "hostkeyalgorithms", "hostkeyalias", "hostname", "identitiesonly", "identityfile",
    "ipqos", "kbdinteractiveauthentication", "kexalgorithms", "loglevel", "macs", "passwordauthentication", "port",
    "preferredauthentications", "proxyjump", "pubkeyacceptedalgorithms", "pubkeyauthentication", "rekeylimit",
    "serveralivecountmax", "serveraliveinterval", "stricthostkeychecking", "tcpkeepalive", "updatehostkeys", "user",
    "userknownhostsfile", "verifyhostkeydns", "visualhostkey",
)  # fmt: skip
"""What an ssh configuration beside a project's inventory may say: nothing of it runs a program here, loads code, or forwards."""
_IN_COMMANDS = ("hostname", "hostkeyalias", "proxyjump", "user")
"""The keywords among these whose values ssh puts into command lines of its own."""


def _own_file() -> Path:
    """The inventory in the user's configuration folder."""
    given = os.environ.get("XDG_CONFIG_HOME", "")
    home = Path(given) if os.path.isabs(given) else Path(os.path.expanduser("~")) / ".config"
    return home / "edgekit" / FILE


def inventory_file() -> Path | None:
    """The file in use: ``devices.toml`` here, else in the user's configuration folder; None where neither is."""
    return next((path for path in (Path(FILE), _own_file()) if path.is_file()), None)


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
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:  # Python's reader takes time by the square of some inputs' length
            raise UsageError(f"{path} has more than {LARGEST >> 10} KB, which no inventory needs: shorten it")
        document = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:  # an endless number is a ValueError only
        raise UsageError(f"{path} is not valid TOML ({error}): mend that line") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): check its permissions") from None
    devices = {LOCAL: THIS_MACHINE}
    for name, entry in document.items():
        if not isinstance(entry, dict):
            raise UsageError(f"{path}: {name!r:.60} is no device: devices are tables, as in [orin]")
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
            f"{path}: {name!r:.60} cannot be a device's name: use letters, digits, '-', '_' and '.', and none of {', '.join(_RESERVED)}"
        )
    kind = entry.get("kind")
    if kind not in KINDS:
        raise UsageError(f"{where} kind must be one of {', '.join(KINDS)}, not {kind!r:.60}")
    if (name == LOCAL) != (kind == "local"):
        raise UsageError(f"{where} '{LOCAL}' is this machine and nothing else: give the device another name or kind")
    for key in entry:
        if key not in _KEYS[kind]:
            raise UsageError(f"{where} has the unknown key {key!r:.60}: {kind} devices have {', '.join(_KEYS[kind])}")
    types = {field.name: str(field.type) for field in fields(Device)}
    values: dict[str, Any] = {"name": name}
    for key, value in entry.items():
        values[key] = _value(where, key, value, types[key])
    device = Device(**values)
    if kind != "local":
        _check(where, device)
    for key in ("config", "benchmark_model"):  # beside the inventory, and never what a command would take for an option
        if values.get(key):
            values[key] = str(path.parent.absolute() / os.path.expanduser(values[key]))
    if device.config and path.absolute() != _own_file().absolute():
        _check_config(where, Path(values["config"]))
    return Device(**values)


def _check_config(where: str, config: Path) -> None:
    """Raise UsageError for an ssh configuration that could run a program: a project is somebody else's until it is looked at."""
    if not config.is_file():  # ssh says so itself
        return
    try:
        lines = config.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        found = re.match(r"\s*\"?([A-Za-z0-9]*)\"?(?:\s*=\s*|\s+|$)(.*)", line)
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        keyword, value = (found[1], found[2].strip().strip('"')) if found else (line.strip(), "")
        plain = keyword.lower() not in _IN_COMMANDS or re.fullmatch(r"[A-Za-z0-9_%\[][A-Za-z0-9_.:@%,\[\]-]*", value)
        if keyword.lower() not in HARMLESS or not plain:
            raise UsageError(
                f"{where} config = {config} says {line.strip()!r:.60}, which a project's inventory may not bring along, since such "
                f"a line can run a program: put it into ~/.ssh/config, or the device into {_own_file()}"
            )


def _value(where: str, key: str, value: Any, kind: str) -> Any:
    if kind.startswith("int"):
        if not is_whole(value, 1, 1 << 30):
            raise UsageError(f"{where} {key} must be a whole number from 1, not {value!r:.60}")
        return value
    if kind.startswith("tuple"):
        if not isinstance(value, list) or not all(isinstance(part, str) and _NAME.fullmatch(part) for part in value):
            raise UsageError(f'{where} {key} must be a list of targets, as in {key} = ["tflite"], not {value!r:.60}')
        return tuple(value)
    # Control characters would reach terminals, logs and command lines.
    if not isinstance(value, str) or not value.isprintable():
        raise UsageError(f"{where} {key} must be one line of text, not {value!r:.60}")
    return value


def _check(where: str, device: Device) -> None:
    if _ADDRESS.fullmatch(device.address) is None:
        raise UsageError(
            f"{where} address must be a host, user@host or serial without spaces and signs of a shell, not {device.address!r:.60}"
        )
    if device.port is not None and device.port > 65535:
        raise UsageError(f"{where} port must be at most 65535, not {device.port}")
    if device.cache and (not os.path.isabs(device.cache) or ".." in device.cache.split("/") or device.cache == "/"):
        raise UsageError(f"{where} cache must be an absolute path without '..', not {device.cache!r:.60}")
    if not device.python or device.python.startswith("-"):
        raise UsageError(f"{where} python must be a program's name or path, not {device.python!r:.60}")
