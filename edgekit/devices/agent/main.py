"""The agent's roles: ``serve`` a host, be the ``worker`` of one artifact, or ``exec`` a program that ends with it."""

from __future__ import annotations

import os
import sys

from edgekit.core.telemetry import switch_off


def main() -> None:
    """Take the role that the first argument names."""
    role = sys.argv[1]
    # Runtimes report their use to their makers: nobody asked edgekit to. OpenVINO heeds CI; for others see core/telemetry.py.
    os.environ["CI"] = "true"
    switch_off()
    if role == "exec":
        from edgekit.devices.lifeline import end_with_parent

        end_with_parent()
        os.execv(sys.argv[2], sys.argv[2:])
    elif role == "worker":
        from edgekit.devices.worker import main as work
        from edgekit.devices.worker import open_runtime

        work(open_runtime)
    else:
        from edgekit.devices.agent.serve import serve

        serve(sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5], *map(float, sys.argv[6:7]))
