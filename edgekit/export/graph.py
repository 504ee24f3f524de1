"""From a checkpoint's network to a :class:`DeployableGraph`, and the edges that make a frame-to-labels module of it."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.core.errors import CheckpointError, ConversionError, EdgekitError, first_line
from edgekit.core.values import DeployableGraph, Normalization, OutputKind, Size
from edgekit.export.pixels import on_centred_pixels
from edgekit.export.precision import double_by_default, to_double
from edgekit.export.rewrites import apply_rewrites
from edgekit.export.sizes import decision_size
from edgekit.networks.checkpoint import Checkpoint, load_network
from edgekit.networks.subnormals import flush_subnormals

PROOF_TOLERANCE = 1e-4
"""Largest difference between rewritten and original logits that float32's rounding explains in any network, relative to the largest logit."""

DOUBLE_TOLERANCE = 1e-8
"""The same of float64's rounding, through the deepest network."""

ROUNDING = 4.0
"""How many times the original's own error in float32 the rewritten graph's may be, where that is more."""

DOUBLE_ROUNDING = 1e-3
"""The same of the rewritten graph's error in float64: a network that float32's rounding turns over has little of it there."""


MOST_CLASSES = 256
"""One byte of a label map can tell so many classes apart."""


class Logits(nn.Module):
    """A user's network reduced to its logits: the first item of a tuple or list, the first ``classes`` channels (None: all)."""

    def __init__(self, network: nn.Module, classes: int | None) -> None:
        super().__init__()
        self.network = network
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        return self.reduced(self.network(x))

    def reduced(self, output: Any) -> Tensor:
        """The logits in what the network gave."""
        output = _result(output)
        if not isinstance(output, Tensor) or output.ndim != 4:
            raise CheckpointError(
                "the network's output is not a map of logits [N, classes, h, w]: wrap it in a factory that returns one"
            )
        if self.classes is None:
            return output
        if output.shape[1] < self.classes:
            raise CheckpointError(
                f"the network gives {output.shape[1]} channels for {self.classes} classes: --classes names the dataset whose classes it "
                f"has (--data for run and evaluate); where none of edgekit's has {output.shape[1]}, it cannot be judged yet"
            )
        return output if output.shape[1] == self.classes else output[:, : self.classes]

    def left_out(self, output: Any) -> tuple[str, ...]:
        """A sentence for each part of what the network gave that is not used, since another may have been meant."""
        told = []
        taken = _result(output)
        parts = [
            f"'{key}' {_form(value)}" if isinstance(key, str) else _form(value)
            for key, value in _parts(output)
            if value is not taken
        ]
        if parts and isinstance(taken, Tensor):
            told.append(
                f"the network gives {len(parts) + 1} outputs, of which {_form(taken)} is taken and {', '.join(parts[:3])} left out: if "
                "another is meant, wrap it in a factory that returns that one"
            )
        if isinstance(taken, Tensor) and taken.ndim == 4 and self.classes is not None and taken.shape[1] > self.classes:
            told.append(
                f"the network gives {taken.shape[1]} channels for {self.classes} classes: the first {self.classes} are taken, the others "
                "left out"
            )
        return tuple(told)


def _result(output: Any) -> Any:
    """What counts of a network's output: of a dict ``"out"`` or else the first, of a tuple or list the first."""
    if isinstance(output, dict):
        output = output.get("out", next(iter(output.values())))
    while isinstance(output, tuple | list):
        output = output[0]
    return output


def _parts(output: Any) -> list[tuple[Any, Any]]:
    """Every tensor of a network's output, with its key where it has one."""
    if isinstance(output, Tensor):
        return [(None, output)]
    items = (
        output.items()
        if isinstance(output, dict)
        else ((None, item) for item in output)
        if isinstance(output, tuple | list)
        else ()
    )
    return [(key if inner is None else inner, value) for key, item in items for inner, value in _parts(item)]


def _form(value: Tensor) -> str:
    return f"[{', '.join(str(int(side)) for side in value.shape)}]"


def why_it_does_not_run(error: Exception, size: Size) -> str:
    """What PyTorch says of a network that fails on a frame, and what mends it."""
    text = first_line(error)
    channels = re.search(r"to have (\d+) channels, but got 3 channels", str(error))
    if channels is not None and channels[1] != "3":
        return (
            f"it takes {channels[1]} input channel{'' if channels[1] == '1' else 's'}, and a frame has three, red, green and blue: wrap it in a "
            "factory that makes its input of them"
        )
    return f"{text}: try another --size than {size}"


