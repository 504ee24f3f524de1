"""edgekit's commands, and the one place where errors become sentences. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import io
import os
import platform
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from edgekit import __version__
from edgekit.cli import devices, look, make, measure, train
from edgekit.cli.options import command_line
from edgekit.cli.output import leave, print_error, print_text
from edgekit.core.errors import EdgekitError

app = typer.Typer(
    name="edgekit",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Take a trained segmentation network to phones, boards and PCs, and see what it costs in accuracy.",
)

INTERRUPTED = 130
EXAMPLES: Mapping[Callable[..., None], str] = {
    make.run: "edgekit run --targets openvino,tflite --size 512x1024 --frames 24",
    look.lint: "edgekit lint mymodels.fast:make --size 512x1024 --target tflite,coreml",
    make.convert: "edgekit convert --target coreml",
    make.quantize: "edgekit quantize --target openvino --calib streets",
    make.sensitivity: "edgekit sensitivity spssn-streets --calib streets",
    measure.compare: "edgekit compare runs/spssn-streets/artifacts/tflite-int8-512x1024 runs/spssn-streets/artifacts/openvino-int8-512x1024",
    measure.evaluate: "edgekit evaluate spssn-streets --split val",
    measure.bench: "edgekit bench runs/spssn-streets/artifacts/openvino-int8-512x1024",
    measure.report: "edgekit report runs/spssn-streets",
    measure.predict: "edgekit predict spssn-streets photo.jpg --out predictions",
    train.train: "edgekit train --network spssn --data camvid --data-root CamVid --epochs 100 --crop 360x480 --batch 8",
    look.targets: "edgekit targets",
    look.doctor: "edgekit doctor",
}
"""Commands in the order of the help, each with a line that shows it."""

app.add_typer(devices.app, name="devices")
for _command, _example in EXAMPLES.items():
    app.command(epilog=f"Example: {_example}")(_command)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print_text(__version__)
        raise typer.Exit


def _log_bug(error: BaseException) -> Path:
    """Traceback and versions, for the report of a bug."""
    handle, name = tempfile.mkstemp(prefix="edgekit-", suffix=".log")
    with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(
            f"edgekit {__version__}, Python {platform.python_version()}, {platform.platform()}\n{command_line()}\n\n"
        )
        file.write("".join(traceback.format_exception(error)))
    return Path(name)


def _open_streams() -> None:
    """Give a command whose streams are closed ones that lead nowhere: else the next file that is opened would take their numbers."""
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(handle)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - as long as the process


def main(call: Callable[..., Any] | None = None) -> None:
    """The one place where errors become sentences and exit codes."""
    if not sys.warnoptions:  # libraries' remarks to their developers; -W shows them
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", "The value of the smallest subnormal", UserWarning)  # numpy, on flushed ones
    _open_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that has no such letter gets its code
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = (call or app)(standalone_mode=False)
        if code == INTERRUPTED:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
    except EdgekitError as error:
        print_error(f"edgekit: {error}")
        leave(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        print_error("\nedgekit: interrupted; nothing half-written was kept, the same command goes on from what was")
        leave(INTERRUPTED)
    except OSError as error:
        print_error(
            f"edgekit: {error.strerror or error} ({error.filename or 'no file named'}): check the path and the space left"
        )
        leave(1)
    except Exception as error:
        show, exit_code = getattr(error, "show", None), getattr(error, "exit_code", None)
        if callable(show) and isinstance(exit_code, int):  # typer's usage errors, whose base class has no public name
            show()
            leave(exit_code)
        print_error(traceback.format_exc().rstrip())
        print_error(f"edgekit: this is a bug of edgekit's, please report it with {_log_bug(error)}")
        leave(3)
    leave(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
