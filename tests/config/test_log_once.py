"""What is logged once: faults of NOVA's own with their traceback, outages by their begin and their end."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from flows.config.log_once import REMINDER, FaultLog, OutageLog

log = logging.getLogger("tests.log_once")


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Seconds since whenever."""
        return self.now


class Records(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self.kept.append(record)


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """What was logged."""
    handler = Records()
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    yield handler.kept
    log.removeHandler(handler)


def fault() -> TypeError:
    """A fault as it is raised, always in the same line."""
    try:
        raise TypeError("'int' object is not iterable")
    except TypeError as error:
        return error


def another_fault() -> TypeError:
    """The same type, raised in another line."""
    try:
        raise TypeError("'int' object is not iterable")
    except TypeError as error:
        return error


def test_a_fault_is_shown_once_with_its_traceback(records: list[logging.LogRecord]) -> None:
    """The second time it is a line at DEBUG, whatever run it is about."""
    faults = FaultLog(log, clock=Clock())
    for number in range(3):
        faults.note(fault(), "Flow run %d could not be taken.", number)
    assert [record.levelno for record in records] == [logging.ERROR, logging.DEBUG, logging.DEBUG]
    assert records[0].exc_info is not None
    assert records[0].getMessage() == (
        "Flow run 0 could not be taken. It is a fault of NOVA's own: TypeError."
    )
    assert all(record.exc_info is None for record in records[1:])


def test_each_kind_of_fault_is_shown(records: list[logging.LogRecord]) -> None:
    """Another line, another type or another thing that could not be done is another kind."""
    faults = FaultLog(log, clock=Clock())
    faults.note(fault(), "This.")
    faults.note(another_fault(), "This.")
    faults.note(ValueError("never raised"), "This.")
    faults.note(fault(), "That.")
    assert [record.levelno for record in records] == [logging.ERROR] * 4


def test_a_fault_that_still_comes_is_shown_again_after_an_hour(records: list[logging.LogRecord]) -> None:
    """With how often it has come, since the first time scrolled away long ago."""
    clock = Clock()
    faults = FaultLog(log, clock=clock)
    for _ in range(5):
        faults.note(fault(), "This.")
    clock.now += REMINDER
    faults.note(fault(), "This.")
    assert [record.levelno for record in records].count(logging.ERROR) == 2
    assert records[-1].getMessage().endswith("This fault has come 6 times.")


def test_an_outage_is_said_when_it_begins_and_when_it_is_over(records: list[logging.LogRecord]) -> None:
    """What was never away is not said to be back."""
    outage = OutageLog(log)
    outage.ended("Back.")
    for _ in range(3):
        outage.began("Away: %s", "no route")
    for _ in range(2):
        outage.ended("Back.")
    outage.began("Away: %s", "no route")
    said = [record.getMessage() for record in records if record.levelno > logging.DEBUG]
    assert said == ["Away: no route", "Back.", "Away: no route"]
