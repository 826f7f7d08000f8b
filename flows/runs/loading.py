"""What a flow run needs before its first node, read in one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import starmap
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from flows.config.settings import Settings
from flows.credentials import vault
from flows.credentials.cipher import Cipher
from flows.credentials.overlay import Overlay
from flows.graphs import json_values
from flows.graphs.errors import InvalidInputError, LimitError
from flows.graphs.graph import Graph, load_graph
from flows.graphs.traversal import Visit
from flows.store import chain, clients, values, workflows
from flows.store.leases import Lease
from flows.store.models import Execution
from flows.store.transitions import attempts


@dataclass(frozen=True)
class RunRequest:
    """What a flow run was started with."""

    flow_run_id: UUID
    public_id: UUID | None
    """The execution's, where the API made one."""
    workflow_id: int
    client_slug: str | None = None
    initial_context: Mapping[str, Any] = field(default_factory=dict)
    """This and the client count where the API made no execution."""


@dataclass(frozen=True)
class LoadedRun:
    """A run that was taken over, with everything that it needs."""

    lease: Lease
    public_id: UUID
    attempt: int
    retries: int
    """How many retries it has used because infrastructure broke."""
    tries: int
    """Rows that its next step has already, of tries that failed."""
    unrepeatable_step: int | None
    """The step whose node may not be started: it was, and nobody knows what became of it."""
    stale_sandbox: str | None
    """The sandbox of an earlier attempt: to be dead before a node starts."""
    workflow_slug: str
    client_slug: str | None
    graph: Graph
    max_steps: int
    visits: Sequence[Visit]
    """The steps that succeeded in earlier attempts, in order."""
    context: dict[str, bytes]
    """The context after those steps as fragments, opened: it goes to the sandbox, and then is emptied."""
    overlay: Overlay
    context_limit: int
    """Bytes that the context may have."""

    @property
    def execution_id(self) -> int:
        """Id of the execution."""
        return self.lease.execution_id

    @property
    def name(self) -> str:
        """Name of the flow run."""
        return " ".join(filter(None, (self.workflow_slug, f"#{self.execution_id}", self.client_slug)))

    @property
    def tags(self) -> list[str]:
        """Tags of the flow run."""
        client = [f"client:{self.client_slug}"] if self.client_slug else []
        return [f"workflow:{self.workflow_slug}", *client]


def load_run(
    session: Session, request: RunRequest, lease: Lease | None, cipher: Cipher, settings: Settings
) -> LoadedRun:
    """Begin an attempt of the run whose lease was taken, and read what its next node needs.

    Raises ExecutionClosedError when the execution is over, NotFoundError for an unknown workflow or an
    unknown or inactive client, LimitError for a context that is too large, and InvalidInputError for an
    initial context that is not JSON.
    """
    if request.public_id is None:
        workflows.without_graph(session, request.workflow_id)  # raises NotFoundError with the workflow's id
    client = clients.active(session, request.client_slug) if request.client_slug else None
    row = attempts.begin(
        session,
        lease,
        flow_run_id=request.flow_run_id,
        public_id=request.public_id,
        workflow_id=request.workflow_id,
        client=client,
        initial=vault.store_initial(cipher, _fragments(request.initial_context)),
    )
    if row.client_slug and client is None:
        client = clients.active(session, row.client_slug)
    opened = open_context(session, row.id, cipher)
    check_size(starmap(json_values.size_of, opened.items()), settings.context_limit)
    overlay = vault.overlay(cipher, client, extra_secrets=vault.secrets_of(opened))
    if row.attempt == 1:
        _store_overlay(session, row, overlay)
    # `begin` pins every run and wants a lease: this cannot be.
    if lease is None or row.version is None:
        raise InvalidInputError(f"Execution {row.id} is not pinned to a version of its workflow.")
    graph = load_graph(row.version.graph)
    visits = [Visit(node_id, branch) for node_id, branch in chain.visits(session, row.id)]
    return LoadedRun(
        lease=lease,
        public_id=row.public_id,
        attempt=row.attempt,
        retries=row.retries,
        tries=chain.next_attempt(session, row.id, len(visits)) - 1,
        unrepeatable_step=row.unrepeatable_step,
        stale_sandbox=row.sandbox_id,
        workflow_slug=row.workflow.slug,
        client_slug=row.client_slug,
        graph=graph,
        max_steps=graph.max_steps or settings.max_steps,
        visits=visits,
        context=opened,
        overlay=overlay,
        context_limit=settings.context_limit,
    )


def open_context(session: Session, execution_id: int, cipher: Cipher) -> dict[str, bytes]:
    """Read the context after the steps that succeeded so far, its sealed values decrypted."""
    digests = chain.state(session, execution_id)
    loaded = values.load(session, execution_id, digests.values())
    return vault.open_values(cipher, {key: loaded[digest] for key, digest in digests.items()})


def check_size(sizes: Iterable[int], limit: int) -> None:
    """Raise LimitError when the sizes of a context's keys, by `size_of`, come to more than `limit` bytes."""
    if (total := sum(sizes)) > limit:
        raise LimitError(
            f"The context has {total:,} bytes; a run's may have {limit:,} (NOVA_CONTEXT_LIMIT). "
            "Keep large files elsewhere and pass on where they are."
        )


def _fragments(initial_context: Mapping[str, Any]) -> dict[str, bytes]:
    for key, value in initial_context.items():
        json_values.check_value(value, key)
    return json_values.to_fragments(initial_context)


def _store_overlay(session: Session, row: Execution, overlay: Overlay) -> None:
    """Add the public fields of the client's credentials to the stored initial context: nodes see them."""
    shown = {key: values.Value(data) for key, data in json_values.to_fragments(overlay.public).items()}
    initial = {key: digest for key, digest in row.initial.items() if key not in overlay.keys}
    row.initial = initial | values.put(session, row.id, shown)
