"""The cipher: its keys, their rotation, and errors that show no key."""

from __future__ import annotations

import pytest

from flows.credentials.cipher import Cipher, generate_key
from flows.graphs.errors import ConfigurationError


def test_what_is_encrypted_is_decrypted(cipher: Cipher) -> None:
    """A token decrypts to the same bytes, shows nothing of them and differs each time."""
    data = bytes(range(256)) + b"private-word"
    token = cipher.encrypt(data)
    assert cipher.decrypt(token) == data
    assert b"private-word" not in token
    assert cipher.encrypt(data) != token


def test_the_first_key_encrypts_and_all_decrypt() -> None:
    """With a new key in front old tokens can still be decrypted; without the old key they cannot."""
    old, new = generate_key(), generate_key()
    before, both, after = Cipher(old), Cipher(f" {new} , {old},"), Cipher(new)
    assert both.decrypt(before.encrypt(b"x")) == b"x"
    assert after.decrypt(both.encrypt(b"x")) == b"x"
    with pytest.raises(ConfigurationError, match="NOVA_ENCRYPTION_KEY"):
        after.decrypt(before.encrypt(b"x"))


@pytest.mark.parametrize("keys", ["", "  ", " , "])
def test_without_a_key_nothing_starts(keys: str) -> None:
    """Without a key the error names the variable and the command that makes one."""
    with pytest.raises(ConfigurationError, match=r"NOVA_ENCRYPTION_KEY is not set.*nova key"):
        Cipher(keys)


@pytest.mark.parametrize("bad", ["hunter2-hunter2", "é" * 44, "A" * 43, "A" * 45])
def test_a_malformed_key_is_named_by_its_number_only(bad: str) -> None:
    """The error of a malformed key has its number, but not the key, nor has its cause."""
    with pytest.raises(ConfigurationError, match="Key 2 in NOVA_ENCRYPTION_KEY") as caught:
        Cipher(f"{generate_key()},{bad}")
    assert bad not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_damaged_token_is_an_error_without_its_content(cipher: Cipher) -> None:
    """A changed token raises an error."""
    token = bytearray(cipher.encrypt(b"private-word"))
    token[40] ^= 1
    with pytest.raises(ConfigurationError):
        cipher.decrypt(bytes(token))


def test_a_cipher_shows_no_key() -> None:
    """A cipher's repr and str contain no part of a key."""
    key = generate_key()
    assert repr(Cipher(key)) == str(Cipher(key)) == "Cipher(***)"
