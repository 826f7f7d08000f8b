"""The last value of each key of a run's context, found by PostgreSQL: the changes themselves stay there.

A key is compared as JSON escapes it. PostgreSQL's JSON functions refuse some of the characters that a key may
have (NUL, lone surrogates), so its backslashes are taken out of their sight.
"""

from __future__ import annotations

import json
from typing import Final

from sqlalchemy import ColumnElement, Integer, Select, Text, cast, func, select, type_coerce
from sqlalchemy.dialects.postgresql import ARRAY, JSON, array
from sqlalchemy.orm import Session

from flows.graphs.lifecycle import StepStatus
from flows.store.models import ChainEntry

_STAND_INS: Final = (("\\\\", "\x7f0"), ('\\"', "\x7f1"), ("\\", "\x7f2"))
"""Escapes, in the order in which they are replaced: DEL stands in no stored JSON text, which escapes it."""


def last_values(session: Session, execution_id: int, before_step: int | None = None) -> dict[str, str]:
    """Key → digest after the steps before this one (None: after all), the keys in the order they came in."""
    succeeded = ChainEntry.status == StepStatus.SUCCESS
    statement = _statement().where(ChainEntry.execution_id == execution_id, succeeded)
    if before_step is not None:
        statement = statement.where(ChainEntry.step < before_step)
    return {_key(name): digest for name, digest in session.execute(statement)}


def _statement() -> Select[tuple[str, str]]:
    pair = func.json_each_text(cast(_without_backslashes(), JSON)).table_valued(
        "key", "value", with_ordinality="ordinality", joins_implicitly=True
    )
    # Arrays are compared by their first element, here the step: as text, for the digest beside it is one.
    step = func.lpad(cast(ChainEntry.step, Text), 10, "0")
    last = func.max(array([step, pair.c.value]), type_=ARRAY(Text))
    first = func.min(array([ChainEntry.step, pair.c.ordinality]), type_=ARRAY(Integer))
    return select(pair.c.key, last[2]).group_by(pair.c.key).order_by(first)


def _without_backslashes() -> ColumnElement[str]:
    text: ColumnElement[str] = type_coerce(ChainEntry.changes, Text)
    for escape, stand_in in _STAND_INS:
        text = func.replace(text, escape, stand_in)
    return text


def _key(name: str) -> str:
    for escape, stand_in in reversed(_STAND_INS):
        name = name.replace(stand_in, escape)
    return str(json.loads(f'"{name}"'))
