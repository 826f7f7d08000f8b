"""Clients and credentials over HTTP: what is secret goes in and never comes out."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from sqlalchemy import text

from flows.credentials import vault
from flows.credentials.cipher import Cipher
from flows.store import clients
from flows.store.database import Database

SECRET = "correct-horse-battery"

EMAIL: dict[str, Any] = {
    "kind": "email",
    "label": "invoices",
    "fields": {
        "email_user": "invoices@idom.example",
        "email_password": SECRET,
        "imap_host": "imap.idom.example",
        "imap_port": 993,
        "smtp_host": "smtp.idom.example",
        "smtp_port": 587,
        "sender_whitelist": ["a@example.com"],
    },
}
DATABASE: dict[str, Any] = {
    "kind": "database",
    "label": "erp",
    "fields": {
        "db_host": "db.idom.example",
        "db_port": 5432,
        "db_name": "erp",
        "db_user": "nova",
        "db_password": SECRET,
    },
}


async def test_a_client_is_made_read_changed_and_deleted(api: httpx.AsyncClient) -> None:
    """POST, GET, PUT and DELETE, by slug."""
    made = await api.post("/clients", json={"slug": "acme", "name": "ACME"})
    assert made.status_code == 201
    assert (made.json()["slug"], made.json()["active"], made.json()["credentials"]) == ("acme", True, [])
    assert (await api.get("/clients/acme")).json() == made.json()
    changed = (await api.put("/clients/acme", json={"name": "ACME Inc.", "active": False})).json()
    assert (changed["name"], changed["active"]) == ("ACME Inc.", False)
    assert (await api.put("/clients/acme", json={"active": True})).json()["name"] == "ACME Inc."
    assert list((await api.delete("/clients/acme")).json()) == ["message"]
    assert (await api.get("/clients/acme")).status_code == 404


async def test_clients_are_listed_in_pages(api: httpx.AsyncClient) -> None:
    """`{clients, total}`, by slug."""
    for slug in ("c", "a", "b"):
        await api.post("/clients", json={"slug": slug, "name": slug.upper()})
    body = (await api.get("/clients", params={"skip": 1, "limit": 1})).json()
    assert ([found["slug"] for found in body["clients"]], body["total"]) == (["b"], 3)


async def test_a_taken_slug_is_refused(api: httpx.AsyncClient, idom: dict[str, Any]) -> None:
    """400, as for workflows."""
    assert (await api.post("/clients", json={"slug": "idom", "name": "Other"})).status_code == 400


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "x"}, "slug"),
        ({"slug": "ID OM", "name": "x"}, "slug"),
        ({"slug": "", "name": "x"}, "slug"),
        ({"slug": "a", "name": "nul\0"}, "name"),
        ({"slug": "a", "name": ""}, "name"),
        ({"slug": "a", "name": "x" * 256}, "name"),
        ({"slug": "a", "name": "x", "active": "perhaps"}, "active"),
    ],
)
async def test_bad_fields_of_a_client_are_named(
    api: httpx.AsyncClient, body: dict[str, Any], field: str
) -> None:
    """422 says which."""
    response = await api.post("/clients", json=body)
    assert response.status_code == 422
    assert field in [error["field"] for error in response.json()["errors"]]


async def test_credentials_show_no_secret(
    api: httpx.AsyncClient, idom: dict[str, Any], database: Database
) -> None:
    """Whatever one asks for, secrets read `***`; in the database there is a ciphertext."""
    answers = [
        await api.post("/clients/idom/credentials", json=EMAIL),
        await api.post("/clients/idom/credentials", json=DATABASE),
        await api.get("/clients/idom/credentials"),
        await api.get("/clients/idom"),
        await api.get("/clients"),
    ]
    assert all(SECRET not in answer.text for answer in answers)
    made = answers[0].json()
    assert answers[0].status_code == 201
    assert made["fields"] == EMAIL["fields"] | {"email_password": "***"}
    assert (made["kind"], made["label"], made["primary"]) == ("email", "invoices", True)
    assert answers[2].json()["total"] == 2
    stored = await database.run(
        lambda session: session.execute(text("SELECT credentials::text FROM credentials")).scalars().all()
    )
    assert len(stored) == 2
    assert all(SECRET not in row for row in stored)


async def test_credentials_reach_the_sandbox(
    api: httpx.AsyncClient, idom: dict[str, Any], database: Database, cipher: Cipher
) -> None:
    """What was posted is what a node gets, under the contract's names."""
    await api.post("/clients/idom/credentials", json=EMAIL)
    await api.post("/clients/idom/credentials", json=DATABASE)
    client = await database.run(lambda session: clients.active(session, "idom"))
    fragments = vault.overlay(cipher, client).fragments()
    assert fragments["client_slug"] == b'"idom"'
    assert fragments["email_password"] == fragments["db_password"] == f'"{SECRET}"'.encode()
    assert fragments["imap_port"] == b"993"


