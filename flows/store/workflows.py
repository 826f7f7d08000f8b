"""Workflows and the versions of their graphs.

A workflow's `current` (its current WorkflowVersion) is loaded on every Workflow that this module returns,
except where a function says that it reads no graph: graphs may be large.
"""

from __future__ import annotations

import re
import unicodedata
import uuid
from typing import Any, TypedDict, Unpack

from sqlalchemy import Select, func, or_, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, joinedload

from flows.graphs.errors import ConflictError, NotFoundError
from flows.store import checks
from flows.store.base import canonical, utcnow
from flows.store.database import constraint
from flows.store.models import Workflow, WorkflowVersion

_SLUG_LENGTH = 60
_SLUG_ENDING = 8
"""Characters that the number of a taken name, and the hyphens before it, may take of it."""
_SLUG_LOCK = 0x534C5547  # "SLUG": workflows are made one after the other, so that slugs are unique


class WorkflowFields(TypedDict, total=False):
    """What of a workflow can be changed."""

    name: str
    description: str | None
    graph: dict[str, Any]
    priority: str
    max_concurrent_runs: int | None
    overlap: str


def create(
    session: Session,
    *,
    name: str,
    graph: dict[str, Any],
    description: str | None = None,
    priority: str = "normal",
    max_concurrent_runs: int | None = None,
    overlap: str = "queue",
) -> Workflow:
    """Make a workflow with the graph as its version 1, and a slug from its name.

    Raises ConflictError when the name is taken, InvalidInputError for what no column takes. The graph is
    taken as valid.
    """
    workflow = Workflow(description=description, version=1)
    _assign(
        workflow,
        {"name": name, "priority": priority, "max_concurrent_runs": max_concurrent_runs, "overlap": overlap},
    )
    session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _SLUG_LOCK})
    workflow.slug = _free_slug(session, slugify(name))
    session.add(workflow)
    _flush(session, name)
    session.add(WorkflowVersion(workflow_id=workflow.id, number=1, graph=graph))
    session.flush()
    return get(session, workflow.id)


def get(session: Session, workflow_id: int) -> Workflow:
    """One workflow. Raises NotFoundError."""
    session.flush()  # `populate_existing` would throw away what is not written yet
    found = session.scalars(_select().where(Workflow.id == workflow_id)).one_or_none()
    if found is None:
        raise NotFoundError(f"There is no workflow {workflow_id}.")
    return found


def without_graph(session: Session, workflow_id: int) -> Workflow:
    """One workflow whose graph is not read. Raises NotFoundError."""
    return _bare(session, workflow_id, select(Workflow))


def locked(session: Session, workflow_id: int) -> Workflow:
    """One workflow, ours to change until the transaction ends; no graph is read. Raises NotFoundError.

    Runs of it can be made meanwhile: they only need it to stay.
    """
    return _bare(session, workflow_id, select(Workflow).with_for_update(key_share=True))


def find(session: Session, slug_or_name: str) -> Workflow | None:
    """The workflow with that slug, else the one with that name, else None."""
    if not checks.is_plain(slug_or_name):
        return None
    either = or_(Workflow.slug == slug_or_name, Workflow.name == slug_or_name)
    found = session.scalars(_select().where(either)).all()
    return min(found, key=lambda workflow: workflow.slug != slug_or_name, default=None)


def list_(session: Session, skip: int = 0, limit: int = 100) -> tuple[list[Workflow], int]:
    """A page of the workflows, oldest first, and how many there are in all."""
    return _page(session, _select(), skip, limit)


def list_without_graphs(session: Session, skip: int = 0, limit: int = 100) -> tuple[list[Workflow], int]:
    """As `list_`, but no graph is read."""
    return _page(session, select(Workflow), skip, limit)


def ids(session: Session) -> list[int]:
    """The ids of all workflows, oldest first."""
    return list(session.scalars(select(Workflow.id).order_by(Workflow.id)))


def deployments(session: Session) -> dict[int, uuid.UUID | None]:
    """The deployment of each workflow in Prefect, by the workflow's id; None while it has none."""
    rows = session.execute(select(Workflow.id, Workflow.deployment_id).order_by(Workflow.id))
    return dict(rows.tuples().all())


