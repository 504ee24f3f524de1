"""Charts as SVG and strips of frames as PNG; the same input gives the same bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from edgekit.core.text import printable
from edgekit.core.values import IGNORE, ClassSet, UInt8
from reports.document import Strip
from reports.sustained import Interval, Sustained

# Hues that stay apart for colour-blind readers and are dark enough for text on white.
_PALETTE = ("#0b63b5", "#c2410c", "#15803d", "#9d174d", "#6d28d9", "#0e7490", "#854d0e", "#475569")
_MARKERS = {"fp32": "o", "fp16": "s", "int8": "D"}
_INK, _QUIET, _GRID = "#1f2937", "#6b7280", "#e5e7eb"
_STYLE: Any = {
    "svg.hashsalt": "edgekit", "svg.fonttype": "path", "font.family": "DejaVu Sans", "font.size": 10,
    "axes.edgecolor": _QUIET, "axes.labelcolor": _INK, "text.color": _INK, "xtick.color": _INK, "ytick.color": _INK,
    "axes.spines.top": False, "axes.spines.right": False, "figure.facecolor": "white", "axes.facecolor": "white",
    "text.usetex": False,
}  # fmt: skip

_PANEL = 420
"""Width of one picture of a strip in pixels."""
_DIFFERENT = (255, 255, 255)


@dataclass(frozen=True)
class Point:
    """One artifact in the accuracy against latency chart.

    Attributes:
        name: as the chart writes it.
        target: decides the colour.
        precision: decides the marker.
        p50: milliseconds.
        miou: fraction.
        miou_interval: fractions between which the drop's interval puts the mIoU, or None.
    """

    name: str
    target: str
    precision: str
    p50: float
    miou: float
    miou_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class ClassDrops:
    """One artifact in the chart of drops by class.

    Attributes:
        name, target, precision: as in :class:`Point`.
        drops: float64 [C] fractions of IoU lost per class, NaN where the class does not occur.
    """

    name: str
    target: str
    precision: str
    drops: NDArray[np.float64]


def target_colours(targets: Sequence[str]) -> dict[str, str]:
    """A colour per target, by its place in the sorted names."""
    return {name: _PALETTE[index % len(_PALETTE)] for index, name in enumerate(sorted(set(targets)))}


def _literal(text: str) -> str:
    """Text that matplotlib draws as it stands, on one line: no mathematics between dollar signs."""
    return " ".join(printable(text).split()).replace("$", r"\$")


def _bytes(figure: Figure, form: str) -> bytes:
    buffer = io.BytesIO()
    metadata = {"Date": None} if form == "svg" else {"Software": None}
    figure.savefig(buffer, format=form, metadata=metadata, dpi=110)
    return buffer.getvalue()


def scatter(
    points: Sequence[Point],
    reference_miou: float | None,
    colours: Mapping[str, str],
    form: str = "svg",
) -> bytes:
    """mIoU in % over p50 in milliseconds (log axis), one point per artifact of one latency scope.

    Args:
        points: at least one.
        reference_miou: of float PyTorch, drawn as a line; None leaves it out.
        colours: of the targets; see :func:`target_colours`.
        form: ``svg`` or ``png``.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(8.4, 4.8))
        canvas: Any = FigureCanvasAgg(figure)
        axes = figure.add_axes((0.085, 0.125, 0.89, 0.8))
        latencies = [point.p50 for point in points]
        # At least a factor of 1.6 to both sides, so that one point alone or points at the edge leave room for names.
        axes.set_xscale("log")
        axes.set_xlim(min(latencies) / 1.6, max(latencies) * 1.6)
        heights = [100 * value for point in points for value in (point.miou, *(point.miou_interval or ()))]
        if reference_miou is not None:
            heights.append(100 * reference_miou)
        spread = max(max(heights) - min(heights), 0.5)
        axes.set_ylim(min(heights) - 0.16 * spread, max(heights) + 0.26 * spread)
        _log_ticks(axes)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))
        axes.grid(True, color=_GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_xlabel("latency p50, frame to labels, ms (log scale); further left is faster")
        axes.set_ylabel("mIoU, %")
        if reference_miou is not None:
            axes.axhline(100 * reference_miou, color=_INK, linewidth=1.1, linestyle=(0, (5, 3)))
        for point in points:
            colour = colours[point.target]
            if point.miou_interval is not None:
                low, high = point.miou_interval
                axes.plot(
                    [point.p50] * 2, [100 * low, 100 * high], color=colour, linewidth=1.3, marker="_", markersize=7,
                    markeredgewidth=1.3,
                )  # fmt: skip
            axes.plot(
                [point.p50], [100 * point.miou], marker=_MARKERS.get(point.precision, "X"), color=colour,
                markersize=8, markeredgecolor="white", markeredgewidth=0.9, linestyle="none", zorder=3,
            )  # fmt: skip
        _marker_legend(
            axes, [point.precision for point in points], intervals=any(point.miou_interval for point in points)
        )
        canvas.draw()
        _name_points(canvas, axes, points, colours, reference_miou)
        return _bytes(figure, form)


def _log_ticks(axes: Any) -> None:
    low, high = axes.get_xlim()
    # Few decades need more ticks than 1, 2, 5, or the axis would show one number.
    subs = (1.0, 2.0, 5.0) if high / low > 30 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=20))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="minor", length=0)


