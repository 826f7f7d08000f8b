"""The lifecycle of executions: its words, the task id, and which rows there may be.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# As flows/graphs/row_states.py had them when this was written.
_RULES = {
    "status": ("status in ('pending', 'running', 'completed', 'failed', 'cancelled')"),
    "error_kind": (
        "error_kind in ('node', 'limit', 'infrastructure', 'refused', 'interrupted', 'internal', "
        "'crashed', 'cancelled', 'not_started')"
    ),
    "completed_at": ("(status in ('completed', 'failed', 'cancelled')) = (completed_at is not null)"),
    "lease": ("(lease_owner is null) = (lease_until is null)"),
    "attempt": (
        "attempt >= 0 and case status when 'pending' then attempt = 0 when 'running' then attempt > 0"
        " when 'completed' then attempt > 0 else true end"
    ),
    "begun": (
        "(attempt > 0) = (started_at is not null) and (attempt > 0 or (not stepping and sandbox_id is"
        " null and version_id is null and unrepeatable_step is null))"
    ),
    "error": (
        "case status when 'completed' then error is null and error_kind is null and failed_at_node is"
        " null when 'failed' then error is not null and error_kind is not null and error_kind in ('node',"
        " 'limit', 'infrastructure', 'refused', 'interrupted', 'internal', 'crashed') when 'cancelled' then"
        " error is not null and error_kind is not null and error_kind in ('cancelled', 'not_started') else"
        " (error is null) = (error_kind is null) and (error is null or next_attempt_at is not null) end"
    ),
    "next_attempt_at": ("next_attempt_at is null or status in ('pending', 'running')"),
    "revoked": ("not revoked or status in ('pending', 'running', 'cancelled')"),
    "not_started": ("error_kind is distinct from 'not_started' or (status = 'cancelled' and attempt = 0)"),
    "unrepeatable_step": ("unrepeatable_step is null or status <> 'completed'"),
    "crashes": ("crashes >= 0 and (crashes = 0) = (crash_step is null)"),
    "counters": ("retries >= 0 and lost_starts >= 0"),
    "current_node": ("current_node is null or status = 'running'"),
}

_OPEN = "status IN ('pending', 'running')"
_CLOSED = "status IN ('completed', 'failed', 'cancelled')"
_KINDS = (
    "('node', 'limit', 'infrastructure', 'refused', 'interrupted', 'internal', 'crashed', 'cancelled',"
    " 'not_started')"
)

# Rows of before, brought to what the rules want; a row that follows them all stays as it is.
_REPAIRS = (
    # How often it was started, and its status.
    "attempt = 0 WHERE attempt < 0",
    "status = 'running' WHERE status = 'pending' AND attempt > 0",
    "status = 'pending' WHERE status = 'running' AND attempt = 0",
    "attempt = 1 WHERE status = 'completed' AND attempt = 0",
    # Why it ended, or waits. A refused run was failed before.
    f"error_kind = 'internal' WHERE error_kind NOT IN {_KINDS}",
    f"error_kind = 'internal' WHERE error_kind = 'not_started' AND (attempt > 0 OR {_OPEN})",
    "status = 'cancelled' WHERE status = 'failed' AND error_kind = 'not_started'",
    "error_kind = 'internal' WHERE status = 'failed' AND coalesce(error_kind, 'cancelled') = 'cancelled'",
    "error_kind = 'cancelled' WHERE status = 'cancelled'"
    " AND coalesce(error_kind, '') NOT IN ('cancelled', 'not_started')",
    "error = '\"The run failed.\"' WHERE status = 'failed' AND error IS NULL",
    "error = '\"The run was cancelled.\"' WHERE status = 'cancelled' AND error IS NULL",
    "error = NULL, error_kind = NULL, failed_at_node = NULL WHERE status = 'completed'",
    f"error = NULL, error_kind = NULL WHERE {_OPEN} AND next_attempt_at IS NULL",
    f"error = '\"The last attempt failed.\"' WHERE {_OPEN} AND error IS NULL AND error_kind IS NOT NULL",
    f"error_kind = 'internal' WHERE {_OPEN} AND error IS NOT NULL AND error_kind IS NULL",
    "revoked = false WHERE status IN ('completed', 'failed')",
    # When it began and ended, where it is, and when it goes on.
    "started_at = created_at WHERE attempt > 0 AND started_at IS NULL",
    "started_at = NULL WHERE attempt = 0",
    f"completed_at = coalesce(started_at, created_at) WHERE {_CLOSED} AND completed_at IS NULL",
    f"completed_at = NULL WHERE {_OPEN}",
    f"next_attempt_at = NULL WHERE {_CLOSED}",
    "current_node = NULL WHERE status <> 'running'",
    # What attempts left in it.
    "stepping = false, sandbox_id = NULL, unrepeatable_step = NULL, version_id = NULL WHERE attempt = 0",
    "unrepeatable_step = NULL WHERE status = 'completed'",
    "crashes = 0 WHERE crashes < 0 OR crash_step IS NULL",
    "crash_step = NULL WHERE crashes = 0",
    "retries = greatest(retries, 0), lost_starts = greatest(lost_starts, 0)"
    " WHERE retries < 0 OR lost_starts < 0",
    # Who has it.
    "lease_owner = NULL, lease_until = NULL WHERE lease_owner IS NULL OR lease_until IS NULL",
)


def upgrade() -> None:
    op.alter_column("executions", "guarded_step", new_column_name="unrepeatable_step")
    op.add_column("executions", sa.Column("task_id", sa.Uuid(), nullable=True))
    op.execute("UPDATE executions SET task_id = flow_run_id")
    op.create_unique_constraint(op.f("uq_executions_task_id"), "executions", ["task_id"])
    for repair in _REPAIRS:
        op.execute(f"UPDATE executions SET {repair}")
    op.drop_constraint(op.f("ck_executions_status"), "executions")
    for name, rule in _RULES.items():
        op.create_check_constraint(op.f(f"ck_executions_{name}"), "executions", rule)


def downgrade() -> None:
    for name in _RULES:
        op.drop_constraint(op.f(f"ck_executions_{name}"), "executions")
    op.create_check_constraint(
        op.f("ck_executions_status"),
        "executions",
        "status in ('pending', 'running', 'completed', 'failed', 'cancelled')",
    )
    op.execute("UPDATE executions SET status = 'failed' WHERE error_kind = 'not_started'")
    op.drop_constraint(op.f("uq_executions_task_id"), "executions")
    op.drop_column("executions", "task_id")
    op.alter_column("executions", "unrepeatable_step", new_column_name="guarded_step")
