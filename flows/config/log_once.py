"""What goes on for long is said once: faults of NOVA's own, and outages of what it needs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

REMINDER = 3600.0
"""Seconds after which a fault that still comes is shown again."""


class FaultLog:
    """Logs faults of NOVA's own: each kind once an hour with its traceback, else at DEBUG; any thread may.

    A kind is a message, a type of exception and the line that raised it.
    """

    def __init__(self, log: logging.Logger, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._lock = threading.Lock()
        self._shown_at: dict[object, float] = {}
        self._times: dict[object, int] = {}

    def note(self, error: BaseException, message: str, *values: object) -> None:
        """Log a fault; `message` says what could not be done because of it."""
        kind, now = (message, type(error), _line(error)), self._clock()
        with self._lock:
            times = self._times[kind] = self._times.get(kind, 0) + 1
            is_shown = kind not in self._shown_at or now - self._shown_at[kind] >= REMINDER
            if is_shown:
                self._shown_at[kind] = now
        count = "" if times == 1 else f" This fault has come {times} times."
        text = f"{message} It is a fault of NOVA's own: {type(error).__name__}.{count}"
        if is_shown:
            self._log.error(text, *values, exc_info=error)
        else:
            self._log.debug(text, *values)


class OutageLog:
    """Says once that an outage began, and once that it is over; any thread may."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._goes_on = False

    def began(self, message: str, *values: object) -> None:
        """Take note that something does not work, or still does not."""
        with self._lock:
            level, self._goes_on = (logging.DEBUG if self._goes_on else logging.WARNING), True
        self._log.log(level, message, *values)

    def ended(self, message: str, *values: object) -> None:
        """Take note that it works; said only where it did not before."""
        with self._lock:
            was_away, self._goes_on = self._goes_on, False
        if was_away:
            self._log.info(message, *values)


def _line(error: BaseException) -> tuple[str, int] | None:
    """File and line that raised an exception."""
    trace = error.__traceback__
    if trace is None:
        return None
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_code.co_filename, trace.tb_lineno
