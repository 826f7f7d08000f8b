"""The vault: secrets reach the sandbox, but nothing that is stored, shown or logged."""

from __future__ import annotations

import json
import re
import traceback
from functools import partial
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.orm import Session

from flows.credentials import vault
from flows.credentials.cipher import Cipher, generate_key
from flows.credentials.fields import split
from flows.credentials.overlay import Overlay
from flows.graphs.errors import ConfigurationError
from flows.store import clients, executions, values, workflows
from flows.store.database import Database
from flows.store.models import Client, Credential
from flows.store.transitions import submissions
from flows.store.values import Value

MAIL_PASSWORD = 'p@ss "wörd"/\\1'
DB_PASSWORD = "corr3ct+horse"
EMAIL = {
    "email_user": "robot@idom.example",
    "email_password": MAIL_PASSWORD,
    "imap_host": "imap.idom.example",
}
DATABASE = {"db_host": "db.example", "db_name": "idom", "db_user": "nova", "db_password": DB_PASSWORD}


def put(
    session: Session, cipher: Cipher, kind: str, label: str, fields: dict[str, Any], primary: bool = False
) -> None:
    """Store a credential for client idom."""
    public, secret = split(kind, fields)
    clients.put_credential(
        session,
        "idom",
        kind=kind,
        label=label,
        primary=primary,
        public=public,
        secret=vault.seal_credential(cipher, secret),
    )


@pytest.fixture
def client(database: Database, cipher: Cipher) -> Client:
    """Client idom with a mailbox, a second mailbox, and a database."""

    def make(session: Session) -> Client:
        clients.create(session, slug="idom", name="Idom")
        put(session, cipher, "email", "main", EMAIL)
        put(
            session,
            cipher,
            "email",
            "other",
            EMAIL | {"email_user": "other@idom.example", "email_password": "x1y2"},
        )
        put(session, cipher, "database", "main", DATABASE)
        return clients.active(session, "idom")

    return database.run_sync(make)


@pytest.fixture
def overlay(cipher: Cipher, client: Client) -> Overlay:
    """The context keys from idom's credentials."""
    return vault.overlay(cipher, client)


def dumps(value: object) -> bytes:
    """Return a value as a context's JSON text."""
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def written(password: str) -> dict[str, str]:
    """Return the forms in which texts contain a password."""
    return {
        "plain": password,
        "in a URL": f"postgresql://nova:{quote(password, safe='')}@db/idom",
        "in a URL, slash left": f"imap://{quote(password)}@host",
        "in a form": f"user=x&password={quote_plus(password)}",
        "in lowercase percents": re.sub("%..", lambda code: code[0].lower(), quote(password, safe="")),
        "in JSON": json.dumps({"password": password}),
        "in JSON with its own letters": json.dumps([password], ensure_ascii=False),
        "in a repr": repr({"password": password}),
        "in bytes": repr(password.encode()),
    }


# -- the overlay -------------------------------------------------------------------------------------


def test_the_overlay_has_the_keys_of_the_contract(overlay: Overlay) -> None:
    """The overlay has the client's slug and the fields of both kinds' primary credentials."""
    context = {key: json.loads(fragment) for key, fragment in overlay.fragments().items()}
    assert context == {
        "client_slug": "idom",
        "email_user": "robot@idom.example",
        "email_password": MAIL_PASSWORD,
        "imap_host": "imap.idom.example",
        "imap_port": 993,
        "smtp_host": None,
        "smtp_port": 587,
        "sender_whitelist": [],
        "db_host": "db.example",
        "db_port": 5432,
        "db_name": "idom",
        "db_user": "nova",
        "db_password": DB_PASSWORD,
    }
    assert overlay.keys == context.keys()


def test_another_primary_credential_changes_the_overlay(
    database: Database, cipher: Cipher, client: Client
) -> None:
    """Only the primary credential of a kind is used."""
    database.run_sync(
        lambda s: put(s, cipher, "email", "third", EMAIL | {"email_user": "third@x"}, primary=True)
    )
    now = database.run_sync(lambda s: clients.active(s, "idom"))
    assert vault.overlay(cipher, now).public["email_user"] == "third@x"


def test_without_a_client_the_overlay_is_empty(cipher: Cipher) -> None:
    """Without a client there are no keys, and nothing is redacted or sealed."""
    empty = vault.overlay(cipher, None)
    assert (empty.fragments(), empty.keys) == ({}, frozenset())
    assert empty.redact("text") == "text"
    assert not empty.contains_secret(b'"text"')