def update(session: Session, workflow_id: int, **fields: Unpack[WorkflowFields]) -> Workflow:
    """Change the fields given. A changed graph becomes a new version, an equal one (as JSON) does not.

    Raises NotFoundError, ConflictError when the name is taken, InvalidInputError for what no column takes.
    """
    workflow = locked(session, workflow_id)
    graph = fields.pop("graph", None)
    number = _next_version(session, workflow, graph) if graph is not None else None
    # From here on nothing is read before the flush: a query would write, and fail where nobody expects it.
    _assign(workflow, fields)
    if number is not None:
        workflow.version = number
        session.add(WorkflowVersion(workflow_id=workflow_id, number=number, graph=graph))
    if session.is_modified(workflow):
        workflow.updated_at = utcnow()
    _flush(session, workflow.name)
    return get(session, workflow_id)


def set_deployment(session: Session, workflow_id: int, deployment_id: uuid.UUID | None) -> None:
    """Note which deployment of Prefect runs the workflow. Raises NotFoundError."""
    locked(session, workflow_id).deployment_id = deployment_id


def delete(session: Session, workflow_id: int) -> None:
    """Delete the workflow with its versions, schedules, executions and their chains. Raises NotFoundError."""
    session.delete(locked(session, workflow_id))
    session.flush()


def version(session: Session, version_id: int) -> WorkflowVersion:
    """One version of a graph. Raises NotFoundError."""
    found = session.get(WorkflowVersion, version_id)
    if found is None:
        raise NotFoundError(f"There is no workflow version {version_id}.")
    return found


def slugify(name: str) -> str:
    """The name as 1 to 60 lowercase ASCII letters, digits and hyphens: `Factura nº 1` → `factura-no-1`."""
    ascii_only = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^a-z0-9]+", "-", ascii_only.lower()).strip("-")
    return slug[:_SLUG_LENGTH].strip("-") or "workflow"


def _free_slug(session: Session, base: str) -> str:
    stem = base[: _SLUG_LENGTH - _SLUG_ENDING]  # what even a shortened slug begins with
    taken = set(session.scalars(select(Workflow.slug).where(Workflow.slug.startswith(stem, autoescape=True))))
    slug, number = base, 1
    while slug in taken:
        number += 1
        ending = f"-{number}"
        slug = base[: _SLUG_LENGTH - len(ending)].rstrip("-") + ending
    return slug


def _select() -> Select[tuple[Workflow]]:
    return select(Workflow).options(joinedload(Workflow.current)).execution_options(populate_existing=True)


def _bare(session: Session, workflow_id: int, statement: Select[tuple[Workflow]]) -> Workflow:
    session.flush()  # as in `get`
    which = statement.where(Workflow.id == workflow_id).execution_options(populate_existing=True)
    found = session.scalars(which).one_or_none()
    if found is None:
        raise NotFoundError(f"There is no workflow {workflow_id}.")
    return found


def _page(
    session: Session, statement: Select[tuple[Workflow]], skip: int, limit: int
) -> tuple[list[Workflow], int]:
    page = session.scalars(statement.order_by(Workflow.id).offset(skip).limit(limit)).all()
    return list(page), session.scalar(select(func.count()).select_from(Workflow)) or 0


def _next_version(session: Session, workflow: Workflow, graph: dict[str, Any]) -> int | None:
    """The number that a graph gets as a new version; None where it equals the current one, as JSON."""
    versions = WorkflowVersion.workflow_id == workflow.id
    current = select(WorkflowVersion.graph).where(versions, WorkflowVersion.number == workflow.version)
    if canonical(graph) == canonical(session.scalars(current).one()):
        return None
    return session.scalars(select(func.max(WorkflowVersion.number)).where(versions)).one() + 1


def _assign(workflow: Workflow, fields: WorkflowFields) -> None:
    if "name" in fields:
        workflow.name = checks.plain("name", fields["name"], 255)
    if "description" in fields:
        workflow.description = fields["description"]
    if "priority" in fields:
        workflow.priority = checks.one_of("priority", fields["priority"], checks.PRIORITIES)
    if "overlap" in fields:
        workflow.overlap = checks.one_of("overlap", fields["overlap"], checks.OVERLAPS)
    if "max_concurrent_runs" in fields:
        limit = fields["max_concurrent_runs"]
        if limit is not None and not 1 <= limit < 2**31:
            raise checks.invalid("max_concurrent_runs", "must be at least 1")
        workflow.max_concurrent_runs = limit


def _flush(session: Session, name: str) -> None:
    try:
        session.flush()
    except IntegrityError as error:
        if constraint(error) == "uq_workflows_name":
            raise ConflictError(f"There is a workflow named {name!r} already.") from None
        raise
