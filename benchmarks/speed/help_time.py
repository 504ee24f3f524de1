"""How long ``edgekit --help`` and ``import edgekit`` take: a command line that thinks before it speaks is not used.

Run: python -m benchmarks.speed.help_time. Prints the median of ten runs of each, and of a bare interpreter for comparison.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from benchmarks.shared.measured import keep

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "python -c 'import edgekit'": [sys.executable, "-c", "import edgekit"],
    "edgekit --help": [sys.executable, "-m", "edgekit", "--help"],
}


def main() -> None:
    """Interleave the commands and print their medians in milliseconds."""
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(10):
        for name, command in COMMANDS.items():
            begin = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            taken[name].append(1e3 * (time.perf_counter() - begin))
    keep("help_time", taken)
    for name, samples in taken.items():
        print(f"{name:30} median {statistics.median(samples):4.0f} ms, lowest {min(samples):4.0f} ms")


if __name__ == "__main__":
    main()
