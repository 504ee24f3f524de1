"""How numbers are written, on pages and in the terminal."""

from __future__ import annotations

import math


def milliseconds(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(float(f"{value:.3g}")))))
    return f"{float(f'{value:.3g}'):.{digits}f}"


def percent(fraction: float | None) -> str:
    """A fraction in % with two decimals; ``absent`` for a class that does not occur."""
    return "absent" if fraction is None or math.isnan(fraction) else f"{100 * fraction:.2f}"


def points(fraction: float) -> str:
    """A difference of fractions in percentage points, signed, two decimals, never minus zero."""
    value = round(100 * fraction, 2)
    return f"{value + 0.0:+.2f}"


def megabytes(count: float | None, digits: int = 2) -> str:
    """Bytes in MB of 10^6 bytes; ``not recorded`` for None."""
    return "not recorded" if count is None else f"{count / 1e6:.{digits}f}"