def _marker_legend(axes: Any, precisions: Sequence[str], *, intervals: bool) -> None:
    order = [*_MARKERS, *sorted(set(precisions) - set(_MARKERS))]
    handles = [
        Line2D([], [], marker=_MARKERS.get(name, "X"), linestyle="none", color=_QUIET, markersize=7, label=name)
        for name in order
        if name in precisions
    ]
    if intervals:
        handles.append(Line2D([], [], color=_QUIET, linewidth=1.3, marker="|", label="95 % interval of the drop"))
    axes.legend(
        handles=handles, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(handles), frameon=False,
        fontsize=9, handletextpad=0.3, columnspacing=1.4, borderpad=0.1,
    )  # fmt: skip


def _name_points(
    canvas: Any, axes: Any, points: Sequence[Point], colours: Mapping[str, str], reference_miou: float | None
) -> None:
    """Write the line's and each point's name where it covers no other name, marker, interval or the line."""
    renderer = canvas.get_renderer()
    frame = axes.get_window_extent(renderer)
    scale = canvas.figure.dpi / 72
    centres = [axes.transData.transform((point.p50, 100 * point.miou)) for point in points]
    radius = 6.5 * scale
    taken: list[Bbox] = [Bbox.from_extents(x - radius, y - radius, x + radius, y + radius) for x, y in centres]
    for point in points:  # the intervals' bars
        if point.miou_interval is not None:
            (x, low), (_, high) = (
                axes.transData.transform((point.p50, 100 * value)) for value in point.miou_interval
            )  # fmt: skip
            taken.append(Bbox.from_extents(x - 2 * scale, low, x + 2 * scale, high))
    if reference_miou is not None:
        y = axes.transData.transform((points[0].p50, 100 * reference_miou))[1]
        name = axes.text(0, 0, f"float PyTorch {100 * reference_miou:.2f} %", fontsize=9, color=_INK, transform=None)
        box = name.get_window_extent(renderer)
        lefts = [frame.x1 - box.width - 3 * scale, frame.x0 + 4 * scale]
        lefts += [frame.x0 + share * (frame.width - box.width) for share in (0.75, 0.5, 0.25)]
        places = [
            Bbox.from_bounds(left, bottom, box.width, box.height)
            for bottom in (y + 3 * scale, y - 3 * scale - box.height)
            for left in lefts
        ]
        # min keeps the first of equals: above the line at its right end when nothing is there.
        chosen = min(places, key=lambda place: _overlaps(place, np.asarray([other.extents for other in taken])))
        name.set_transform(axes.transAxes)
        name.set_position(axes.transAxes.inverted().transform((chosen.x0, chosen.y0)))
        taken += [chosen, Bbox.from_extents(frame.x0, y - scale, frame.x1, y + scale)]
    for index in sorted(range(len(points)), key=lambda i: (points[i].p50, points[i].name)):
        point, (x, y) = points[index], centres[index]
        label = axes.text(0, 0, _literal(point.name), fontsize=9, color=colours[point.target], transform=None)
        box = label.get_window_extent(renderer)
        best: tuple[float, float, float] | None = None
        extents = np.asarray([other.extents for other in taken])
        for left, bottom, distance in _places(x, y, box.width, box.height, scale):
            place = Bbox.from_bounds(left, bottom, box.width, box.height)
            outside = place.x0 < frame.x0 or place.x1 > frame.x1 or place.y0 < frame.y0 or place.y1 > frame.y1
            cost = distance + 4000 * _overlaps(place, extents) + (40000 if outside else 0)
            if best is None or cost < best[0]:
                best = (cost, left, bottom)
        assert best is not None
        _, left, bottom = best
        taken.append(Bbox.from_bounds(left, bottom, box.width, box.height))
        label.set_transform(axes.transAxes)
        label.set_position(axes.transAxes.inverted().transform((left, bottom)))
        _leader(axes, (x, y), taken[-1], colours[point.target], scale)