def export_aten(network: nn.Module, example: Tensor) -> torch.fx.GraphModule:
    """The network as one graph of ATen operations at the example's static size; raises whatever ``torch.export`` raises."""
    # An empty table decomposes nothing but makes in-place operations functional.
    program = torch.export.export(network, (example.clone(),)).run_decompositions({})
    exported = cast(torch.fx.GraphModule, program.module(check_guards=False))
    for node in list(exported.graph.nodes):  # a network that writes into its input, or counts its calls
        if node.target is torch.ops.aten.copy_.default and node.args[0].op in ("placeholder", "get_attr"):
            node.replace_all_uses_with(node.args[1])
            exported.graph.erase_node(node)
    # An exported module refuses eval(), which every converter calls; a plain GraphModule of the same graph does not.
    return torch.fx.GraphModule(exported, exported.graph).eval()


def module_of(node: torch.fx.Node) -> str:
    """Dotted name of the module that a node comes from, in the user's network."""
    stack = list(cast("dict[str, tuple[str, Any]]", node.meta.get("nn_module_stack") or {}).values())
    path = re.sub(r"@\d+", "", stack[-1][0]) if stack else ""  # @1: its second call
    return path.removeprefix("network").removeprefix(".")


def reference_labels(logits: Tensor, size: Size) -> Tensor:
    """PyTorch's labels: logits up to the input size, bilinear with half-pixel centres, then argmax (ties: lowest class).

    float [N, C, h, w] -> int64 [N, H, W]. This is the definition that every artifact is held to.
    """
    if tuple(logits.shape[-2:]) != (size.height, size.width):
        logits = F.interpolate(logits, size=(size.height, size.width), mode="bilinear", align_corners=False)
    return logits.argmax(1)


def check_classes(classes: int) -> None:
    """Raise CheckpointError where there is one class: the largest of one channel is that channel, so that every label would be 0."""
    if classes == 1:
        raise CheckpointError(
            "the network has one class, so that every label is 0, whatever a threshold would say: give it two channels, such as "
            "torch.cat([torch.zeros_like(x), x], 1) of its logit x, and two classes"
        )


def deployable(checkpoint: Checkpoint, size: Size) -> DeployableGraph:
    """The checkpoint's network at a static size, rewritten, and proved equal to the original on a random frame.

    Raises:
        CheckpointError: the weights do not fit, or the output is no map of finite logits, the same in every run.
        ConversionError: the network does not run at this size, ``torch.export`` cannot take it, or a byte has too few values
            for its classes.
        RuntimeError: a rewrite changed its output by more than rounding does, which is a bug.
    """
    flush_subnormals()  # here, since this is the first parallel work of most commands
    size.check()
    check_classes(len(checkpoint.class_names))
    if len(checkpoint.class_names) > MOST_CLASSES:
        raise ConversionError(
            f"network '{checkpoint.network}' has {len(checkpoint.class_names)} classes, and a label is one byte: "
            f"{MOST_CLASSES} at most can be converted"
        )
    network = Logits(load_network(checkpoint), len(checkpoint.class_names)).eval()
    generator = torch.Generator().manual_seed(0)
    example = torch.randn(1, 3, size.height, size.width, generator=generator)
    with torch.no_grad():
        try:
            given = network.network(example.clone())  # which it may write into
            expected = network.reduced(given)
        except EdgekitError:
            raise
        except Exception as error:  # the user's network may demand sizes of its own and says so in its own way
            raise ConversionError(
                f"network '{checkpoint.network}' does not run at {size}: {why_it_does_not_run(error, size)}"
            ) from error
        if not expected.isfinite().all():
            raise CheckpointError(
                f"network '{checkpoint.network}' gives logits that are NaN or infinite on a frame of noise at {size}: "
                "look for such weights, a logarithm or a division in it"
            )
        try:
            module = export_aten(network, example)
        except Exception as error:  # torch.export raises many types; each means that this network cannot be exported
            raise ConversionError(
                f"network '{checkpoint.network}' cannot be exported at {size}: {first_line(error)}: "
                "run edgekit lint to see the line of your code"
            ) from error
        applied = apply_rewrites(module)
        found = module(example.clone())
        largest = expected.abs().max().item()
        if (found - expected).abs().max().item() > PROOF_TOLERANCE * largest:
            again = network(example.clone())
            if not torch.allclose(again, expected, rtol=0, atol=PROOF_TOLERANCE * largest):
                raise CheckpointError(
                    f"network '{checkpoint.network}' gives other logits when it runs again on the same frame: "
                    "leave out what is random in evaluation, such as dropout that is always on"
                )
            if (fault := _fault(network, example, expected, found)) is not None:
                raise RuntimeError(f"the rewrites changed the logits of '{checkpoint.network}' at {size}: {fault}")
    return DeployableGraph(
        module=module,
        size=size,
        logits_size=Size(int(expected.shape[2]), int(expected.shape[3])),
        class_names=checkpoint.class_names,
        normalization=checkpoint.normalization,
        checkpoint_sha256=checkpoint.sha256,
        rewrites=applied,
        left_out=network.left_out(given),
    )


