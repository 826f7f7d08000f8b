"""Encryption at rest: Fernet (AES-128-CBC with an HMAC), with the keys of `NOVA_ENCRYPTION_KEY`."""

from __future__ import annotations

import hashlib
import hmac

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from flows.graphs.errors import ConfigurationError


def generate_key() -> str:
    """A new random key, as `NOVA_ENCRYPTION_KEY` takes it."""
    return Fernet.generate_key().decode()


class Cipher:
    """Encrypts with the first of its keys, decrypts with any of them, and shows none."""

    def __init__(self, keys: str) -> None:
        """Take one key or several, separated by commas.

        Raises ConfigurationError when there is none, or one that is no key.
        """
        parts = [part.strip() for part in keys.split(",") if part.strip()]
        if not parts:
            raise ConfigurationError(
                "NOVA_ENCRYPTION_KEY is not set, and no credential is stored without. Make a key: nova key"
            )
        # The last one stays last when a new one is put before it.
        self._oldest = parts[-1].encode()
        self._fernet = MultiFernet([_fernet(part, place) for place, part in enumerate(parts, 1)])

    def encrypt(self, data: bytes) -> bytes:
        """A Fernet token of the data: ASCII, a third longer, another one each time."""
        return self._fernet.encrypt(data)

    def decrypt(self, token: bytes) -> bytes:
        """The data of a token. Raises ConfigurationError when none of the keys opens it."""
        try:
            return self._fernet.decrypt(token)
        except InvalidToken:
            raise ConfigurationError(
                "None of the keys in NOVA_ENCRYPTION_KEY opens what is stored. "
                "Add the key that it was encrypted with, after a comma."
            ) from None

    def fingerprint(self, data: bytes) -> str:
        """64 hexadecimal digits that tell whether data is the same, but not, even by trying, what it was."""
        return hmac.new(self._oldest, data, hashlib.sha256).hexdigest()

    def __repr__(self) -> str:
        return "Cipher(***)"


def _fernet(key: str, place: int) -> Fernet:
    try:
        return Fernet(key)
    except ValueError:
        raise ConfigurationError(
            f"Key {place} in NOVA_ENCRYPTION_KEY is not 32 bytes in URL-safe base64. Make a key: nova key"
        ) from None
