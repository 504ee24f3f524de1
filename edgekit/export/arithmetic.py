"""Arithmetic and statistics that a converter does not know, or of which it drops an argument, in what all of them have right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional as F

from edgekit.export.forms import Forms, register
from edgekit.export.nodes import argument

aten = torch.ops.aten

FORMS: Forms = {}
_form = partial(register, FORMS)

PLAIN_SOFTPLUS = 20.0
"""From this threshold on, PyTorch's own, float32 cannot tell softplus from what replaces it above the threshold."""


# Sums, quotients, rounding -------------------------------------------------------------------------------------------


def _is_weighted(node: Node) -> bool:
    """Whether alpha is given: some converters stumble over a 1 too."""
    return "alpha" in node.kwargs or len(node.args) > 2


@_form(aten.add.Tensor, aten.add.Scalar, where=_is_weighted)
def _add(self: Tensor, other: Any, alpha: Any) -> Any:
    return self + (other if alpha == 1 else other * alpha)


@_form(aten.sub.Tensor, aten.sub.Scalar, where=_is_weighted)
def _sub(self: Tensor, other: Any, alpha: Any) -> Any:
    return self - (other if alpha == 1 else other * alpha)


@_form(aten.rsub.Tensor, aten.rsub.Scalar, where=_is_weighted)
def _rsub(self: Tensor, other: Any, alpha: Any) -> Any:
    return other - (self if alpha == 1 else self * alpha)


@_form(aten.addcmul.default)
def _addcmul(self: Tensor, tensor1: Tensor, tensor2: Tensor, value: Any) -> Any:
    product = tensor1 * tensor2
    return self + (product if value == 1 else product * value)


@_form(aten.addcdiv.default)
def _addcdiv(self: Tensor, tensor1: Tensor, tensor2: Tensor, value: Any) -> Any:
    quotient = tensor1 / tensor2
    return self + (quotient if value == 1 else quotient * value)


@_form(aten.lerp.Scalar, aten.lerp.Tensor)
def _lerp(self: Tensor, end: Tensor, weight: Any) -> Any:
    return self + (end - self) * weight


@_form(aten.dot.default, aten.vdot.default, where=lambda node: node.meta["val"].is_floating_point())
def _dot(self: Tensor, **other: Tensor) -> Any:
    (factor,) = other.values()
    return (self * factor).sum()


@_form(aten.matmul.default, where=lambda node: node.meta["val"].ndim == 0)
def _product_of_vectors(self: Tensor, other: Tensor) -> Any:
    return (self * other).sum()


@_form(aten.hypot.default)
def _hypot(self: Tensor, other: Tensor) -> Any:
    return torch.sqrt(self * self + other * other)


@_form(aten.round.decimals, where=lambda node: argument(node, "decimals") != 0)
def _round(self: Tensor, decimals: int) -> Any:
    power = 10.0 ** abs(decimals)
    return torch.round(self * power) / power if decimals > 0 else torch.round(self / power) * power


@_form(aten.trunc.default, aten.fix.default)
def _trunc(self: Tensor) -> Any:
    return torch.sign(self) * torch.floor(torch.abs(self))


@_form(aten.frac.default)
def _frac(self: Tensor) -> Any:
    return self - _trunc(self)


@_form(aten.fmod.Scalar, aten.fmod.Tensor)
def _fmod(self: Tensor, other: Any) -> Any:
    return torch.sign(self) * torch.remainder(torch.abs(self), abs(other))


@_form(aten.sgn.default, where=lambda node: not node.meta["val"].is_complex())
def _sgn(self: Tensor) -> Any:
    return torch.sign(self)


def _is_of_truths(node: Node) -> bool:
    return all(source.meta["val"].dtype == torch.bool for source in node.all_input_nodes) and len(
        node.all_input_nodes
    ) == len(node.args)


@_form(aten.bitwise_and.Tensor, aten.__and__.Tensor, where=_is_of_truths)
def _and(self: Tensor, other: Tensor) -> Any:
    return torch.logical_and(self, other)


