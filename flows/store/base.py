"""What all tables share: their metadata, the clock, and the type of free-form columns.

Everything free-form is stored as ASCII JSON text, since PostgreSQL refuses NUL characters and lone surrogates
in text and in `jsonb`.
"""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import DateTime, Dialect, Enum, MetaData, Text, TypeDecorator, Uuid
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.sql.operators import OperatorType
from sqlalchemy.types import TypeEngine


def utcnow() -> datetime:
    """Now, in UTC."""
    return datetime.now(UTC)


def canonical(value: Any) -> str:
    """One text for equal JSON values, whatever the order of their keys; `1`, `1.0` and `true` differ."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"), sort_keys=True)


def word(words: type[StrEnum]) -> Enum:
    """The type of a column that holds one word of an enum, as text."""
    return Enum(
        words, native_enum=False, length=16, values_callable=lambda each: [member.value for member in each]
    )


class AsciiJson(TypeDecorator[Any]):
    """Any JSON value as ASCII text: keeps NUL, lone surrogates and huge integers, which `jsonb` refuses."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """Escape on the way in; None is SQL's NULL."""
        return None if value is None else json.dumps(value, allow_nan=False, separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        """Read back what was escaped."""
        return None if value is None else json.loads(value)

    def compare_values(self, x: Any, y: Any) -> bool:
        """Equal as JSON: Python's `1 == True` would lose a change from one to the other."""
        return canonical(x) == canonical(y)


class UtcTime(TypeDecorator[datetime]):
    """A moment, always read in UTC: PostgreSQL gives it in the time zone of the server, database or role."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert on the way out."""
        return None if value is None else value.astimezone(UTC)

    def coerce_compared_value(self, op: OperatorType | None, value: Any) -> TypeEngine[Any]:
        """What stands beside a moment may be an interval."""
        return self.impl_instance.coerce_compared_value(op, value)


class Base(DeclarativeBase):
    """Declarative base with predictable constraint names, which migrations need."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: UtcTime, uuid.UUID: Uuid}  # noqa: RUF012
