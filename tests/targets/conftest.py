"""What the tests of targets share: one checkpoint, and artifacts that are made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from own_targets import SMALL, Make

from edgekit.core.progress import Progress
from edgekit.core.registry import load_target
from edgekit.core.values import (
    Artifact,
    Precision,
    Recipe,
    Size,
)
from edgekit.networks.checkpoint import Checkpoint, load_checkpoint
from edgekit.pipeline.artifacts import lazy_graph, make_artifact
from edgekit.pipeline.plans import Order


@pytest.fixture(scope="session")
def checkpoint(small_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(str(small_checkpoint))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for the whole session: a second test that needs an artifact finds it there."""
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(scope="session")
def make(checkpoint: Checkpoint, folder: Path) -> Make:
    progress = Progress(silent=True)
    graphs = {}

    def build(target: str, precision: Precision, size: Size = SMALL, **recipe: object) -> Artifact:
        if size not in graphs:
            graphs[size] = lazy_graph(checkpoint, size, progress)
        chosen = load_target(target)
        wanted = Recipe(precision, **{"output": chosen.output, **recipe})  # type: ignore[arg-type]
        return make_artifact(chosen, Order(checkpoint, size, folder, "test"), wanted, graphs[size], progress)

    return build
