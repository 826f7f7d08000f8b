"""Workflows over HTTP: the contract's rows for making, reading, changing and deleting them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any
from uuid import UUID

import httpx
import pytest
from prefect.client.orchestration import PrefectClient
from prefect.exceptions import ObjectNotFound
from prefect.states import Running

from flows.store.database import Database
from tests.api.conftest import SetState
from tests.builders import action, fresh_name, line
from tests.code_check.programs import nested_finally

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


async def test_a_workflow_is_made_with_all_its_fields(
    api: httpx.AsyncClient, invoices: dict[str, Any]
) -> None:
    """POST answers 201 with the contract's fields, and ours behind them."""
    name = fresh_name("Factura Nº")
    response = await api.post(
        "/workflows", json={"name": name, "description": "By mail", "graph_definition": invoices}
    )
    made = response.json()
    assert response.status_code == 201
    assert list(made)[:6] == ["id", "name", "description", "graph_definition", "created_at", "updated_at"]
    assert (made["name"], made["description"], made["graph_definition"]) == (name, "By mail", invoices)
    assert TIME.fullmatch(made["created_at"])
    assert TIME.fullmatch(made["updated_at"])
    assert (made["version"], made["priority"], made["overlap"]) == (1, "normal", "queue")
    assert made["slug"].startswith("factura-no-")
    assert made["warnings"] == []


async def test_a_new_workflow_has_a_deployment(
    api: httpx.AsyncClient, prefect: PrefectClient, invoices: dict[str, Any]
) -> None:
    """What can be posted can be run in Prefect's UI: a deployment of its slug is there at once."""
    body = {
        "name": fresh_name("Deployed"),
        "graph_definition": invoices,
        "priority": "high",
        "max_concurrent_runs": 2,
        "overlap": "skip",
    }
    made = (await api.post("/workflows", json=body)).json()
    deployment = await prefect.read_deployment_by_name(f"execute-workflow/{made['slug']}")
    assert deployment.parameters == {"workflow_id": made["id"]}
    assert deployment.work_queue_name == "high"
    assert deployment.global_concurrency_limit is not None
    assert deployment.global_concurrency_limit.limit == 2


async def test_a_taken_name_is_refused(api: httpx.AsyncClient, workflow: dict[str, Any]) -> None:
    """A second workflow of the same name is 400, and so is renaming one to it."""
    body = {"name": workflow["name"], "graph_definition": workflow["graph_definition"]}
    response = await api.post("/workflows", json=body)
    assert (response.status_code, response.json()["status_code"]) == (400, 400)
    assert workflow["name"] in response.json()["error"]
    other = (await api.post("/workflows", json={**body, "name": fresh_name()})).json()
    changed = {"name": workflow["name"], "graph_definition": line(action("only", "pass"))}
    for body in ({"name": workflow["name"]}, changed):
        renamed = await api.put(f"/workflows/{other['id']}", json=body)
        assert renamed.status_code == 400
        assert workflow["name"] in renamed.json()["error"]


async def test_every_fault_of_a_graph_is_named_at_once(api: httpx.AsyncClient) -> None:
    """An invalid graph is 422 with one entry for each fault, by node and edge, line and column."""
    graph = line(action("a", "x = = 1"), action("b", "pass", timeout=90))
    graph["edges"].append({"from": "b", "to": "nowhere"})
    response = await api.post("/workflows", json={"name": fresh_name(), "graph_definition": graph})
    errors = response.json()["errors"]
    assert response.status_code == 422
    assert {"a", "b"} <= {error.get("node") for error in errors}
    assert any(error.get("line") == 1 and error["column"] > 1 for error in errors)
    assert any(error.get("edge") == 3 for error in errors)
    assert all(error["message"] and error["code"] for error in errors)
    assert (await api.get("/workflows")).json()["total"] == 0


async def test_code_that_is_too_much_for_the_compiler_harms_nobody_else(
    api: httpx.AsyncClient, workflow: dict[str, Any]
) -> None:
    """700 bytes that would take gigabytes are 422 with their node; other requests are served meanwhile."""
    address = f"/workflows/{workflow['id']}"
    graph = line(action("fine", "pass"), action("bomb", nested_finally(19)))
    saving = asyncio.gather(
        api.post("/workflows", json={"name": fresh_name(), "graph_definition": graph}),
        api.put(address, json={"graph_definition": graph}),
    )
    served = 0
    while not saving.done():
        assert (await api.get(address)).json()["graph_definition"] == workflow["graph_definition"]
        served += 1
    for response in await saving:
        assert response.status_code == 422
        (error,) = response.json()["errors"]
        assert (error["code"], error["node"]) == ("unchecked-code", "bomb")
        assert 'The code of node "bomb" cannot be checked: it needs' in error["message"]
    assert served > 10
    assert (await api.get(address)).json()["version"] == 1
    good = {"name": fresh_name(), "graph_definition": line(action("fine", "pass"))}
    assert (await api.post("/workflows", json=good)).status_code == 201


