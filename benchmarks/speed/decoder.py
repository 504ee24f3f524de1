"""What decoding costs: PyTorch's interpolate and argmax, the numpy path, and the compiled header on one and two threads.

Run: python -m benchmarks.speed.decoder [ROUNDS]. The maps are the shipped network's own logits for a drawn street; a map of
pure noise stands for the worst case. The ways take turns in rounds, each round is one sample of each, and ratios carry a
paired interval. Beside the clock's time stands the processor's: on a busy machine that is the one to compare.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.shared.measured import keep
from calibration import streets
from edgekit import decoder
from edgekit.core.errors import EdgekitError
from edgekit.core.values import Float32, Size, UInt8
from edgekit.decoder import plain
from edgekit.export.graph import Logits, normalize, reference_labels
from edgekit.networks.checkpoint import DEFAULT_CHECKPOINT, load_checkpoint, load_network
from reports.numbers import milliseconds
from reports.statistics import bootstrap_ratio

SHAPES = {
    "19 classes, 128x256 -> 1024x2048": (19, Size(128, 256), Size(1024, 2048)),
    "11 classes, 45x60 -> 360x480": (11, Size(45, 60), Size(360, 480)),
}
CALLS = 10
"""Calls of a compiled way in one round; a round's sample is their mean. The others are called once."""


def drawn(classes: int, size: Size) -> Float32:
    """Logits of the shipped network for a drawn street at stride 8, the first classes of them: float32 [C, h, w]."""
    checkpoint = load_checkpoint(DEFAULT_CHECKPOINT)
    network = Logits(load_network(checkpoint), classes).eval()
    image = streets.draw("test", 0, 8 * size.height, 8 * size.width).image
    with torch.no_grad():
        logits: Float32 = network(normalize(torch.from_numpy(image[None]), checkpoint.normalization))[0].numpy()
    if logits.shape != (classes, size.height, size.width):
        raise EdgekitError(f"the shipped network gives logits {list(logits.shape)}: this benchmark needs stride 8")
    return logits


def undecided_share(logits: Float32) -> float:
    """Share of the cells that no class leads at all four corners: what has to be interpolated."""
    lead = logits.argmax(0)
    other = (lead[:-1, :-1] != lead[:-1, 1:]) | (lead[:-1, :-1] != lead[1:, :-1]) | (lead[:-1, :-1] != lead[1:, 1:])
    return float(other.mean())


def ways(logits: Float32, size: Size) -> dict[str, Callable[[], object]]:
    """Name -> one decoding of the map."""
    tensor = torch.from_numpy(logits)[None]
    out: UInt8 = np.empty((size.height, size.width), np.uint8)
    last = np.ascontiguousarray(logits.transpose(1, 2, 0)).transpose(2, 0, 1)
    scale = 127 / float(np.abs(logits).max())
    quantized = np.round(logits * scale).astype(np.int8)
    return {
        "torch interpolate, argmax": lambda: reference_labels(tensor, size),
        "numpy": lambda: plain.decode(logits, out),
        "compiled": lambda: decoder.decode(logits, size, out=out),
        "compiled, 2 threads": lambda: decoder.decode(logits, size, threads=2, out=out),
        "compiled, NHWC": lambda: decoder.decode(last, size, out=out),
        "compiled, int8": lambda: decoder.decode(quantized, size, out=out),
    }


def measure(logits: Float32, size: Size, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds per way, ``wall`` and ``processor`` (all threads together), one sample a round after a warm-up."""
    chosen = ways(logits, size)
    taken: dict[str, dict[str, list[float]]] = {name: {"wall": [], "processor": []} for name in chosen}
    for round_number in range(rounds + 1):
        for name, way in chosen.items():
            calls = CALLS if name.startswith("compiled") else 1
            wall, processor = time.perf_counter(), time.process_time()
            for _ in range(calls):
                way()
            wall, processor = time.perf_counter() - wall, time.process_time() - processor
            if round_number:
                taken[name]["wall"].append(1e3 * wall / calls)
                taken[name]["processor"].append(1e3 * processor / calls)
    return taken


def line(name: str, samples: dict[str, list[float]], compiled: dict[str, list[float]]) -> str:
    """One way's medians and its ratios to the compiled decoder on one thread."""
    parts = []
    for clock, values in samples.items():
        ratio = bootstrap_ratio([[value] for value in values], [[value] for value in compiled[clock]])
        times = f"{milliseconds(float(np.median(values))):>6} ms (lowest {milliseconds(min(values)):>6})"
        parts.append(f"{clock} {times} {ratio.value:7.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]")
    return f"  {name:26}" + "; ".join(parts)


def main() -> None:
    """Measure, print and keep."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    torch.set_num_threads(1)
    print(f"{decoder.path()}; torch on one thread; {rounds} rounds; ratios to 'compiled'")
    result = {}
    for title, (classes, small, size) in SHAPES.items():
        noise = np.random.default_rng(0).standard_normal((classes, small.height, small.width), np.float32)
        for kind, logits in {"drawn": drawn(classes, small), "noise": noise}.items():
            expected = reference_labels(torch.from_numpy(logits)[None], size)[0].numpy()
            agreement = float((decoder.decode(logits, size) == expected).mean())
            taken = measure(logits, size, rounds if kind == "drawn" else 3)
            undecided = undecided_share(logits)
            result[f"{title}, {kind}"] = {"milliseconds": taken, "undecided": undecided, "agreement": agreement}
            print(f"\n{title}, {kind}: {100 * undecided:.0f} % of the cells undecided,", end=" ")
            print(f"{100 * agreement:.5f} % of the labels equal to torch's")
            for name, samples in taken.items():
                print(line(name, samples, taken["compiled"]))
    keep("decoder", {"path": decoder.path(), "rounds": rounds, "maps": result})


if __name__ == "__main__":
    main()
