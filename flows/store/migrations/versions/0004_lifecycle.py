"""The lifecycle of executions: its words.

Revision ID: 0004
Revises: 0002
"""

from alembic import op

revision = "0004"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.alter_column("executions", "guarded_step", new_column_name="unrepeatable_step")


def downgrade() -> None:
    op.alter_column("executions", "unrepeatable_step", new_column_name="guarded_step")
