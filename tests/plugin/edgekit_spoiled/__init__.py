"""A target whose int8 mixes classes up, as a converter's fault would: it runs, and is wrong."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from edgekit_torchscript import TorchScript

from edgekit import Converted, DeployableGraph, Precision, Quantization, Recipe


@dataclass(frozen=True)
class Spoiled(TorchScript):
    """The ``spoiled`` target."""

    name: str = "spoiled"
    title: str = "Spoiled"
    precisions: tuple[Precision, ...] = ("fp32", "int8")

    def convert(
        self, graph: DeployableGraph, recipe: Recipe, quantization: Quantization | None, folder: Path
    ) -> Converted:
        if recipe.precision == "int8":
            graph = replace(graph, module=copy.deepcopy(graph.module))
            with torch.no_grad():
                for value in graph.module.buffers():
                    if value.ndim == 4 and value.shape[0] == len(graph.class_names):
                        value.copy_(value.roll(3, 0))
        made = super().convert(graph, replace(recipe, precision="fp32"), None, folder)
        return replace(made, scheme="asymmetric" if recipe.precision == "int8" else None)


TARGET = Spoiled()
