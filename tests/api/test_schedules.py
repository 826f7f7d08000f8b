"""Schedules over HTTP: kept by NOVA, run by Prefect, beside those that were made in Prefect."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import httpx
import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule

CONTEXT = "parameters.initial_context"
MORNING = {"cron": "0 9 * * *", "timezone": "Europe/Madrid", "parameters": {"client_slug": "idom"}}


@pytest.fixture
def address(workflow: dict[str, Any], idom: dict[str, Any]) -> str:
    """The schedules of a workflow."""
    return f"/workflows/{workflow['id']}/schedules"


async def in_prefect(prefect: PrefectClient, workflow: dict[str, Any]) -> list[DeploymentSchedule]:
    """The schedules that Prefect has for a workflow."""
    deployment = await prefect.read_deployment_by_name(f"execute-workflow/{workflow['slug']}")
    return await prefect.read_deployment_schedules(deployment.id)


async def test_a_schedule_is_made_in_both(
    api: httpx.AsyncClient, prefect: PrefectClient, workflow: dict[str, Any], address: str
) -> None:
    """201 with the schedule; Prefect has it in its own time zone, with the parameters of the runs."""
    response = await api.post(address, json=MORNING)
    assert response.status_code == 201
    assert response.json() == {"id": 1, **MORNING, "active": True, "source": "nova"}
    (found,) = await in_prefect(prefect, workflow)
    assert isinstance(found.schedule, CronSchedule)
    assert (found.schedule.cron, found.schedule.timezone) == ("0 9 * * *", "Europe/Madrid")
    assert (found.parameters, found.active) == ({"client_slug": "idom"}, True)


async def test_the_defaults_are_utc_and_active(api: httpx.AsyncClient, address: str) -> None:
    """A cron line is enough."""
    made = (await api.post(address, json={"cron": "*/5 * * * *"})).json()
    assert (made["timezone"], made["parameters"], made["active"]) == ("UTC", {}, True)


async def test_a_schedule_is_read_changed_and_deleted(
    api: httpx.AsyncClient, prefect: PrefectClient, workflow: dict[str, Any], address: str
) -> None:
    """PUT takes any subset; Prefect follows; DELETE removes both."""
    made = (await api.post(address, json=MORNING)).json()
    one = f"{address}/{made['id']}"
    rule = {"cron": "0 9 * * *", "day_or": True, "timezone": "Europe/Madrid"}
    assert (await api.get(one)).json() == made | {"rule": rule}
    changed = await api.put(one, json={"active": False, "cron": "30 8 * * 1-5"})
    assert changed.json() == made | {"active": False, "cron": "30 8 * * 1-5"}
    (found,) = await in_prefect(prefect, workflow)
    assert isinstance(found.schedule, CronSchedule)
    assert (found.schedule.cron, found.schedule.timezone) == ("30 8 * * 1-5", "Europe/Madrid")
    assert found.active is False
    deleted = await api.delete(one)
    assert (deleted.status_code, list(deleted.json())) == (200, ["message"])
    assert await in_prefect(prefect, workflow) == []
    for answer in (await api.get(one), await api.put(one, json={}), await api.delete(one)):
        assert answer.status_code == 404


async def test_schedules_made_in_prefect_are_listed_and_left_alone(
    api: httpx.AsyncClient, prefect: PrefectClient, workflow: dict[str, Any], address: str
) -> None:
    """They survive every change over the API; an operator's pause of ours is shown."""
    deployment = await prefect.read_deployment_by_name(f"execute-workflow/{workflow['slug']}")
    await prefect.create_deployment_schedules(
        deployment.id,
        [
            DeploymentScheduleCreate(schedule=CronSchedule(cron="1 1 * * *", timezone="UTC")),
            DeploymentScheduleCreate(schedule=IntervalSchedule(interval=timedelta(hours=1))),
        ],
    )
    await api.post(address, json=MORNING)
    await api.put(f"/workflows/{workflow['id']}", json={"description": "changed"})
    body = (await api.get(address)).json()
    assert body["total"] == 3
    assert [found["source"] for found in body["schedules"]] == ["nova", "prefect", "prefect"]
    assert [found["id"] for found in body["schedules"]] == [1, None, None]
    assert {found["cron"] for found in body["schedules"]} == {"0 9 * * *", "1 1 * * *", None}
    (ours,) = [s for s in await in_prefect(prefect, workflow) if s.slug]
    await prefect.update_deployment_schedule(deployment.id, ours.id, active=False)
    assert (await api.get(address)).json()["schedules"][0]["active"] is False
    assert (await api.get(f"{address}/1")).json()["active"] is False
    assert (await api.put(f"{address}/1", json={"cron": "1 9 * * *"})).status_code == 200
    (ours,) = [s for s in await in_prefect(prefect, workflow) if s.slug]
    assert ours.active is False