async def test_code_that_is_too_long_is_refused(api: httpx.AsyncClient) -> None:
    """64 KiB a node are enough for a program; what holds more is data."""
    graph = line(action("small", "#" * 65_536), action("large", "#" * 65_537))
    response = await api.post("/workflows", json={"name": fresh_name(), "graph_definition": graph})
    assert response.status_code == 422
    assert [(error["code"], error["node"]) for error in response.json()["errors"]] == [
        ("code-too-long", "large")
    ]
    assert "65,537 bytes; a node may have 65,536 (NOVA_NODE_CODE_LIMIT)" in response.json()["error"]


async def test_unknown_fields_of_a_graph_are_kept_and_warned_of(api: httpx.AsyncClient) -> None:
    """Editors add positions and colours: they come back as they were sent, with a warning."""
    graph = line(action("a", "pass", position={"x": 1.5, "y": 2}), editor="v7")
    response = await api.post("/workflows", json={"name": fresh_name(), "graph_definition": graph})
    assert response.status_code == 201
    assert response.json()["graph_definition"] == graph
    assert {warning["code"] for warning in response.json()["warnings"]} == {"unknown-fields"}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "x" * 256}, "name"),
        ({"name": 5}, "name"),
        ({"name": "n", "graph_definition": []}, "graph_definition"),
        ({"name": "n", "graph_definition": {}, "priority": "urgent"}, "priority"),
        ({"name": "n", "graph_definition": {}, "max_concurrent_runs": 0}, "max_concurrent_runs"),
        ({"name": "n", "graph_definition": {}, "max_concurrent_runs": 2**31}, "max_concurrent_runs"),
        ({"name": "n", "graph_definition": {}, "overlap": "drop"}, "overlap"),
    ],
)
async def test_each_bad_field_is_named(api: httpx.AsyncClient, body: dict[str, Any], field: str) -> None:
    """422 says which field is wrong."""
    response = await api.post("/workflows", json=body)
    assert response.status_code == 422
    assert field in [error["field"] for error in response.json()["errors"]]


async def test_unknown_fields_of_a_body_are_ignored(api: httpx.AsyncClient, invoices: dict[str, Any]) -> None:
    """Old clients may send what we don't know."""
    body = {"name": fresh_name(), "graph_definition": invoices, "owner": "old client", "id": 99}
    assert (await api.post("/workflows", json=body)).status_code == 201


async def test_workflows_are_listed_in_pages(api: httpx.AsyncClient, invoices: dict[str, Any]) -> None:
    """`{workflows, total}` with skip and limit; total counts them all."""
    names = [fresh_name("Listed") for _ in range(3)]
    for name in names:
        await api.post("/workflows", json={"name": name, "graph_definition": invoices})
    everything = (await api.get("/workflows")).json()
    assert [found["name"] for found in everything["workflows"]] == names
    page = (await api.get("/workflows", params={"skip": 1, "limit": 1})).json()
    assert ([found["name"] for found in page["workflows"]], page["total"]) == ([names[1]], 3)
    assert (await api.get("/workflows", params={"skip": 2**62})).json() == {"workflows": [], "total": 3}


@pytest.mark.parametrize("path", ["/workflows", "/executions", "/clients"])
async def test_pages_are_bounded(api: httpx.AsyncClient, path: str) -> None:
    """A limit over 1000 and a negative or absurd skip are refused by name, never an error of the database."""
    for name, value in (
        ("limit", 0),
        ("limit", 1001),
        ("limit", 10**30),
        ("limit", "x"),
        ("skip", -1),
        ("skip", 2**63),
    ):
        response = await api.get(path, params={name: value})
        assert response.status_code == 422, (name, value)
        assert [error["field"] for error in response.json()["errors"]] == [name]


async def test_a_workflow_is_read_by_its_id(api: httpx.AsyncClient, workflow: dict[str, Any]) -> None:
    """GET answers what POST did."""
    found = (await api.get(f"/workflows/{workflow['id']}")).json()
    assert found == {key: value for key, value in workflow.items() if key != "warnings"}


