"""Child processes end with their parent."""

import ctypes
import signal
import sys

_LIBC = ctypes.CDLL("libc.so.6") if sys.platform == "linux" else None  # loaded here: nothing is loaded after a fork


def die_with_parent() -> None:
    """Let this process be ended when its parent ends, however that happens: otherwise it works on as an orphan."""
    if _LIBC:
        _LIBC.prctl(1, signal.SIGTERM)
