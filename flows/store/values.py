"""Values of the contexts: each once per execution, under the hash of its bytes.

A step that leaves a value as it was, an attempt that repeats it and a loop that brings it back cost nothing.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from flows.store.models import ContextValue

SHOWN_SEALED = b'"***"'
"""What stands in an answer for a sealed value: JSON text."""

_WORTH = 0.95
"""Compressed only when that saves 5 %: less is not worth the time of unpacking it."""
_SMALL = 64
"""Bytes below which compression cannot pay."""
_BATCH = 1024 * 1024
"""Bytes per INSERT, a single larger value apart: psycopg2 writes the statement out, twice the size."""


@dataclass(frozen=True)
class Value:
    """One value of a context: ASCII JSON text, or a ciphertext of it when `sealed`."""

    data: bytes
    sealed: bool = False

    @cached_property
    def digest(self) -> str:
        """SHA-256 of `data`, in hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()

    def __repr__(self) -> str:
        return f"Value({len(self.data)} bytes{', sealed' if self.sealed else ''})"


Stored = Mapping[str, Value]
"""A context, or the changes of one, as it is stored: key → value."""


def put(session: Session, execution_id: int, stored: Stored) -> dict[str, str]:
    """Store what this execution does not hold yet; returns key → digest.

    Only new values travel to PostgreSQL: a PDF that came back unchanged is hashed and no more.
    """
    digests = {key: value.digest for key, value in stored.items()}
    fresh = {digests[key]: value for key, value in stored.items()}
    if not fresh:
        return {}
    held = select(ContextValue.digest).where(
        ContextValue.execution_id == execution_id, ContextValue.digest.in_(fresh)
    )
    for digest in session.scalars(held).all():
        del fresh[digest]
    for batch in _batches(execution_id, fresh):
        session.execute(insert(ContextValue).on_conflict_do_nothing(), batch)
    return digests


def load(session: Session, execution_id: int, digests: Iterable[str]) -> dict[str, Value]:
    """Digest → value, unpacked, for those of the digests that the execution holds."""
    wanted = set(digests)
    if not wanted:
        return {}
    rows = session.execute(
        select(ContextValue.digest, ContextValue.data, ContextValue.compressed, ContextValue.sealed).where(
            ContextValue.execution_id == execution_id, ContextValue.digest.in_(wanted)
        )
    )
    return {
        digest: Value(zlib.decompress(data) if compressed else bytes(data), sealed)
        for digest, data, compressed, sealed in rows
    }


def _batches(execution_id: int, fresh: Mapping[str, Value]) -> Iterator[list[dict[str, object]]]:
    batch: list[dict[str, object]] = []
    size = 0
    for digest, value in fresh.items():
        data, compressed = _packed(value.data)
        if batch and size + len(data) > _BATCH:
            yield batch
            batch, size = [], 0
        batch.append(
            {
                "execution_id": execution_id,
                "digest": digest,
                "data": data,
                "compressed": compressed,
                "sealed": value.sealed,
            }
        )
        size += len(data)
    if batch:
        yield batch


def _packed(data: bytes) -> tuple[bytes, bool]:
    if len(data) < _SMALL:
        return data, False
    packed = zlib.compress(data, level=1)
    return (packed, True) if len(packed) <= len(data) * _WORTH else (data, False)
