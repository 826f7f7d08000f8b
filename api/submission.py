"""Submits runs to Prefect: no run is lost or run twice, and an answer never promises what did not happen."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self
from uuid import UUID, uuid4

from sqlalchemy.orm import Session

from api import idempotent_requests
from api.errors import UnknownOutcomeError
from api.services import Services
from flows.config import times
from flows.credentials import vault
from flows.graphs.errors import (
    CommitUnknownError,
    ConflictError,
    DatabaseRefusedError,
    DatabaseUnavailableError,
    InfrastructureError,
    InvalidInputError,
    NotFoundError,
    PrefectUnavailableError,
)
from flows.graphs.json_values import to_fragments
from flows.graphs.lifecycle import ErrorKind
from flows.prefect_gateway.workflow_deployments import Deployments, DeploymentSpec
from flows.runs import retry_policy
from flows.runs.deployment_specs import deployment_spec
from flows.store import clients, executions, workflows
from flows.store.base import canonical
from flows.store.models import Execution, Workflow
from flows.store.transitions import submissions

log = logging.getLogger(__name__)

_REFUSALS = (NotFoundError, ConflictError, InvalidInputError)
"""Refusals of Prefect that are not the client's fault: its request was valid."""


@dataclass(frozen=True)
class Pending:
    """An execution that has its row and is being submitted to Prefect."""

    execution_id: int
    public_id: UUID
    workflow_id: int
    workflow_name: str
    slug: str
    deployment_id: UUID | None
    client_slug: str | None
    priority: str
    task_id: UUID | None
    """The id that clients have for the run: that of the first flow run that Prefect made."""

    @classmethod
    def of(cls, row: Execution, workflow: Workflow) -> Self:
        """Return what Prefect must be told of an execution."""
        return cls(
            execution_id=row.id,
            public_id=row.public_id,
            workflow_id=workflow.id,
            workflow_name=workflow.name,
            slug=workflow.slug,
            deployment_id=workflow.deployment_id,
            client_slug=row.client_slug,
            priority=row.priority,
            task_id=row.task_id,
        )

    @property
    def name(self) -> str:
        """Return the run's name in Prefect: `invoice-processing-v3 #8 idom`."""
        return " ".join(part for part in (self.slug, f"#{self.execution_id}", self.client_slug) if part)

    @property
    def tags(self) -> list[str]:
        """Return the run's tags in Prefect."""
        return [f"workflow:{self.slug}", *([f"client:{self.client_slug}"] if self.client_slug else [])]


async def execute(
    services: Services,
    workflow_id: int,
    *,
    client_slug: str | None,
    initial_context: dict[str, Any],
    priority: str | None,
    key: str | None = None,
) -> tuple[Pending, UUID]:
    """Write the execution, have Prefect make its flow run, and return both once Prefect has confirmed it.

    If `key` was used before, its run is returned. That run is submitted again if it may not have reached
    Prefect, and replaced by a new one if it was never started.

    Raises NotFoundError (workflow; client unknown or not active), InvalidValueError (context), ConflictError
    (the key belongs to another request), and PrefectUnavailableError, DatabaseUnavailableError or
    DatabaseRefusedError: then the run was not and will not be started, unless with the same key. Raises
    UnknownOutcomeError if that cannot be promised.
    """
    public_id = uuid4()

    def write(session: Session) -> Pending:
        workflow = workflows.without_graph(session, workflow_id)

        def make() -> Execution:
            client = clients.active(session, client_slug) if client_slug is not None else None
            return submissions.create(
                session,
                workflow_id=workflow.id,
                client=client,
                priority=priority or workflow.priority,
                initial=vault.store_initial(services.cipher, to_fragments(initial_context)),
                public_id=public_id,
            )

        if key is None:
            return Pending.of(make(), workflow)
        request = [workflow_id, client_slug, initial_context, priority]
        digest = services.cipher.fingerprint(canonical(request).encode())
        return Pending.of(idempotent_requests.run_of(session, key, digest, make), workflow)

    try:
        pending = await idempotent_requests.until_won(lambda: services.database.run(write))
    except CommitUnknownError as error:
        # If the row was written after all, the reconciler would submit it to Prefect.
        started = await services.background.finish(_reject(services, workflow_id, public_id, error))
        if started is None:
            raise
        return started
    if pending.task_id is not None:
        return pending, pending.task_id
    # From here on it is finished even if the client hangs up or the server stops.
    return pending, await services.background.finish(_submit(services, pending, key is not None))


async def resubmit(services: Services, execution_id: int) -> UUID:
    """Submit an execution that may not have reached Prefect; return the flow run's id.

    If it had reached Prefect, this is the same flow run. If Prefect had lost that and has it again, but as
    over, it is requeued. Raises NotFoundError when the execution is gone, ConflictError when Prefect refuses
    for good, PrefectUnavailableError and DatabaseUnavailableError.
    """

    def read(session: Session) -> Pending:
        row = executions.get(session, execution_id)
        return Pending.of(row, row.workflow)

    pending = await services.database.run(read)
    flow_run_id = await _create_flow_run(services, pending)
    if pending.task_id is not None:
        state = await services.gateway.runs.find(flow_run_id)
        if state is not None and state.final:
            await services.gateway.runs.requeue(flow_run_id, "Prefect has this run again.")
    return flow_run_id


