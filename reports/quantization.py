"""What ``edgekit quantize`` found out about an int8 artifact, as values, as JSON and in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.core.record import absent, plain
from edgekit.core.values import Provenance, Size


@dataclass(frozen=True)
class Where:
    """Frames that something was measured on; ``trained_on`` None where nobody knows whether the network saw them."""

    dataset: str
    split: str
    frames: int
    trained_on: bool | None


@dataclass(frozen=True)
class FrameCount:
    """How many frames of which split."""

    dataset: str
    split: str
    frames: int


@dataclass(frozen=True)
class Loss:
    """What int8 loses on some frames, as fractions.

    Attributes:
        miou, miou_float: of int8 and of float PyTorch.
        miou_drop, miou_drop_ci: their difference, and its 95 % interval.
        per_class_drop: of IoU; None for a class that does not occur.
    """

    miou: float
    miou_float: float
    miou_drop: float
    miou_drop_ci: tuple[float, float]
    per_class_drop: Mapping[str, float | None]
    evaluation: Where

    def holds(self, max_drop: float) -> bool:
        """Whether the whole interval is within a budget."""
        return self.miou_drop_ci[1] <= max_drop

    def cannot_decide(self, max_drop: float) -> bool:
        """Whether the frames are too few for a budget: int8 may hold it, and with such a spread not even a drop of nothing would."""
        low, high = self.miou_drop_ci
        return bool(max_drop > 0 and low <= max_drop < high and (high - low) / 2 > max_drop)


@dataclass(frozen=True)
class Step:
    """One try of a repair: the layers that stayed in float, and what came of it."""

    model_bytes: int
    miou_drop: float
    miou_drop_ci: tuple[float, float]
    kept: tuple[str, ...]
    holds: bool


@dataclass(frozen=True)
class Repair:
    """Layers that were put in float to hold a budget, and what they cost.

    Attributes:
        kept: the layers.
        bytes_before: of the model without them in float.
        latency_ratio: the repaired over the first, with its 95 % interval; None where ``why`` says why there is none.
    """

    steps: tuple[Step, ...]
    kept: tuple[str, ...]
    bytes_before: int
    latency_ratio: tuple[float, float, float] | None = None
    why: str | None = absent(None)


@dataclass(frozen=True)
class Verdict:
    """Whether a budget holds; ``undecided`` where the frames are too few to say."""

    max_drop: float
    holds: bool
    undecided: bool = absent(default=False)


@dataclass(frozen=True)
class Quantized:
    """An int8 artifact, and what it loses.

    Attributes:
        agreement: share of pixels labelled as float PyTorch does, on frames that did not calibrate.
        provenance: of the labels.
        loss: on the frames that guide a repair; None where ``why_not`` says why there is none.
        verification: on frames that neither calibrated nor guided; None where ``unverified`` says why.
        budget, repair: where a budget was asked for, and where it took one.
        mended: layers that stay in float because int8 broke there.
        collapsed: why it must not be shipped; None where it may be.
    """

    target: str
    size: Size
    artifact: Path
    model_bytes: int
    calibration: FrameCount
    kept_float: tuple[str, ...]
    no_int8: tuple[str, ...]
    agreement: float
    agreement_frames: int
    provenance: Provenance
    loss: Loss | None = None
    why_not: str = ""
    verification: Loss | None = None
    unverified: str | None = None
    budget: Verdict | None = None
    repair: Repair | None = None
    mended: tuple[str, ...] = ()
    collapsed: str | None = None

    @property
    def proof(self) -> Loss | None:
        """The loss that a budget is judged by."""
        return self.verification or self.loss

    def to_json(self) -> dict[str, Any]:
        """Plain values, for ``--json``."""
        lost = dict.fromkeys(("miou", "miou_float", "miou_drop", "miou_drop_ci", "evaluation"))
        row = {
            "target": self.target, "precision": "int8", "size": plain(self.size), "artifact": str(self.artifact),
            "model_bytes": self.model_bytes, "calibration": plain(self.calibration), "kept_float": list(self.kept_float),
            "no_int8": list(self.no_int8), "agreement": self.agreement, "agreement_frames": self.agreement_frames,
            **(lost if self.loss is None else plain(self.loss)), "provenance": self.provenance.to_json(),
        }  # fmt: skip
        if self.loss is None:
            row["provenance_miou"] = Provenance("not measured", "", self.why_not).to_json()
        if self.verification is not None:
            row["verification"] = plain(self.verification)
        elif self.unverified is not None:
            row["provenance_verification"] = Provenance("not measured", "", self.unverified).to_json()
        row["mended"] = list(self.mended)
        if self.collapsed is not None:
            row["collapsed"] = self.collapsed
        for key in ("repair", "budget"):
            if getattr(self, key) is not None:
                row[key] = plain(getattr(self, key))
        return row


@dataclass(frozen=True)
class NotQuantized:
    """A target that has no int8 artifact, and why."""

    target: str
    size: Size
    failed: str

    def to_json(self) -> dict[str, Any]:
        """Plain values, for ``--json``."""
        return {"target": self.target, "precision": "int8", "size": plain(self.size), "failed": self.failed}


def quantization_text(row: Quantized | NotQuantized) -> str:
    """What the command prints of a target."""
    if isinstance(row, NotQuantized):
        return f"{row.target} int8: failed, {row.failed}"
    calibration = row.calibration
    lines = [
        f"{row.target} int8 at {row.size}: {row.artifact} ({row.model_bytes / 1e6:.1f} MB)",
        f"  calibrated on {calibration.frames} {calibration.dataset} {calibration.split} frames",
        f"  labels as float PyTorch: {100 * row.agreement:.2f} % of pixels on {row.agreement_frames} frames that did not "
        f"calibrate ({row.provenance.kind} by {row.provenance.by})",
    ]
    if row.no_int8:
        lines.append(f"  nothing was kept in float of {', '.join(row.no_int8)}: {row.target} runs none of it in int8")
    if row.mended:
        lines.append(f"  kept in float, since int8 broke there: {', '.join(row.mended)}")
    if row.collapsed is not None:
        lines.append(f"  collapsed: {row.collapsed}")
    if row.loss is None:
        lines.append(f"  mIoU: not measured, {row.why_not}")
    else:
        loss = row.loss
        lines.append(f"  mIoU {100 * loss.miou:.2f} %, float {100 * loss.miou_float:.2f} %, drop {drop_text(loss)}")
    if row.budget is not None:
        lines += _budget_lines(row, row.budget)
    return "\n".join(lines)


def drop_text(loss: Loss) -> str:
    """A drop with its interval, in points, and the frames it is of."""
    low, high = loss.miou_drop_ci
    where = loss.evaluation
    trained = {
        True: ", on which the network was trained",
        None: " (not known whether the network was trained on them)",
        False: "",
    }[where.trained_on]
    return (
        f"{100 * loss.miou_drop:+.2f} points [{100 * low:+.2f}, {100 * high:+.2f}] on {where.frames} "
        f"{where.dataset} {where.split} frames{trained}"
    )


def over_budget(row: Quantized) -> str:
    """What else is to be said of a budget that does not hold: what was tried, where it held, what would decide it."""
    assert row.budget is not None and row.loss is not None and row.proof is not None
    allowed, frames, text = row.budget.max_drop, row.loss.evaluation.frames, ""
    if row.loss.holds(allowed):
        text = f", though it holds on the {frames} frames that guided it"
    elif row.repair is not None:
        most = max(len(step.kept) for step in row.repair.steps)
        text = f", with up to {most} layer{'s' if most > 1 else ''} in float"
    if row.budget.undecided:
        text += f" (undecided: {frames} frames are too few, give more by --frames)"
    elif row.proof.miou_drop <= allowed:
        text += " (the drop itself is within it, its interval is not: more frames, by --frames where the split has them, would decide it)"
    return text


def _budget_lines(row: Quantized, budget: Verdict) -> list[str]:
    lines = []
    if row.repair is not None:
        repair = row.repair
        ratio = repair.latency_ratio
        slower = f"{ratio[0]:.2f} times its latency" if ratio else f"latency not measured, {repair.why}"
        grown = (row.model_bytes - repair.bytes_before) / 1e6
        lines.append(f"  kept in float to meet the budget: {', '.join(repair.kept)} ({grown:+.2f} MB, {slower})")
    holds = "holds" if budget.holds else "does not hold"
    if row.verification is not None:
        proved = f"drop {drop_text(row.verification)}, which neither calibrated nor guided it"
    else:
        proved = f"only on the frames that guided it: {row.unverified}"
    more = "" if budget.holds else over_budget(row)
    allowed = budget.max_drop
    return [*lines, f"  --max-drop {allowed:g} ({100 * allowed:g} points) {holds}{more}: {proved}"]
