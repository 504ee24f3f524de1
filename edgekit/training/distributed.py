"""Several processes that train one network, as ``torchrun`` starts them: each its share of every batch.

The loss is the one that a single process would compute on the whole batch: batch norm's statistics and the number of
labelled pixels are summed over the processes. Only Lovász-Softmax, which is no sum over pixels, is each process's own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.core.errors import TrainingError

PATIENCE = timedelta(days=2)
"""How long processes wait for one another. torch's own 10 or 30 minutes are less than the first of them may take, alone, to decode
a large dataset or to evaluate a network on it; launchers end the others themselves where one dies."""


def leads() -> bool:
    """Whether this process, among those that ``torchrun`` started, is the one that writes files and speaks."""
    return os.environ.get("RANK", "0") == "0"


@dataclass(frozen=True)
class Group:
    """This process among those that train together, ``here`` of them on this machine; alone, it is number 0 of 1."""

    rank: int
    size: int
    device: torch.device
    here: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """Sum over all processes, without gradient."""
        total = value.detach().clone()
        if self.size > 1:
            dist.all_reduce(total)
        return total

    def wait(self) -> None:
        """Return once every process has come here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def join_group(device: str) -> Iterator[Group]:
    """The group that ``torchrun`` (or a like launcher) started this process in, else this process alone.

    Raises:
        TrainingError: the device cannot be used.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    place = f"{device}:{local}" if size > 1 and device == "cuda" else device
    try:
        torch.zeros(1, device=place)
    except (RuntimeError, AssertionError, ValueError) as error:  # torch's three ways to say no
        raise TrainingError(
            f"--device {place} cannot be used by this PyTorch: choose cpu, or cuda with its CUDA build"
        ) from error
    if place.startswith("cuda:"):  # streams and graphs are made on the current one
        torch.cuda.set_device(place)
    if size == 1:
        yield Group(0, 1, torch.device(place))
        return
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=PATIENCE)
    try:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", size))
        yield Group(dist.get_rank(), dist.get_world_size(), torch.device(place), here)
    finally:
        dist.destroy_process_group()


class _Normalize(torch.autograd.Function):
    """Batch norm by the mean and variance over all processes, of torch's own fused kernels.

    x [N, C, H, W], weight and bias [C] -> y like x, and the statistics [2C + 1] in float64: mean, variance, pixels.
    """

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        channels, pixels = x.shape[1], x.numel() // x.shape[1]
        # With weight and bias, though they are not applied here: without, statistics would be of x's own precision.
        _, mean, deviation = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, epsilon)
        mean, variance = mean.double(), deviation.double() ** -2 - epsilon
        # Sums in float64: the difference of two large squares would lose a small variance.
        sums = torch.cat([mean * pixels, (variance + mean.square()) * pixels, mean.new_tensor([float(pixels)])])
        dist.all_reduce(sums)
        mean = sums[:channels] / sums[-1]
        variance = (sums[channels:-1] / sums[-1] - mean.square()).clamp_min(0)
        statistics = torch.cat([mean, variance, sums[-1:]])
        y = F.batch_norm(x, mean.to(weight.dtype), variance.to(weight.dtype), weight, bias, False, 0.0, epsilon)
        context.save_for_backward(x, weight, statistics)
        context.epsilon = epsilon
        context.mark_non_differentiable(statistics)
        return y, statistics

    @staticmethod
    def backward(context: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, statistics = context.saved_tensors
        channels = x.shape[1]
        mean, variance, pixels = statistics[:channels], statistics[channels:-1], statistics[-1]
        # As if mean and variance were constants, and both sums over this process's pixels.
        direct, weight_gradient, bias_gradient = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean.to(weight.dtype), variance.to(weight.dtype), None, None, False, context.epsilon,
            [True, True, True],
        )  # fmt: skip
        sums = torch.cat([weight_gradient.double(), bias_gradient.double()])
        dist.all_reduce(sums)
        # What passes through mean and variance: a factor and an offset for each channel.
        scale = (variance + context.epsilon).rsqrt()
        factor = -weight.double() * scale.square() * sums[:channels] / pixels
        offset = -weight.double() * scale * sums[channels:] / pixels - factor * mean
        zero, one = torch.zeros_like(weight), torch.ones_like(weight)
        through = F.batch_norm(x, zero, one, factor.to(weight.dtype), offset.to(weight.dtype), False, 0.0, 0.0)
        return direct + through, weight_gradient, bias_gradient, None


class SynchronizedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the pixels of all processes; torch.nn.SyncBatchNorm refuses to run on CPU."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        weight = torch.ones_like(self.running_mean) if self.weight is None else self.weight
        bias = torch.zeros_like(weight) if self.bias is None else self.bias
        output: Tensor
        output, statistics = _Normalize.apply(input, weight, bias, self.eps)  # type: ignore[no-untyped-call]  # torch's
        with torch.no_grad():
            mean, variance, pixels = statistics[: len(weight)], statistics[len(weight) : -1], statistics[-1]
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_((variance * pixels / (pixels - 1)).to(self.running_var.dtype), self.momentum)
            self.num_batches_tracked.add_(1)
        return output


def distribute(network: nn.Module, group: Group, *, every_parameter_used: bool) -> nn.Module:
    """``network`` with synchronized batch norm and gradients; itself in a group of one."""
    if group.size == 1:
        return network
    if group.device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]  # torch's
    else:
        for layer in network.modules():
            # One without running statistics, or averaged over all batches, is left as it is: each process its own.
            if type(layer) is nn.BatchNorm2d and layer.running_mean is not None and layer.momentum is not None:
                layer.__class__ = SynchronizedBatchNorm  # the same object: the optimizer holds its parameters
    return nn.parallel.DistributedDataParallel(
        network,
        device_ids=[group.device] if group.device.type == "cuda" else None,
        forward_sync_buffers=False,  # synchronized batch norm keeps them equal
        find_unused_parameters=not every_parameter_used,
    )
