"""`prefect-server.env`, how Prefect's server is tuned: known to the installed Prefect, and in force."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas import OrchestrationResult
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import Settings
from prefect.states import Pending

from deployments.cli import environment
from tests.servers import PrefectServer


@pytest.fixture
def no_prefect_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment that says nothing of Prefect."""
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("no_prefect_variables")
def test_every_variable_is_a_setting_of_the_installed_prefect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect ignores a name that it does not know; a value that it cannot read raises."""
    for name, value in environment.tuned().items():
        monkeypatch.setenv(name, value)
    taken = Settings().to_environment_variables(exclude_unset=True)
    assert set(environment.tuned()) - set(taken) == set()


def test_what_the_user_sets_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From the environment and from `.env`, for any of the tuned variables."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("PREFECT_SERVER_DATABASE_SQLALCHEMY_POOL_SIZE=7\n")
    monkeypatch.setenv("PREFECT_SERVER_EVENTS_RETENTION_PERIOD", "P9D")
    parts = environment.parts(
        environment.outside(),
        database_url="postgresql:///nova",
        prefect_database_url="postgresql+asyncpg:///prefect",
        encryption_key="k",
        api_port=1,
        prefect_port=2,
        prefect_home=tmp_path,
    )
    assert parts["PREFECT_SERVER_EVENTS_RETENTION_PERIOD"] == "P9D"
    assert parts["PREFECT_SERVER_DATABASE_SQLALCHEMY_POOL_SIZE"] == "7"
    untouched = "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE"
    assert parts[untouched] == environment.tuned()[untouched]


async def test_a_restarted_server_still_knows_who_holds_a_slot(private_server: PrefectServer) -> None:
    """A run that cannot renew the lease of its slot is ended by Prefect's engine."""
    async with PrefectClient(private_server.api_url) as prefect:
        flow_id = await prefect.create_flow_from_name("limited")
        deployment = await prefect.create_deployment(flow_id, "one-at-a-time", concurrency_limit=1)
        run = await prefect.create_flow_run_from_deployment(deployment)
        taken: OrchestrationResult[None] = await prefect.set_flow_run_state(run.id, Pending())
        assert taken.state is not None
        lease = taken.state.state_details.deployment_concurrency_lease_id
        assert lease is not None
    private_server.restart()
    async with PrefectClient(private_server.api_url) as prefect:
        await prefect.renew_concurrency_lease(lease, lease_duration=300)
        with pytest.raises(PrefectHTTPStatusError):
            await prefect.renew_concurrency_lease(flow_id, lease_duration=300)