def _places(x: float, y: float, width: float, height: float, scale: float) -> list[tuple[float, float, float]]:
    """Places for a name around a point: left, bottom, and how unwelcome the place is."""
    places = []
    for ring in (9.0, 15.0, 24.0, 36.0, 50.0, 68.0, 90.0):
        gap = ring * scale
        for turn in range(16):
            angle = turn * math.pi / 8
            dx, dy = math.cos(angle), math.sin(angle)
            # The name's nearest edge, not its centre, keeps the distance.
            left = x + gap * dx + (dx - 1) * width / 2
            bottom = y + gap * dy + (dy - 1) * height / 2
            places.append((left, bottom, ring + turn * 0.1))
    return places


def _overlaps(place: Bbox, others: NDArray[Any]) -> int:
    """How many boxes, float64 [N, 4] of left, bottom, right and top, a place covers a part of."""
    left, bottom, right, top = place.extents
    meet = (left < others[:, 2]) & (others[:, 0] < right) & (bottom < others[:, 3]) & (others[:, 1] < top)
    return int(meet.sum())


def _leader(axes: Any, point: tuple[float, float], box: Bbox, colour: str, scale: float) -> None:
    """A thin line from a point to a name that stands far from it."""
    near = (min(max(point[0], box.x0), box.x1), min(max(point[1], box.y0), box.y1))
    if math.hypot(near[0] - point[0], near[1] - point[1]) < 14 * scale:
        return
    ends = axes.transAxes.inverted().transform([point, near])
    axes.plot(
        ends[:, 0], ends[:, 1], transform=axes.transAxes, color=colour, linewidth=0.7, alpha=0.8, scalex=False,
        scaley=False, zorder=2,
    )  # fmt: skip


