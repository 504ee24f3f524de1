"""Writes ``benchmarks/results.md``: speed, from what the benchmarks kept. No number on it is typed but the goals.

Run: python -m benchmarks.pages.speed_page.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.pages.results import machine, percent, table
from benchmarks.shared.measured import FOLDER, kept
from edgekit.core.files import read_json, write_text

PAGE = Path(__file__).parents[1] / "results.md"
ELSEWHERE = FOLDER / "elsewhere"
MEMORY_GOAL = 0.4
LABELS_GOAL = 0.999
TIMES_GOAL, TIMES_MEMORY = 2.0, 8 << 30
FEWEST_ROUNDS = 5
"""That an interval is made of."""


def ratio(value: dict[str, float], digits: int = 2) -> str:
    """A ratio with its interval."""
    return f"{value['value']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def verdict(reached: bool) -> str:
    """How a goal is answered that has no interval."""
    return "met" if reached else "**missed**"


def at_least(found: dict[str, float], goal: float) -> str:
    """How a goal is answered by an interval: "undecided" where the goal lies within it."""
    if found["low"] < goal <= found["high"]:
        return "**undecided**"
    return verdict(found["low"] >= goal)


def at_most(found: dict[str, float], goal: float) -> str:
    """See :func:`at_least`."""
    return at_least({"low": -found["high"], "high": -found["low"]}, -goal)


SIDES = ("network", "graph", "frame-to-labels")
"""Of the edges' table."""


def against_vendors() -> list[str]:
    """Frame to labels, edgekit's artifact and the vendor's default pipeline."""
    document = kept("vendor_speed")
    if not document:
        return []
    result = document["result"]
    parts = [
        "## Against the vendors' default pipelines",
        f"`{result['checkpoint']}`, from a camera frame in memory to its full-size label map, on {machine(document)} "
        "(`benchmarks/speed/vendor_speed.py`). "
        "The vendor's side: the network with full-size logits through the vendor's converter and int8 tool with their defaults, frames "
        "normalized in numpy, argmax in numpy; all cores on both sides. Ratio: median time of the vendor's pipeline over edgekit's, both "
        f"open at once and taking turns in {result['rounds']} rounds, 95 % interval. Labels: share of pixels labelled as the unrewritten float "
        "network does in PyTorch, on four frames. Memory: peak of the process, edgekit's over the vendor's. A goal is met where the whole "
        "interval is beyond it, undecided where it lies within.",
    ]
    for size in dict.fromkeys(row["size"] for row in result["rows"]):
        rows = []
        for row in (row for row in result["rows"] if row["size"] == size):
            memory = row["edgekit_bytes"] / row["vendor_bytes"]
            goals = []
            if row["goal"] is not None:
                goals.append(f"{row['goal']:g}x {at_least(row['ratio'], row['goal'])}")
                goals.append(f"memory {verdict(memory <= MEMORY_GOAL)}")
                if row["precision"] == "fp32":
                    goals.append(f"labels {verdict(row['agreement'] >= LABELS_GOAL)}")
            rows.append(
                [
                    f"{row['family']}: {row['title']}", f"{row['vendor_ms']:.0f}", f"{row['edgekit_ms']:.0f}", ratio(row["ratio"]),
                    "" if row["agreement"] is None else percent(row["agreement"]),
                    f"{row['edgekit_bytes'] / 1e6:.0f} / {row['vendor_bytes'] / 1e6:.0f} MB ({100 * memory:.0f} %)", "; ".join(goals),
                ]
            )  # fmt: skip
        header = ["pipeline", "vendor, ms", "edgekit, ms", "ratio", "labels, %", "memory", "goals"]
        parts += [f"### {size}", table(header, rows)]
    return parts


def elsewhere() -> list[str]:
    """What the same benchmark found on other machines, with the artifacts of its day."""
    documents = [kept("vendor_speed"), *(read_json(path) for path in sorted(ELSEWHERE.glob("vendor_speed-*.json")))]
    documents = [document for document in documents if document]
    titles: list[str] = []
    columns: list[list[str]] = []
    for document in documents:
        # In the order of the benchmark's pairs, whose titles were others once.
        asked = [row for row in document["result"]["rows"] if row["goal"] is not None]
        columns.append(
            [f"{ratio(row['ratio'])}, {row['goal']:g}x {at_least(row['ratio'], row['goal'])}" for row in asked]
        )
        titles = titles or [f"{row['family']}: {row['title']}" for row in asked]
    if len(documents) < 2:
        return []
    return [
        "### 1024x2048 on other machines",
        "The ratio depends on the machine: what the vendors' pipelines do beside the network waits for memory, the network for arithmetic, so "
        "that the ratio is larger where memory is slow or arithmetic fast. Each column has the artifacts of its day.",
        table(
            ["pipeline", *(f"{machine(document)}, {document['created'][:10]}" for document in documents)],
            [list(cells) for cells in zip(titles, *columns, strict=True)],
        ),
    ]


