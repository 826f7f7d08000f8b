"""The cipher: keys, their rotation, and errors that show none of them."""

from __future__ import annotations

import pytest

from flows.credentials.cipher import Cipher, generate_key
from flows.graphs.errors import ConfigurationError


def test_what_is_encrypted_is_decrypted(cipher: Cipher) -> None:
    """Any bytes; the token shows nothing of them and differs each time."""
    data = bytes(range(256)) + b"private-word"
    token = cipher.encrypt(data)
    assert cipher.decrypt(token) == data
    assert b"private-word" not in token
    assert cipher.encrypt(data) != token


def test_the_first_key_encrypts_and_all_decrypt() -> None:
    """A new key goes in front; what the old one encrypted can still be read, and dropping it ends that."""
    old, new = generate_key(), generate_key()
    before, both, after = Cipher(old), Cipher(f" {new} , {old},"), Cipher(new)
    assert both.decrypt(before.encrypt(b"x")) == b"x"
    assert after.decrypt(both.encrypt(b"x")) == b"x"
    with pytest.raises(ConfigurationError, match="NOVA_ENCRYPTION_KEY"):
        after.decrypt(before.encrypt(b"x"))


@pytest.mark.parametrize("keys", ["", "  ", " , "])
def test_without_a_key_nothing_starts(keys: str) -> None:
    """The error names the variable and the command that makes a key."""
    with pytest.raises(ConfigurationError, match=r"NOVA_ENCRYPTION_KEY is not set.*nova key"):
        Cipher(keys)


@pytest.mark.parametrize("bad", ["hunter2-hunter2", "é" * 44, "A" * 43, "A" * 45])
def test_a_malformed_key_is_named_by_its_place_alone(bad: str) -> None:
    """The key itself is not in the error, nor in what led to it."""
    with pytest.raises(ConfigurationError, match="Key 2 in NOVA_ENCRYPTION_KEY") as caught:
        Cipher(f"{generate_key()},{bad}")
    assert bad not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_damaged_token_is_an_error_without_its_content(cipher: Cipher) -> None:
    """A token that was tampered with does not open."""
    token = bytearray(cipher.encrypt(b"private-word"))
    token[40] ^= 1
    with pytest.raises(ConfigurationError):
        cipher.decrypt(bytes(token))


def test_a_cipher_shows_no_key() -> None:
    """Neither repr nor str holds a part of it."""
    key = generate_key()
    assert repr(Cipher(key)) == str(Cipher(key)) == "Cipher(***)"
