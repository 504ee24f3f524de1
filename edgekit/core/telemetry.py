"""Nothing is reported to anybody: what runtimes and converters read from the environment before they report their use."""

from __future__ import annotations

import os
from collections.abc import Mapping

SWITCHES: Mapping[str, str] = {
    # Microsoft's wheel keeps a device id below the user's cache folder and looks up a collector's name.
    "ORT_DISABLE_TELEMETRY": "1",
    # What litert-torch brings along.
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}
"""Set before any runtime is imported, and inherited by every process; who sets one otherwise has decided for himself."""


def switch_off() -> None:
    """Set every switch that the user has not set. OpenVINO and NNCF have none of their own: see ``runtimes/openvino.py``."""
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