def test_a_client_without_credentials_has_a_slug(database: Database, cipher: Cipher) -> None:
    """The overlay of a client without credentials has only the slug."""
    bare = database.run_sync(lambda s: clients.create(s, slug="bare", name="Bare"))
    assert vault.overlay(cipher, bare).fragments() == {"client_slug": b'"bare"'}


def test_another_key_does_not_open_the_credentials(client: Client) -> None:
    """With another key the error names the variable and shows nothing of the stored data."""
    with pytest.raises(ConfigurationError, match="NOVA_ENCRYPTION_KEY") as caught:
        vault.overlay(Cipher(generate_key()), client)
    shown = "".join(traceback.format_exception(caught.value))
    assert all(bytes(one.secret).decode() not in shown for one in client.credentials)


def test_nothing_shows_a_secret(cipher: Cipher, client: Client, overlay: Overlay) -> None:
    """No repr or str of cipher, overlay, client or credential contains a secret."""
    shown = "".join(map(repr, [cipher, overlay, client, *client.credentials, overlay.public])) + f"{overlay}"
    assert DB_PASSWORD not in shown
    assert MAIL_PASSWORD not in shown
    assert "secrets=***" in repr(overlay)


def test_the_database_holds_no_secret(database: Database, client: Client) -> None:
    """A dump of the table of credentials contains no password."""
    query = text("SELECT string_agg(c::text || encode(c.secret, 'escape'), ' ') FROM credentials c")
    dump = database.run_sync(lambda s: str(s.scalar(query)))
    assert "gAAAA" in dump  # the ciphertext, as text
    assert "robot@idom.example" in dump
    assert not any(form in dump for form in (DB_PASSWORD, "x1y2", "p@ss", "email_password", "db_password"))


# -- redaction ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("password", [MAIL_PASSWORD, DB_PASSWORD])
def test_texts_are_redacted_however_the_secret_is_written(overlay: Overlay, password: str) -> None:
    """A password is redacted in every written form; the rest of the text stays."""
    for name, text_ in written(password).items():
        redacted = overlay.redact(f"before {text_} after")
        assert "***" in redacted, name
        assert redacted.startswith("before ")
        assert redacted.endswith(" after")
        for form in written(password).values():
            assert form not in redacted, name
    assert overlay.redact("nothing of it") == "nothing of it"


def test_longer_secrets_are_redacted_first(cipher: Cipher) -> None:
    """A secret that contains another is redacted as a whole; the stars are not redacted again."""
    overlay = vault.overlay(cipher, None, ["horse", "correct horse", "*"])
    assert overlay.redact("correct horse, horse, *") == "***, ***, ***"


def test_an_empty_password_is_no_secret(cipher: Cipher) -> None:
    """Nothing is redacted or sealed because of an empty password, which every text contains."""
    overlay = Overlay({}, {"db_password": ""})
    assert overlay.redact("text") == "text"
    assert not overlay.contains_secret(b'"text"')
    assert overlay.fragments() == {"db_password": b'""'}


@settings(deadline=None)
@given(secret=st.text(st.characters(exclude_categories=()), min_size=1), before=st.text(), after=st.text())
def test_any_secret_is_found(secret: str, before: str, after: str) -> None:
    """Secrets of any characters are found: NUL, surrogates, quotes, regular expressions."""
    overlay = Overlay({}, {"db_password": secret})
    assert overlay.contains_secret(dumps({"url": [before + secret + after]}))
    assert overlay.contains_secret(dumps(json.dumps({"nested": secret})))
    assert overlay.redact(f"{before}{secret}") != f"{before}{secret}" or secret == "***"


# -- what is stored ----------------------------------------------------------------------------------


@pytest.mark.parametrize("password", [MAIL_PASSWORD, DB_PASSWORD])
def test_values_built_from_a_secret_are_sealed(cipher: Cipher, overlay: Overlay, password: str) -> None:
    """Values that contain a secret at any depth and in any form are sealed; opened, they are unchanged."""
    changes = {name: dumps({"deep": [1, {"x": text_}]}) for name, text_ in written(password).items()}
    changes["a key of an object"] = dumps({password: 1})
    stored = vault.store_changes(cipher, overlay, changes)
    assert stored.keys() == changes.keys()
    for name, value in stored.items():
        assert value.sealed, name
        assert vault.show(value) == b'"***"'
    assert vault.open_values(cipher, stored) == changes


