"""What options of several commands have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgekit.core.errors import UsageError

if TYPE_CHECKING:
    from edgekit.devices.inventory import Device


def listed(text: str | None, option: str) -> list[str] | None:
    """What an option names with commas; None where it was left out.

    Raises:
        UsageError: it was given, and names nothing, as an empty variable of a script would have it.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UsageError(f"{option} was given and names nothing: name what you want, with commas, or leave it out")
    return parts


def check_threads_here(threads: int | None, places: Sequence[Device] = ()) -> None:
    """Raise UsageError where this machine has fewer cores than threads were asked for.

    Args:
        places: where to measure, none of which may be this machine: other devices are asked when they are connected.
    """
    from edgekit.devices.inventory import THIS_MACHINE
    from edgekit.runtimes.common import available_cores, check_threads

    if not places or THIS_MACHINE in places:
        check_threads(threads, available_cores(), "this machine")
