"""The flow that every workflow's deployment runs: take the execution over, walk the graph, finish."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any, cast
from uuid import UUID

import anyio
from prefect import Flow, flow, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Completed, Failed
from sqlalchemy.orm import Session

from flows.config.settings import Settings, get_settings
from flows.credentials.cipher import Cipher
from flows.engine.errors import ExecutionClosedError, NodeError, NovaError, RunTimeoutError
from flows.engine.graph import Node
from flows.engine.traversal import Visit, next_node
from flows.execution.loading import LoadedRun, RunRequest, load_run
from flows.node import MESSAGE_LIMIT, NodeRunner, run_node
from flows.orchestration.runs import Runs
from flows.orchestration.texts import printable
from flows.sandbox import Sandbox, SandboxSpec, ahead
from flows.sandbox.ahead import RunSandbox
from flows.sandbox.providers import provider
from flows.store import executions
from flows.store.session import Database

Log = logging.Logger | logging.LoggerAdapter[logging.Logger]


async def close_cancelled(flow: Flow[..., Any], flow_run: FlowRun, state: State) -> None:
    """Close the row of a run that was cancelled and end its sandbox: its process did not live to do it."""
    await _close_from_outside(
        flow_run.id, "cancelled", state.message or "The run was cancelled.", "cancelled"
    )


async def close_crashed(flow: Flow[..., Any], flow_run: FlowRun, state: State) -> None:
    """Close the row of a run whose process died, and end its sandbox."""
    message = state.message or "The process of the run died."
    await _close_from_outside(flow_run.id, "failed", message, "crashed")


@flow(
    name="execute-workflow",
    persist_result=False,
    log_prints=False,
    on_cancellation=[close_cancelled],
    on_crashed=[close_crashed],
)
async def execute_workflow(
    workflow_id: int,
    client_slug: str | None = None,
    initial_context: dict[str, Any] | None = None,
    execution: UUID | None = None,
) -> State[Any]:
    """Run a workflow for a client.

    `execution` is given by the API, whose row holds everything else; a run that was started in the UI, by
    the CLI or by a schedule has no row yet and gets one here, under its flow run's id.

    `initial_context` is visible to everybody who can see Prefect: keep it small and free of secrets.
    """
    settings, log = get_settings(), get_run_logger()
    flow_run = _flow_run()
    sandbox = begin_sandbox(flow_run)
    try:
        database = _database(settings.sqlalchemy_url, settings.database_pool_size)
        cipher = Cipher(settings.encryption_key.get_secret_value())
        request = RunRequest(flow_run.id, execution, workflow_id, client_slug, initial_context or {})
        try:
            run = await database.run(lambda session: load_run(session, request, cipher, settings.max_steps))
        except ExecutionClosedError as error:
            log.warning("Nothing is run: %s", error)
            return Cancelled(message=str(error))
        except NovaError as error:
            await _close(database, request.find, error)
            return _failed(error)
        if execution is None:
            await _label(settings, flow_run, run, log)
        return await _execute(settings, database, cipher, run, sandbox, log)
    finally:
        with anyio.CancelScope(shield=True):
            await sandbox.end()


def begin_sandbox(flow_run: FlowRun) -> RunSandbox:
    """Begin to make the sandbox of a run; a worker may call it before the flow does.

    Whoever does must end it (`flows.sandbox.ahead.end`): the flow may never come to its start.
    """
    settings = get_settings()
    spec = SandboxSpec(flow_run.id, flow_run.name, settings.run_timeout, settings.output_limit)
    return ahead.begin(provider(settings), spec)


async def _execute(
    settings: Settings, database: Database, cipher: Cipher, run: LoadedRun, sandbox: RunSandbox, log: Log
) -> State[Any]:
    """Walk the run to its end within its time and close its row, however it ends."""
    loop = asyncio.get_running_loop()
    watch: asyncio.TimerHandle | None = None
    try:
        async with asyncio.timeout(None) as limit:
            place = await sandbox.ready()  # its turn may be long in coming: that is none of the run's time
            limit.reschedule(loop.time() + settings.run_timeout)
            watch = loop.call_later(settings.run_warning, _warn, log, settings)
            await _load_sandbox(place, run, database)
            runner = NodeRunner(
                database=database,
                execution_id=run.execution_id,
                attempt=run.attempt,
                graph=run.graph,
                sandbox=place,
                cipher=cipher,
                overlay=run.overlay,
            )
            steps = await _walk(run, runner, log)
    except Exception as error:
        if isinstance(error, TimeoutError) and limit.expired():
            error = RunTimeoutError(f"The run took longer than {settings.run_timeout:g} s and was stopped.")
        # A fault of NOVA's own must not leave an open row either; Prefect's log has its traceback.
        if not isinstance(error, NovaError):
            log.exception("NOVA itself failed")
            error = NovaError(f"NOVA itself failed: {type(error).__name__}: {error}")
        await _close(database, lambda session: run.execution_id, error)
        return _failed(error)
    finally:
        if watch is not None:
            watch.cancel()
    await asyncio.gather(
        database.run(lambda session: executions.finish(session, run.execution_id, status="completed")),
        sandbox.end(),  # which takes longer, and nobody waits for
    )
    return Completed(message=f"{steps} nodes executed")


async def _load_sandbox(sandbox: Sandbox, run: LoadedRun, database: Database) -> None:
    """Load a run's context and credentials into its sandbox, and write down which one it has."""
    context = {**run.context, **run.overlay.fragments()}
    run.context.clear()  # from here on the sandbox holds it: runs at once would not fit in memory twice
    await asyncio.gather(
        database.run(
            lambda session: executions.set_progress(session, run.execution_id, sandbox_id=sandbox.id)
        ),
        sandbox.load(context),
    )