def class_drops(
    artifacts: Sequence[ClassDrops],
    class_names: Sequence[str],
    colours: Mapping[str, str],
    form: str = "svg",
    shown: int = 5,
) -> bytes:
    """Points of IoU lost per class by the artifacts that lost most, worst class first.

    Args:
        artifacts: at least one; the ``shown`` with the largest mean drop are drawn.
        class_names: [C] names.
        colours: of the targets.
        form: ``svg`` or ``png``.
    """
    worst = sorted(artifacts, key=lambda artifact: (-_mean(artifact.drops), artifact.name))[:shown]
    table = 100 * np.stack([artifact.drops for artifact in worst])
    present = [index for index in range(len(class_names)) if not np.isnan(table[:, index]).all()]
    present.sort(key=lambda index: (float(np.nanmax(table[:, index])), index))
    absent = [class_names[index] for index in range(len(class_names)) if index not in present]
    with matplotlib.rc_context(_STYLE):
        legend_rows = -(-len(worst) // 3)
        height = 1.25 + 0.27 * max(len(present), 3) + 0.22 * legend_rows
        figure = Figure(figsize=(8.4, height))
        FigureCanvasAgg(figure)
        bottom, top = 0.78 / height, 1 - (0.16 + 0.22 * legend_rows) / height
        axes = figure.add_axes((0.185, bottom, 0.785, top - bottom))
        axes.axvline(0, color=_INK, linewidth=1)
        for position, index in enumerate(present):
            column = table[:, index][~np.isnan(table[:, index])]
            axes.plot([column.min(), column.max()], [position] * 2, color="#cbd5e1", linewidth=2, zorder=1)
        handles = []
        for row, artifact in enumerate(worst):
            # Artifacts of one class spread a little, so that equal drops do not hide each other.
            offset = 0.0 if len(worst) == 1 else 0.36 * (row / (len(worst) - 1) - 0.5)
            style: dict[str, Any] = {
                "marker": _MARKERS.get(artifact.precision, "X"), "color": colours[artifact.target],
                "markersize": 6, "markeredgecolor": "white", "markeredgewidth": 0.6, "linestyle": "none",
            }  # fmt: skip
            axes.plot(table[row, present], [p - offset for p in range(len(present))], zorder=3, **style)
            handles.append(Line2D([], [], label=_literal(artifact.name), **style))
        axes.set_yticks(range(len(present)), [_literal(class_names[index]) for index in present])
        axes.set_ylim(-0.6, max(len(present), 1) - 0.4)
        reach = float(np.nanmax(np.abs(table))) if present else 0.0
        if reach < 0.25:  # all but equal: an axis of hundredths would make noise look like a finding
            axes.set_xlim(-0.3, 0.3)
        else:
            axes.margins(x=0.06)
        axes.tick_params(axis="y", length=0)
        axes.grid(True, axis="x", color=_GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines["left"].set_visible(False)
        label = "points of IoU lost against float PyTorch; right of 0 is worse"
        if absent:
            label += "\n" + _literal(_shortened("not in these frames: ", absent, 95))
        axes.set_xlabel(label)
        axes.legend(
            handles=handles, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=min(3, len(handles)), frameon=False,
            fontsize=9, handletextpad=0.3, columnspacing=1.4, borderpad=0.1,
        )  # fmt: skip
        return _bytes(figure, form)


@dataclass(frozen=True)
class Load:
    """One artifact in the chart of sustained load: its name, target, precision, and what was measured."""

    name: str
    target: str
    precision: str
    found: Sustained


def sustained(loads: Sequence[Load], colours: Mapping[str, str], form: str = "svg") -> bytes:
    """Latency over minutes under load, p50 as a line and up to p90 as a band; below it the clock and the temperature.

    Args:
        loads: at least one.
        colours: of the targets.
        form: ``svg`` or ``png``.
    """
    clocked = any(entry.clock is not None for load in loads for entry in load.found.intervals)
    heated = any(entry.temperature is not None for load in loads for entry in load.found.intervals)
    panels = ["latency", *(["clock"] if clocked else []), *(["temperature"] if heated else [])]
    labels = {"latency": "latency, ms", "clock": "clock, GHz", "temperature": "hottest, °C"}
    with matplotlib.rc_context(_STYLE):
        height = 3.4 + 1.35 * (len(panels) - 1)
        figure = Figure(figsize=(8.4, height))
        FigureCanvasAgg(figure)
        heights = [2.45, *[1.1] * (len(panels) - 1)]
        bottom = height - 0.42
        longest = max(load.found.intervals[-1].end for load in loads)
        handles = []
        for panel, tall in zip(panels, heights, strict=True):
            bottom -= tall
            axes = figure.add_axes((0.085, bottom / height, 0.89, tall / height))
            bottom -= 0.22
            for load, dashes in zip(loads, ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2))), strict=False):
                colour, parts = colours[load.target], load.found.intervals
                times = [entry.end for entry in parts]
                style: Any = {"color": colour, "linewidth": 1.6, "linestyle": dashes, "label": _literal(load.name)}
                if panel == "latency":
                    handles += axes.plot(times, [entry.p50 for entry in parts], **style)
                    axes.fill_between(
                        times, [entry.p50 for entry in parts], [_upper(entry) for entry in parts], color=colour,
                        alpha=0.15, linewidth=0,
                    )  # fmt: skip
                    if load.found.throttled is not None:
                        axes.axvline(load.found.throttled - 1, color=colour, linewidth=0.9, linestyle=(0, (2, 2)))
                else:
                    values = [entry.clock if panel == "clock" else entry.temperature for entry in parts]
                    axes.plot(times, [math.nan if value is None else value for value in values], **style)
            axes.set_xlim(0, longest)
            if panel == "latency":
                axes.set_ylim(0, 1.08 * max(_upper(entry) for load in loads for entry in load.found.intervals))
            axes.set_ylabel(labels[panel])
            axes.yaxis.set_major_locator(MaxNLocator(nbins=5 if panel == "latency" else 3, steps=[1, 2, 5, 10]))
            axes.grid(True, color=_GRID, linewidth=0.8)
            axes.set_axisbelow(True)
            if panel == panels[-1]:
                banded = any(entry.p90 is not None for load in loads for entry in load.found.intervals)
                throttled = any(load.found.throttled is not None for load in loads)
                axes.set_xlabel(
                    "minutes under load; the line is p50"
                    + (", the band goes up to p90" if banded else "")
                    + (", dotted: throttling begins" if throttled else "")
                )
            else:
                axes.tick_params(labelbottom=False)
        figure.legend(
            handles=handles, loc="upper left", bbox_to_anchor=(0.075, 1.0), ncols=min(4, len(handles)), frameon=False,
            fontsize=9, handlelength=2.6, columnspacing=1.4,
        )  # fmt: skip
        return _bytes(figure, form)


