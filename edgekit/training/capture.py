"""A GPU's passes through the network, launched as one: several hundred small kernels run faster than they are launched."""

from __future__ import annotations

import torch
from torch import nn

from edgekit.core.values import Size
from edgekit.training import mixed
from edgekit.training.distributed import Group
from edgekit.training.recipe import TrainingRecipe


def capture(network: nn.Module, group: Group, recipe: TrainingRecipe, images: int) -> nn.Module:
    """``network``, whose training passes, forward and backward, are two CUDA graphs from now on; itself on a CPU, or among several processes.

    Evaluation stays as it was. Weights, buffers and the optimizer's hold on them stay the same objects with the same values.

    Args:
        network: in training mode, float32 [N, 3, h, w] -> logits, without a decision that depends on a value.
        images: of each batch: a graph knows one shape.
    """
    # DistributedDataParallel sums gradients by hooks, which a graph does not hold.
    if group.device.type != "cuda" or group.size > 1:
        return network
    crop = Size.parse(recipe.crop)
    sample = torch.zeros(images, 3, crop.height, crop.width, device=group.device)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with mixed.autocast(group.device, recipe.precision, cache=False):  # which a capture refuses
        captured = torch.cuda.make_graphed_callables(network, (sample.to(memory_format=torch.channels_last),))
    assert isinstance(captured, nn.Module)
    # Gradients are added up on another stream than the capture's, which torch orders by an event, and warns of.
    torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
    network.load_state_dict(before)  # batch norm's statistics have seen the sample
    return captured