def decoder() -> list[str]:
    """Logits to labels."""
    document = kept("decoder")
    if not document:
        return []
    result = document["result"]
    rows = []
    for name, entry in result["maps"].items():
        wall = {
            way: sorted(samples["wall"])[len(samples["wall"]) // 2] for way, samples in entry["milliseconds"].items()
        }
        rows.append(
            [
                name,
                f"{100 * entry['undecided']:.0f}",
                *(f"{value:.2f}" for value in wall.values()),
                f"{100 * entry['agreement']:.4f}",
            ]
        )
    ways = list(next(iter(result["maps"].values()))["milliseconds"])
    return [
        "## The decoder",
        f"Median ms from stride-8 logits to the label map, {result['path']}, on {machine(document)} (`benchmarks/speed/decoder.py`). `drawn` are the "
        "shipped network's logits for a street, `noise` the worst case, where every cell must be interpolated.",
        table(["map", "cells to interpolate, %", *ways, "labels as torch's, %"], rows),
    ]


def harness() -> list[str]:
    """The clock beside the vendors' tools."""
    document = kept("harness")
    if not document:
        return []
    result = document["result"]
    rows = [
        [
            row["artifact"],
            row["tool"],
            f"{row['edgekit_ms']:.2f}",
            f"{row['tool_ms']:.2f}",
            ratio(row["ratio"], 3),
            verdict(row["holds"]),
        ]
        for row in result["rows"]
    ]
    return [
        "## Is the clock honest?",
        f"The same artifacts at {result['size']} by `edgekit bench --scope graph` and by the vendor's own tool, in turns, "
        f"{result['rounds']} rounds of {result['runs']} runs, on {machine(document)} (`benchmarks/speed/harness.py`). The goal "
        f"is {100 * result['goal']:.0f} %, or an interval that holds 1.",
        table(["artifact", "tool", "edgekit, ms", "tool, ms", "ratio", "goal"], rows),
    ]


def edges() -> list[str]:
    """What the way from frame to labels costs beside the network."""
    document = kept("edges")
    if not document:
        return []
    result = document["result"]

    def told(share: dict[str, float] | None) -> str:
        if share is None:
            return ""
        return f"{100 * share['value']:+.1f} % [{100 * share['low']:+.1f}, {100 * share['high']:+.1f}]"

    rows = [
        [
            row["artifact"], *(f"{value:.1f}" if (value := row["milliseconds"].get(side)) else "" for side in SIDES),
            told(row["outside"]), told(row["all"]),
            at_most(row["all"], result["goal"]) if row["all"] else f"{at_most(row['outside'], result['goal'])} outside the graph",
        ]
        for row in result["rows"]
    ]  # fmt: skip
    return [
        "## The edges",
        f"From frame to labels at {result['size']}, in turns, {result['rounds']} rounds, on {machine(document)} "
        "(`benchmarks/speed/edges.py`). `network` is the deployable graph alone, converted by the vendor's tool: ready float planes "
        "in, stride-8 logits out; in int8 that tool would quantize another network, so that the edges inside the graph are not told "
        f"apart. The goal is {100 * result['goal']:.0f} % of the network's own time: met where the whole interval is below it.",
        table(["artifact", *(f"{side}, ms" for side in SIDES), "outside the graph", "all edges", "goal"], rows),
    ]


def same_artifact() -> list[str]:
    """How often the interval of an artifact beside its own copy holds 1."""
    document = kept("same_artifact")
    if not document:
        return []
    result, rows = document["result"], []
    for state, title in (
        ("quiet", "nothing else runs"),
        ("load", f"{2 * result['cores']} other programs want every core"),
    ):
        cells = []
        for kind in ("process", "round"):
            intervals = [one[kind] for one in result[state]]
            held = sum(low <= 1 <= high for _, low, high in intervals)
            width = sorted(high / low for _, low, high in intervals)[len(intervals) // 2]
            cells += [f"{held} of {len(intervals)}", f"{width:.2f}"]
        rows.append([title, *cells])
    return [
        "## Do the intervals hold?",
        f"An artifact beside its own copy at {result['size']}, {result['pairs']} pairs of three runtimes in each state, on {machine(document)} "
        "(`benchmarks/speed/same_artifact.py`). Neither is faster, so 95 % of the intervals should hold 1. Reports make them of processes, since all "
        "rounds of one process share its fate; the last two columns are what they would be of rounds. The width is the median of "
        "upper over lower end.",
        table(["state", "hold 1, by process", "width", "hold 1, by round", "width"], rows),
    ]


def time_to_artifact() -> list[str]:
    """All artifacts of a run."""
    document = kept("time_to_artifact")
    if not document:
        return []
    result = document["result"]
    rows = []
    for name, taken in result["sides"].items():
        found = result["ratios"].get(name)
        peak = max(side["peak_bytes"] for side in taken)
        each = [
            whole["seconds"] / side["seconds"] for whole, side in zip(result["sides"]["vendors"], taken, strict=True)
        ]
        few = len(each) < FEWEST_ROUNDS  # the rounds themselves say more than an interval from so few
        reached = at_least({"low": min(each), "high": max(each)} if few else found, TIMES_GOAL) if found else ""
        goals = f"{TIMES_GOAL:g}x {reached}; memory {verdict(peak <= TIMES_MEMORY)}" if found else ""
        seconds = ", ".join(f"{side['seconds']:.0f}" for side in taken)
        times = "1"
        if found:
            times = ", ".join(f"{value:.2f}" for value in each) if few else ratio(found)
        rows.append([name, seconds, f"{peak / 2**30:.1f}", times, goals])
    return [
        "## Time to all artifacts",
        f"Every target, float and int8, at {result['size']} with {result['samples']} calibration frames, on {machine(document)} "
        "(`benchmarks/speed/time_to_artifact.py`). The vendors' side calls the converters one after another on the straight "
        "network, with all cores. Both "
        f"read the frames from PNG files. {result['without']}.",
        table(["side", "seconds, each round", "peak memory, GiB", "times as fast as the vendors", "goals"], rows),
    ]


def floor() -> list[str]:
    """What the machine could do at best, and how far each engine is from it."""
    document, speed = kept("floor"), kept("paper_speed")
    if not document:
        return []
    # Times of one machine say nothing of another's floor.
    elsewhere = bool(speed) and machine(speed) != machine(document)
    if elsewhere:
        speed = None
    result = document["result"]
    rates = result["rates"]
    parts = [
        "## The floor",
        "Operations over the rate of a large matrix product, and bytes (weights once, every map written once and read by each operation that "
        f"reads it) over the bandwidth of a large copy, both measured on {machine(document)} (`benchmarks/speed/floor.py`): "
        + ", ".join(f"{name} {rates[name] / 1e9:.0f} G operations/s" for name in ("fp32", "bf16", "int8"))
        + f", {rates['bytes'] / 1e9:.0f} GB/s. An engine that runs operation after operation can be below neither."
        + (
            " The engines were last timed on another machine, so how far they are from it is not told here."
            if elsewhere
            else ""
        ),
    ]
    engines = [] if not speed else list(next(iter(speed["result"]["sizes"].values()))["graph"])
    rows = []
    for size, entry in result["sizes"].items():
        for precision, floors in entry["floors"].items():
            lowest = max(floors.values())
            cells = []
            for name in engines:
                own = name.split()[-1] == precision and speed and size in speed["result"]["sizes"]
                p50 = speed["result"]["sizes"][size]["graph"][name]["p50"] if own else None
                cells.append("" if p50 is None else f"{p50:.0f} ({p50 / lowest:.1f}x)")
            rows.append([size, precision, f"{floors['compute_ms']:.0f}", f"{floors['traffic_ms']:.0f}", *cells])
    return [*parts, table(["size", "precision", "operations, ms", "bytes, ms", *engines], rows)]


def main() -> None:
    """Render the page from what is there."""
    parts: list[Any] = [
        "# Speed",
        "Written by `make bench` from what is stored in `benchmarks/measured`. The machine is shared: read ratios, which were taken in turns.",
        *against_vendors(), *elsewhere(), *decoder(), *edges(), *harness(), *same_artifact(), *time_to_artifact(), *floor(),
    ]  # fmt: skip
    write_text(PAGE, "\n\n".join(parts) + "\n")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
