"""The stand-in on a port: other processes reach it, and it can be away for a while."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from prefect.client.orchestration import PrefectClient

from tests.access_log import AccessLog
from tests.stand_in.server import StandInServer


def test_another_process(tmp_path: Path) -> None:
    """Another process reaches it at its URL, and its request stands in the log."""
    with StandInServer(tmp_path / "log") as server:
        call = f"import urllib.request as r; print(r.urlopen('{server.api_url}/admin/version').read())"
        said = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, check=True)

        assert "3." in said.stdout
        assert AccessLog(server.log).requests().of_runs == {"GET /admin/version": 1}


async def test_an_outage(tmp_path: Path) -> None:
    """A stopped server refuses connections; started again, at the same address, it has all that it had."""
    with StandInServer(tmp_path / "log") as server:
        async with PrefectClient(server.api_url) as prefect:
            flow_id = await prefect.create_flow_from_name("flow")
        server.stop()
        async with PrefectClient(server.api_url) as prefect:
            assert isinstance(await prefect.api_healthcheck(), httpx.ConnectError)

        server.start()

        async with PrefectClient(server.api_url) as prefect:
            assert (await prefect.read_flow(flow_id)).name == "flow"


async def test_lost_under_a_server(tmp_path: Path) -> None:
    """What a test does to the stand-in counts at once for those that the server answers."""
    with StandInServer(tmp_path / "log") as server:
        async with PrefectClient(server.api_url) as prefect:
            await prefect.create_flow_from_name("flow")
            backup = server.stand_in.snapshot()
            server.stand_in.lose_everything()
            assert (await prefect._client.get("/health")).json() is True
            with pytest.raises(httpx.HTTPStatusError, match="Flow not found"):
                await prefect._client.get("/flows/name/flow")
            server.stand_in.restore(backup)
            assert (await prefect.read_flow_by_name("flow")).name == "flow"