@_form(aten.bitwise_or.Tensor, aten.__or__.Tensor, where=_is_of_truths)
def _or(self: Tensor, other: Tensor) -> Any:
    return torch.logical_or(self, other)


@_form(aten.bitwise_xor.Tensor, aten.__xor__.Tensor, where=_is_of_truths)
def _xor(self: Tensor, other: Tensor) -> Any:
    return torch.logical_xor(self, other)


# Functions of one number ---------------------------------------------------------------------------------------------


@_form(aten.fmax.default)
def _fmax(self: Tensor, other: Tensor) -> Any:
    """The other one of NaN."""
    return torch.where(self != self, other, torch.maximum(self, torch.where(other != other, self, other)))


@_form(aten.fmin.default)
def _fmin(self: Tensor, other: Tensor) -> Any:
    return torch.where(self != self, other, torch.minimum(self, torch.where(other != other, self, other)))


@_form(aten.heaviside.default)
def _heaviside(self: Tensor, values: Tensor) -> Any:
    return torch.where(self == 0, values, (self > 0).to(self.dtype))


@_form(aten.isinf.default)
def _isinf(self: Tensor) -> Any:
    return torch.abs(self) == math.inf


@_form(aten.nan_to_num.default)
def _nan_to_num(self: Tensor, nan: float | None, posinf: float | None, neginf: float | None) -> Any:
    limits = torch.finfo(self.dtype)
    known = torch.where(self != self, 0.0 if nan is None else float(nan), self)
    known = torch.where(known == math.inf, limits.max if posinf is None else float(posinf), known)
    return torch.where(known == -math.inf, limits.min if neginf is None else float(neginf), known)


@_form(aten.xlogy.Tensor)
def _xlogy(self: Tensor, other: Tensor) -> Any:
    return torch.where(self == 0, 0.0, self * torch.log(other))


@_form(aten.sinc.default)
def _sinc(self: Tensor) -> Any:
    angle = torch.where(self == 0, 1.0, self * math.pi)
    return torch.where(self == 0, 1.0, torch.sin(angle) / angle)


@_form(aten.bilinear.default)
def _bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
    outputs, first, second = weight.shape
    products = torch.matmul(input1, weight.permute(1, 0, 2).reshape(first, outputs * second))
    result = (products.reshape(*input1.shape[:-1], outputs, second) * input2.unsqueeze(-2)).sum(-1)
    return result if bias is None else result + bias


@_form(aten.lstm_cell.default)
def _lstm_cell(input: Tensor, hx: Sequence[Tensor], **weights: Tensor | None) -> Any:
    gates = F.linear(input, weights["w_ih"], weights["b_ih"]) + F.linear(hx[0], weights["w_hh"], weights["b_hh"])  # type: ignore[arg-type]
    take, forget, new, give = torch.split(gates, hx[0].shape[1], 1)
    cell = torch.sigmoid(forget) * hx[1] + torch.sigmoid(take) * torch.tanh(new)
    return torch.sigmoid(give) * torch.tanh(cell), cell


@_form(aten.bucketize.Tensor)
def _bucketize(self: Tensor, boundaries: Tensor, right: bool, **_: Any) -> Any:
    each = self.unsqueeze(-1)
    return (each >= boundaries if right else each > boundaries).to(torch.int64).sum(-1)


@_form(aten.one_hot.default, where=lambda node: argument(node, "num_classes") > 0)
def _one_hot(self: Tensor, num_classes: int) -> Any:
    return (self.unsqueeze(-1) == torch.from_numpy(np.arange(num_classes))).to(torch.int64)


@_form(aten.exp2.default)
def _exp2(self: Tensor) -> Any:
    return torch.pow(2.0, self)


@_form(aten.erfc.default)
def _erfc(self: Tensor) -> Any:
    return 1.0 - torch.erf(self)


@_form(aten.asinh.default)
def _asinh(self: Tensor) -> Any:
    size = torch.abs(self)
    return torch.sign(self) * torch.log(size + torch.sqrt(size * size + 1.0))


@_form(aten.acosh.default)
def _acosh(self: Tensor) -> Any:
    return torch.log(self + torch.sqrt(self * self - 1.0))


