"""Images a second of ``edgekit train`` against a plain PyTorch loop, on the same recipe, and the val mIoU both end at.

Run: python -m benchmarks.training.training_speed [EPOCHS] [SEEDS] [cpu or cuda]; needs CAMVID_ROOT. The plain loop is what a tutorial writes:
eager float32, logits upsampled to full size before the loss, frames decoded again each epoch in the training process. Both
see the same augmented crops in the same order, from the same weights, with the same optimizer, schedule and average.
The processes take turns (one is stopped while the other runs), so that a busy machine is busy for both. A third one, on CPU, is
edgekit's training shared by two processes with one thread each.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own

from benchmarks.shared.measured import gpu, keep
from calibration.datasets import Split, open_split
from edgekit.devices.environment import available_cores
from edgekit.networks.checkpoint import load_checkpoint
from edgekit.training.recipe import TrainingRecipe
from reports.statistics import bootstrap_ratio

INITIAL = "spssn-streets"
TURN_SECONDS = {"cpu": 10.0, "cuda": 3.0}
SETTLING_STEPS = 3
RECIPE = TrainingRecipe(
    network="spssn", arguments={"camvid": True}, dataset="camvid", crop="320x320", batch=8, optimizer="adamw",
    learning_rate=0.003, weight_decay=0.01, warmup_steps=50, class_balance=0.2, average=0.99, colour_jitter=0.4,
    white_balance=0.2,
)  # fmt: skip
EDGEKIT: dict[str, Any] = {"precision": "bfloat16", "loss_stride": 2}
KINDS = {"cpu": ("plain", "edgekit", "edgekit, two processes"), "cuda": ("plain", "edgekit")}


def plain_loop(recipe: TrainingRecipe, data: Split, validation: Split, device: str, log: Path) -> float | None:
    """The loop to beat; returns val mIoU."""
    import torch
    from torch.nn import functional as F

    from edgekit.core.values import IGNORE, Normalization
    from edgekit.networks.checkpoint import build_network
    from edgekit.training.data import augment, epoch_order
    from edgekit.training.loop import evaluate_network, start_from
    from edgekit.training.losses import class_weights

    torch.set_flush_denormal(True)  # or a trained network makes this loop several times slower still
    torch.set_num_threads(available_cores())
    torch.manual_seed(recipe.seed)
    normalization = Normalization()
    network = build_network(recipe.network, len(data.classes), recipe.arguments)
    start_from(network, load_checkpoint(INITIAL))
    network.to(device)
    average = {key: value.clone() for key, value in network.state_dict().items()}
    optimizer = torch.optim.AdamW(network.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    counts = sum(np.bincount(item.load().labels.ravel(), minlength=256) for item in data.references)
    weights = class_weights(np.asarray(counts)[: len(data.classes)], recipe.class_balance)
    weights = None if weights is None else weights.to(device)
    step = 0
    steps = len(data) // recipe.batch
    for epoch in range(recipe.epochs):
        positions = epoch_order(len(data), recipe, epoch)
        network.train()
        for number in range(steps):
            images, truths = [], []
            for position in positions[number * recipe.batch : (number + 1) * recipe.batch]:
                frame = data.references[position % len(data)].load()
                generator = np.random.default_rng([recipe.seed, position])
                image, labels = augment(np.dstack([frame.image, frame.labels]), recipe, generator)
                images.append((image.astype(np.float32) / 255 - normalization.mean) / normalization.std)
                truths.append(labels)
            x = torch.from_numpy(np.stack(images).astype(np.float32).transpose(0, 3, 1, 2).copy()).to(device)
            y = torch.from_numpy(np.stack(truths)).to(device).long()
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate_at(step, steps)
            logits = F.interpolate(network(x), size=y.shape[-2:], mode="bilinear", align_corners=False)
            loss = F.cross_entropy(logits, y, weights, ignore_index=IGNORE)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own annotation is incomplete
            optimizer.step()
            step += 1
            decay = min(recipe.average, (1 + step) / (10 + step))
            for key, value in network.state_dict().items():
                if value.is_floating_point():
                    average[key].lerp_(value, 1 - decay)
                else:
                    average[key].copy_(value)
            log.write_text(str(step))
    network.load_state_dict(average)
    miou: float | None = evaluate_network(network, validation, normalization)["miou"]
    return miou


def child(kind: str, epochs: int, seed: int, device: str, folder: Path) -> None:
    """One training; the number of steps done stands in ``steps``, val mIoU at the end in ``miou``."""
    data, validation = open_split("camvid", "train"), open_split("camvid", "val")
    recipe = replace(RECIPE, epochs=epochs, seed=seed)
    log = folder / "steps"
    if kind == "plain":
        miou = plain_loop(recipe, data, validation, device, log)
    else:
        from edgekit.networks.checkpoint import read_metadata
        from edgekit.training.distributed import leads
        from edgekit.training.loop import Progress, Reports, Training, train

        initial = load_checkpoint(INITIAL)

        def report(now: Progress) -> None:
            log.write_text(str((now.epoch - 1) * now.steps + now.step))

        plan = Training(
            replace(recipe, **EDGEKIT, initial=initial.sha256), data, folder / "run", "network", "", validation=validation,
            validate_every=epochs, workers=0 if device == "cpu" else None, device=device, initial=initial,
            threads=None if kind == "edgekit" else 1,
        )  # fmt: skip
        checkpoint = train(plan, Reports(report))
        if not leads():
            return
        miou = (read_metadata(checkpoint) or {})["metrics"]["camvid:val"]["miou"]
    (folder / "miou").write_text(json.dumps(miou))


def start(kind: str, epochs: int, seed: int, device: str, folder: Path) -> subprocess.Popen[bytes]:
    """A training, stopped as soon as it exists."""
    folder.mkdir()
    launcher = [sys.executable]
    if kind.endswith("two processes"):
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen(
        [
            *launcher,
            "-m",
            "benchmarks.training.training_speed",
            "--child",
            kind,
            str(epochs),
            str(seed),
            device,
            str(folder),
        ],
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
        stdout=subprocess.DEVNULL,
        stderr=(folder / "errors").open("wb"),
    )
    process.send_signal(signal.SIGSTOP)
    return process


def send(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal a training and all that it started: torchrun's workers are in sessions of their own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        launcher = psutil.Process(process.pid)
        for one in (launcher, *launcher.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(number)


def run_while(process: subprocess.Popen[bytes], going: Callable[[], bool]) -> None:
    """Let a training run while it may, or to its end."""
    send(process, signal.SIGCONT)
    while going() and process.poll() is None:
        time.sleep(0.02)
    if process.poll() is None:
        send(process, signal.SIGSTOP)


def steps_of(folder: Path) -> int:
    """Steps that a training has done so far."""
    path = folder / "steps"
    return int(path.read_text() or 0) if path.is_file() else 0


def starts_up(folder: Path) -> bool:
    """Whether a training has not done its first steps yet."""
    return steps_of(folder) < SETTLING_STEPS


def is_before(moment: float) -> bool:
    """Whether a moment of the monotonic clock is still to come."""
    return time.monotonic() < moment


def take_turns(epochs: int, seed: int, device: str, folder: Path) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Train all kinds to the end, in turns. Returns seconds per step of each turn, and val mIoU."""
    processes = {
        kind: start(kind, epochs, seed, device, folder / str(number)) for number, kind in enumerate(KINDS[device])
    }
    folders = {kind: folder / str(number) for number, kind in enumerate(KINDS[device])}
    paces: dict[str, list[float]] = {kind: [] for kind in KINDS[device]}
    try:
        for kind, process in processes.items():  # each alone until it trains: a turn may be shorter than its start
            run_while(process, partial(starts_up, folders[kind]))
        while any(process.poll() is None for process in processes.values()):
            # Only turns that all kinds trained in are compared.
            everyone = all(process.poll() is None for process in processes.values())
            for kind, process in processes.items():
                if process.poll() is not None:
                    continue
                before, begun = steps_of(folders[kind]), time.monotonic()
                run_while(process, partial(is_before, begun + TURN_SECONDS[device]))
                seconds, done = time.monotonic() - begun, steps_of(folders[kind]) - before
                if everyone and done:
                    paces[kind].append(seconds / done)
            print({kind: steps_of(place) for kind, place in folders.items()}, flush=True)
    finally:
        for process in processes.values():
            if process.poll() is None:
                send(process, signal.SIGKILL)
    for kind, process in processes.items():
        if process.returncode:
            raise SystemExit(f"{kind} failed: {(folders[kind] / 'errors').read_text()[-2000:]}")
    return paces, {kind: json.loads((place / "miou").read_text()) for kind, place in folders.items()}