def _upper(interval: Interval) -> float:
    """Where the band of an interval ends."""
    return interval.p50 if interval.p90 is None else interval.p90


def layer_drops(layers: Sequence[str], drops: Mapping[str, Sequence[float]], form: str = "svg") -> bytes:
    """Points of mIoU that each layer costs when it alone is int8, the most costly on top.

    Args:
        layers: names, at least one.
        drops: fractions by scheme, in the order of ``layers``.
        form: ``svg`` or ``png``.
    """
    with matplotlib.rc_context(_STYLE):
        height = 1.15 + 0.24 * len(layers)
        figure = Figure(figsize=(8.4, height))
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0.42, 0.55 / height, 0.55, 1 - 0.95 / height))
        axes.axvline(0, color=_INK, linewidth=1)
        places = range(len(layers), 0, -1)
        for colour, marker, (scheme, values) in zip(_PALETTE, "oDs", drops.items(), strict=False):
            points = [100 * value for value in values]
            axes.plot(
                points, places, marker=marker, color=colour, markersize=6, markeredgecolor="white", markeredgewidth=0.6,
                linestyle="none", label=scheme, zorder=3,
            )  # fmt: skip
        axes.set_yticks(places, [_literal(name) for name in layers], fontsize=9)
        axes.set_ylim(0.4, len(layers) + 0.6)
        axes.margins(x=0.06)
        axes.tick_params(axis="y", length=0)
        axes.grid(True, color=_GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("points of mIoU that the layer costs when it alone is int8")
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, frameon=False, fontsize=9, borderpad=0.1)
        return _bytes(figure, form)