async def test_a_deployment_that_is_gone_is_made_again_with_all_schedules(
    api: httpx.AsyncClient, prefect: PrefectClient, workflow: dict[str, Any], address: str
) -> None:
    """Deleted in Prefect: the next schedule brings it back, and the old ones with it."""
    await api.post(address, json=MORNING)
    deployment = await prefect.read_deployment_by_name(f"execute-workflow/{workflow['slug']}")
    await prefect.delete_deployment(deployment.id)
    assert (await api.get(address)).json()["total"] == 1
    assert (await api.post(address, json={"cron": "5 5 * * *"})).status_code == 201
    crons = {getattr(found.schedule, "cron", None) for found in await in_prefect(prefect, workflow)}
    assert crons == {"0 9 * * *", "5 5 * * *"}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "cron"),
        ({"cron": "every day"}, "cron"),
        pytest.param({"cron": "99 9 * * *"}, "cron", marks=pytest.mark.long),
        ({"cron": "0 9 * * *\0"}, "cron"),
        ({"cron": "0 9 * * *", "timezone": "Mars/Base"}, "timezone"),
        pytest.param({"cron": "0 9 * * *", "timezone": "\0"}, "timezone", marks=pytest.mark.long),
        ({"cron": "0 9 * * *", "parameters": []}, "parameters"),
        ({"cron": "0 9 * * *", "parameters": {"execution": "x"}}, "parameters.execution"),
        pytest.param(
            {"cron": "0 9 * * *", "parameters": {"client_slug": 5}},
            "parameters.client_slug",
            marks=pytest.mark.long,
        ),
        ({"cron": "0 9 * * *", "parameters": {"client_slug": "acme"}}, "parameters.client_slug"),
        ({"cron": "0 9 * * *", "parameters": {"initial_context": 1}}, CONTEXT),
        (
            {"cron": "0 9 * * *", "parameters": {"initial_context": {"a": [{"b": "nul\0"}]}}},
            CONTEXT,
        ),
        (
            {"cron": "0 9 * * *", "parameters": {"initial_context": {"a": 2**70}}},
            CONTEXT,
        ),
        ({"cron": "0 9 * * *", "parameters": {"initial_context": {"a": "x" * 70_000}}}, "parameters"),
        ({"cron": "0 9 * * *", "active": None}, "active"),
    ],
)
async def test_bad_fields_of_a_schedule_are_named(
    api: httpx.AsyncClient, address: str, body: dict[str, Any], field: str
) -> None:
    """422 says which, and nothing is kept."""
    response = await api.post(address, json=body)
    assert response.status_code == 422
    assert field in [error["field"] for error in response.json()["errors"]]
    assert (await api.get(address)).json()["total"] == 0
    changed = (await api.post(address, json=MORNING)).json()
    if body:
        again = await api.put(f"{address}/{changed['id']}", json=body)
        assert again.status_code == 422
        read = (await api.get(f"{address}/{changed['id']}")).json()
        assert read == changed | {"rule": read["rule"]}


async def test_schedules_of_an_unknown_workflow_are_404(api: httpx.AsyncClient, address: str) -> None:
    """And a schedule is found under its own workflow alone."""
    made = (await api.post(address, json=MORNING)).json()
    answers = [
        await api.get("/workflows/99/schedules"),
        await api.post("/workflows/99/schedules", json={"cron": "0 9 * * *"}),
        await api.get(f"/workflows/99/schedules/{made['id']}"),
        await api.delete(f"/workflows/99/schedules/{made['id']}"),
        await api.get(f"{address}/{10**30}"),
    ]
    assert {answer.status_code for answer in answers} == {404}
