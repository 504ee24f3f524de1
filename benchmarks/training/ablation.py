"""The paper's Table 6 on CamVid: Fast-SCNN, stream pooling and stage pooling, trained alike, on val, over several seeds.

Run: python -m benchmarks.training.ablation [EPOCHS] [SEEDS]; needs CAMVID_ROOT. Every network starts from random weights and sees the
same frames in the same order; the test split is not looked at. Trainings lie in runs/ablation and go on where they stopped.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy.stats import ttest_ind  # type: ignore[import-untyped]  # its stubs are a package of their own

from benchmarks.shared.measured import keep
from benchmarks.shared.trainings import val_scores

FOLDER = Path("runs/ablation")
NETWORKS = ("fast-scnn", "spssn-stream", "spssn")
SETTINGS = [
    "--data", "camvid", "--camvid-variant", "--batch", "8", "--crop", "320x320", "--optimizer", "adamw", "--learning-rate",
    "0.003", "--weight-decay", "0.01", "--warmup-steps", "50", "--loss-stride", "2", "--class-balance", "0.2", "--average",
    "0.99", "--colour-jitter", "0.4", "--white-balance", "0.2", "--precision", "bfloat16", "--validate-every", "1000",
    "--no-test", "--workers", "0",
]  # fmt: skip


def main() -> None:
    """Train what is missing, compare neighbours in the paper's order, and keep all."""
    epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 12
    seeds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    found: dict[str, list[dict[str, float]]] = {network: [] for network in NETWORKS}
    for seed in range(seeds):
        for network in NETWORKS:
            out = FOLDER / f"{network}-{epochs}-{seed}"
            varied = ["--network", network, "--epochs", str(epochs), "--seed", str(seed)]
            found[network].append(val_scores(out, network, [*varied, *SETTINGS, *sys.argv[3:]]))
    mious = {network: [scores["miou"] for scores in runs] for network, runs in found.items()}
    steps = []
    for worse, better in pairwise(NETWORKS):
        value = float(np.mean(mious[better]) - np.mean(mious[worse]))
        low, high = ttest_ind(mious[better], mious[worse], equal_var=False).confidence_interval(0.95)  # Welch's
        verdict = "holds" if low > 0 else "is reversed" if high < 0 else "undecided"
        steps.append(
            {"from": worse, "to": better, "value": value, "low": float(low), "high": float(high), "order": verdict}
        )
        print(f"{worse} -> {better}: {100 * value:+.2f} points [{100 * low:+.2f}, {100 * high:+.2f}]: {verdict}")
    for network, values in mious.items():
        print(
            f"{network:14} {100 * float(np.mean(values)):.2f} % ({', '.join(f'{100 * value:.2f}' for value in values)})"
        )
    category = {network: [scores["miou_category"] for scores in runs] for network, runs in found.items()}
    keep("ablation", {"epochs": epochs, "settings": SETTINGS, "miou": mious, "miou_category": category, "steps": steps})


if __name__ == "__main__":
    main()
