"""Leases, retries and crashes of executions; idempotency keys; circuit breakers.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_COUNTERS = ("retries", "crashes", "lost_starts")
_FLAGS = ("stepping", "revoked")
_COLUMNS = (
    "lease_owner",
    "lease_until",
    "reopened_from",
    "guarded_step",
    "next_attempt_at",
    "crash_step",
    *_COUNTERS,
    *_FLAGS,
)


def upgrade() -> None:
    op.add_column("executions", sa.Column("lease_owner", sa.Uuid(), nullable=True))
    op.add_column("executions", sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True))
    op.add_column("executions", sa.Column("guarded_step", sa.Integer(), nullable=True))
    op.add_column("executions", sa.Column("next_attempt_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("executions", sa.Column("crash_step", sa.Integer(), nullable=True))
    op.add_column("executions", sa.Column("reopened_from", sa.Uuid(), nullable=True))
    # The rows that there are get the default; later ones are given their values by NOVA.
    for name in _FLAGS:
        op.add_column("executions", sa.Column(name, sa.Boolean(), nullable=False, server_default=sa.false()))
        op.alter_column("executions", name, server_default=None)
    for name in _COUNTERS:
        op.add_column("executions", sa.Column(name, sa.Integer(), nullable=False, server_default="0"))
        op.alter_column("executions", name, server_default=None)
    op.create_index(
        "ix_executions_lease_until",
        "executions",
        ["lease_until"],
        unique=False,
        postgresql_where=sa.text("lease_until IS NOT NULL"),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("digest", sa.CHAR(length=64), nullable=False),
        sa.Column("execution_id", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["execution_id"],
            ["executions.id"],
            name=op.f("fk_idempotency_keys_execution_id_executions"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_idempotency_keys")),
    )
    op.create_index(
        op.f("ix_idempotency_keys_execution_id"), "idempotency_keys", ["execution_id"], unique=False
    )
    op.create_table(
        "circuit_breakers",
        sa.Column("name", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("opened_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("retry_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("probe_until", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "state in ('closed', 'open', 'half_open')", name=op.f("ck_circuit_breakers_state")
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_circuit_breakers")),
    )


def downgrade() -> None:
    op.drop_table("circuit_breakers")
    op.drop_table("idempotency_keys")
    op.drop_index("ix_executions_lease_until", "executions")
    for name in _COLUMNS:
        op.drop_column("executions", name)