def test_ordinary_values_are_stored_as_they_are(cipher: Cipher, overlay: Overlay) -> None:
    """Values without a secret are neither sealed nor changed."""
    changes = {"a": b"1", "host": dumps("imap.idom.example"), "nul": dumps("\0\ud800")}
    stored = vault.store_changes(cipher, overlay, changes)
    assert stored == {key: Value(fragment) for key, fragment in changes.items()}
    assert [vault.show(value) for value in stored.values()] == list(changes.values())


def test_changes_to_the_overlay_are_dropped(cipher: Cipher, overlay: Overlay) -> None:
    """A node's changes to the overlay's keys, such as `db_host`, are not stored."""
    changes = dict.fromkeys(overlay.keys, b'"changed"') | {"mine": b"1"}
    assert vault.store_changes(cipher, overlay, changes) == {"mine": Value(b"1")}


def test_a_secret_in_the_name_of_a_key_is_not_stored(cipher: Cipher, overlay: Overlay) -> None:
    """A secret in the name of a key is redacted."""
    stored = vault.store_changes(cipher, overlay, {f"by {DB_PASSWORD}": b"1"})
    assert stored == {"by ***": Value(b"1")}


@pytest.mark.parametrize("word", ["total", "password", "invoice_number"])
def test_an_ordinary_word_renames_no_keys_but_seals(cipher: Cipher, word: str) -> None:
    """A common word as a password renames no key, but values with it are sealed."""
    overlay = Overlay({}, {"db_password": word})
    changes = {f"{word}_2": b"5", "email_password": b"1", "note": dumps(f"the {word}")}
    stored = vault.store_changes(cipher, overlay, changes)
    assert {key: value.sealed for key, value in stored.items()} == {
        f"{word}_2": False,
        "email_password": True,
        "note": True,
    }


def test_secrets_that_a_caller_gives_are_sealed(cipher: Cipher) -> None:
    """Passwords in `initial_context` count as secrets; they and values with them are sealed."""
    initial = {
        "email_password": dumps("hunter2!"),
        "db_password": dumps({"parts": ["horse-battery", 12345678, None, True]}),
        "dsn": dumps("postgresql://u:hunter2%21@h/d"),
        "email_user": dumps("robot@idom.example"),
    }
    stored = vault.store_initial(cipher, initial)
    assert {key: value.sealed for key, value in stored.items()} == {
        "email_password": True,
        "db_password": True,
        "dsn": True,
        "email_user": False,
    }
    opened = vault.open_values(cipher, stored)
    assert opened == initial

    overlay = vault.overlay(cipher, None, vault.secrets_of(opened))
    assert overlay.redact("hunter2! horse-battery 12345678 None true") == "*** *** *** None true"
    assert vault.store_changes(cipher, overlay, {"db_password": b'"new"'})["db_password"].sealed


def test_a_run_stores_no_secret(database: Database, cipher: Cipher, client: Client, overlay: Overlay) -> None:
    """No stored value of a run contains a password; a resumed run gets all of them."""
    initial = {"email_password": dumps("first-word"), "a": b"1"}
    changes = {"dsn": dumps(f"postgresql://nova:{quote_plus(DB_PASSWORD)}@db/idom"), "b": b"2"}

    def run(session: Session) -> int:
        workflow = workflows.create(session, name="W", graph={})
        stored = {**vault.store_initial(cipher, initial), **vault.store_changes(cipher, overlay, changes)}
        return submissions.create(
            session, workflow_id=workflow.id, client=client, priority="normal", initial=stored
        ).id

    execution_id = database.run_sync(run)
    row = database.run_sync(lambda s: executions.get(s, execution_id))
    held = database.run_sync(partial(values.load, execution_id=execution_id, digests=row.initial.values()))
    assert all(word not in value.data for value in held.values() for word in (b"first-word", b"corr3ct"))
    resumed = vault.open_values(cipher, {key: held[digest] for key, digest in row.initial.items()})
    assert resumed == initial | changes


def test_credentials_are_rows_of_the_store(client: Client) -> None:
    """A credential's row has the public fields in clear and the secret ones encrypted."""
    first: Credential = client.credentials[0]
    assert first.public["email_user"] == "robot@idom.example"
    assert first.secret != b""
    assert "email_password" not in first.public
