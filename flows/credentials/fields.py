"""The fields of credentials by their contract names: which are secret, which values they accept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flows.graphs.errors import InvalidInputError
from flows.store.checks import KINDS

_ABSENT = object()


@dataclass(frozen=True)
class Field:
    """One field. `check` returns why a value is wrong, or None. A field without a default is required."""

    name: str
    check: Callable[[object], str | None]
    default: object = _ABSENT
    secret: bool = False

    @property
    def required(self) -> bool:
        """Whether every credential must have this field."""
        return self.default is _ABSENT


def _text(value: object) -> str | None:
    return None if isinstance(value, str) and value else "must be a text that is not empty"


def _optional_text(value: object) -> str | None:
    return None if value is None or isinstance(value, str) else "must be a text"


def _password(value: object) -> str | None:
    return None if isinstance(value, str) else "must be a text"


def _port(value: object) -> str | None:
    fine = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 65535
    return None if fine else "must be a whole number from 1 to 65535"


def _senders(value: object) -> str | None:
    fine = isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(item, str) for item in value)
    )
    return None if fine else "must be a text or a list of texts"


EMAIL_FIELDS = (
    Field("email_user", _text),
    Field("email_password", _password, secret=True),
    Field("imap_host", _text),
    Field("imap_port", _port, default=993),
    Field("smtp_host", _optional_text, default=None),
    Field("smtp_port", _port, default=587),
    Field("sender_whitelist", _senders, default=()),
)
DATABASE_FIELDS = (
    Field("db_host", _text),
    Field("db_port", _port, default=5432),
    Field("db_name", _text),
    Field("db_user", _text),
    Field("db_password", _password, secret=True),
)
FIELDS: Mapping[str, tuple[Field, ...]] = {"email": EMAIL_FIELDS, "database": DATABASE_FIELDS}
SECRET_NAMES = frozenset(field.name for fields in FIELDS.values() for field in fields if field.secret)
"""`email_password` and `db_password`: context keys whose values are always secret."""


def split(kind: str, fields: Mapping[str, object]) -> tuple[dict[str, Any], dict[str, str]]:
    """Check the fields of a credential, fill in defaults and return (public fields, secret fields).

    Raises InvalidInputError, which names each missing, unknown or wrong field but no value.
    """
    if kind not in FIELDS:
        raise InvalidInputError(f"kind must be one of {', '.join(KINDS)}.")
    known = {field.name: field for field in FIELDS[kind]}
    problems = [(name, f"is not a field of {kind} credentials") for name in fields if name not in known]
    public: dict[str, Any] = {}
    secret: dict[str, str] = {}
    for field in known.values():
        if field.name not in fields and field.required:
            problems.append((field.name, "is missing"))
            continue
        value: Any = fields.get(field.name, list(field.default) if field.default == () else field.default)
        wrong = field.check(value)
        if wrong:
            problems.append((field.name, wrong))
        (secret if field.secret else public)[field.name] = value
    if problems:
        raise InvalidInputError(
            f"The {kind} credentials are not valid: "
            + "; ".join(" ".join(problem) for problem in problems)
            + ".",
            [{"field": name, "message": message} for name, message in problems],
        )
    return public, secret