async def _submit(services: Services, pending: Pending, has_key: bool) -> UUID:
    try:
        flow_run_id = await _create_flow_run(services, pending)
    except Exception as error:
        started = await _reject(services, pending.workflow_id, pending.public_id, error)
        if started is not None:
            return started[1]
        if isinstance(error, NotFoundError):
            # The workflow was deleted meanwhile, and with it this execution.
            raise
        if isinstance(error, PrefectUnavailableError):
            raise PrefectUnavailableError(f"{error} The run was never started; ask again later.") from error
        raise

    def confirm(session: Session) -> bool:
        return submissions.confirm(session, pending.execution_id, flow_run_id)

    try:
        # Until that is noted, another request with the same key may reject the run.
        is_ours = await (
            retry_policy.run_until_committed(services.database, confirm)
            if has_key
            else services.database.run(confirm)
        )
    except (DatabaseUnavailableError, DatabaseRefusedError) as error:
        # Prefect has the run, and its flow finds the row by its public id: a 503 would be wrong.
        log.warning("Execution %d is confirmed by Prefect but not noted: %s", pending.execution_id, error)
        return flow_run_id
    if not is_ours:
        raise PrefectUnavailableError("Another request with the same key gave the run up; ask again.")
    return flow_run_id


async def _create_flow_run(services: Services, pending: Pending) -> UUID:
    runs = services.gateway.runs

    async def submit(deployment_id: UUID) -> UUID:
        async with _slot(services.submission_slots):
            state = await runs.submit(
                deployment_id=deployment_id,
                public_id=pending.public_id,
                name=pending.name,
                tags=pending.tags,
                priority=pending.priority,
            )
        services.gateway.watch.expect(state)
        return state.flow_run_id

    if pending.deployment_id is not None:
        try:
            return await submit(pending.deployment_id)
        except _REFUSALS as error:
            # The deployment, or its pool or queue, was deleted in Prefect: that is not the caller's fault.
            log.warning("The deployment of %s is made again: %s", pending.slug, error)
    deployment_id = await deploy(services, pending.workflow_id)
    try:
        return await submit(deployment_id)
    except _REFUSALS as error:
        raise PrefectUnavailableError(
            f"Prefect does not take runs of the deployment of {pending.slug}: {error}"
        ) from error


@asynccontextmanager
async def _slot(slots: asyncio.Semaphore) -> AsyncIterator[None]:
    """Wait for a slot; raises PrefectUnavailableError when none becomes free in time."""
    try:
        async with asyncio.timeout(times.TURN):
            await slots.acquire()
    except TimeoutError:
        raise PrefectUnavailableError("Prefect has more runs to take in than it can.") from None
    try:
        yield
    finally:
        slots.release()


async def deploy(services: Services, workflow_id: int) -> UUID:
    """Make the workflow's deployment equal to its row, note its id in the row and return it.

    Raises NotFoundError when the workflow is gone (then the deployment is removed, too) and
    PrefectUnavailableError.
    """
    spec = await services.database.run(lambda session: deployment_spec(session, workflow_id))
    deployment_id = await _apply(services.gateway.deployments, spec)
    if deployment_id != spec.deployment_id:
        try:
            await services.database.run(
                lambda session: workflows.set_deployment(session, workflow_id, deployment_id)
            )
        except NotFoundError:
            await services.gateway.deployments.remove(deployment_id)
            raise
    return deployment_id


async def _apply(deployments: Deployments, spec: DeploymentSpec) -> UUID:
    """Save a deployment; raise PrefectUnavailableError if Prefect refuses twice."""
    try:
        return await deployments.apply(spec)
    except _REFUSALS as error:  # for example, another process is saving the same deployment
        log.info("The deployment of %s is saved once more: %s", spec.slug, error)
    try:
        return await deployments.apply(spec)
    except _REFUSALS as error:
        raise PrefectUnavailableError(f"The deployment of {spec.slug} was not saved: {error}") from error


async def _reject(
    services: Services, workflow_id: int, public_id: UUID, error: Exception
) -> tuple[Pending, UUID] | None:
    """Close the row, if there is one, as never started. If the run has started after all, return it.

    If the database is away, this waits until it is back, however long that takes: until the row is closed, a
    worker may start it or the reconciler may submit it, but a 503 says that it never runs. If the client
    hangs up or the API stops before that, nothing was promised. Raises UnknownOutcomeError if the database
    refuses: waiting does not help then.
    """
    reason = (
        f"The run was never started: {error}"
        if isinstance(error, InfrastructureError | DatabaseRefusedError)
        else ("The run was never started: something went wrong in NOVA.")
    )

    def close(session: Session) -> tuple[Pending, UUID] | None:
        submissions.await_create(session, public_id, workflow_id)
        row = executions.by_public_id(session, public_id)
        if row is None or submissions.refuse(session, row.id, reason):
            return None
        session.expire_all()  # another process was faster
        row = executions.by_public_id(session, public_id)
        if row is None or row.task_id is None or row.error_kind is ErrorKind.NOT_STARTED:
            return None
        return Pending.of(row, row.workflow), row.task_id

    try:
        return await retry_policy.run_until_committed(services.database, close)
    except DatabaseRefusedError as refusal:
        raise UnknownOutcomeError(
            "It is not known whether the run will start: the database refuses to give it up. "
            "Look for it in GET /executions."
        ) from refusal