def _fault(network: nn.Module, example: Tensor, expected: Tensor, found: Tensor) -> str | None:
    """What is wrong with rewrites that changed the logits by more than usual, judged in float64; None for float32's rounding.

    A deep network's own rounding may reach further. So the rewrites are made once more in float64, where they must change
    next to nothing; and in float32 the rewritten graph must lie about as near to float64's logits as the original.

    Args:
        network: the original.
        example: the frame, float32 [1, 3, H, W].
        expected: the original's logits.
        found: the rewritten graph's.
    """
    module = export_aten(network, example)
    with double_by_default():
        module = to_double(module)
        exact = module(example.double())
        apply_rewrites(module)
        rewritten = module(example.double())
    largest = exact.abs().max().item()
    changed, own, now = ((one - exact).abs().max().item() for one in (rewritten, expected, found))
    if not changed <= max(DOUBLE_TOLERANCE * largest, DOUBLE_ROUNDING * own):
        return f"by {changed:.3g} in float64 (largest {largest:.3g})"
    if not now <= max(PROOF_TOLERANCE * largest, ROUNDING * own):
        return f"in float32 they are {now:.3g} away from those in float64, the original's {own:.3g} (largest {largest:.3g})"
    return None


class FrameToLabels(nn.Module):
    """The whole way inside one module: a frame of 0..255 in, labels out.

    Args:
        graph: the deployable graph.
        channels_last: frame is [1, H, W, 3] (else [1, 3, H, W]).
        output: ``labels`` or ``logits`` (as the network gives them; [1, h, w, classes] with ``channels_last``).
        output_stride: labels are decided on a map of ceil(H/s) x ceil(W/s) and repeated to full size.
        label_dtype: dtype of the labels.
        pixel_factor: of the centred pixels that the core reads, a power of two; its weights have the inverse.
    """

    def __init__(
        self,
        graph: DeployableGraph,
        *,
        channels_last: bool,
        output: OutputKind = "labels",
        output_stride: int = 1,
        label_dtype: torch.dtype = torch.uint8,
        pixel_factor: float = 1.0,
    ) -> None:
        super().__init__()
        self.core = on_centred_pixels(graph, pixel_factor)
        self.pixel_factor = pixel_factor
        self.channels_last = channels_last
        self.output = output
        self.size = graph.size
        self.logits_size = graph.logits_size
        self.output_stride = output_stride
        self.decision = decision_size(graph.size, output_stride)
        self.label_dtype = label_dtype
        shape = (1, 1, 1, 3) if channels_last else (1, 3, 1, 1)
        self.register_buffer("mean_colour", torch.from_numpy(graph.normalization.mean_colour()).reshape(shape))

    def forward(self, frame: Tensor) -> Tensor:
        x = frame.to(torch.float32) - cast(Tensor, self.mean_colour)
        if self.pixel_factor != 1.0:
            x = x * self.pixel_factor
        if self.channels_last:
            x = x.permute(0, 3, 1, 2)
        logits = self.core(x)
        if self.output == "logits":
            return cast(Tensor, logits.permute(0, 2, 3, 1) if self.channels_last else logits)
        if self.channels_last:
            # The classes last: a transpose of full-size logits would cost more than the argmax itself.
            if self.logits_size != self.decision:
                logits = F.interpolate(
                    logits, size=(self.decision.height, self.decision.width), mode="bilinear", align_corners=False
                )
            labels = logits.permute(0, 2, 3, 1).argmax(3).to(self.label_dtype)
        else:
            labels = reference_labels(logits, self.decision).to(self.label_dtype)
        if self.decision != self.size:
            # By a whole multiple, since LiteRT's nearest resize takes other pixels otherwise.
            repeated = F.interpolate(labels[:, None].float(), scale_factor=self.output_stride, mode="nearest")
            labels = repeated[:, 0, : self.size.height, : self.size.width].to(self.label_dtype)
        return cast(Tensor, labels)


def _factors(normalization: Normalization, device: torch.device) -> tuple[Tensor, Tensor]:
    """Its scale and offset, float32 [3]."""
    return torch.from_numpy(normalization.scale()).to(device), torch.from_numpy(normalization.offset()).to(device)


_kept_factors = lru_cache(maxsize=16)(_factors)
"""For a GPU, which would wait for each copy of them."""


def normalize(
    frame: Tensor, normalization: Normalization, memory_format: torch.memory_format = torch.contiguous_format
) -> Tensor:
    """uint8 [N, H, W, 3] -> float32 [N, 3, H, W], the network's input, in the order in memory that is asked for."""
    scale, offset = (_kept_factors if frame.is_cuda else _factors)(normalization, frame.device)
    planes = (frame.to(torch.float32) * scale + offset).permute(0, 3, 1, 2)
    return planes.contiguous(memory_format=memory_format)
