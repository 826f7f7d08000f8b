"""The fields of credentials: each wrong field is named, without its value."""

from __future__ import annotations

from typing import Any

import pytest

from flows.credentials.fields import FIELDS, SECRET_NAMES, split
from flows.graphs.errors import InvalidInputError

EMAIL: dict[str, Any] = {
    "email_user": "robot@idom.example",
    "email_password": "hunter2!",
    "imap_host": "imap.idom.example",
    "imap_port": 993,
    "smtp_host": "smtp.idom.example",
    "smtp_port": 587,
    "sender_whitelist": ["boss@idom.example"],
}
DATABASE: dict[str, Any] = {
    "db_host": "db.idom.example",
    "db_port": 5432,
    "db_name": "idom",
    "db_user": "nova",
    "db_password": "s3cret",
}


def test_the_names_are_those_of_the_contract() -> None:
    """The fields are exactly those that nodes read from their context."""
    assert {kind: [field.name for field in fields] for kind, fields in FIELDS.items()} == {
        "email": list(EMAIL),
        "database": list(DATABASE),
    }
    assert {"email_password", "db_password"} == SECRET_NAMES


@pytest.mark.parametrize(("kind", "fields"), [("email", EMAIL), ("database", DATABASE)])
def test_the_password_is_split_off(kind: str, fields: dict[str, Any]) -> None:
    """The password is in the secret part, every other field in the public part."""
    public, secret = split(kind, fields)
    assert public | secret == fields
    assert set(secret) == SECRET_NAMES & fields.keys()


def test_what_can_be_left_out_has_a_default() -> None:
    """Optional fields get defaults: the usual ports, no SMTP host, no senders."""
    given = {name: EMAIL[name] for name in ("email_user", "email_password", "imap_host")}
    public, _ = split("email", given)
    assert public == {
        "email_user": "robot@idom.example",
        "imap_host": "imap.idom.example",
        "imap_port": 993,
        "smtp_host": None,
        "smtp_port": 587,
        "sender_whitelist": [],
    }
    public["sender_whitelist"].append("x")
    assert split("email", given)[0]["sender_whitelist"] == []
    assert split("database", {k: v for k, v in DATABASE.items() if k != "db_port"})[0]["db_port"] == 5432


@pytest.mark.parametrize("senders", ["a@b.example, c@d.example", "", [], ["a@b.example"]])
def test_senders_are_a_text_or_a_list(senders: object) -> None:
    """The whitelist may be a text or a list, and is kept as it was given."""
    assert split("email", EMAIL | {"sender_whitelist": senders})[0]["sender_whitelist"] == senders


def test_an_empty_password_is_allowed() -> None:
    """A database that trusts its network may have an empty password."""
    assert split("database", DATABASE | {"db_password": ""})[1] == {"db_password": ""}


@pytest.mark.parametrize(
    ("kind", "change", "field"),
    [
        ("email", {"imap_port": 0}, "imap_port"),
        ("email", {"imap_port": 65536}, "imap_port"),
        ("email", {"smtp_port": "587"}, "smtp_port"),
        ("email", {"smtp_port": True}, "smtp_port"),
        ("email", {"email_user": ""}, "email_user"),
        ("email", {"email_user": None}, "email_user"),
        ("email", {"email_password": 12345678}, "email_password"),
        ("email", {"imap_host": ["h"]}, "imap_host"),
        ("email", {"smtp_host": 1}, "smtp_host"),
        ("email", {"sender_whitelist": ["a", 1]}, "sender_whitelist"),
        ("email", {"sender_whitelist": None}, "sender_whitelist"),
        ("email", {"db_host": "x"}, "db_host"),
        ("database", {"db_port": 1.5}, "db_port"),
        ("database", {"db_name": ""}, "db_name"),
    ],
)
def test_each_wrong_field_is_named(kind: str, change: dict[str, object], field: str) -> None:
    """The error names the wrong field."""
    with pytest.raises(InvalidInputError, match=field) as caught:
        split(kind, {**(EMAIL if kind == "email" else DATABASE), **change})
    assert [problem["field"] for problem in caught.value.problems] == [field]


def test_all_faults_are_named_at_once_and_no_value() -> None:
    """One error names all missing, unknown and wrong fields, and no value."""
    with pytest.raises(InvalidInputError) as caught:
        split("database", {"db_password": ["private-word"], "db_port": -1, "extra": "private-word"})
    assert {problem["field"] for problem in caught.value.problems} == {
        "db_password",
        "db_port",
        "extra",
        "db_host",
        "db_name",
        "db_user",
    }
    assert "private-word" not in str(caught.value) + repr(caught.value.problems)


def test_an_unknown_kind_is_refused() -> None:
    """The error for an unknown kind names the two kinds."""
    with pytest.raises(InvalidInputError, match="email, database"):
        split("fax", {})
