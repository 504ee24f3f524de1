"""int8 that loses more than its simulation said: found as it is made, mended by what it breaks at, or called collapsed."""

from __future__ import annotations

import shutil
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgekit.core.seam import Inspectable, Target
from edgekit.core.values import Artifact, Converted, DeployableGraph, Recipe, UInt8
from edgekit.pipeline.check import INT8_APART, WORSE, Seen, parts_at

MOST_MENDED = 6
"""So many times an artifact is made again, each time with what it then breaks at in float."""


@dataclass(frozen=True)
class Attempt:
    """One conversion, and what was seen of it; ``seen`` is why nothing was where it cannot run here.

    Attributes:
        rewrites: of the graph that was converted.
    """

    recipe: Recipe
    converted: Converted
    artifact: Artifact
    seen: Seen | str
    rewrites: tuple[str, ...]

    def excess(self, simulated: float) -> float:
        """How much more mIoU it is expected to lose than was simulated, a fraction; 0 where nobody can know."""
        return 0.0 if isinstance(self.seen, str) else self.seen.expected_drop - max(simulated, 0.0)


@dataclass(frozen=True)
class Mended:
    """What came of an int8 artifact.

    Attributes:
        attempt: the one to keep.
        layers: that are in float because int8 broke there.
        collapsed: why it must not be shipped; None where it may be.
    """

    attempt: Attempt
    layers: tuple[str, ...]
    collapsed: str | None


def simulated_drop(record: Mapping[str, Any]) -> float | None:
    """What a manifest's calibration was expected to cost, a fraction of mIoU; None of a target that names no scheme."""
    if "estimator" not in record:
        return None
    correction = record.get("bias_correction") or {}
    if correction.get("taken"):
        return float(correction["expected_drop"])
    return float(record["expected_drop"][record["estimator"]])


def mended(
    first: Attempt,
    simulated: float,
    target: Target,
    graph: DeployableGraph,
    images: Sequence[UInt8],
    again: Callable[[Recipe, Path], Attempt],
) -> Mended:
    """The attempt, or one with layers in float at which int8 broke; the model that is kept lies in the first one's folder.

    Args:
        simulated: the drop that the simulation expects.
        graph: the float network.
        images: frames to look at, each uint8 [1, H, W, 3].
        again: converts once more, into a folder.
    """
    from edgekit.export.layers import layers_of

    best, tried = first, first
    layers: tuple[str, ...] = ()
    known = {layer.name for layer in layers_of(graph)}
    with tempfile.TemporaryDirectory() as name:
        for number in range(MOST_MENDED):
            if best.excess(simulated) <= WORSE:
                break
            wanted = _broken_at(target, tried, graph, images) & known
            kept = tuple(dict.fromkeys((*tried.recipe.keep_float, *sorted(wanted))))
            if kept == tried.recipe.keep_float:
                break
            folder = Path(name) / str(number)
            folder.mkdir()
            try:
                tried = again(replace(tried.recipe, keep_float=kept), folder)
            except (
                Exception
            ):  # a layer that this target cannot leave in float, in whatever words; what was made first stands
                traceback.print_exc()  # into the conversion's log
                break
            if tried.excess(simulated) < best.excess(simulated):
                best = tried
        if best is not first:
            before = first.recipe.keep_float
            layers = tuple(
                one for one in best.recipe.keep_float if one not in before and one in best.converted.kept_float
            )
            best = _moved(best, first.artifact.folder)
    return Mended(best, layers, _collapsed(best, simulated))


def _broken_at(target: Target, attempt: Attempt, graph: DeployableGraph, images: Sequence[UInt8]) -> set[str]:
    """Layers of which one is the first to be broken; empty where nothing shows it."""
    if not isinstance(target, Inspectable):
        return set()
    try:
        found = parts_at(target, attempt.artifact, graph, images[:2], INT8_APART)
    except Exception:  # runtimes raise anything; the artifact is called collapsed all the same
        return set()
    places = {*found.unseen, *((found.layer,) if found.layer is not None else ())}
    return places or ({found.steepest} if found.steepest is not None else set())


def _moved(attempt: Attempt, folder: Path) -> Attempt:
    """The attempt with its files in the place of those in ``folder``."""
    for entry in list(folder.iterdir()):
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    for entry in list(attempt.artifact.folder.iterdir()):
        shutil.move(entry, folder / entry.name)
    return replace(attempt, artifact=replace(attempt.artifact, folder=folder))


def _collapsed(attempt: Attempt, simulated: float) -> str | None:
    if isinstance(attempt.seen, str) or attempt.excess(simulated) <= WORSE:
        return None
    return (
        f"it is expected to lose {100 * attempt.seen.expected_drop:.1f} points of mIoU on {attempt.seen.frames} frames, where "
        f"{100 * simulated:.1f} were simulated; do not ship it: convert in fp16 or fp32, or choose another target"
    )
