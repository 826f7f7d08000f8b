"""Alembic's entry: runs the scripts in the transaction that `flows.store.migrations` has begun."""

from alembic import context

from flows.store.base import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