async def test_a_client_has_one_primary_credential_of_a_kind(
    api: httpx.AsyncClient, idom: dict[str, Any]
) -> None:
    """The first is primary, a new primary takes over, and when it is removed the other is primary again."""

    async def primaries() -> list[str]:
        listed = (await api.get("/clients/idom/credentials")).json()["credentials"]
        return [found["label"] for found in listed if found["primary"]]

    await api.post("/clients/idom/credentials", json=EMAIL | {"label": "one"})
    await api.post("/clients/idom/credentials", json=EMAIL | {"label": "two"})
    assert await primaries() == ["one"]
    await api.post("/clients/idom/credentials", json=EMAIL | {"label": "three", "primary": True})
    assert await primaries() == ["three"]
    removed = await api.delete("/clients/idom/credentials/email/three")
    assert (removed.status_code, list(removed.json())) == (200, ["message"])
    assert await primaries() == ["one"]
    assert (await api.delete("/clients/idom/credentials/email/three")).status_code == 404


async def test_credentials_of_the_same_label_are_replaced(
    api: httpx.AsyncClient, idom: dict[str, Any]
) -> None:
    """Posting them again is how a password is changed."""
    await api.post("/clients/idom/credentials", json=EMAIL)
    fields = EMAIL["fields"] | {"imap_host": "new.example"}
    await api.post("/clients/idom/credentials", json=EMAIL | {"fields": fields})
    listed = (await api.get("/clients/idom/credentials")).json()
    assert (listed["total"], listed["credentials"][0]["fields"]["imap_host"]) == (1, "new.example")


@pytest.mark.parametrize(
    ("fields", "bad"),
    [
        ({"email_password": [SECRET]}, "email_password"),
        ({"imap_port": SECRET}, "imap_port"),
        ({"imap_port": 70_000}, "imap_port"),
        ({"email_user": {"x": SECRET}}, "email_user"),
        ({"pop3_host": SECRET}, "pop3_host"),
    ],
)
async def test_an_error_repeats_no_value(
    api: httpx.AsyncClient, idom: dict[str, Any], fields: dict[str, Any], bad: str
) -> None:
    """A bad field is named, but what was sent may be a secret: it is in no error."""
    response = await api.post("/clients/idom/credentials", json=EMAIL | {"fields": EMAIL["fields"] | fields})
    assert response.status_code == 422
    assert bad in [error["field"] for error in response.json()["errors"]]
    assert SECRET not in response.text


@pytest.mark.parametrize(
    "body",
    [
        EMAIL | {"kind": SECRET},
        EMAIL | {"label": [SECRET]},
        EMAIL | {"fields": [SECRET]},
        EMAIL | {"primary": SECRET},
        [SECRET],
        SECRET,
    ],
)
async def test_a_malformed_body_is_not_repeated_either(
    api: httpx.AsyncClient, idom: dict[str, Any], body: object
) -> None:
    """FastAPI's own errors would show the input."""
    response = await api.post("/clients/idom/credentials", json=body)
    assert response.status_code == 422
    assert SECRET not in response.text


@pytest.mark.parametrize("slug", ["acme", "%00", "ID%20OM", "%F0%9F"])
async def test_an_unknown_client_is_404(api: httpx.AsyncClient, slug: str) -> None:
    """For each of its addresses, whatever the slug."""
    answers = [
        await api.get(f"/clients/{slug}"),
        await api.put(f"/clients/{slug}", json={}),
        await api.delete(f"/clients/{slug}"),
        await api.get(f"/clients/{slug}/credentials"),
        await api.post(f"/clients/{slug}/credentials", json=EMAIL),
        await api.delete(f"/clients/{slug}/credentials/email/x"),
    ]
    assert {answer.status_code for answer in answers} == {404}


async def test_odd_labels_are_404_or_refused(api: httpx.AsyncClient, idom: dict[str, Any]) -> None:
    """NUL in a path or a label is no error of the database."""
    await api.post("/clients/idom/credentials", json=EMAIL)
    assert (await api.delete("/clients/idom/credentials/email/%00")).status_code == 404
    assert (await api.delete("/clients/idom/credentials/%00/invoices")).status_code == 404
    refused = await api.post("/clients/idom/credentials", json=EMAIL | {"label": "nul\0"})
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["field"] == "label"
