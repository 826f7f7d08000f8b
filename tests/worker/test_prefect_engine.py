"""What the worker uses of Prefect beside its promised interface is still what it was in 3.8.8."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import prefect
import prefect._flow_run_suspension as suspension
import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.context import AsyncClientContext, SyncClientContext
from prefect.flow_engine import AsyncFlowRunEngine, run_flow_async
from prefect.states import Running
from prefect.utilities.callables import get_call_parameters, parameters_to_args_kwargs
from prefect.utilities.engine import propose_state
from prefect.workers.base import BaseWorker

import deployments.worker.prefect_engine
from deployments.worker.prefect_engine import RunClient, WarmEngine
from flows.execute_workflow import execute_workflow


def parameters(function: Callable[..., Any]) -> list[str]:
    """Names of a function's parameters."""
    return list(inspect.signature(function).parameters)


def source(thing: Any) -> str:
    """Source text without its line breaks and indents."""
    return " ".join(inspect.getsource(thing).split())


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (AsyncFlowRunEngine.handle_crash, ["self", "exc"]),
        (AsyncFlowRunEngine.set_state, ["self", "state", "force"]),
        (AsyncFlowRunEngine.call_hooks, ["self", "state"]),
        (AsyncFlowRunEngine.setup_flow_run_suspension_request, ["self"]),
        (AsyncFlowRunEngine._get_flow_run_suspension_request, ["self"]),
        (propose_state, ["client", "state", "flow_run_id", "force"]),
        (suspension.register_flow_run_suspension_request, ["flow_run_id", "suspension_request"]),
        (suspension.mark_flow_run_suspension_requested, ["flow_run_id", "state"]),
        (parameters_to_args_kwargs, ["fn", "parameters"]),
        (get_call_parameters, ["fn", "call_args", "call_kwargs", "apply_defaults"]),
        (PrefectClient.read_flow_run, ["self", "flow_run_id"]),
        (BaseWorker.setup, ["self"]),
        (BaseWorker.teardown, ["self", "exc_info"]),
        (BaseWorker.get_and_submit_flow_runs, ["self"]),
        (BaseWorker.is_worker_still_polling, ["self", "query_interval_seconds"]),
    ],
)
def test_signatures_are_as_they_were(function: Callable[..., Any], expected: list[str]) -> None:
    """A parameter that was renamed, added or taken away shows here and not in production."""
    assert parameters(function) == expected, f"changed in Prefect {prefect.__version__}"


def test_one_file_holds_all_of_it() -> None:
    """No other module of the worker imports what Prefect keeps to itself."""
    folder = Path(deployments.worker.prefect_engine.__file__).parent
    private = re.compile(r"^\s*from prefect(\._|\.flow_engine|\.utilities|\.context)", re.MULTILINE)
    assert [file.name for file in folder.glob("*.py") if private.search(file.read_text())] == [
        "prefect_engine.py"
    ]


def test_a_flow_is_run_as_prefect_runs_it() -> None:
    """`engine.execute` repeats the body of `run_flow_async`, which builds an engine of its own."""
    body = source(run_flow_async)
    assert (
        "async with engine.start(): while engine.is_running(): async with engine.run_context(): "
        "await engine.call_flow_fn()"
    ) in body


def test_the_engine_asks_through_its_client_property() -> None:
    """The start's PATCH and the re-read of the run go through `client`, where memory answers."""
    assert "await self.client.update_flow_run( flow_run_id=self.flow_run.id, flow_version=" in source(
        AsyncFlowRunEngine.initialize_run
    )
    setup = source(AsyncFlowRunEngine.setup_run_context)
    assert "client = self.client" in setup
    assert "self.flow_run = await client.read_flow_run(self.flow_run.id)" in setup


def test_a_stopped_run_comes_through_handle_crash() -> None:
    """A cancelled task reaches `handle_crash` while its run is not final, and is raised again after it."""
    assert (
        "if self.flow_run.state and not self.flow_run.state.is_final(): "
        "# BaseExceptions are caught and handled as crashes await self.handle_crash(exc) raise"
    ) in source(AsyncFlowRunEngine.initialize_run)


def test_the_stock_suspension_observer_is_what_is_left_out() -> None:
    """The override repeats all of the stock method but for the observer."""
    stock = source(AsyncFlowRunEngine.setup_flow_run_suspension_request)
    assert "register_flow_run_suspension_request( self.flow_run.id, flow_run_suspension_request )" in stock
    assert "observe_flow_run_suspension(" in stock
    assert "flow_run_suspension_request.raise_if_requested() yield flow_run_suspension_request" in stock


def test_a_flow_without_results_asks_for_no_storage() -> None:
    """With a storage of its own a flow does not ask the server for the default one."""
    from prefect.results import ResultStore

    assert 'if self.result_storage is None and update.get("result_storage") is None' in source(
        ResultStore.update_for_flow
    )


async def test_one_client_serves_a_thread() -> None:
    """Whoever asks for a client below the contexts gets the one of the context."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_EPHEMERAL_ENABLED, temporary_settings
    from prefect.settings import PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED as CHECK

    here = {PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_SERVER_EPHEMERAL_ENABLED: False, CHECK: False}
    with temporary_settings(here):
        async with AsyncClientContext() as context, AsyncClientContext.get_or_create() as inner:
            with SyncClientContext() as sync_context:
                assert inner is context
                assert get_client() is context.client
                assert get_client(sync_client=True) is sync_context.client


async def test_a_run_client_shares_connections_and_never_closes_them() -> None:
    """The client of one run can be opened and closed at will: the process's stays open."""
    async with PrefectClient("http://127.0.0.1:9/api") as shared:
        flow_run = FlowRun(flow_id=uuid4(), name="run", state=Running())
        engine = WarmEngine(flow=execute_workflow, flow_run=flow_run)
        client = RunClient(shared, engine)
        async with client:
            assert await client.read_flow_run(flow_run.id) is flow_run
        assert client._client is shared._client
        assert not shared._client.is_closed
        policy = flow_run.empirical_policy
        # No server listens there: it would raise.
        await client.update_flow_run(flow_run.id, flow_version="1", empirical_policy=policy)
