"""``edgekit train``, whose options are the fields of its recipe."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin, get_type_hints

import typer

from edgekit.cli.options import (
    JsonOption,
    RootOption,
    ThreadsOption,
    check_threads_here,
    command_line,
    folder_path,
    percent_text,
)
from edgekit.cli.output import print_json, print_text
from edgekit.core.errors import UsageError
from edgekit.training.recipe import TrainingRecipe, preset_settings

OPTIONS: Mapping[str, tuple[str, str]] = {
    "network": ("--network", "spssn, spssn-stream, fast-scnn, or package.module:factory."),
    "dataset": ("--data", "cityscapes, camvid or streets."),
    "split": ("--split", "train, or train+val once a recipe was chosen on val."),
    "initial": ("--initial", "Checkpoint whose weights to start from. Random weights by default."),
    "teacher": ("--teacher", "Checkpoint of the same classes to learn from, beside the labels. None by default."),
    "distillation": ("--distillation", "The teacher's part of the loss, up to 1; the rest is the labels'."),
    "draw_size": ("--draw-size", "Size at which streets frames are drawn."),
    "frame_size": ("--frame-size", "Bring whole frames to this HEIGHTxWIDTH first, also to validate."),
    "frames": ("--frames", "Train on so many frames. All by default."),
    "epochs": ("--epochs", "Passes over the frames."),
    "batch": ("--batch", "Images a step, of all processes together."),
    "crop": ("--crop", "HEIGHTxWIDTH of the random crop."),
    "optimizer": ("--optimizer", "sgd or adamw."),
    "learning_rate": ("--learning-rate", "At the start."),
    "momentum": ("--momentum", "Of sgd."),
    "weight_decay": ("--weight-decay", "Of the optimizer."),
    "schedule": ("--schedule", "poly, step or constant."),
    "power": ("--power", "Of the poly schedule."),
    "step_epochs": ("--step-epochs", "Epochs, with commas, at which the step schedule drops."),
    "step_factor": ("--step-factor", "What it multiplies by there."),
    "warmup_steps": ("--warmup-steps", "Linear rise at the start."),
    "scale": ("--scale", "Range of the random rescaling."),
    "flip": ("--flip/--no-flip", "Mirror every other crop."),
    "loss_stride": ("--loss-stride", "Loss on every n-th pixel: 1, 2, 4 or 8."),
    "class_balance": ("--class-balance", "Weigh rare classes more: 0 not at all, 1 inversely to their share."),
    "lovasz": ("--lovasz", "Weight of the Lovasz-Softmax loss; 0 is off."),
    "colour_jitter": ("--colour-jitter", "Largest relative change of colours."),
    "white_balance": ("--white-balance", "Largest relative change of each colour channel's gain."),
    "class_mix": ("--class-mix", "Share of crops over which half of another crop's classes are laid."),
    "precision": ("--precision", "float32, or bfloat16 for mixed precision (faster)."),
    "average": ("--average", "Decay of the weights' moving average; 0 is off."),
    "seed": ("--seed", "Of weights, order and augmentation."),
}
"""The option and its help for each field of :class:`edgekit.training.recipe.TrainingRecipe` that one sets, whose defaults are its own."""
AT_LEAST_ONE = ("frames", "epochs", "batch")
Command = Callable[..., None]


def _with_recipe(command: Command) -> Command:
    """The command with an option for each of ``OPTIONS``, which reach it together as ``chosen``."""
    recipe = {one.name: one for one in fields(TrainingRecipe)}
    types = get_type_hints(TrainingRecipe)
    parameters = []
    for name, (option, text) in OPTIONS.items():
        kind, default = types[name], recipe[name].default
        if name == "step_epochs":  # a list in one word
            kind, default = str, ""
        if get_origin(kind) is Literal:  # the recipe's own check names the choices
            kind = str
        told = typer.Option(option, help=text, min=1 if name in AT_LEAST_ONE else None)
        annotation = Annotated.__class_getitem__((kind, told))  # type: ignore[attr-defined]  # of a type that is a value here
        parameter = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        parameters.append(parameter)
    own = inspect.signature(command, eval_str=True)
    kept = [one for one in own.parameters.values() if one.name != "chosen"]

    def called(**values: Any) -> None:
        chosen = {name: values.pop(name) for name in OPTIONS}
        command(chosen=chosen, **values)

    shown = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in kept]
    called.__signature__ = own.replace(parameters=[shown[0], *parameters, *shown[1:]])  # type: ignore[attr-defined]  # typer reads it
    called.__name__, called.__doc__ = command.__name__, command.__doc__
    called.__annotations__ = {}
    return called


@_with_recipe
def train(
    context: typer.Context,
    chosen: dict[str, Any],
    preset: Annotated[
        str | None,
        typer.Option("--preset", help="paper-cityscapes or paper-camvid; options given beside it win."),
    ] = None,
    data_root: RootOption = None,
    teacher_network: Annotated[
        str | None,
        typer.Option("--teacher-network", help="What the teacher is, where its file does not say: like --network."),
    ] = None,
    missing_classes: Annotated[
        bool, typer.Option("--missing-classes", help="Train although a class never occurs in the frames.")
    ] = False,
    camvid_variant: Annotated[
        bool,
        typer.Option(
            "--camvid-variant/--no-camvid-variant",
            help="No downsampling in the first bottleneck unit (paper, section 5.2).",
        ),
    ] = False,
    validate_every: Annotated[int, typer.Option("--validate-every", min=1, help="Epochs between val mIoUs.")] = 10,
    save_every: Annotated[
        int,
        typer.Option(
            "--save-every", min=1, help="Epochs between states to go on from; one is kept before each validation, too."
        ),
    ] = 1,
    test: Annotated[
        bool, typer.Option(help="Evaluate on the test split at the end; not while settings are still compared.")
    ] = True,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=0,
            max=64,
            help="Processes that prepare crops. By default 1 on a CPU; for a GPU one per core but one, at most 16.",
        ),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    threads: ThreadsOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", parser=folder_path, metavar="PATH", help="runs/train-<network>-<data> by default."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a network. The defaults are the paper's recipe for Cityscapes. Run again to go on after a kill.

    On several GPUs (or several processes on a CPU): torchrun --nproc-per-node 2 -m edgekit train ...
    """
    import time

    from calibration.datasets import class_set
    from edgekit.core.files import clean_partials
    from edgekit.core.hold import held, is_held
    from edgekit.core.progress import Progress, duration
    from edgekit.networks.checkpoint import load_checkpoint, load_start, read_metadata
    from edgekit.training.distributed import leads
    from edgekit.training.splits import training_splits

    check_threads_here(threads)
    given = _settings(context, chosen, preset, camvid_variant)
    names = class_set(given["dataset"]).names
    start = load_start(given["initial"], given["network"], names) if given["initial"] else None
    if teacher_network is not None and not given["teacher"]:
        raise UsageError("--teacher-network belongs to --teacher: name a checkpoint, or leave it out")
    taught_by = None
    if given["teacher"]:
        taught_by = load_checkpoint(given["teacher"], teacher_network, names, network_option="--teacher-network")
    # Of the start its weights alone matter, of a teacher also what computes with them.
    given["initial"] = "" if start is None else start.file_sha256
    given["teacher"] = "" if taught_by is None else taught_by.sha256
    recipe = TrainingRecipe(**given)
    recipe.check()
    label = f"{recipe.network.replace(':', '-')}"
    folder = out or Path("runs") / f"train-{label}-{recipe.dataset}"
    progress = Progress(silent=not leads())
    others = [one for one in (start, taught_by) if one is not None]
    splits = training_splits(recipe, data_root, others, progress.say, with_test=test)
    from edgekit.training.loop import Progress as TrainingProgress
    from edgekit.training.loop import Reports, Training
    from edgekit.training.loop import train as do_train

    started = time.monotonic()

    def report_step(now: TrainingProgress) -> None:
        progress.update(
            f"epoch {now.epoch} of {now.epochs}, step {now.step} of {now.steps}: loss {now.loss:.3f}, "
            f"{now.images_per_second:.1f} images/s, {duration(now.seconds_left)} left"
        )

    def report_decoding(done: int, total: int) -> None:
        progress.count("decoding frames", done, total, started)

    plan = Training(
        recipe, splits.training, folder, label, command_line(), validation=splits.validation, test=splits.test,
        validate_every=validate_every, save_every=save_every, workers=workers, device=device, threads=threads,
        initial=start, teacher=taught_by, missing_classes=missing_classes,
    )  # fmt: skip
    # Of several processes of one training, one writes.
    with held(folder, plan.command) if leads() else contextlib.nullcontext():
        if leads():
            clean_partials(folder, alone=is_held(folder))
        checkpoint = do_train(plan, Reports(report_step, progress.say, report_decoding))
    if not leads():
        return
    metrics = (read_metadata(checkpoint) or {}).get("metrics", {})
    if as_json:
        print_json({"checkpoint": str(checkpoint), "metrics": metrics, "seconds": time.monotonic() - started})
        return
    for where, scores in metrics.items():
        print_text(f"{where}: class mIoU {percent_text(scores['miou'])} on {scores['frames']} frames")
    print_text(f"checkpoint: {checkpoint}")


def _settings(
    context: typer.Context, chosen: Mapping[str, Any], preset: str | None, camvid_variant: bool
) -> dict[str, Any]:
    """The recipe's fields: what was typed, then the preset's, then the defaults."""
    from edgekit.networks.checkpoint import NETWORKS

    step_epochs = chosen["step_epochs"]
    given = {
        **chosen, "step_epochs": _epochs(step_epochs), "arguments": {"camvid": True} if camvid_variant else {},
    }  # fmt: skip
    if preset is None:
        return given
    for name, value in preset_settings(preset).items():
        source = context.get_parameter_source("camvid_variant" if name == "arguments" else name)
        own = (
            name == "arguments" and given["network"] not in NETWORKS
        )  # a preset knows nothing of what its factory takes
        if not own and (source is None or source.name == "DEFAULT"):
            given[name] = value
    if given["schedule"] != "step" and not step_epochs:  # the preset's belong to the schedule that was left
        given["step_epochs"] = ()
    return given


def _epochs(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UsageError(f"--step-epochs {text} must be whole numbers with commas, for example 100,150") from None