@_form(aten.logit.default)
def _logit(self: Tensor, eps: float | None) -> Any:
    share = self if eps is None else self.clamp(eps, 1.0 - eps)
    return torch.log(share / (1.0 - share))


@_form(aten.logaddexp.default)
def _logaddexp(self: Tensor, other: Tensor) -> Any:
    return torch.maximum(self, other) + torch.log1p(torch.exp(-torch.abs(self - other)))


@_form(aten.logaddexp2.default)
def _logaddexp2(self: Tensor, other: Tensor) -> Any:
    smaller = torch.exp(torch.abs(self - other) * -math.log(2.0))
    return torch.maximum(self, other) + torch.log1p(smaller) * (1.0 / math.log(2.0))


@_form(aten.log_sigmoid.default)
def _log_sigmoid(self: Tensor) -> Any:
    return -F.softplus(-self)


@_form(
    aten.softplus.default,
    where=lambda node: argument(node, "beta") != 1 or argument(node, "threshold") < PLAIN_SOFTPLUS,
)
def _softplus(self: Tensor, beta: float, threshold: float) -> Any:
    scaled = self if beta == 1 else self * beta
    soft = F.softplus(scaled) if beta == 1 else F.softplus(scaled) * (1.0 / beta)
    return soft if threshold >= PLAIN_SOFTPLUS else torch.where(scaled > threshold, self, soft)


@_form(aten.threshold.default)
def _threshold(self: Tensor, threshold: float, value: float) -> Any:
    return torch.where(self > threshold, self, float(value))


@_form(aten.celu.default)
def _celu(self: Tensor, alpha: float) -> Any:
    return F.elu(self) if alpha == 1 else F.elu(self * (1.0 / alpha)) * alpha


@_form(
    aten.elu.default,
    where=lambda node: (argument(node, "scale"), argument(node, "input_scale")) != (1, 1),
)
def _elu(self: Tensor, alpha: float, scale: float, input_scale: float) -> Any:
    below = F.elu(torch.clamp(self, max=0.0) * input_scale, alpha)
    return (F.relu(self) + below) * scale


@_form(aten.hardtanh.default, where=lambda node: any(isinstance(side, int) for side in node.args[1:]))
def _hardtanh(self: Tensor, min_val: float, max_val: float) -> Any:
    return F.relu6(self) if (min_val, max_val) == (0, 6) else F.hardtanh(self, float(min_val), float(max_val))


@_form(aten.rrelu.default, where=lambda node: not argument(node, "training"))
def _rrelu(self: Tensor, lower: float, upper: float, **_: Any) -> Any:
    return F.leaky_relu(self, (lower + upper) / 2)


# Statistics ----------------------------------------------------------------------------------------------------------


def _mean_and_variance(x: Tensor, dim: Any, correction: float | None, keepdim: bool) -> tuple[Tensor, Tensor]:
    axes = list(range(x.ndim)) if dim is None or dim == [] else [dim] if isinstance(dim, int) else list(dim)
    count = math.prod(x.shape[axis] for axis in axes)
    kept = x.mean(axes, keepdim=True)
    apart = x - kept
    variance = (apart * apart).mean(axes, keepdim=keepdim)
    degrees = count - (1.0 if correction is None else correction)
    mean = kept if keepdim else x.mean(axes)
    return mean, variance if degrees == count else variance * (count / degrees if degrees > 0 else math.nan)


def _correction(unbiased: bool) -> float:
    return 1.0 if unbiased else 0.0


def _has_other_correction(node: Node) -> bool:
    return argument(node, "correction") not in (None, 0, 1)


@_form(aten.var.correction, where=_has_other_correction)
def _var(self: Tensor, dim: Any, correction: float | None, keepdim: bool) -> Any:
    return _mean_and_variance(self, dim, correction, keepdim)[1]


@_form(aten.std.correction, where=_has_other_correction)
def _std(self: Tensor, dim: Any, correction: float | None, keepdim: bool) -> Any:
    return torch.sqrt(_mean_and_variance(self, dim, correction, keepdim)[1])


