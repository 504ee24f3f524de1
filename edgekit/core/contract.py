"""The latency contract: how much is measured in each mode (MLPerf's single-stream scenario for ``full``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mode = Literal["quick", "full"]
Scope = Literal["frame-to-labels", "graph"]


@dataclass(frozen=True)
class LatencyContract:
    """The least of everything: warm-up runs and their seconds, queries and their seconds."""

    warmup_runs: int
    warmup_seconds: float
    queries: int
    seconds: float


LATENCY_CONTRACTS = {
    "quick": LatencyContract(warmup_runs=3, warmup_seconds=1.0, queries=64, seconds=5.0),
    "full": LatencyContract(warmup_runs=3, warmup_seconds=1.0, queries=1024, seconds=60.0),
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
