"""The API as it is deployed: uvicorn, a port, a log; and how it refuses to start."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from flows.credentials.cipher import Cipher
from flows.store.database import Database
from tests.api.runs import Run
from tests.api.server import ApiServer
from tests.builders import fresh_name, line
from tests.servers import wait_until


@pytest.fixture
def server(
    database_url: str, prefect_server: str, encryption_key: str, tmp_path: Path, fork_server: Path
) -> Iterator[ApiServer]:
    """A running API that reads at most a megabyte of a body."""
    with ApiServer(
        tmp_path,
        fork_server,
        DATABASE_URL=database_url,
        PREFECT_API_URL=prefect_server,
        NOVA_ENCRYPTION_KEY=encryption_key,
        NOVA_WORK_POOL="api-tests",
        NOVA_MAX_BODY="1000000",
    ) as running:
        yield running


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("NOVA_ENCRYPTION_KEY", "NOVA_ENCRYPTION_KEY is not set"),
        ("DATABASE_URL", "DATABASE_URL is not set"),
        ("NOVA_LOG_LEVEL", "in .env: NOVA_LOG_LEVEL"),
    ],
)
def test_it_refuses_to_start_with_a_sentence(
    database_url: str, encryption_key: str, tmp_path: Path, fork_server: Path, missing: str, sentence: str
) -> None:
    """Without a key or a database, or with a wrong setting: one sentence, no traceback, no success."""
    environment = {"DATABASE_URL": database_url, "NOVA_ENCRYPTION_KEY": encryption_key}
    environment.pop(missing, None)
    if missing == "NOVA_LOG_LEVEL":
        environment[missing] = "chatty"
    with ApiServer(tmp_path, fork_server, wait=False, **environment) as server:
        assert server.process.wait(60) != 0
    log = server.log.read_text()
    assert sentence in log
    assert "Traceback" not in log


def test_it_refuses_tables_that_are_not_there(
    empty_database_url: str, encryption_key: str, tmp_path: Path
) -> None:
    """A database that was never migrated is told so, with what to do."""
    with ApiServer(
        tmp_path, wait=False, DATABASE_URL=empty_database_url, NOVA_ENCRYPTION_KEY=encryption_key
    ) as server:
        assert server.process.wait(60) != 0
    log = server.log.read_text()
    assert "nova migrate" in log
    assert "Traceback" not in log


def test_it_stops_when_told(server: ApiServer) -> None:
    """SIGTERM ends it, without a traceback."""
    server.stop(timeout=60)
    assert server.process.returncode != -signal.SIGKILL
    assert "Traceback" not in server.log.read_text()


def test_each_log_line_has_the_requests_id(server: ApiServer) -> None:
    """Those of uvicorn's access log too, and each comes once."""
    httpx.get(f"{server.url}/workflows/7", headers={"X-Request-ID": "order-66"})
    wait_until(lambda: "[order-66]" in server.log.read_text(), 60, "the access log's line")
    lines = [found for found in server.log.read_text().splitlines() if "/workflows/7" in found]
    assert len(lines) == 1
    assert "[order-66]" in lines[0]
    assert "uvicorn.access" in lines[0]


def test_a_body_past_the_bound_is_refused_on_the_wire(server: ApiServer) -> None:
    """Declared or in chunks, the answer is 413, and the next request is answered."""

    def chunks() -> Iterator[bytes]:
        for _ in range(30):
            yield b"x" * 50_000

    headers = {"Content-Type": "application/json"}
    for content in (b"x" * 1_500_000, chunks()):
        response = httpx.post(f"{server.url}/workflows", content=content, headers=headers)
        assert (response.status_code, response.json()["status_code"]) == (413, 413)
    assert httpx.get(server.url).status_code == 200


async def test_a_chain_is_streamed_in_bounded_memory(
    server: ApiServer, database: Database, cipher: Cipher
) -> None:
    """Sixty contexts of 4 MB, over 200 MB in all: the server grows by a fraction of that."""
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as api:
        body = {"name": fresh_name(), "graph_definition": line()}
        workflow = (await api.post("/workflows", json=body)).json()
        task = (await api.post(f"/workflows/{workflow['id']}/execute")).json()
        run = Run(database, cipher, task["task_id"])
        await run.begin()
        values = [{f"part{n}": f"{n}" * 1024 * 1024} for n in range(4)]
        for step in range(30):
            await run.step("start", "start", changes=values[step] if step < 4 else {"step": step})
        before, received, end = resident(server), 0, b""
        async with api.stream("GET", f"/executions/{run.execution_id}/chain") as response:
            async for chunk in response.aiter_bytes():
                received += len(chunk)
                end = (end + chunk)[-20:]
        assert (await api.get("/health")).status_code == 200
    assert received > 200 * 1024 * 1024
    assert end.endswith(b'],"total":30}')
    assert resident(server) - before < 100 * 1024 * 1024


def resident(server: ApiServer) -> int:
    """Bytes of memory that the server holds."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


async def test_a_slow_reader_holds_no_connection_to_the_database(
    server: ApiServer, database: Database, cipher: Cipher
) -> None:
    """Twenty clients that stop reading in the middle: everybody else is answered as ever."""
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as api:
        body = {"name": fresh_name(), "graph_definition": line()}
        workflow = (await api.post("/workflows", json=body)).json()
        task = (await api.post(f"/workflows/{workflow['id']}/execute")).json()
        run = Run(database, cipher, task["task_id"])
        await run.begin()
        for _ in range(20):
            await run.step("start", "start", changes={"big": "x" * 2 * 1024 * 1024})
        slow = [await open_and_stall(server, run.execution_id) for _ in range(20)]
        for _ in range(5):
            assert (await api.get("/executions")).status_code == 200
        for writer in slow:
            writer.close()
        assert (await api.get(f"/executions/{run.execution_id}")).status_code == 200


async def open_and_stall(server: ApiServer, execution_id: int) -> asyncio.StreamWriter:
    """Ask for a chain, read its first bytes, and no more."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(f"GET /executions/{execution_id}/chain HTTP/1.1\r\nHost: nova\r\n\r\n".encode())
    assert b"200 OK" in await reader.read(100)
    return writer