@pytest.mark.parametrize("number", ["7", "0", "-1", str(2**31), str(10**30)])
async def test_an_unknown_id_is_404(api: httpx.AsyncClient, number: str) -> None:
    """Whatever the number, even one that no column holds."""
    for method, path in (
        ("GET", "/workflows/{}"),
        ("PUT", "/workflows/{}"),
        ("DELETE", "/workflows/{}"),
        ("POST", "/workflows/{}/execute"),
        ("GET", "/executions/{}"),
        ("GET", "/executions/{}/chain"),
    ):
        body: dict[str, Any] | None = {} if method in ("PUT", "POST") else None
        response = await api.request(method, path.format(number), json=body)
        assert (response.status_code, response.json()["status_code"]) == (404, 404), (method, path)


async def test_an_id_that_is_no_number_is_422(api: httpx.AsyncClient) -> None:
    """And the parameter is named."""
    response = await api.get("/workflows/invoices")
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == "workflow_id"


async def test_any_subset_of_fields_can_be_changed(
    api: httpx.AsyncClient, prefect: PrefectClient, workflow: dict[str, Any]
) -> None:
    """PUT changes what it is given, keeps the rest and the slug, and the deployment follows."""
    address = f"/workflows/{workflow['id']}"
    described = (await api.put(address, json={"description": "New words", "priority": "low"})).json()
    assert (described["description"], described["name"]) == ("New words", workflow["name"])
    name = fresh_name("Renamed")
    renamed = (await api.put(address, json={"name": name})).json()
    assert (renamed["name"], renamed["slug"], renamed["description"]) == (name, workflow["slug"], "New words")
    assert renamed["updated_at"] > workflow["updated_at"]
    assert (await api.put(address, json={"description": None})).json()["description"] is None
    deployment = await prefect.read_deployment_by_name(f"execute-workflow/{workflow['slug']}")
    assert name in (deployment.description or "")
    assert deployment.work_queue_name == "low"
    assert (await api.put(address, json={})).status_code == 200
    assert (await api.put(address, json={"name": None})).status_code == 422


async def test_a_changed_graph_is_a_new_version(api: httpx.AsyncClient, workflow: dict[str, Any]) -> None:
    """An equal graph is not; an invalid one changes nothing."""
    address = f"/workflows/{workflow['id']}"
    same = await api.put(address, json={"graph_definition": workflow["graph_definition"]})
    assert same.json()["version"] == 1
    graph = line(action("only", "pass"))
    changed = await api.put(address, json={"graph_definition": graph})
    assert (changed.json()["version"], changed.json()["graph_definition"]) == (2, graph)
    assert (await api.put(address, json={"graph_definition": {"nodes": []}})).status_code == 422
    assert (await api.get(address)).json()["version"] == 2


async def test_deleting_a_workflow_takes_everything_with_it(
    api: httpx.AsyncClient,
    prefect: PrefectClient,
    workflow: dict[str, Any],
    start: Callable[..., Any],
) -> None:
    """Live runs are cancelled first; then the deployment, the executions and the workflow are gone."""
    task_id, _ = await start()
    response = await api.delete(f"/workflows/{workflow['id']}")
    assert response.status_code == 200
    assert list(response.json()) == ["message"]
    assert (await api.get(f"/workflows/{workflow['id']}")).status_code == 404
    assert (await api.get("/executions")).json()["total"] == 0
    flow_run = await prefect.read_flow_run(UUID(task_id))
    assert flow_run.state is not None
    assert flow_run.state.is_cancelled()
    with pytest.raises(ObjectNotFound):
        await prefect.read_deployment_by_name(f"execute-workflow/{workflow['slug']}")
    assert (await api.delete(f"/workflows/{workflow['id']}")).status_code == 404


async def test_a_run_that_does_not_stop_keeps_its_workflow(
    api: httpx.AsyncClient,
    workflow: dict[str, Any],
    start: Callable[..., Any],
    set_state: SetState,
    monkeypatch: pytest.MonkeyPatch,
    database: Database,
) -> None:
    """Nothing is deleted under a run that goes on; the caller is told, and may come back."""
    task_id, run = await start()
    await set_state(task_id, Running())
    await run.begin()
    monkeypatch.setattr("api.routers.workflows.STOP_TIMEOUT", 0.2)
    response = await api.delete(f"/workflows/{workflow['id']}")
    assert response.status_code == 409
    assert (await api.get(f"/workflows/{workflow['id']}")).status_code == 200
