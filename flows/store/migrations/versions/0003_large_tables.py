"""Ids of chain entries in 64 bits, for of these rows there are most; an index of the runs that are not over.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.alter_column("chain_entries", "id", type_=sa.BigInteger(), existing_type=sa.Integer())
    op.execute("ALTER SEQUENCE chain_entries_id_seq AS bigint")  # it stays at 32 bits by itself
    op.create_index(
        "ix_executions_live",
        "executions",
        ["id"],
        unique=False,
        postgresql_where=sa.text("status in ('pending', 'running')"),
    )


def downgrade() -> None:
    op.drop_index("ix_executions_live", "executions")
    op.execute("ALTER SEQUENCE chain_entries_id_seq AS integer")
    op.alter_column("chain_entries", "id", type_=sa.Integer(), existing_type=sa.BigInteger())