def main() -> None:
    """Train all kinds for each seed, and keep paces and mIoU."""
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5], Path(sys.argv[6]))
        return
    epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 6
    seeds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    device = sys.argv[3] if len(sys.argv) > 3 else "cpu"
    kinds = KINDS[device]
    paces: dict[str, list[float]] = {kind: [] for kind in kinds}
    mious: dict[str, list[float]] = {kind: [] for kind in kinds}
    for seed in range(seeds):
        folder = Path(tempfile.mkdtemp(prefix="training-speed-"))
        try:
            seen, ended = take_turns(epochs, seed, device, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        shortest = min(map(len, seen.values()))
        for kind in kinds:
            paces[kind] += seen[kind][:shortest]
            mious[kind].append(ended[kind])
    ratios = {}
    for kind in kinds[1:]:
        ratio = bootstrap_ratio([[pace] for pace in paces["plain"]], [[pace] for pace in paces[kind]])
        ratios[kind] = {"value": ratio.value, "low": ratio.low, "high": ratio.high}
        print(f"{kind}: {ratio.value:.2f} times the plain loop's images a second [{ratio.low:.2f}, {ratio.high:.2f}]")
    speeds = {kind: RECIPE.batch / float(np.median(paces[kind])) for kind in kinds}
    for kind in kinds:
        print(
            f"{kind:24} {speeds[kind]:6.2f} images/s, val mIoU {', '.join(f'{100 * miou:.2f}' for miou in mious[kind])} %"
        )
    keep(
        "training_speed" if device == "cpu" else "training_speed_gpu",
        {**(gpu() if device == "cuda" else {}), "epochs": epochs, "recipe": {**RECIPE.to_json(), "initial": INITIAL}, "edgekit": EDGEKIT,
         "images_per_second": speeds, "ratios": ratios, "miou": mious, "turns": paces},
    )  # fmt: skip


if __name__ == "__main__":
    main()
