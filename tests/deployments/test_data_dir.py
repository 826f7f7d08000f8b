"""The data folder: its key, its lock, and where it may be."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from deployments.cli.datadir import DataDir, default_data_dir
from flows.credentials.cipher import Cipher
from flows.graphs.errors import ConfigurationError, ConflictError


def test_the_encryption_key_is_made_once_and_only_its_owner_may_read_it(data_dir: Path) -> None:
    """A key that works, in a file of mode 0600, the same at every start."""
    with DataDir(data_dir) as data:
        first = data.encryption_key()
        second = data.encryption_key()
    with DataDir(data_dir) as data:
        third = data.encryption_key()
    assert first == second == third
    assert stat.S_IMODE((data_dir / "encryption.key").stat().st_mode) == 0o600
    cipher = Cipher(first)
    assert cipher.decrypt(cipher.encrypt(b"secret")) == b"secret"


def test_a_key_file_that_others_could_read_is_closed(data_dir: Path) -> None:
    """A copy restored with open permissions does not stay so."""
    with DataDir(data_dir) as data:
        key = data.encryption_key()
        (data_dir / "encryption.key").chmod(0o644)
        assert data.encryption_key() == key
    assert stat.S_IMODE((data_dir / "encryption.key").stat().st_mode) == 0o600


def test_an_empty_key_file_is_an_error(data_dir: Path) -> None:
    """A new key in its place would make all credentials unreadable."""
    with DataDir(data_dir) as data:
        (data_dir / "encryption.key").touch(0o600)
        with pytest.raises(ConfigurationError, match="is empty"):
            data.encryption_key()


def test_a_folder_is_held_by_one_nova_at_a_time(data_dir: Path) -> None:
    """The second is told who holds it; afterwards it is free."""
    with (
        DataDir(data_dir),
        pytest.raises(ConflictError, match=rf"in use by another NOVA \(process {os.getpid()}\)"),
        DataDir(data_dir),
    ):
        pass
    with DataDir(data_dir):
        pass


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    """A file stands in the way."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="--data-dir"), DataDir(tmp_path / "file" / "data"):
        pass


def test_the_default_is_outside_of_a_private_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root's is /var/lib/nova, since PostgreSQL's user may not enter /root; others have their own."""
    monkeypatch.setenv("XDG_DATA_HOME", "/somewhere")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_data_dir() == Path("/var/lib/nova")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert default_data_dir() == Path("/somewhere/nova")
    monkeypatch.delenv("XDG_DATA_HOME")
    assert default_data_dir() == Path.home() / ".local/share/nova"


def test_root_may_not_put_it_below_a_private_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than open somebody's home to all, it says so."""
    private = tmp_path / "home"
    private.mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(ConfigurationError, match="other users may not enter"), DataDir(private / "data"):
        pass
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert not (private / "data").exists()