def layer_distances(
    layers: Sequence[str],
    distances: Mapping[str, Sequence[float | None]],
    parting: str | None,
    tolerance: float,
    form: str = "svg",
) -> bytes:
    """How far models are apart along a network, on a logarithmic axis, and where they part.

    Args:
        layers: names, in the network's order, at least one.
        distances: shares by title, None where a layer has none.
        parting: the layer to mark, if any.
        tolerance: the share to draw a line at.
        form: ``svg`` or ``png``.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(8.4, 4.6))
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0.09, 0.13, 0.89, 0.74))
        places = np.arange(1, len(layers) + 1)
        for colour, marker, (title, values) in zip(_PALETTE, "oDs", distances.items(), strict=False):
            known = [(place, 100 * value) for place, value in zip(places, values, strict=True) if value]
            axes.plot(
                [place for place, _ in known], [value for _, value in known], marker=marker, markersize=4, color=colour,
                linewidth=1.2, label=_literal(title),
            )  # fmt: skip
        axes.set_yscale("log")
        axes.axhline(100 * tolerance, color=_QUIET, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            f"tolerated: {100 * tolerance:g} %", (0.005, 100 * tolerance), xycoords=("axes fraction", "data"),
            xytext=(0, 3), textcoords="offset points", fontsize=8.5, color=_QUIET,
        )  # fmt: skip
        if parting is not None:
            place = layers.index(parting) + 1
            axes.axvline(place, color=_INK, linewidth=1)
            right = place > len(layers) / 2
            axes.annotate(
                f"they part: {_literal(parting)}", (place, 0.02), xycoords=("data", "axes fraction"), fontsize=9,
                xytext=(-5 if right else 5, 0), textcoords="offset points", ha="right" if right else "left",
            )  # fmt: skip
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(0.3, len(layers) + 0.7)
        axes.grid(True, color=_GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_xlabel("layer, in the network's order (the table names them)")
        axes.set_ylabel("distance, %")
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, frameon=False, fontsize=9, borderpad=0.1)
        return _bytes(figure, form)


def _mean(values: NDArray[np.float64]) -> float:
    valid = values[~np.isnan(values)]
    return float(valid.mean()) if len(valid) else 0.0


def _shortened(head: str, names: Sequence[str], width: int) -> str:
    text = head + ", ".join(names)
    return text if len(text) <= width else f"{head}{len(names)} classes"


def strip(frame: Strip, classes: ClassSet, reference: str | None = None) -> bytes:
    """One frame's image, truth and predictions as a PNG, with captions and a legend of the classes.

    Pixels that an artifact labels otherwise than the reference are white.

    Args:
        frame: the pictures; all of one height and width.
        classes: colours and names.
        reference: the title of float PyTorch among the predictions; None compares with nothing.
    """
    height, width = frame.truth.shape
    panel_height = max(1, round(_PANEL * height / width))
    floating = frame.predictions.get(reference) if reference is not None else None
    panels = [("image", frame.image), ("truth", _blend(frame.image, frame.truth, classes))]
    titles = list(frame.predictions)
    if floating is not None and reference is not None:
        titles.remove(reference)
        titles.insert(0, reference)
    for title in titles:
        prediction = frame.predictions[title]
        picture = _blend(frame.image, prediction, classes)
        caption = title
        if floating is not None and title != reference:
            differing = prediction != floating
            picture = picture.copy()
            picture[differing] = _DIFFERENT
            caption += f": {100 * (1 - differing.mean()):.2f} % as float"
        panels.append((caption, picture))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    font, small = _font(14), _font(13)
    gap, caption_height = 10, 24
    total = gap + columns * (_PANEL + gap)
    shown = np.unique(np.concatenate([frame.truth.ravel(), *(p.ravel() for p in frame.predictions.values())]))
    entries = [
        (printable(classes.names[index]), classes.colours[index]) for index in shown.tolist() if index < len(classes)
    ]
    notes = [("not labelled in the truth", (30, 30, 30))] if IGNORE in shown else []
    if floating is not None and len(titles) > 1:
        notes.append(("differs from float PyTorch", _DIFFERENT))
    places, legend_height = _legend_places([*entries, *notes], small, total, gap)
    picture_bottom = gap + rows * (caption_height + panel_height + gap)
    sheet = Image.new("RGB", (total, picture_bottom + legend_height + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (caption, pixels) in enumerate(panels):
        left = gap + (index % columns) * (_PANEL + gap)
        top = gap + (index // columns) * (caption_height + panel_height + gap)
        draw.text((left, top + 2), _fitted(caption, font, _PANEL), fill=_INK, font=font)
        method = Image.Resampling.BOX if width >= _PANEL else Image.Resampling.NEAREST
        picture_image = Image.fromarray(pixels).resize((_PANEL, panel_height), method)
        sheet.paste(picture_image, (left, top + caption_height))
    for (name, colour), (left, top) in zip([*entries, *notes], places, strict=True):
        box = (left, picture_bottom + top + 3, left + 14, picture_bottom + top + 17)
        draw.rectangle(box, fill=colour, outline=(120, 120, 120))
        draw.text((left + 20, picture_bottom + top + 1), name, fill=_INK, font=small)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _blend(image: UInt8, labels: UInt8, classes: ClassSet) -> UInt8:
    """uint8 [h, w, 3]: class colours over the darkened photograph; ignored pixels are almost black."""
    table = np.zeros((256, 3), np.float32)
    table[: len(classes)] = classes.colours
    grey = image.mean(-1, keepdims=True, dtype=np.float32)  # the photograph's own colours would mix with the classes'
    return np.asarray(np.clip(0.7 * table[labels] + 0.3 * grey, 0, 255), np.uint8)


def _font(size: int) -> ImageFont.FreeTypeFont:
    # matplotlib carries this font, so pictures do not depend on the machine's fonts.
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    text = " ".join(printable(text).split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _legend_places(
    entries: Sequence[tuple[str, tuple[int, int, int]]], font: ImageFont.FreeTypeFont, width: int, gap: int
) -> tuple[list[tuple[int, int]], int]:
    """Left and top of each entry of a legend that wraps at ``width``, and its height, in pixels."""
    places, left, top = [], gap, 0
    for name, _ in entries:
        needed = 20 + math.ceil(font.getlength(name)) + 18
        if left > gap and left + needed > width:
            left, top = gap, top + 22
        places.append((left, top))
        left += needed
    return places, top + 22
