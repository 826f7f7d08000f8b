"""What Prefect says of an attempt's end is an error only where it is one."""

from __future__ import annotations

import logging

import pytest

from flows.config.prefect_logs import correct_prefect_logs


def said(logger: str, message: str) -> str | None:
    """The level at which Prefect's record of an ERROR is said, with our filters; None where it is dropped."""
    correct_prefect_logs()
    record = logging.LogRecord(logger, logging.ERROR, __file__, 1, message, None, None)
    return record.levelname if logging.getLogger(logger).filter(record) else None


@pytest.fixture(autouse=True)
def whoever_listens_wants_all(caplog: pytest.LogCaptureFixture) -> None:
    """Prefect's loggers are set to INFO, as in a worker."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        caplog.set_level(logging.INFO, name)


@pytest.mark.parametrize(
    ("logger", "message"),
    [
        ("prefect.flow_runs", "Finished in state Suspended()"),
        ("prefect.flow_runs", "Finished in state AwaitingRetry('The worker was stopped.')"),
        ("prefect.task_runs", "Finished in state Crashed('Execution was cancelled by the runtime')"),
    ],
)
def test_an_end_that_was_meant_is_told_as_such(logger: str, message: str) -> None:
    """A person or NOVA wanted it."""
    assert said(logger, message) == "INFO"


@pytest.mark.parametrize(
    ("logger", "message"),
    [
        ("prefect.flow_runs", "Finished in state Running()"),
        ("prefect.task_runs", "Finished in state Pending()"),
    ],
)
def test_what_is_no_end_is_not_told(logger: str, message: str) -> None:
    """The run goes on elsewhere, or its node did not begin: it was suspended at that moment."""
    assert said(logger, message) is None


@pytest.mark.parametrize(
    ("logger", "message"),
    [
        ("prefect.flow_runs", "Finished in state Failed('ValueError: no amount')"),
        ("prefect.flow_runs", "Finished in state Crashed('Execution was cancelled by the runtime')"),
        ("prefect.task_runs", "Finished in state Failed('ValueError: no amount')"),
    ],
)
def test_a_failure_stays_an_error(logger: str, message: str) -> None:
    """Nothing is hidden that a person must look at."""
    assert said(logger, message) == "ERROR"
