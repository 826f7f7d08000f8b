"""Idempotency keys: a client that asks again with the same key gets the run that it has already."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from flows.store import checks
from flows.store.database import now
from flows.store.models import IdempotencyKey

KEPT: Final = timedelta(hours=24)
"""How long a key stands for its run; afterwards it is free for another."""


def put(session: Session, key: str, digest: str, execution_id: int) -> bool:
    """Note which request (`digest`: SHA-256, hexadecimal) and run a key stands for.

    Of two callers with the same key at once, one waits for the other's transaction. False when the key is
    taken: `find` says for which run, and a caller that has made a run rolls it back. Raises InvalidInputError
    for a key that is empty, longer than 255 characters or not plain text.
    """
    row = {
        "key": checks.plain("Idempotency-Key", key, 255),
        "digest": digest,
        "execution_id": execution_id,
        "created_at": now(),
    }
    statement = (
        insert(IdempotencyKey)
        .values(row)
        .on_conflict_do_update(index_elements=[IdempotencyKey.key], set_=row, where=~_is_kept())
        .returning(IdempotencyKey.key)
    )
    return session.scalar(statement) is not None


def move(session: Session, key: str, from_id: int, to_id: int) -> bool:
    """Let a key stand for another run, for a day from now, since its first run was never started.

    False where the key stands for another run already.
    """
    moved = (
        update(IdempotencyKey)
        .where(IdempotencyKey.key == key, IdempotencyKey.execution_id == from_id)
        .values(execution_id=to_id, created_at=now())
        .returning(IdempotencyKey.key)
    )
    return session.scalar(moved) is not None


def find(session: Session, key: str) -> IdempotencyKey | None:
    """What a key stands for; None where it stands for nothing, or nothing any more."""
    if not checks.is_plain(key):
        return None
    return session.scalars(
        select(IdempotencyKey)
        .where(IdempotencyKey.key == key, _is_kept())
        .execution_options(populate_existing=True)
    ).one_or_none()


def _is_kept() -> ColumnElement[bool]:
    return IdempotencyKey.created_at > now() - KEPT