@_form(aten.var_mean.correction)
def _var_mean(self: Tensor, dim: Any, correction: float | None, keepdim: bool) -> Any:
    mean, variance = _mean_and_variance(self, dim, correction, keepdim)
    return variance, mean


@_form(aten.var_mean.dim)
def _var_mean_of_axes(self: Tensor, dim: Any, unbiased: bool, keepdim: bool) -> Any:
    return _var_mean(self, dim, _correction(unbiased), keepdim)


@_form(aten.var_mean.default)
def _var_mean_of_all(self: Tensor, unbiased: bool) -> Any:
    return _var_mean(self, None, _correction(unbiased), False)


@_form(aten.std_mean.correction)
def _std_mean(self: Tensor, dim: Any, correction: float | None, keepdim: bool) -> Any:
    mean, variance = _mean_and_variance(self, dim, correction, keepdim)
    return torch.sqrt(variance), mean


@_form(aten.std_mean.dim)
def _std_mean_of_axes(self: Tensor, dim: Any, unbiased: bool, keepdim: bool) -> Any:
    return _std_mean(self, dim, _correction(unbiased), keepdim)


@_form(aten.std_mean.default)
def _std_mean_of_all(self: Tensor, unbiased: bool) -> Any:
    return _std_mean(self, None, _correction(unbiased), False)


@_form(aten.aminmax.default, where=lambda node: argument(node, "dim") is not None)
def _aminmax(self: Tensor, dim: int, keepdim: bool) -> Any:
    return self.amin(dim, keepdim), self.amax(dim, keepdim)


@_form(aten.kthvalue.default)
def _kthvalue(self: Tensor, k: int, dim: int, keepdim: bool) -> Any:
    found = torch.topk(self, k, dim, largest=False)
    values, places = (one.narrow(dim, k - 1, 1) for one in found)
    return (values, places) if keepdim else (values.squeeze(dim), places.squeeze(dim))


@_form(aten.median.dim)
def _median(self: Tensor, dim: int, keepdim: bool) -> Any:
    return _kthvalue(self, (self.shape[dim] + 1) // 2, dim, keepdim)


@_form(aten.count_nonzero.default, aten.count_nonzero.dim_IntList)
def _count_nonzero(self: Tensor, dim: Any) -> Any:
    truths = (self != 0).to(torch.int64)
    return truths.sum() if dim is None else truths.sum(dim)


@_form(aten.cosine_similarity.default)
def _cosine_similarity(x1: Tensor, x2: Tensor, dim: int, eps: float) -> Any:
    if x1.ndim != x2.ndim or x1.shape[dim] != x2.shape[dim]:
        x1, x2 = torch.broadcast_tensors(x1, x2)  # type: ignore[no-untyped-call]
    units = [one / torch.linalg.vector_norm(one, dim=dim, keepdim=True).clamp(min=eps) for one in (x1, x2)]
    return (units[0] * units[1]).sum(dim)


@_form(aten.pairwise_distance.default)
def _pairwise_distance(x1: Tensor, x2: Tensor, p: float, eps: float, keepdim: bool) -> Any:
    return torch.linalg.vector_norm(x1 - x2 + eps, p, dim=-1, keepdim=keepdim)


@_form(aten.rms_norm.default)
def _rms_norm(input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, eps: float | None) -> Any:
    axes = list(range(-len(normalized_shape), 0))
    least = torch.finfo(input.dtype).eps if eps is None else eps
    unit = input * torch.rsqrt((input * input).mean(axes, keepdim=True) + least)
    return unit if weight is None else unit * weight


def _has_running_statistics(node: Node) -> bool:
    return argument(node, "use_input_stats") is False and argument(node, "running_mean") is not None


@_form(aten.instance_norm.default, where=_has_running_statistics)
def _instance_norm(input: Tensor, weight: Any, bias: Any, running_mean: Any, running_var: Any, **options: Any) -> Any:
    """In evaluation a batch norm, which is folded like any other."""
    result, *_ = aten._native_batch_norm_legit_no_training.default(
        input, weight, bias, running_mean, running_var, options["momentum"], options["eps"]
    )
    return result
