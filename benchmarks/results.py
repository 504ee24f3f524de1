"""Writes ``docs/results.md`` from stored measurements; no number on that page is typed by hand but the paper's own.

Run: python benchmarks/results.py RUN_DIR, the folder of an ``edgekit run`` of the shipped checkpoint on streets.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from measured import FOLDER, kept

from edgekit.core.files import read_json, write_json, write_text

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results.md"

# Mamoon et al. 2020, Tables 2 and 4: on the Cityscapes test set, in %.
PAPER_TABLE_2 = (
    ("SegNet", "57.0", "79.1", "32.0", "61.9", "29.5"),
    ("ENet", "58.3", "80.4", "34.4", "-", "0.36"),
    ("ContextNet", "66.1", "82.7", "36.8", "64.3", "0.85"),
    ("Fast-SCNN", "68.0", "84.7", "37.9", "63.5", "1.11"),
    ("ICNet", "69.5", "86.4", "-", "-", "7.8"),
    ("SPSSN", "69.4", "86.0", "41.8", "70.2", "1.42"),
)
PAPER_TABLE_4 = {
    "road": 97.7, "sidewalk": 80.8, "building": 89.8, "wall": 43.9, "fence": 46.5, "pole": 53.1, "traffic light": 58.8,
    "traffic sign": 64.7, "vegetation": 91.5, "terrain": 68.7, "sky": 94.2, "person": 76.2, "rider": 59.0, "car": 92.7,
    "truck": 53.5, "bus": 71.0, "train": 59.2, "motorcycle": 52.9, "bicycle": 63.8,
}  # fmt: skip


def table(header: list[str], rows: list[list[str]]) -> str:
    """A markdown table; all but the first column stand right."""
    lines = ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def percent(value: float | None) -> str:
    """A fraction as %."""
    return "not defined" if value is None else f"{100 * value:.2f}"


def points(value: float, low: float, high: float) -> str:
    """A drop with its interval, in points."""
    shown = [round(100 * number, 2) + 0.0 for number in (value, low, high)]  # + 0.0 turns -0.0 into 0.0
    return f"{shown[0]:+.2f} [{shown[1]:+.2f}, {shown[2]:+.2f}]"


def artifacts(document: dict[str, Any]) -> str:
    """The rows of a run's report.json on this machine."""
    rows = []
    for row in document["rows"]:
        if row["device"] != "local":
            continue
        latency = row["latency_ms"]["p50"] if row["latency_ms"] else None
        drop = "reference of all" if row["miou_drop"] is None else points(row["miou_drop"], *row["miou_drop_ci"])
        rows.append(
            [
                f"{row['target']} {row['precision']}", f"{row['model_bytes'] / 1e6:.2f}", percent(row["miou"]), drop,
                "not measured" if latency is None else f"{latency:.1f}", row["provenance"]["miou"]["kind"],
            ]
        )  # fmt: skip
    return table(["artifact", "MB", "mIoU, %", "drop, points [95 %]", "p50, ms", "accuracy is"], rows)


def main() -> None:
    """Copy the run's report.json beside the other measurements and render the page."""
    run = Path(sys.argv[1])
    write_json(FOLDER / "run.json", read_json(run / "report" / "report.json"))
    document = read_json(FOLDER / "run.json")
    checkpoint, dataset = document["checkpoint"], document["dataset"]
    size = "x".join(str(side) for side in document["rows"][0]["size"])
    strip = sorted((run / "report" / "figures").glob("strip-*.png"))[0]
    (ROOT / "docs" / "figures").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(strip, ROOT / "docs" / "figures" / "streets-strip.png")
    scores = checkpoint["metrics"].get("streets:test", {})
    parts = [
        "# Results",
        "Written by `make bench` from what is stored in `benchmarks/measured`; only the paper's own numbers are typed.",
        f"## `{checkpoint['name']}` on `streets`",
        f"The shipped checkpoint, {len(checkpoint['classes'])} classes, {percent(scores.get('miou'))} % class mIoU on the "
        f"{scores.get('frames')} frames of the streets test split (evaluated once, after training). It was trained by",
        f"```\n{checkpoint['recipe'].get('command')}\n```",
        f"Its artifacts on {dataset['frames']} {dataset['name']} {dataset['split']} frames at {size}, `frame-to-labels` latency on "
        f"{(kept('vendor_int8') or kept('help_time'))['environment']['cpu']}, "
        f"{(kept('vendor_int8') or kept('help_time'))['environment']['cores']} cores (a shared machine: read times as order of size):",
        artifacts(document),
        "![Image, truth and each artifact's labels](figures/streets-strip.png)",
        "The scenes are drawn; numbers on them say what quantization costs and nothing about real streets.",
    ]
    floor = kept("streets_floor")
    if floor:
        best = max(floor["result"]["miou"].values())
        parts += [
            "## How hard `streets` is",
            f"A per-pixel classifier on colour and position reaches {percent(best)} % mIoU (`benchmarks/streets_floor.py`): what a "
            "network scores above that it owes to shape, texture and context.",
        ]
    vendor = kept("vendor_int8")
    if vendor:
        result = vendor["result"]
        parts += [
            f"int8 by the vendors' own defaults on the straight export, same checkpoint, 16 calibration frames, {result['frames']} "
            f"test frames at {result['size']}; float PyTorch {percent(result['float'])} % (`benchmarks/vendor_int8.py`):",
            table(
                ["recipe", "mIoU, %", "drop, points [95 %]"],
                [
                    [row["recipe"], percent(row["miou"]), points(row["drop"], row["low"], row["high"])]
                    for row in result["rows"]
                ],
            ),
        ]
    parts += [
        "## Cityscapes, the paper's Tables 2 and 4",
        "**No Cityscapes mIoU of ours stands here.** The development machine has eight frames of its training split, which cannot give "
        "one; they show that conversion and quantization work on real frames. Those who have the dataset get theirs by "
        "`edgekit evaluate CHECKPOINT --data cityscapes --split val`. The paper's own numbers on the Cityscapes test set:",
        table(
            ["network (Table 2)", "class mIoU", "category mIoU", "class iIoU", "category iIoU", "parameters, 10^6"],
            [list(row) for row in PAPER_TABLE_2],
        ),
        table(["class (Table 4)", "SPSSN, IoU in %"], [[name, f"{value:.1f}"] for name, value in PAPER_TABLE_4.items()]),
    ]  # fmt: skip
    timing = kept("help_time")
    if timing:
        median = {name: sorted(samples)[len(samples) // 2] for name, samples in timing["result"].items()}
        parts += [
            "## The command line",
            table(["command", "median, ms"], [[f"`{name}`", f"{value:.0f}"] for name, value in median.items()]),
        ]
    write_text(PAGE, "\n\n".join(parts) + "\n")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
