"""A process that ends when the one that started it does, however that one ended."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

PR_SET_PDEATHSIG = 1
"""prctl's option, of linux/prctl.h."""


def end_with_parent() -> None:
    """Have the system kill this process when its parent ends, also by SIGKILL; survives exec on Linux.

    Elsewhere a thread looks once a second, which a program started by exec does not keep.
    """
    parent = os.getppid()
    if sys.platform == "linux":
        try:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        except (OSError, AttributeError):  # a libc without it: end of input still ends a worker
            return
        if os.getppid() != parent:  # it ended just before
            os._exit(1)
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
