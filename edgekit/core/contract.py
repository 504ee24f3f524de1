"""The latency contract: how much is measured in each mode (MLPerf's single-stream scenario for ``full``)."""

from __future__ import annotations

from dataclasses import dataclass


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
