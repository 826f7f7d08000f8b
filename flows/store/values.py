"""Values of the contexts: each once per execution, under the hash of its bytes.

A step that leaves a value as it was, an attempt that repeats it and a loop that brings it back cost nothing.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from sqlalchemy import Row, Select, delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from flows.store.models import ContextValue

SHOWN_SEALED = b'"***"'
"""What stands in an answer for a sealed value: JSON text."""

_WORTH = 0.95
"""Compressed only when that saves 5 %: less is not worth the time of unpacking it."""
_SMALL = 64
"""Bytes below which compression cannot pay."""
AHEAD = 256
"""The most values that are loaded before they are asked for; none is larger than `AHEAD_EACH`."""
AHEAD_EACH = 16 * 1024
"""Bytes, as they are stored."""
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


def forget(session: Session, execution_id: int, digests: Collection[str]) -> None:
    """Delete values of an execution that nothing of it refers to any more."""
    session.execute(
        delete(ContextValue).where(
            ContextValue.execution_id == execution_id, ContextValue.digest.in_(digests)
        )
    )


def load(session: Session, execution_id: int, digests: Iterable[str]) -> dict[str, Value]:
    """Digest → value, unpacked, for those of the digests that the execution holds."""
    wanted = set(digests)
    return (
        {row.digest: _unpacked(row) for row in session.execute(_rows(execution_id, wanted))} if wanted else {}
    )


def load_ahead(session: Session, execution_id: int, digests: Iterable[str], most: int) -> dict[str, Value]:
    """As `load`, but only small values of the first few, and no more when they come to `most` bytes."""
    wanted = set(islice(digests, AHEAD))
    found: dict[str, Value] = {}
    if not wanted:
        return found
    small = _rows(execution_id, wanted).where(func.octet_length(ContextValue.data) <= AHEAD_EACH)
    for row in session.execute(small):
        found[row.digest] = _unpacked(row)
        most -= len(found[row.digest].data)
        if most <= 0:  # what is packed small may be large
            break
    return found


def _rows(execution_id: int, digests: Collection[str]) -> Select[tuple[str, bytes, bool, bool]]:
    return select(ContextValue.digest, ContextValue.data, ContextValue.compressed, ContextValue.sealed).where(
        ContextValue.execution_id == execution_id, ContextValue.digest.in_(digests)
    )


def _unpacked(row: Row[tuple[str, bytes, bool, bool]]) -> Value:
    return Value(zlib.decompress(row.data) if row.compressed else bytes(row.data), row.sealed)


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
