"""A context that a person gives a run, to go on with behind a node that failed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from flows.credentials import vault
from flows.credentials.cipher import Cipher
from flows.engine.context import to_fragments
from flows.store import chain, clients, executions, values
from flows.store.values import Stored


def seal_context(session: Session, cipher: Cipher, execution_id: int, given: Mapping[str, Any]) -> Stored:
    """The context as it is stored: sealed is what would be sealed if the node had left it.

    Raises NotFoundError when the execution is gone, or its client unknown or not active.
    """
    row = executions.get(session, execution_id)
    client = clients.active(session, row.client_slug) if row.client_slug else None
    fragments = to_fragments(given)
    held = _secrets_held(session, cipher, execution_id)
    secrets = [*vault.secrets_of(held), *vault.secrets_of(fragments)]
    return vault.store_changes(cipher, vault.overlay(cipher, client, secrets), fragments)


def _secrets_held(session: Session, cipher: Cipher, execution_id: int) -> dict[str, bytes]:
    """What the run's context has under the names of secrets, opened."""
    state = chain.state(session, execution_id)
    digests = {key: state[key] for key in vault.SECRET_NAMES & state.keys()}
    loaded = values.load(session, execution_id, digests.values())
    return vault.open_values(cipher, {key: loaded[digest] for key, digest in digests.items()})
