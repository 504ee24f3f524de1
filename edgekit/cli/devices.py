"""``edgekit devices``: which there are, what is on them, and what edgekit left there."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.cli.options import listed
from edgekit.cli.output import print_json, print_text
from edgekit.core.errors import UsageError

if TYPE_CHECKING:
    from edgekit.devices.inventory import Device

app = typer.Typer(invoke_without_command=True, help="Devices of the inventory devices.toml: list, probe, clean.")

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
NameArgument = Annotated[str, typer.Argument(help="A device's name in devices.toml.", metavar="NAME")]
DeviceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--device", help="Where to measure: local is this machine; others are in devices.toml. Several with commas.",
        metavar="NAME",
    ),
]  # fmt: skip
SustainedOption = Annotated[
    str | None,
    typer.Option(
        "--sustained", help="Also keep each artifact under load for so long, as 10m or 90s, and see what heat does."
    ),
]


def names_of(options: list[str] | None) -> list[str] | None:
    """The names in ``--device``, given once with commas or several times.

    Raises:
        UsageError: it was given, and names nothing.
    """
    return listed(",".join(options) if options else None, "--device")


def seconds_of(text: str | None) -> float | None:
    """A time like ``10m``, ``90s`` or ``1h`` in seconds.

    Raises:
        UsageError: it is none, or less than two seconds or more than a day.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,5})(s|m|h)?", text.strip())
    seconds = int(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2] or "s"] if found else 0
    if not 2 <= seconds <= 86400:
        raise UsageError(f"--sustained {text} is not a time from 2s to 24h: write 10m, 90s or 1h")
    return float(seconds)


@app.callback(epilog="Example: edgekit devices probe orin")
def devices(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the devices of the inventory; probe NAME says what is on one, clean NAME removes what edgekit left there."""
    if context.invoked_subcommand is not None:
        return
    from edgekit.devices.inventory import EXAMPLE, inventory_file, load_inventory

    found, path = load_inventory(), inventory_file()
    if as_json:
        rows = [{"name": one.name, "kind": one.kind, "address": one.address, "runs": list(one.runs), "notes": one.notes}
                for one in found.values()]  # fmt: skip
        print_json({"inventory": None if path is None else str(path), "devices": rows})
        return
    for one in found.values():
        more = ", ".join(part for part in ("runs " + " ".join(one.runs) if one.runs else "", one.notes) if part)
        print_text(f"{one.name:20}{one.kind:7}{one.address:32}{more}".rstrip())
    if path is None:
        print_text(f"\nno devices.toml here or in ~/.config/edgekit: make one, for example\n\n{EXAMPLE}", end="")
    else:
        print_text(f"\ninventory: {path}")


@app.command(epilog="Example: edgekit devices probe orin")
def probe(name: NameArgument, as_json: JsonOption = False) -> None:
    """Connect to a device and say what is there, and what is missing with the command that adds it."""
    device = _device(name)
    found = _probe(device)
    if as_json:
        print_json({"device": name, **found})
        return
    print_text(f"{name}: {device.kind} {device.address}".rstrip())
    for title, text in probe_lines(found):
        print_text(f"  {title:20}{text}")


@app.command(epilog="Example: edgekit devices clean orin")
def clean(name: NameArgument, as_json: JsonOption = False) -> None:
    """Remove everything that edgekit left on a device."""
    device = _device(name)
    if device.kind == "local":
        raise UsageError("local is this machine, which keeps nothing but its run's folders: remove those by hand")
    from edgekit.core.progress import Progress
    from edgekit.devices.connected import connect_device

    with tempfile.TemporaryDirectory() as folder:
        # Without the tool: a phone that is full must not have to take one to be cleaned.
        connected = connect_device(replace(device, benchmark_model=""), Path(folder), Progress())
        with closing(connected):
            freed = connected.clean()
    if as_json:
        print_json({"device": name, "bytes": freed})
    else:
        print_text(f"{name}: {freed / 1e6:.1f} MB removed")


def probe_lines(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A probe in words: a title and a text each; what a kind of device cannot tell has no line."""
    environment = found.get("environment") or {}
    conditions = found.get("conditions") or {}
    clocks = [f"cores {cores}: {clock / 1e6:.2f} GHz" for cores, clock in (conditions.get("clock_khz") or {}).items()]
    heats = [f"{sensor} {celsius:.0f} C" for sensor, celsius in (conditions.get("temperature_c") or {}).items()]
    memory, free, cache = environment.get("memory_bytes"), found.get("free_bytes"), found.get("cache")
    flags = environment.get("cpu_flags")
    told = {
        "board": environment.get("board"),
        "CPU": f"{environment.get('cpu')}, {environment.get('cores')} cores, {found.get('machine')}",
        "flags": None if flags is None else ", ".join(flags) or "none of those that matter",
        "clusters": _listed(environment.get("clusters")),
        "governor": environment.get("governor"),
        "clocks": ", ".join(clocks) or "unavailable",
        "temperatures": ", ".join(heats) or "unavailable",
        "thermal status": conditions.get("thermal_status"),
        "battery": _listed(conditions.get("battery")),
        "memory": f"{memory / 1e9:.1f} GB" if memory else "unavailable",
        "system": environment.get("os"),
        "Jetson Linux": environment.get("jetson_linux"),
        "JetPack": found.get("jetpack"),
        "Python": found.get("python"),
        "backends": ", ".join(found.get("backends") or ()) or None,
    }
    lines = [(title, str(text)) for title, text in told.items() if text is not None]
    lines += [("runs", f"{title} ({target})") for target, title in (found.get("runs") or {}).items()]
    lines += [("missing", str(why)) for why in (found.get("lacks") or {}).values()]
    if "compiler" in found:
        lines.append(("C compiler", str(found["compiler"] or "none: logits are decoded in numpy; apt install gcc")))
    if free is not None:
        lines.append(("free space", f"{free / 1e9:.1f} GB"))
    if cache:
        lines.append(
            ("cache", f"{cache['folder']}, {cache['bytes'] / 1e6:.1f} MB of at most {cache['limit'] / 1e6:.0f}")
        )
    return lines


def _listed(value: Any) -> str | None:
    if isinstance(value, Mapping):
        return ", ".join(f"{key.replace('_', ' ')} {part}" for key, part in value.items() if part is not None)
    return "; ".join(map(str, value)) if isinstance(value, list) else None if value is None else str(value)


def _probe(device: Device) -> dict[str, Any]:
    if device.kind == "local":
        from edgekit.devices.agent.commands import describe
        from edgekit.runtimes import RUNTIMES

        found = describe(Path())
        there = {target: version for target, version in found["runtimes"].items() if version}
        return {
            **found,
            "runs": {target: f"{RUNTIMES[target].title} {version}" for target, version in there.items()},
            "lacks": {target: f"{RUNTIMES[target].title}: {how}" for target, how in found["missing"].items()},
        }
    from edgekit.core.progress import Progress
    from edgekit.devices.connected import connect_device

    with tempfile.TemporaryDirectory() as folder:
        connected = connect_device(device, Path(folder), Progress())
        connected.close()
        lacking = {target: connected.lacks(target) for target in connected.runtimes}
        titles = {target: connected.title(target) for target, lacks in lacking.items() if lacks is None}
        return {**connected.found, "runs": titles, "lacks": {key: why for key, why in lacking.items() if why}}


def _device(name: str) -> Device:
    from edgekit.devices.inventory import chosen_devices

    return chosen_devices([name])[0]
