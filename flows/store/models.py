"""The tables. Nothing is loaded by accident (`lazy="raise"`)."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import (
    CHAR,
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    LargeBinary,
    String,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column, relationship

from flows.graphs import row_states
from flows.graphs.lifecycle import LIVE, ErrorKind, Status, StepStatus
from flows.store.base import AsciiJson, Base, utcnow, word
from flows.store.base import canonical as canonical


class Workflow(Base):
    """A workflow: what stays the same while its graph goes through versions."""

    __tablename__ = "workflows"
    __table_args__ = (
        CheckConstraint("priority in ('high', 'normal', 'low')", name="priority"),
        CheckConstraint("overlap in ('queue', 'skip')", name="overlap"),
        CheckConstraint("max_concurrent_runs >= 1", name="max_concurrent_runs"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(255), unique=True)
    slug: Mapped[str] = mapped_column(String(255), unique=True)
    """Name of its deployment: made from the first name, once."""
    description: Mapped[str | None] = mapped_column(AsciiJson)
    priority: Mapped[str] = mapped_column(String(8), default="normal")
    max_concurrent_runs: Mapped[int | None]
    overlap: Mapped[str] = mapped_column(String(8), default="queue")
    """What happens to a run past `max_concurrent_runs`: it waits (queue) or is cancelled (skip)."""
    version: Mapped[int] = mapped_column(default=1)
    """Number of the current version of the graph."""
    deployment_id: Mapped[uuid.UUID | None]
    created_at: Mapped[datetime] = mapped_column(default=utcnow)
    updated_at: Mapped[datetime] = mapped_column(default=utcnow)

    current: Mapped[WorkflowVersion] = relationship(
        primaryjoin=(
            "and_(Workflow.id == foreign(WorkflowVersion.workflow_id),"
            " Workflow.version == foreign(WorkflowVersion.number))"
        ),
        viewonly=True,
        uselist=False,
        lazy="raise",
    )


class WorkflowVersion(Base):
    """One immutable version of a workflow's graph."""

    __tablename__ = "workflow_versions"
    __table_args__ = (UniqueConstraint("workflow_id", "number"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    workflow_id: Mapped[int] = mapped_column(ForeignKey("workflows.id", ondelete="CASCADE"))
    number: Mapped[int]
    graph: Mapped[dict[str, Any]] = mapped_column(AsciiJson)
    """The graph exactly as it was given, unknown fields and all."""
    created_at: Mapped[datetime] = mapped_column(default=utcnow)


class Schedule(Base):
    """A cron schedule set over the API or the CLI; its twin in Prefect has the slug `nova-<id>`."""

    __tablename__ = "schedules"

    id: Mapped[int] = mapped_column(primary_key=True)
    workflow_id: Mapped[int] = mapped_column(ForeignKey("workflows.id", ondelete="CASCADE"), index=True)
    cron: Mapped[str] = mapped_column(String(255))
    timezone: Mapped[str] = mapped_column(String(64), default="UTC")
    parameters: Mapped[dict[str, Any]] = mapped_column(AsciiJson, default=dict)
    active: Mapped[bool] = mapped_column(default=True)
    created_at: Mapped[datetime] = mapped_column(default=utcnow)
    updated_at: Mapped[datetime] = mapped_column(default=utcnow)


class Client(Base):
    """A company whose mail and data the workflows handle."""

    __tablename__ = "clients"

    id: Mapped[int] = mapped_column(primary_key=True)
    slug: Mapped[str] = mapped_column(String(64), unique=True)
    name: Mapped[str] = mapped_column(String(255))
    active: Mapped[bool] = mapped_column(default=True)
    created_at: Mapped[datetime] = mapped_column(default=utcnow)
    updated_at: Mapped[datetime] = mapped_column(default=utcnow)

    credentials: Mapped[list[Credential]] = relationship(
        lazy="raise", passive_deletes=True, order_by="Credential.id", cascade="all, delete-orphan"
    )


class Credential(Base):
    """One set of credentials of a client: what is secret in it is a ciphertext."""

    __tablename__ = "credentials"
    __table_args__ = (
        UniqueConstraint("client_id", "kind", "label"),
        CheckConstraint("kind in ('email', 'database')", name="kind"),
        Index(
            "uq_credentials_primary", "client_id", "kind", unique=True, postgresql_where=text("is_primary")
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    client_id: Mapped[int] = mapped_column(ForeignKey("clients.id", ondelete="CASCADE"))
    kind: Mapped[str] = mapped_column(String(16))
    label: Mapped[str] = mapped_column(String(64))
    is_primary: Mapped[bool]
    public: Mapped[dict[str, Any]] = mapped_column(AsciiJson)
    """The fields that may be shown: hosts, ports, user names."""
    secret: Mapped[bytes] = mapped_column(LargeBinary)
    """The fields that may not, as one Fernet token of their JSON."""
    created_at: Mapped[datetime] = mapped_column(default=utcnow)
    updated_at: Mapped[datetime] = mapped_column(default=utcnow)


class Execution(Base):
    """One run of a workflow: the row decides, whatever Prefect thinks."""

    __tablename__ = "executions"
    __table_args__ = (
        *(CheckConstraint(rule, name=name) for name, rule in row_states.RULES.items()),
        CheckConstraint("priority in ('high', 'normal', 'low')", name="priority"),
        Index("ix_executions_workflow_id_id", "workflow_id", "id"),
        Index("ix_executions_status_id", "status", "id"),
        Index("ix_executions_status_completed_at", "status", "completed_at"),
        Index("ix_executions_workflow_id_status_id", "workflow_id", "status", "id"),
        Index("ix_executions_created_at", "created_at"),
        Index("ix_executions_version_id", "version_id"),
        Index("ix_executions_client_id", "client_id"),
        # Closed rows are nearly all, and who looks for those that are not over need not see them.
        Index("ix_executions_live", "id", postgresql_where=text(f"status in {row_states.in_words(LIVE)}")),
        Index("ix_executions_lease_until", "lease_until", postgresql_where=text("lease_until IS NOT NULL")),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    public_id: Mapped[uuid.UUID] = mapped_column(unique=True, default=uuid.uuid4)
    """What the API hands to Prefect: parameter and idempotency key of the flow run."""
    flow_run_id: Mapped[uuid.UUID | None] = mapped_column(unique=True)
    """Prefect's id of the run."""
    task_id: Mapped[uuid.UUID | None] = mapped_column(unique=True)
    """The contract's task id: the first flow run's id, which stays when Prefect loses that one."""
    workflow_id: Mapped[int] = mapped_column(ForeignKey("workflows.id", ondelete="CASCADE"))
    version_id: Mapped[int | None] = mapped_column(ForeignKey("workflow_versions.id", ondelete="CASCADE"))
    """The version that the run is pinned to since its first start."""
    client_id: Mapped[int | None] = mapped_column(ForeignKey("clients.id", ondelete="SET NULL"))
    client_slug: Mapped[str | None] = mapped_column(String(64))
    priority: Mapped[str] = mapped_column(String(8), default="normal")
    status: Mapped[Status] = mapped_column(word(Status), default=Status.PENDING)
    initial: Mapped[dict[str, str]] = mapped_column(AsciiJson, default=dict)
    """The context that the run started with: key → hash of its value."""
    error: Mapped[str | None] = mapped_column(AsciiJson)
    error_kind: Mapped[ErrorKind | None] = mapped_column(word(ErrorKind))
    failed_at_node: Mapped[str | None] = mapped_column(AsciiJson)
    current_node: Mapped[str | None] = mapped_column(AsciiJson)
    attempt: Mapped[int] = mapped_column(default=0)
    """How often the run was started."""
    sandbox_id: Mapped[str | None] = mapped_column(String(255))
    lease_owner: Mapped[uuid.UUID | None]
    """The only process that may write what becomes of the run: see `leases`."""
    lease_until: Mapped[datetime | None]
    """When anybody else may take it; by the database's clock."""
    stepping: Mapped[bool] = mapped_column(default=False)
    """Whether a node of this attempt may have been started."""
    unrepeatable_step: Mapped[int | None]
    """The step whose node must not be started again (`on_interrupt: fail`): it was started, and has not
    succeeded."""
    retries: Mapped[int] = mapped_column(default=0)
    """How often its next attempt was scheduled because infrastructure broke."""
    next_attempt_at: Mapped[datetime | None]
    """When the next attempt of a run that waits for it, or that a person retried, is due."""
    crashes: Mapped[int] = mapped_column(default=0)
    """How often in a row its process died at `crash_step`, without a step that succeeded in between."""
    crash_step: Mapped[int | None]
    lost_starts: Mapped[int] = mapped_column(default=0)
    """How many attempts in a row ended before a node was started."""
    revoked: Mapped[bool] = mapped_column(default=False)
    """Whether somebody was told that it is cancelled while it still ran: then it ends as cancelled."""
    reopened_from: Mapped[uuid.UUID | None]
    """The state in Prefect from which a person last retried the run over the API, or by which they retried it
    in Prefect. While the flow run has that state still, and it is final, Prefect has not heard of the
    retry."""
    created_at: Mapped[datetime] = mapped_column(default=utcnow)
    started_at: Mapped[datetime | None]
    completed_at: Mapped[datetime | None]

    workflow: Mapped[Workflow] = relationship(lazy="raise")
    version: Mapped[WorkflowVersion | None] = relationship(lazy="raise")


class ChainEntry(Base):
    """One attempt of one step: a row of the Chain of Work."""

    __tablename__ = "chain_entries"
    __table_args__ = (
        UniqueConstraint("execution_id", "step", "attempt"),
        # A step succeeds once: the database refuses a second row that says so.
        Index(
            "uq_chain_entries_success",
            "execution_id",
            "step",
            unique=True,
            postgresql_where=text(f"status = '{StepStatus.SUCCESS}'"),
        ),
        CheckConstraint(f"status in {row_states.in_words(StepStatus)}", name="status"),
        CheckConstraint("node_type in ('start', 'action', 'decision', 'end')", name="node_type"),
    )

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    execution_id: Mapped[int] = mapped_column(ForeignKey("executions.id", ondelete="CASCADE"))
    step: Mapped[int]
    """Place in the run, from 0; a loop that comes back to a node is a new step."""
    attempt: Mapped[int]
    node_id: Mapped[str] = mapped_column(AsciiJson)
    node_type: Mapped[str] = mapped_column(String(8))
    status: Mapped[str] = mapped_column(String(8))
    timestamp: Mapped[datetime] = mapped_column(default=utcnow)
    execution_time: Mapped[float] = mapped_column(default=0.0)
    """Seconds."""
    changes: Mapped[dict[str, str]] = mapped_column(AsciiJson, default=dict)
    """The keys that the node changed: key → hash of the new value."""
    decision_result: Mapped[str | None] = mapped_column(AsciiJson)
    path_taken: Mapped[str | None] = mapped_column(AsciiJson)
    error_type: Mapped[str | None] = mapped_column(AsciiJson)
    error_message: Mapped[str | None] = mapped_column(AsciiJson)
    traceback: Mapped[str | None] = mapped_column(AsciiJson)
    stdout: Mapped[str] = mapped_column(AsciiJson, default="")
    stderr: Mapped[str] = mapped_column(AsciiJson, default="")


class ContextValue(Base):
    """A value of a run's contexts, once for however many steps hold it, under the hash of its JSON text."""

    __tablename__ = "context_values"

    execution_id: Mapped[int] = mapped_column(
        ForeignKey("executions.id", ondelete="CASCADE"), primary_key=True
    )
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    """SHA-256, hexadecimal, of `data` before compression (of the ciphertext where it is sealed)."""
    data: Mapped[bytes] = mapped_column(LargeBinary)
    compressed: Mapped[bool]
    sealed: Mapped[bool] = mapped_column(default=False)
    """Encrypted, because it contains a secret: shown as `***`, opened only for a sandbox."""


class IdempotencyKey(Base):
    """The key that a client sent with a request, so that the same request makes no second run."""

    __tablename__ = "idempotency_keys"

    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    digest: Mapped[str] = mapped_column(CHAR(64))
    """SHA-256, hexadecimal, of the request."""
    execution_id: Mapped[int] = mapped_column(ForeignKey("executions.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime]


class CircuitBreaker(Base):
    """Whether all workers leave a service alone for a while; no row: it is closed, they use it."""

    __tablename__ = "circuit_breakers"
    __table_args__ = (CheckConstraint("state in ('closed', 'open', 'half_open')", name="state"),)

    name: Mapped[str] = mapped_column(String(16), primary_key=True)
    state: Mapped[str] = mapped_column(String(16))
    failures: Mapped[int]
    """Since the last success."""
    opened_at: Mapped[datetime | None]
    retry_at: Mapped[datetime | None]
    """When one caller may try whether the service works again."""
    probe_until: Mapped[datetime | None]
    """Until when that caller is waited for."""