async def _walk(run: LoadedRun, runner: NodeRunner, log: Log) -> int:
    """Run node after node until an end; return how many steps the whole run has."""
    visits = list(run.visits)
    previous: State[Visit] | None = None
    while (node := next_node(run.graph, visits, run.max_steps)) is not None:
        step = len(visits)
        if node.type in ("start", "end"):
            visits.append(await runner.pass_through(node, step))
            continue
        previous = await _run_task(runner, node, step, previous)
        visit = await previous.aresult()
        visits.append(visit)
        log.info("Step %d, %s: done%s", step, _shown(node), f" → {visit.branch}" if visit.branch else "")
    return len(visits)


async def _run_task(runner: NodeRunner, node: Node, step: int, previous: State[Visit] | None) -> State[Visit]:
    """Run a node as a task named after it; waiting for the one before draws the arrow in the UI."""
    wait_for = [previous] if previous is not None else None
    call = run_node(runner, node.id, step, _shown(node), return_state=True, wait_for=wait_for)
    # Prefect types the call of an async task as if it were a sync one.
    return await cast(Awaitable[State[Visit]], call)


async def _close(database: Database, find: Callable[[Session], int | None], error: NovaError) -> None:
    """Close the row of a run that failed."""
    node = error.node_id if isinstance(error, NodeError) else None

    def write(session: Session) -> None:
        execution_id = find(session)
        if execution_id is not None:
            executions.finish(
                session,
                execution_id,
                status="failed",
                error=str(error),
                error_kind=error.kind,
                failed_at_node=node,
            )

    await database.run(write)


async def _close_from_outside(flow_run_id: UUID, status: str, message: str, kind: str) -> None:
    settings = get_settings()
    database = _database(settings.sqlalchemy_url, settings.database_pool_size)

    def write(session: Session) -> str | None:
        row = executions.by_task(session, flow_run_id)
        if row is None or not executions.finish(
            session, row.id, status=status, error=message, error_kind=kind
        ):
            return None
        return row.sandbox_id

    if sandbox_id := await database.run(write):
        await provider(settings).kill(sandbox_id)


async def _label(settings: Settings, flow_run: FlowRun, run: LoadedRun, log: Log) -> None:
    """Give a run that the API did not make its readable name and tags; failing that is no reason to fail."""
    tags = sorted({*flow_run.tags, *run.tags})
    try:
        async with get_client() as client:  # the one that this process or flow run has already
            await Runs(client, settings.prefect_timeout).label(flow_run.id, name=run.name, tags=tags)
    except NovaError as error:
        log.warning("The flow run could not be named: %s", error)


def _failed(error: NovaError) -> State[Any]:
    message = str(error)
    if isinstance(error, NodeError) and error.node_id:
        message = f"Node {error.node_id!r} failed: {message}"
    return Failed(message=printable(message)[:MESSAGE_LIMIT])


def _shown(node: Node) -> str:
    """The node's name as Prefect's database and its UI take it."""
    return printable(node.title)[:200] or node.id


def _warn(log: Log, settings: Settings) -> None:
    log.warning("The run has taken %g s; at %g s it is stopped.", settings.run_warning, settings.run_timeout)


def _flow_run() -> FlowRun:
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise RuntimeError("execute_workflow needs a flow run")
    return context.flow_run


@lru_cache(maxsize=4)
def _database(url: str, pool_size: int) -> Database:
    """Return this process's connections: a worker that runs many flows in one process shares them."""
    return Database(url, pool_size)
