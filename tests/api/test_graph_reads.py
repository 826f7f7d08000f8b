"""Which requests read graphs of workflows: those that answer them."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.builders import fresh_name
from tests.statements import recorded


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/workflows?graphs=none", None),
        ("POST", "/workflows/{}/execute", {}),
        ("GET", "/workflows/{}/schedules", None),
        ("POST", "/workflows/{}/schedules", {"cron": "0 9 * * *"}),
        ("DELETE", "/workflows/{}", None),
    ],
    ids=["list", "execute", "schedules", "schedule", "delete"],
)
async def test_a_request_that_answers_no_graph_reads_none(
    api: httpx.AsyncClient, workflow: dict[str, Any], method: str, path: str, body: Any
) -> None:
    """Not even to see whether the workflow exists."""
    with recorded() as found:
        response = await api.request(method, path.format(workflow["id"]), json=body)
    assert response.is_success, response.text
    assert found
    assert [one.sql for one in found if one.reads_a_graph] == []


async def test_a_list_without_graphs(api: httpx.AsyncClient, invoices: dict[str, Any]) -> None:
    """Everything else is there, and the graph is null."""
    for _ in range(2):
        body = {"name": fresh_name("Listed"), "graph_definition": invoices}
        assert (await api.post("/workflows", json=body)).status_code == 201
    whole = (await api.get("/workflows")).json()
    light = (await api.get("/workflows", params={"graphs": "none"})).json()
    assert [one["graph_definition"] for one in whole["workflows"]] == [invoices] * 2
    assert light["workflows"] == [one | {"graph_definition": None} for one in whole["workflows"]]
    assert light["total"] == 2
    assert (await api.get("/workflows", params={"graphs": "some"})).status_code == 422


async def test_a_schedule_is_deleted_without_a_graph(
    api: httpx.AsyncClient, workflow: dict[str, Any]
) -> None:
    """Nor is one read to change it."""
    address = f"/workflows/{workflow['id']}/schedules"
    made = (await api.post(address, json={"cron": "0 9 * * *"})).json()
    with recorded() as found:
        assert (await api.put(f"{address}/{made['id']}", json={"active": False})).status_code == 200
        assert (await api.delete(f"{address}/{made['id']}")).status_code == 200
    assert [one.sql for one in found if one.reads_a_graph] == []
