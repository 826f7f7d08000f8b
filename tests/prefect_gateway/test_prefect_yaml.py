"""`prefect.yaml`: complete, importable, and deployed by Prefect's own CLI."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import Flow
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.schedules import CronSchedule

from flows.config.settings import Settings
from flows.prefect_gateway.gateway import PrefectGateway
from flows.prefect_gateway.work_pool import QUEUES
from tests.builders import each
from tests.servers import clean_environment

pytestmark = pytest.mark.real_prefect

FILE = Path(__file__).parents[2] / "prefect.yaml"


@pytest.fixture
def deployments() -> list[dict[str, Any]]:
    """The deployments of the file."""
    found = yaml.safe_load(FILE.read_text())["deployments"]
    assert found
    return list(found)


def test_every_entry_point_is_a_flow(deployments: list[dict[str, Any]]) -> None:
    """Each entry point is a module path that imports and names an async flow."""
    for deployment in deployments:
        module, name = deployment["entrypoint"].rsplit(".", 1)
        flow = getattr(importlib.import_module(module), name)
        assert isinstance(flow, Flow)
        assert flow.isasync


def test_queues_and_schedules_are_valid(deployments: list[dict[str, Any]]) -> None:
    """Each deployment goes to one of the three queues, and its cron lines can be read."""
    for deployment in deployments:
        assert deployment["work_pool"]["work_queue_name"] in QUEUES
        for schedule in deployment["schedules"]:
            assert CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"]).cron == schedule["cron"]


async def test_prefect_deploy_all(
    prefect_server: str, tmp_path: Path, deployments: list[dict[str, Any]]
) -> None:
    """`prefect deploy --all` makes them all, and a sync of NOVA's own leaves them as they are."""
    async with PrefectGateway(Settings(PREFECT_API_URL=prefect_server)) as nova:
        await nova.deployments.ensure_pool()
        said = _prefect_deploy_all(prefect_server, tmp_path)
        assert said.returncode == 0, said.stdout + said.stderr
        await nova.deployments.sync(each(), await nova.deployments.of_workflows())
    async with PrefectClient(prefect_server) as prefect:
        for deployment in deployments:
            found = await prefect.read_deployment_by_name(f"execute-workflow/{deployment['name']}")
            assert found.entrypoint == deployment["entrypoint"]
            assert not found.pull_steps  # the folder of whoever deployed must not be in it
            assert len(found.schedules) == len(deployment["schedules"])


def _prefect_deploy_all(api_url: str, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
        cwd=FILE.parent,
        env=clean_environment(PREFECT_API_URL=api_url, PREFECT_HOME=str(home)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
