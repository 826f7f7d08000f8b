"""Clients and their credentials: one of each kind is primary, always."""

from __future__ import annotations

import uuid
from functools import partial

import pytest
from sqlalchemy.orm import Session

from flows.graphs.errors import ConflictError, InvalidInputError, NotFoundError
from flows.store import clients, executions
from flows.store.database import Database
from flows.store.models import Client, Workflow
from tests.leasing import begin


@pytest.fixture
def client(database: Database) -> Client:
    """An active client without credentials."""
    return database.run_sync(lambda s: clients.create(s, slug="idom", name="Idom S.A."))


def put(
    database: Database, label: str, *, primary: bool = False, kind: str = "email", text: str = ""
) -> None:
    """Give the client a credential."""
    database.run_sync(
        lambda s: clients.put_credential(
            s,
            "idom",
            kind=kind,
            label=label,
            primary=primary,
            public={"user": text},
            secret=text.encode(),
        )
    )


def labels(database: Database, kind: str = "email") -> dict[str, bool]:
    """Label → whether it is primary, of the client's credentials of one kind."""
    found = database.run_sync(lambda s: clients.get(s, "idom"))
    return {one.label: one.is_primary for one in found.credentials if one.kind == kind}


def test_a_client_is_made_read_changed_and_deleted(database: Database, client: Client) -> None:
    """The whole life of a client."""
    assert (client.slug, client.name, client.active, client.credentials) == ("idom", "Idom S.A.", True, [])
    changed = database.run_sync(lambda s: clients.update(s, "idom", name="Idom", active=False))
    assert changed.updated_at > client.updated_at
    read = database.run_sync(lambda s: clients.get(s, "idom"))
    assert (read.name, read.active) == ("Idom", False)
    database.run_sync(lambda s: clients.delete(s, "idom"))
    with pytest.raises(NotFoundError):
        database.run_sync(lambda s: clients.get(s, "idom"))


def test_a_taken_slug_is_a_conflict(database: Database, client: Client) -> None:
    """Slugs are unique."""
    with pytest.raises(ConflictError, match='"idom"'):
        database.run_sync(lambda s: clients.create(s, slug="idom", name="Another"))


@pytest.mark.parametrize("slug", ["", "Idom", "-a", "_a", "a b", "a\0", "é", "a\n", "x" * 65])
def test_slugs_are_plain(database: Database, slug: str) -> None:
    """Lowercase letters, digits, hyphen and underscore, 64 at most."""
    with pytest.raises(InvalidInputError, match="slug"):
        database.run_sync(lambda s: clients.create(s, slug=slug, name="x"))


@pytest.mark.parametrize("slug", ["a", "0", "a-b_c", "x" * 64])
def test_slugs_may_be(database: Database, slug: str) -> None:
    """The shortest and the longest ones are taken."""
    assert database.run_sync(lambda s: clients.create(s, slug=slug, name="x")).slug == slug


def test_lists_are_paged(database: Database) -> None:
    """By slug, with the number of all."""
    for slug in ("c", "a", "b"):
        database.run_sync(partial(clients.create, slug=slug, name=slug))
    page, total = database.run_sync(lambda s: clients.list_(s, 1, 1))
    assert ([one.slug for one in page], total) == (["b"], 3)
    assert page[0].credentials == []


def test_only_active_clients_run_workflows(database: Database, client: Client) -> None:
    """Unknown, impossible or inactive: not found."""
    assert database.run_sync(lambda s: clients.active(s, "idom")).id == client.id
    database.run_sync(lambda s: clients.update(s, "idom", active=False))
    for slug in ("idom", "other", "a\0b", "\ud800"):
        with pytest.raises(NotFoundError):
            database.run_sync(partial(clients.active, slug=slug))


def test_the_first_credential_is_primary_and_a_new_primary_demotes_it(
    database: Database, client: Client
) -> None:
    """Each kind has a primary of its own."""
    put(database, "first")
    put(database, "second")
    put(database, "db", kind="database")
    assert labels(database) == {"first": True, "second": False}
    assert labels(database, "database") == {"db": True}

    put(database, "third", primary=True)
    assert labels(database) == {"first": False, "second": False, "third": True}
    put(database, "second", primary=True)
    assert labels(database) == {"first": False, "second": True, "third": False}


def test_putting_a_credential_again_replaces_it(database: Database, client: Client) -> None:
    """Same kind and label: new fields, and the primary one stays primary."""
    put(database, "main", text="old")
    put(database, "main", text="new")
    found = database.run_sync(lambda s: clients.get(s, "idom")).credentials
    assert [(one.public, bytes(one.secret), one.is_primary) for one in found] == [
        ({"user": "new"}, b"new", True)
    ]


def test_removing_the_primary_promotes_the_oldest_other(database: Database, client: Client) -> None:
    """A client with credentials always has a primary one."""
    for label in ("first", "second", "third"):
        put(database, label)
    database.run_sync(lambda s: clients.remove_credential(s, "idom", "email", "first"))
    assert labels(database) == {"second": True, "third": False}
    database.run_sync(lambda s: clients.remove_credential(s, "idom", "email", "third"))
    database.run_sync(lambda s: clients.remove_credential(s, "idom", "email", "second"))
    assert labels(database) == {}


def test_unknown_credentials_and_clients_are_not_found(database: Database, client: Client) -> None:
    """Putting to, or removing from, what is not there."""
    put(database, "main")
    for slug, kind, label in (
        ("idom", "email", "x"),
        ("idom", "database", "main"),
        ("other", "email", "main"),
    ):
        with pytest.raises(NotFoundError):
            database.run_sync(partial(clients.remove_credential, slug=slug, kind=kind, label=label))
    with pytest.raises(NotFoundError):
        database.run_sync(
            lambda s: clients.put_credential(
                s, "other", kind="email", label="x", primary=False, public={}, secret=b""
            )
        )


@pytest.mark.parametrize(
    ("kind", "label"), [("fax", "x"), ("email", ""), ("email", "a\0"), ("email", "x" * 65)]
)
def test_kinds_and_labels_are_checked(database: Database, client: Client, kind: str, label: str) -> None:
    """What no column takes is InvalidInputError."""
    with pytest.raises(InvalidInputError):
        put(database, label, kind=kind)


def test_a_deleted_client_takes_its_credentials_and_leaves_its_runs(
    database: Database, client: Client, workflow: Workflow
) -> None:
    """Executions stay, with the slug that they ran for."""
    put(database, "main")

    def start(session: Session) -> int:
        return begin(
            session,
            flow_run_id=uuid.uuid4(),
            public_id=None,
            workflow_id=workflow.id,
            client=client,
            initial={},
        ).id

    run = database.run_sync(start)
    database.run_sync(lambda s: clients.delete(s, "idom"))
    left = database.run_sync(lambda s: executions.get(s, run))
    assert (left.client_id, left.client_slug) == (None, "idom")
    again = database.run_sync(lambda s: clients.create(s, slug="idom", name="x"))
    assert again.credentials == []
