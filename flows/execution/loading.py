"""What a flow run needs before its first node, read in one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from flows.credentials import vault
from flows.credentials.cipher import Cipher
from flows.engine import context
from flows.engine.errors import InvalidInputError
from flows.engine.graph import Graph, load_graph
from flows.engine.traversal import Visit
from flows.store import chain, clients, executions, values, workflows
from flows.store.models import Execution


@dataclass(frozen=True)
class RunRequest:
    """What a flow run was started with."""

    flow_run_id: UUID
    public_id: UUID | None
    """The execution's, where the API made one."""
    workflow_id: int
    client_slug: str | None
    initial_context: Mapping[str, Any]

    def find(self, session: Session) -> int | None:
        """Return the id of the execution that belongs to this flow run, if there is one."""
        row = (
            executions.by_public_id(session, self.public_id)
            if self.public_id is not None
            else executions.by_task(session, self.flow_run_id)
        )
        return row.id if row is not None else None


@dataclass(frozen=True)
class LoadedRun:
    """A run that was taken over, with everything that it needs."""

    execution_id: int
    attempt: int
    workflow_slug: str
    client_slug: str | None
    graph: Graph
    max_steps: int
    visits: Sequence[Visit]
    """The steps that succeeded in earlier attempts, in order."""
    context: dict[str, bytes]
    """The context after those steps as fragments, opened: it goes to the sandbox, and then is emptied."""
    overlay: vault.Overlay

    @property
    def name(self) -> str:
        """Name of the flow run."""
        return " ".join(filter(None, (self.workflow_slug, f"#{self.execution_id}", self.client_slug)))

    @property
    def tags(self) -> list[str]:
        """Tags of the flow run."""
        client = [f"client:{self.client_slug}"] if self.client_slug else []
        return [f"workflow:{self.workflow_slug}", *client]


def load_run(session: Session, request: RunRequest, cipher: Cipher, max_steps: int) -> LoadedRun:
    """Take the execution of a flow run over, or make it, and read what its next node needs.

    `max_steps` holds where the graph does not say its own. Raises ExecutionClosedError when the execution
    is over, NotFoundError for an unknown workflow or an unknown or inactive client, and InvalidInputError
    for an initial context that is not JSON.
    """
    if request.public_id is None:
        workflows.get(session, request.workflow_id)  # says which one there is not
    client = clients.active(session, request.client_slug) if request.client_slug else None
    row = executions.begin(
        session,
        flow_run_id=request.flow_run_id,
        public_id=request.public_id,
        workflow_id=request.workflow_id,
        client=client,
        initial=vault.store_initial(cipher, _fragments(request.initial_context)),
    )
    if row.client_slug and client is None:
        client = clients.active(session, row.client_slug)
    opened = _open_context(session, row, cipher)
    overlay = vault.overlay(cipher, client, extra_secrets=vault.secrets_of(opened))
    if row.attempt == 1:
        _store_overlay(session, row, overlay)
    if row.version is None:  # begin pins every run; without it there is nothing to walk
        raise InvalidInputError(f"Execution {row.id} is not pinned to a version of its workflow.")
    graph = load_graph(row.version.graph)
    return LoadedRun(
        execution_id=row.id,
        attempt=row.attempt,
        workflow_slug=row.workflow.slug,
        client_slug=row.client_slug,
        graph=graph,
        max_steps=graph.max_steps or max_steps,
        visits=[Visit(node_id, branch) for node_id, branch in chain.visits(session, row.id)],
        context=opened,
        overlay=overlay,
    )


def _fragments(initial_context: Mapping[str, Any]) -> dict[str, bytes]:
    for key, value in initial_context.items():
        context.check_value(value, key)
    return context.to_fragments(initial_context)


def _open_context(session: Session, row: Execution, cipher: Cipher) -> dict[str, bytes]:
    """Read the context after the steps that succeeded so far, its sealed values decrypted."""
    digests = chain.state(session, row.id)
    loaded = values.load(session, row.id, digests.values())
    return vault.open_values(cipher, {key: loaded[digest] for key, digest in digests.items()})


def _store_overlay(session: Session, row: Execution, overlay: vault.Overlay) -> None:
    """Put what may be shown of the client's credentials into the stored initial context: nodes saw it."""
    shown = {key: values.Value(data) for key, data in context.to_fragments(overlay.public).items()}
    initial = {key: digest for key, digest in row.initial.items() if key not in overlay.keys}
    row.initial = initial | values.put(session, row.id, shown)
