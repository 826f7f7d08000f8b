"""Errors: one body for all of them, bounds of what is read, and the request's id everywhere."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from flows.config.settings import Settings
from tests.api.conftest import make_settings, running_api
from tests.builders import fresh_name

JSON = {"Content-Type": "application/json"}


def nested(levels: int) -> bytes:
    """A list in a list in a list …, as JSON."""
    return b"[" * levels + b"]" * levels


async def execute(api: httpx.AsyncClient, workflow: dict[str, Any], context: bytes) -> httpx.Response:
    """Execute with an initial context that is given as JSON text."""
    return await api.post(
        f"/workflows/{workflow['id']}/execute",
        content=b'{"initial_context": {"key": ' + context + b"}}",
        headers=JSON,
    )


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/%00", 404),
        ("DELETE", "/health", 405),
        ("PATCH", "/workflows", 405),
        ("POST", "/workflows", 422),
        ("GET", "/executions?limit=0", 422),
        ("GET", "/workflows/7", 404),
    ],
)
async def test_every_error_has_the_same_body(
    api: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    """The old build's two fields and RFC 9457's three, as JSON."""
    response = await api.request(method, path)
    body = response.json()
    assert response.status_code == body["status_code"] == status
    assert response.headers["Content-Type"] == "application/json"
    assert body["error"] == body["detail"]
    assert isinstance(body["error"], str)
    assert body["error"]
    assert body["type"]
    assert body["title"]
    assert ("errors" in body) is (status == 422)
    if status == 405:
        assert response.headers["Allow"]


@pytest.mark.parametrize(
    "body",
    [b"{", b"nonsense", b"\xff\xfe", b'{"initial_context": }', b"[" * 100_000, b"{}{}"],
    ids=["cut", "word", "bytes", "hole", "deep", "two"],
)
async def test_what_is_not_json_is_refused(
    api: httpx.AsyncClient, workflow: dict[str, Any], body: bytes
) -> None:
    """With a sentence, never a 500."""
    response = await api.post(f"/workflows/{workflow['id']}/execute", content=body, headers=JSON)
    assert response.status_code == 422
    assert "JSON" in response.json()["error"] or "deep" in response.json()["error"]


@pytest.mark.parametrize("value", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b'[{"a": NaN}]'])
async def test_nan_and_infinities_are_refused(
    api: httpx.AsyncClient, workflow: dict[str, Any], value: bytes
) -> None:
    """The key is named."""
    response = await execute(api, workflow, value)
    assert response.status_code == 422
    assert "key" in response.json()["error"]
    assert "NaN" in response.json()["error"]


@pytest.mark.parametrize(("levels", "status"), [(100, 202), (101, 422), (200, 422), (100_000, 422)])
async def test_nesting_is_bounded(
    api: httpx.AsyncClient, workflow: dict[str, Any], levels: int, status: int
) -> None:
    """A value passes with 100 levels; more is refused and says how many it may have."""
    response = await execute(api, workflow, nested(levels))
    assert response.status_code == status
    assert status == 202 or "deeper than 100 levels" in response.json()["error"]


@pytest.mark.parametrize(("digits", "status"), [(1000, 202), (1001, 422), (5000, 422), (300_000, 422)])
async def test_integers_are_bounded(
    api: httpx.AsyncClient, workflow: dict[str, Any], digits: int, status: int
) -> None:
    """1,000 digits pass; more is refused and says so. The last of these bodies is parsed in a thread."""
    response = await execute(api, workflow, b"7" * digits)
    assert response.status_code == status
    assert status == 202 or "digits" in response.json()["error"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
async def test_a_body_of_another_type_is_refused(
    api: httpx.AsyncClient, workflow: dict[str, Any], kind: str
) -> None:
    """What a web page can send without asking starts no run."""
    address = f"/workflows/{workflow['id']}/execute"
    response = await api.post(address, content=b"{}", headers={"Content-Type": kind})
    assert response.status_code == 415
    from_a_page = await api.post(address, content=b"{}", headers={"Origin": "https://example.com"})
    assert from_a_page.status_code == 415
    assert (await api.get("/executions")).json()["total"] == 0


@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", "Application/JSON", "application/x+json"]
)
async def test_json_by_any_of_its_names_is_read(
    api: httpx.AsyncClient, workflow: dict[str, Any], kind: str
) -> None:
    """Parameters, capitals and suffixes are fine."""
    address = f"/workflows/{workflow['id']}/execute"
    response = await api.post(address, content=b'{"priority": "wrong"}', headers={"Content-Type": kind})
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == "priority"


async def test_odd_characters_survive_an_error(api: httpx.AsyncClient, invoices: dict[str, Any]) -> None:
    """NUL and lone surrogates in a field: refused by name where no column takes them, kept where one does."""
    for name in ("nul\0", "lone \ud800", "\ud800"):
        body = json.dumps({"name": name, "graph_definition": invoices}).encode()
        response = await api.post("/workflows", content=body, headers=JSON)
        assert response.status_code == 422
        assert response.json()["errors"][0]["field"] == "name"
    unknown = json.dumps({"nodes": [{"id": "\ud800\0", "type": "\ud800"}], "edges": []})
    body = b'{"name": "odd", "graph_definition": ' + unknown.encode() + b"}"
    assert (await api.post("/workflows", content=body, headers=JSON)).status_code == 422
    described = {"name": fresh_name(), "description": "nul\0 \ud800", "graph_definition": invoices}
    made = await api.post("/workflows", content=json.dumps(described).encode(), headers=JSON)
    assert made.status_code == 201
    assert made.json()["description"] == "nul\0 \ud800"
    listed = await api.get("/workflows")
    assert listed.json()["workflows"][0]["description"] == "nul\0 \ud800"


@pytest.fixture
async def small(settings: Settings, encryption_key: str) -> AsyncIterator[httpx.AsyncClient]:
    """An API that reads at most 2,000 bytes of a body."""
    own = make_settings(settings.database_url, settings.prefect_api_url, encryption_key, NOVA_MAX_BODY=2000)
    async with running_api(own) as client:
        yield client


async def chunks(total: int) -> AsyncIterator[bytes]:
    """A body in pieces, whose length is not told beforehand."""
    for _ in range(total // 100):
        yield b"x" * 100


@pytest.mark.parametrize("declared", ["true", "none", "lie"])
async def test_a_large_body_is_413(small: httpx.AsyncClient, declared: str) -> None:
    """With its length declared, in chunks without it, and with a length that is not true."""
    headers = JSON | ({"Content-Length": "10"} if declared == "lie" else {})
    content = b"x" * 3000 if declared == "true" else chunks(3000)
    response = await small.post("/workflows", content=content, headers=headers)
    assert response.status_code == response.json()["status_code"] == 413
    assert "2000" in response.json()["error"]


async def test_a_body_within_the_bound_is_read(small: httpx.AsyncClient) -> None:
    """To its last byte."""
    response = await small.post("/workflows", content=b" " * 1990 + b"{}", headers=JSON)
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == "name"


async def test_a_request_id_is_kept_or_made(api: httpx.AsyncClient) -> None:
    """On every response, errors too; one that is too long or not printable is replaced."""
    for path in ("/", "/nowhere", "/workflows/7", "/executions?limit=0"):
        given = await api.get(path, headers={"X-Request-ID": "order-66/a"})
        assert given.headers["X-Request-ID"] == "order-66/a"
    made = [(await api.get("/")).headers["X-Request-ID"] for _ in range(2)]
    assert made[0] != made[1]
    for bad in ("x" * 129, "two words", "t\tab", b"\xe9".decode("latin-1"), ""):
        response = await api.get("/", headers=[(b"X-Request-ID", bad.encode("latin-1"))])
        assert response.headers["X-Request-ID"] not in ("", bad)


async def test_a_fault_of_ours_shows_no_traceback(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """500 with the request's id, by which the log has the rest."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError("internal detail")

    monkeypatch.setattr("api.routers.workflows.workflows.list_", broken)
    response = await api.get("/workflows", headers={"X-Request-ID": "find-me"})
    assert response.status_code == response.json()["status_code"] == 500
    assert "find-me" in response.json()["error"]
    assert "internal detail" not in response.text
    assert "ZeroDivisionError" not in response.text
    assert "internal detail" in caplog.text
