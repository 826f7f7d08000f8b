"""Encryption at rest: Fernet (AES-128-CBC with an HMAC), with the keys of `NOVA_ENCRYPTION_KEY`."""

from __future__ import annotations

import hashlib
import hmac

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from flows.graphs.errors import ConfigurationError


def generate_key() -> str:
    """Return a new random key for `NOVA_ENCRYPTION_KEY`."""
    return Fernet.generate_key().decode()


class Cipher:
    """Encrypts with its first key and decrypts with any of its keys; its repr shows none."""

    def __init__(self, keys: str) -> None:
        """Read one key or several, separated by commas.

        Raises ConfigurationError if there is none, or if one is malformed.
        """
        parts = [part.strip() for part in keys.split(",") if part.strip()]
        if not parts:
            raise ConfigurationError(
                "NOVA_ENCRYPTION_KEY is not set. It is needed to store credentials. Make a key: nova key"
            )
        # A new key goes in front, so the oldest stays last.
        self._oldest = parts[-1].encode()
        self._fernet = MultiFernet([_fernet(part, number) for number, part in enumerate(parts, 1)])

    def encrypt(self, data: bytes) -> bytes:
        """Return a Fernet token of the data: ASCII, a third longer than the data, different each time."""
        return self._fernet.encrypt(data)

    def decrypt(self, token: bytes) -> bytes:
        """Return the data of a token; raises ConfigurationError if no key decrypts it."""
        try:
            return self._fernet.decrypt(token)
        except InvalidToken:
            raise ConfigurationError(
                "No key in NOVA_ENCRYPTION_KEY decrypts the stored data. "
                "Add the key that it was encrypted with, after a comma."
            ) from None

    def fingerprint(self, data: bytes) -> str:
        """Return 64 hexadecimal digits, equal for equal data; without the key, the data cannot be guessed."""
        return hmac.new(self._oldest, data, hashlib.sha256).hexdigest()

    def __repr__(self) -> str:
        return "Cipher(***)"


def _fernet(key: str, number: int) -> Fernet:
    try:
        return Fernet(key)
    except ValueError:
        raise ConfigurationError(
            f"Key {number} in NOVA_ENCRYPTION_KEY is not 32 bytes in URL-safe base64. Make a key: nova key"
        ) from None
