"""SIGTERM, which a cluster's scheduler sends some seconds before it ends a job."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ['TerminatedError', 'Termination']


class TerminatedError(BaseException):
    """SIGTERM came; the checkpoint of the run is saved.

    As KeyboardInterrupt, it is no Exception, so that code which expects errors of a picture does not catch it.
    """


class Termination:
    """Receives SIGTERM inside a ``with`` block.

    In threads other than the main one, which cannot receive signals in Python, SIGTERM keeps its usual effect.

    Attributes:
        received: whether SIGTERM came.
        at_once: whether SIGTERM raises :class:`TerminatedError` at once, as there is nothing to save; otherwise the
            training loop reads ``received`` and saves.
    """

    def __init__(self) -> None:
        self.received = self.at_once = False

    def __enter__(self) -> 'Termination':
        self._before: Any = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        if self.at_once:
            raise TerminatedError
