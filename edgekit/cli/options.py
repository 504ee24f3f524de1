"""What options of several commands have in common."""

from __future__ import annotations

from edgekit.core.errors import UsageError


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
