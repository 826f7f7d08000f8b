"""Times fit each other: whoever waits for another waits longer than the other takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployments.cli.postgres import EmbeddedPostgres
from deployments.cli.stack import Options, Stack
from deployments.worker.worker_settings import WorkerSettings
from flows.config import times
from flows.config.settings import Settings


@pytest.mark.parametrize("lease", [0.5, 5.0, times.LEASE, 600.0])
def test_a_lease_outlives_a_renewal_that_fails(lease: float) -> None:
    """One that is due, fails and is tried again three times does not lose it; an outage's end is no loss."""
    assert times.renewal(lease) + 3 * times.renewal_again(lease) < lease
    assert times.renewal(lease) < times.calm(lease) < lease


def test_a_run_is_looked_after_for_less_than_its_lease_lasts() -> None:
    """Two that look after one run would undo each other's work."""
    assert times.RECOVERY_LEASE > times.LOOK_AFTER_ONE >= 2 * times.PREFECT_ANSWER


@pytest.mark.parametrize("interval", [0.05, times.RECOVERY_INTERVAL, 3600.0])
def test_a_sweeper_keeps_its_lock_between_two_rounds(interval: float) -> None:
    """A round is up to a fifth late, and one may be missed."""
    assert times.sweep_lock(interval) > 2 * 1.2 * interval


def test_nothing_is_taken_for_forgotten_that_its_api_still_tries() -> None:
    """Nor is it given up when the API ends."""
    assert times.API_DRAIN >= times.TURN
    assert times.UNSUBMITTED >= times.TURN


def test_every_part_of_nova_up_is_waited_for(tmp_path: Path) -> None:
    """It is killed later than it ends by itself."""
    stack = Stack(Options(data_dir=tmp_path), lambda line: None)
    stack.env = {"NOVA_WORKER_GRACE": "2"}
    assert stack.api_part().grace > times.API_REQUESTS + times.API_DRAIN
    assert stack.worker_part().grace > 2 + times.REQUEUE + times.REQUEUE_HUNG
    assert stack.prefect_part().grace == times.PREFECT_STOP
    assert EmbeddedPostgres(tmp_path).part(tmp_path / "log", {}).grace == times.POSTGRES_STOP


def test_the_defaults_of_the_settings_are_among_them() -> None:
    """Who reads the file reads what holds."""
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    assert defaults["prefect_timeout"] == times.PREFECT_ANSWER
    assert defaults["lease_seconds"] == times.LEASE
    assert defaults["recovery_interval"] == times.RECOVERY_INTERVAL
    assert WorkerSettings.model_fields["grace"].default == times.WORKER_GRACE
