"""Fixtures of the credentials' tests."""

from __future__ import annotations

import pytest

from flows.credentials.cipher import Cipher, generate_key


@pytest.fixture
def cipher() -> Cipher:
    """A cipher with a new key."""
    return Cipher(generate_key())
