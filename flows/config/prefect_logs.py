"""What Prefect's loggers say of NOVA's runs, put right: to its engine all but Completed is an error.

The filters stand on Prefect's loggers, so they hold for its terminals and for the logs in its UI alike.
"""

from __future__ import annotations

import logging
import time

_MEANT = tuple(
    f"Finished in state {name}("
    for name in ("AwaitingRetry", "Cancelled", "Cancelling", "Paused", "Scheduled", "Suspended")
)
"""Ends of an attempt that somebody wanted: a person, or NOVA."""
_LEFT = "Finished in state Running("
"""An attempt that told Prefect of no end: NOVA scheduled the next one, or left the run to another process."""
_NOT_BEGUN = "Finished in state Pending("
"""A node that was about to begin when its run was suspended."""
_INTERRUPTED = (
    "Crash detected! Execution was cancelled",
    "Finished in state Crashed('Execution was cancelled",
)
"""A node that was interrupted with its run: why, the run says."""
_LOST_EVENT = "Service %r failed to process item %r"
_REMINDER = 300.0
"""Seconds after which it is said again that events get lost."""


class _RunEnds(logging.Filter):
    """Takes ends of runs and nodes that were meant for no errors."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Lower a record to INFO, or drop it where it says nothing, or nobody wants that level."""
        message = record.getMessage()
        is_task = record.name.startswith("prefect.task_runs")
        if message.startswith(_LEFT) or (is_task and message.startswith(_NOT_BEGUN)):
            return False
        if record.levelno > logging.INFO and message.startswith(_MEANT + (_INTERRUPTED if is_task else ())):
            record.levelno, record.levelname = logging.INFO, logging.getLevelName(logging.INFO)
            return logging.getLogger(record.name).isEnabledFor(logging.INFO)
        return True


class _LostEvents(logging.Filter):
    """Says in a sentence, and now and then, that Prefect takes no events: each one is an error of a page."""

    def __init__(self) -> None:
        super().__init__()
        self._said_at = -_REMINDER

    def filter(self, record: logging.LogRecord) -> bool:
        """Replace the first record of such an outage, and drop the others."""
        if record.msg != _LOST_EVENT or "EventsWorker" not in str(record.args):
            return True
        if time.monotonic() - self._said_at < _REMINDER:
            return False
        self._said_at = time.monotonic()
        record.levelno, record.levelname = logging.WARNING, logging.getLevelName(logging.WARNING)
        record.msg, record.args = "Prefect takes no events: what it shows of nodes is late, or missing.", ()
        return True


_FILTERS = {
    "prefect.flow_runs": _RunEnds(),
    "prefect.task_runs": _RunEnds(),
    "prefect._internal.concurrency": _LostEvents(),
}


def correct_prefect_logs() -> None:
    """Put the filters on Prefect's loggers; doing it again changes nothing."""
    for name, correction in _FILTERS.items():
        logging.getLogger(name).addFilter(correction)
