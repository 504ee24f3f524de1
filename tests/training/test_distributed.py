"""Several processes train as one: two of them, by torchrun with gloo on CPU, against a single process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

NETWORK = """
from torch import nn

from edgekit.networks.spssn import SPSSN


def net(classes):
    network = SPSSN(classes)
    for layer in network.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0  # two processes draw other masks than one
    return network
"""
ARGUMENTS = [
    "train", "--network", "distributed_net:net", "--data", "streets", "--draw-size", "128x256", "--crop", "128x256",
    "--frames", "9", "--batch", "4", "--epochs", "3", "--missing-classes", "--class-balance", "0.5", "--average", "0.9",
    "--learning-rate", "0.002", "--threads", "1", "--workers", "0",
]  # fmt: skip


GRADIENTS = """
import sys

import torch

from distributed_net import net
from edgekit.training.distributed import distribute, join_group
from edgekit.training.loop import group_loss
from edgekit.training.recipe import TrainingRecipe

torch.manual_seed(0)
x = torch.randn(4, 3, 64, 128, dtype=torch.float64)
y = torch.randint(0, 19, (4, 64, 128), dtype=torch.uint8)
y[0], y[1, :50] = 255, 255  # processes hold other numbers of labelled pixels
taught = torch.randn(4, 19, 16, 32, dtype=torch.float64)
recipe = TrainingRecipe(teacher="one", distillation=0.3)
with join_group("cpu") as group:
    if group.size > 1:  # the others wait while one decodes a dataset, or evaluates on it
        default = torch.distributed.group.WORLD._get_backend(group.device).options._timeout
        assert default.total_seconds() > 24 * 3600, default
    network = net(19).double()
    together = distribute(network, group, every_parameter_used=True)
    share = slice(group.rank, None, group.size)
    loss = group_loss(
        together(x[share]), y[share], recipe, torch.linspace(0.1, 3.0, 19).double(), group, taught[share]
    )
    loss.backward()
    total = group.sum(loss) / group.size
    if group.leads:
        gradients = {name: value.grad for name, value in network.named_parameters()}
        torch.save({"loss": total, "gradients": gradients, "buffers": dict(network.named_buffers())}, sys.argv[1])
"""
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "distributed_net.py").write_text(NETWORK)
    (folder / "gradients.py").write_text(GRADIENTS)
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_two_processes_have_loss_and_gradients_of_one(tmp_path: Path) -> None:
    """In float64, so that nothing but an error could tell them apart."""
    for launcher, out in (([], "one.pt"), (["-m", *TORCHRUN], "two.pt")):
        done = python(tmp_path, *launcher, "gradients.py", out)
        assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one.pt", "two.pt"))
    assert float(two["loss"]) == pytest.approx(float(one["loss"]), rel=1e-12)
    for kind in ("gradients", "buffers"):
        assert one[kind].keys() == two[kind].keys()
        for key, value in one[kind].items():
            torch.testing.assert_close(two[kind][key], value, rtol=1e-7, atol=1e-12, msg=key)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    for launcher, out in (["-m", "edgekit"], "one"), (["-m", *TORCHRUN, "-m", "edgekit"], "two"):
        done = python(folder, *launcher, *ARGUMENTS, "--out", out, "--json")
        assert done.returncode == 0, done.stderr
        (folder / f"{out}.json").write_text(done.stdout)
    return folder


@pytest.mark.slow
def test_a_run_of_two_processes_is_the_run_of_one(runs: Path) -> None:
    """But for float32's rounding, which an untrained network blows up step by step."""
    one, two = (json.loads((runs / name / "history.json").read_text()) for name in ("one", "two"))
    assert len(one) == 3
    assert [entry["loss"] for entry in two] == pytest.approx([entry["loss"] for entry in one], rel=1e-2)
    weights = [load_file(next((runs / name).glob("*.safetensors"))) for name in ("one", "two")]
    assert weights[0].keys() == weights[1].keys()
    key = "classifier.3.weight"
    torch.testing.assert_close(weights[1][key], weights[0][key], rtol=0.05, atol=1e-2)
    assert int(weights[0]["downsample.0.1.num_batches_tracked"]) == int(
        weights[1]["downsample.0.1.num_batches_tracked"]
    )


@pytest.mark.slow
def test_only_the_first_process_writes_and_speaks(runs: Path) -> None:
    document = json.loads((runs / "two.json").read_text())
    assert Path(document["checkpoint"]).name == "distributed_net-net.safetensors"
    assert not list((runs / "two").glob("*.partial"))


def test_a_batch_that_cannot_be_shared(tmp_path: Path) -> None:
    done = python(tmp_path, "-m", *TORCHRUN, "-m", "edgekit", *ARGUMENTS, "--out", "odd", "--batch", "3")
    assert done.returncode != 0
    assert "--batch 3 cannot be shared by 2 processes" in done.stderr
    assert not (tmp_path / "odd" / "training-state.pt").exists()


def test_batch_norm_over_processes_of_other_statistics() -> None:
    """In a group of one, where sums are the process's own, it is torch's own batch norm, gradients included."""
    import torch.distributed as dist

    from edgekit.training.distributed import SynchronizedBatchNorm

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        generator = np.random.default_rng(0)
        x = torch.from_numpy(generator.normal(50.0, 0.5, (3, 4, 5, 6)).astype(np.float32))
        outputs = []
        for kind in (torch.nn.BatchNorm2d, SynchronizedBatchNorm):
            layer, mine = kind(4), x.clone().requires_grad_()
            y = layer(mine)
            (y * torch.arange(6.0)).square().sum().backward()
            outputs.append([y, mine.grad, layer.weight.grad, layer.bias.grad, layer.running_mean, layer.running_var])
        for expected, actual in zip(*outputs, strict=True):
            torch.testing.assert_close(actual, expected, rtol=2e-3, atol=2e-3)
        half = torch.from_numpy(generator.normal(5.0, 1.0, (8, 4, 32, 32)).astype(np.float32)).bfloat16()
        plain, mine = torch.nn.BatchNorm2d(4), SynchronizedBatchNorm(4)
        plain(half), mine(half)
        torch.testing.assert_close(mine.running_mean, plain.running_mean, rtol=1e-5, atol=1e-6)  # in bfloat16, to 1e-2
        torch.testing.assert_close(mine.running_var, plain.running_var, rtol=1e-4, atol=1e-6)
    finally:
        dist.destroy_process_group()
