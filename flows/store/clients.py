"""Clients and their credentials; what is secret in these comes and goes as a ciphertext.

A client's `credentials` are loaded on every Client that this module returns.
"""

from __future__ import annotations

from typing import Any, TypedDict, Unpack

from sqlalchemy import Select, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, selectinload

from flows.graphs.errors import ConflictError, NotFoundError
from flows.graphs.names import quoted
from flows.store import checks
from flows.store.base import utcnow
from flows.store.database import constraint
from flows.store.models import Client, Credential


class ClientFields(TypedDict, total=False):
    """What of a client can be changed: not its slug, which executions and schedules name."""

    name: str
    active: bool


def create(session: Session, *, slug: str, name: str, active: bool = True) -> Client:
    """Make a client without credentials. Raises ConflictError when the slug is taken, InvalidInputError."""
    session.add(Client(slug=checks.client_slug(slug), name=checks.plain("name", name, 255), active=active))
    try:
        session.flush()
    except IntegrityError as error:
        if constraint(error) == "uq_clients_slug":
            raise ConflictError(f"There is a client {quoted(slug)} already.") from None
        raise
    return get(session, slug)


def get(session: Session, slug: str) -> Client:
    """One client, active or not. Raises NotFoundError."""
    return _one(session, slug, _select())


def active(session: Session, slug: str) -> Client:
    """One client that workflows may run for. Raises NotFoundError when it is unknown or inactive."""
    client = get(session, slug)
    if not client.active:
        raise NotFoundError(f"Client {quoted(slug)} is not active.")
    return client


def list_(session: Session, skip: int = 0, limit: int = 100) -> tuple[list[Client], int]:
    """A page of the clients, by slug, and how many there are in all."""
    page = session.scalars(_select().order_by(Client.slug).offset(skip).limit(limit)).all()
    return list(page), session.scalar(select(func.count()).select_from(Client)) or 0


def update(session: Session, slug: str, **fields: Unpack[ClientFields]) -> Client:
    """Change the fields given. Raises NotFoundError, InvalidInputError."""
    client = _locked(session, slug)
    if "name" in fields:
        client.name = checks.plain("name", fields["name"], 255)
    if "active" in fields:
        client.active = fields["active"]
    if session.is_modified(client):
        client.updated_at = utcnow()
    session.flush()
    return client


def delete(session: Session, slug: str) -> None:
    """Delete a client with its credentials; its executions stay, with its slug. Raises NotFoundError."""
    session.delete(_locked(session, slug))
    session.flush()


def put_credential(
    session: Session,
    slug: str,
    *,
    kind: str,
    label: str,
    primary: bool,
    public: dict[str, Any],
    secret: bytes,
) -> Credential:
    """Add a credential, or replace the one of that kind and label. `secret` is a ciphertext.

    Of each kind that a client has exactly one is primary: the first becomes it, a new one takes it over,
    and the one that is stays it until another takes over. Raises NotFoundError, InvalidInputError.
    """
    checks.one_of("kind", kind, checks.KINDS)
    checks.plain("label", label, 64)
    client = _locked(session, slug)
    same_kind = [credential for credential in client.credentials if credential.kind == kind]
    found = next((credential for credential in same_kind if credential.label == label), None)
    holder = next((credential for credential in same_kind if credential.is_primary), None)
    if primary and holder is not None and holder is not found:
        holder.is_primary = False
        session.flush()  # before the new one takes over: the index allows one at a time
    if found is None:
        found = Credential(client_id=client.id, kind=kind, label=label, is_primary=False)
        session.add(found)
    found.is_primary = found.is_primary or primary or holder is None
    found.public, found.secret, found.updated_at = public, secret, utcnow()
    session.flush()
    session.expire(client, ["credentials"])
    return found


def remove_credential(session: Session, slug: str, kind: str, label: str) -> None:
    """Remove a credential; if it was the primary one, the oldest of the others becomes it.

    Raises NotFoundError when the client or the credential is unknown.
    """
    client = _locked(session, slug)
    same_kind = [credential for credential in client.credentials if credential.kind == kind]
    found = next((credential for credential in same_kind if credential.label == label), None)
    if found is None:
        raise NotFoundError(f"Client {quoted(slug)} has no {kind} credential {quoted(label)}.")
    session.delete(found)
    session.flush()
    others = [credential for credential in same_kind if credential is not found]
    if found.is_primary and others:
        others[0].is_primary = True
        session.flush()
    session.expire(client, ["credentials"])


def _select() -> Select[tuple[Client]]:
    return select(Client).options(selectinload(Client.credentials)).execution_options(populate_existing=True)


def _one(session: Session, slug: str, statement: Select[tuple[Client]]) -> Client:
    session.flush()  # `populate_existing` would throw away what is not written yet
    # A slug that no client can have is not even asked for: PostgreSQL would refuse a NUL in it.
    plausible = checks.is_plain(slug)
    found = session.scalars(statement.where(Client.slug == slug)).one_or_none() if plausible else None
    if found is None:
        raise NotFoundError(f"There is no client {quoted(slug)}.")
    return found


def _locked(session: Session, slug: str) -> Client:
    """The client, ours to change with its credentials until the transaction ends: nobody deletes it."""
    return _one(session, slug, _select().with_for_update(key_share=True))
