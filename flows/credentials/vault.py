"""The vault: encrypt secrets before they are stored, decrypt them only for the sandbox.

A sealed value is one that is stored encrypted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from flows.credentials.cipher import Cipher
from flows.credentials.fields import SECRET_NAMES
from flows.credentials.overlay import Overlay
from flows.store.models import Client
from flows.store.values import SHOWN_SEALED, Stored, Value


def seal_credential(cipher: Cipher, secret: Mapping[str, str]) -> bytes:
    """Return the ciphertext of a credential's secret fields (see `split`), for `clients.put_credential`."""
    return cipher.encrypt(json.dumps(dict(secret)).encode("ascii"))


def overlay(cipher: Cipher, client: Client | None, extra_secrets: Iterable[str] = ()) -> Overlay:
    """Return the context keys from a client: the fields of its primary credentials, and `client_slug`.

    Without a client there are none. `extra_secrets` (see `secrets_of`) are redacted like the client's own.
    The client's credentials must be loaded. Raises ConfigurationError if no key decrypts them.
    """
    public: dict[str, Any] = {}
    secrets: dict[str, str] = {}
    if client is not None:
        public["client_slug"] = client.slug
        for credential in client.credentials:
            if credential.is_primary:
                public.update(credential.public)
                secrets.update(json.loads(cipher.decrypt(credential.secret)))
    return Overlay(public, secrets, extra_secrets)


def secrets_of(fragments: Mapping[str, bytes]) -> list[str]:
    """Return the secrets in a context that a caller gave: the values of `email_password` and `db_password`.

    For `overlay(extra_secrets=…)`. Of a number its digits are a secret, of a list or object each value in it.
    """
    return [text for name in sorted(SECRET_NAMES & fragments.keys()) for text in _texts(fragments[name])]


def store_initial(cipher: Cipher, initial: Mapping[str, bytes]) -> Stored:
    """Return a run's initial context (key → JSON text) as it is stored.

    The values of SECRET_NAMES are sealed, and all values that contain one of these.
    """
    return store_changes(cipher, Overlay({}, {}, secrets_of(initial)), initial)


def store_changes(cipher: Cipher, overlay: Overlay, changes: Mapping[str, bytes]) -> Stored:
    """Return a node's changes (key → JSON text) as they are stored.

    Keys of the overlay are left out: a node's changes to them stay in its sandbox. The values of SECRET_NAMES
    are sealed, and all values that contain a secret.
    """
    return {
        overlay.redact_key(key): _value(cipher, overlay, key, fragment)
        for key, fragment in changes.items()
        if key not in overlay.keys
    }


def open_values(cipher: Cipher, stored: Stored) -> dict[str, bytes]:
    """Return stored values decrypted (key → JSON text), for the sandbox.

    Raises ConfigurationError if no key decrypts a sealed value.
    """
    return {key: cipher.decrypt(value.data) if value.sealed else value.data for key, value in stored.items()}


def show(value: Value) -> bytes:
    """Return the JSON text to show to callers: `"***"` if the value is sealed."""
    return SHOWN_SEALED if value.sealed else value.data


def _value(cipher: Cipher, overlay: Overlay, key: str, fragment: bytes) -> Value:
    if key in SECRET_NAMES or overlay.contains_secret(fragment):
        return Value(cipher.encrypt(fragment), sealed=True)
    return Value(fragment)


def _texts(fragment: bytes) -> list[str]:
    found: list[str] = []
    waiting = [json.loads(fragment)]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, bool) or item is None:
            continue
        elif isinstance(item, list):
            waiting.extend(item)
        elif isinstance(item, dict):
            waiting.extend(item.values())
        else:
            found.append(json.dumps(item))
    return found
