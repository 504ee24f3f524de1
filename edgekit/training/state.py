"""Everything a resumed run needs, in one file that is replaced again and again."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from calibration.datasets import class_set
from edgekit.core.errors import TrainingError
from edgekit.core.files import plain, write_bytes
from edgekit.networks.blocks import channels_last
from edgekit.networks.checkpoint import NETWORKS, build_network
from edgekit.networks.source import code_of
from edgekit.training.recipe import TrainingRecipe

STATE_NAME = "training-state.pt"


class TrainingState:
    """Weights, their average, optimizer, epoch, step, what was seen after each epoch, and which devices trained it.

    Args:
        frames: identity of the training frames.

    Attributes:
        kept: the epoch that the file holds, 0 without one; in every process, though one alone writes.
        source: hash of the source of a network of the user's own, "" of edgekit's.
        source_changed: whether a restored state was of another source.
    """

    def __init__(self, module: nn.Module, recipe: TrainingRecipe, frames: str) -> None:
        self.module = module
        self.recipe = recipe
        self.frames = frames
        self.epoch = 0
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.devices: list[str] = []
        self.kept = 0
        self.source = "" if recipe.network in NETWORKS else code_of(recipe.network)
        self.source_changed = False
        self.average: dict[str, Tensor] | None = None
        if recipe.average:
            self.average = {key: value.clone() for key, value in module.state_dict().items()}
        parameters = module.parameters()
        self.optimizer: torch.optim.Optimizer
        fused = next(module.parameters()).is_cuda or None  # one kernel for all; on a CPU torch's own choice is as fast
        if recipe.optimizer == "sgd":
            self.optimizer = torch.optim.SGD(
                parameters, recipe.learning_rate, recipe.momentum, weight_decay=recipe.weight_decay, fused=fused
            )
        else:
            self.optimizer = torch.optim.AdamW(
                parameters, recipe.learning_rate, weight_decay=recipe.weight_decay, fused=fused
            )

    @torch.no_grad()
    def update_average(self) -> None:
        """Move the averaged weights towards the present ones."""
        if self.average is None:
            return
        # Early weights are forgotten quickly: the decay grows to its value over the first steps.
        decay = min(self.recipe.average, (1 + self.step) / (10 + self.step))
        # Few calls: some hundred small ones cost more than the sums.
        pairs: dict[bool, tuple[list[Tensor], list[Tensor]]] = {True: ([], []), False: ([], [])}
        for key, value in self.module.state_dict().items():
            averages, present = pairs[value.is_floating_point()]
            averages.append(self.average[key])
            present.append(value)
        torch._foreach_lerp_(*pairs[True], 1 - decay)
        if pairs[False][0]:  # batch norm's counters
            torch._foreach_copy_(*pairs[False])

    def evaluated(self) -> nn.Module:
        """The network to evaluate and ship: the averaged weights where there are some."""
        if self.average is None:
            return self.module
        module = build_network(self.recipe.network, len(class_set(self.recipe.dataset)), self.recipe.arguments)
        module.load_state_dict(self.average)
        return channels_last(module.to(next(self.module.parameters()).device))

    def save(self, path: Path) -> None:
        """Replace the file with the present state."""
        buffer = io.BytesIO()
        torch.save(
            {
                "recipe": self.recipe.to_json(), "epoch": self.epoch, "step": self.step, "average": self.average,
                "module": self.module.state_dict(), "optimizer": self.optimizer.state_dict(),
                "history": self.history, "frames": self.frames, "devices": self.devices,
                "source": self.source,
            },
            buffer,
        )  # fmt: skip
        write_bytes(path, buffer.getvalue())

    def restore(self, path: Path) -> None:
        """Go on where a run of the same recipe stopped.

        Raises:
            TrainingError: damaged, of another recipe (the first setting that differs is named), of other frames, or of
                another network.
        """
        try:
            stored = torch.load(path, map_location=next(self.module.parameters()).device, weights_only=True)
        except Exception as error:  # damaged in any way: the user must decide what to do with it
            raise TrainingError(f"{path} is damaged ({type(error).__name__}): delete it to start over") from error
        if not isinstance(stored, Mapping) or not isinstance(stored.get("recipe"), Mapping):
            raise TrainingError(f"{path} is not a training state: delete it to start over")
        mine, defaults = plain(self.recipe.to_json()), plain(TrainingRecipe().to_json())
        # A setting that did not exist yet when the state was written had the effect of its default.
        differing = [key for key in mine if stored["recipe"].get(key, defaults[key]) != mine[key]]
        if differing:
            key = differing[0]
            if key in ("initial", "teacher"):  # content hashes
                raise TrainingError(
                    f"{path.parent} holds a run with another --{key}, or without one: name the same file to go on, or use another "
                    "--out to start anew"
                )
            raise TrainingError(
                f"{path.parent} holds a run with {key} = {stored['recipe'].get(key, defaults[key])}, not {mine[key]}: "
                "use the same settings to go on, or another --out to start anew"
            )
        if stored.get("frames", self.frames) != self.frames:  # a state from before they were recorded says nothing
            raise TrainingError(
                f"{path.parent} holds a run on other {self.recipe.dataset} frames than lie there now: name the folder that it "
                "was trained from with --data-root, or use another --out to start anew"
            )
        try:
            self.module.load_state_dict(stored["module"])
            for mine, theirs in zip(self.optimizer.param_groups, stored["optimizer"]["param_groups"], strict=True):
                theirs["fused"] = mine["fused"]  # this device's choice, not that of the one it was trained on before
            self.optimizer.load_state_dict(stored["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:  # the source of a network of the user's own has changed
            raise TrainingError(
                f"{path} does not fit network '{self.recipe.network}' as it is now: delete it to start over"
            ) from error
        self.average = cast("dict[str, Tensor] | None", stored["average"])
        self.epoch, self.step = int(stored["epoch"]), int(stored["step"])
        self.kept = self.epoch
        self.history = [dict(entry) for entry in stored["history"]]
        self.source_changed = stored.get("source", self.source) != self.source
        self.devices = list(stored.get("devices", ["not recorded"]))  # which came later than the first states

    def trains_on(self, device: torch.device) -> None:
        """Note a device, and torch's version there, among those that trained the weights."""
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        if (described := f"{name}, torch {torch.__version__}") not in self.devices:
            self.devices.append(described)
