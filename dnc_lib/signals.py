"""SIGTERM as a wish to stop, which a loop asks for when it can."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


class Stopped(RuntimeError):
    """A training was asked to stop, and did, with a snapshot to go on from."""


@contextlib.contextmanager
def watch_for_stop() -> Iterator[Callable[[], bool]]:
    """Inside, SIGTERM does not end the process; the function given tells whether it came.

    Python lets only the main thread listen to signals; from another the function always says no.
    """
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda *_: came.set())
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
