"""The latency contract: how much is measured in each mode (MLPerf's single-stream scenario for ``full``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mode = Literal["quick", "full"]
Scope = Literal["frame-to-labels", "graph"]


@dataclass(frozen=True)
class LatencyContract:
    """The least of everything: warm-up runs and their seconds, queries and their seconds, processes that share them.

    How fast an artifact is varies more between processes than within one: threads and memory are placed anew in each.
    """

    warmup_runs: int
    warmup_seconds: float
    queries: int
    seconds: float
    processes: int = 4


LATENCY_CONTRACTS = {
    "quick": LatencyContract(warmup_runs=3, warmup_seconds=1.0, queries=64, seconds=5.0),
    "full": LatencyContract(warmup_runs=3, warmup_seconds=1.0, queries=1024, seconds=60.0, processes=8),
}


@dataclass(frozen=True)
class Terms:
    """How a latency is to be measured.

    Attributes:
        mode: of the contract.
        scope: ``frame-to-labels``, or ``graph`` for one forward pass of the bare model.
        threads: None for all cores.
    """

    mode: Mode
    scope: Scope = "frame-to-labels"
    threads: int | None = None


CROWDED = 0.3
"""Cores that other programs may take from a measurement before it is said."""


def cores_taken(busy_elsewhere: float, threads: int | None, cores: int) -> float:
    """Cores that other programs leave an artifact too few for its threads; ``threads`` None for all cores."""
    return max(0.0, busy_elsewhere + min(threads or cores, cores) - cores)
