"""The context that a person gives with a skip: the run goes on with it behind the node."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import starmap
from typing import Any

from sqlalchemy.orm import Session

from flows.credentials import vault
from flows.credentials.cipher import Cipher
from flows.graphs.errors import InvalidInputError, LimitError
from flows.graphs.json_values import size_of, to_fragments
from flows.runs.loading import check_size, open_context
from flows.store import clients, executions
from flows.store.values import Stored


def seal_context(
    session: Session, cipher: Cipher, execution_id: int, given: Mapping[str, Any], limit: int
) -> Stored:
    """Return the context as it is stored: sealed as if the node had left it.

    Raises NotFoundError when the execution is gone, or its client unknown or not active, and
    InvalidInputError when the run's context would have more than `limit` bytes with it.
    """
    row = executions.get(session, execution_id)
    client = clients.active(session, row.client_slug) if row.client_slug else None
    fragments, held = to_fragments(given), open_context(session, execution_id, cipher)
    try:
        check_size(starmap(size_of, (held | fragments).items()), limit)
    except LimitError as error:
        raise InvalidInputError(str(error), [{"field": "context", "message": str(error)}]) from None
    secrets = [*vault.secrets_of(held), *vault.secrets_of(fragments)]
    return vault.store_changes(cipher, vault.overlay(cipher, client, secrets), fragments)
