"""The data folder of `nova up`: where it is, who holds it, and the encryption key in it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO

from flows.graphs.errors import ConfigurationError, ConflictError


def default_data_dir() -> Path:
    """Return `/var/lib/nova` for root, else `nova` in the user's data folder (`XDG_DATA_HOME`)."""
    if os.geteuid() == 0:
        return Path("/var/lib/nova")
    base = os.environ.get("XDG_DATA_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".local" / "share") / "nova"


def _private_parent(folder: Path) -> Path | None:
    """Return the nearest parent that other users may not enter; None if there is none."""
    return next((p for p in folder.parents if p.is_dir() and not p.stat().st_mode & 0o001), None)


class DataDir:
    """A data folder held by this process; use it as a context manager.

    Raises ConflictError when another `nova up` holds it and ConfigurationError when it cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self._lock: IO[str] | None = None

    @property
    def logs(self) -> Path:
        """Folder of the parts' log files."""
        return self.path / "logs"

    @property
    def postgres(self) -> Path:
        """Folder of the embedded PostgreSQL."""
        return self.path / "postgres"

    @property
    def prefect(self) -> Path:
        """Prefect's home: the profiles of the user are not read."""
        return self.path / "prefect"

    @property
    def work(self) -> Path:
        """The parts' working folder: empty, so that no `.env` or `prefect.toml` is read by accident."""
        return self.path / "work"

    def __enter__(self) -> DataDir:
        self._make()
        self._hold()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.close()  # this frees the lock
            self._lock = None

    def encryption_key(self) -> str:
        """Return the key of this folder; the first call makes it, readable by its owner only."""
        from flows.credentials.cipher import generate_key

        file = self.path / "encryption.key"
        if not file.exists():
            # Written to another file, then renamed: a key cut short by a crash would lose all credentials.
            handle, name = tempfile.mkstemp(dir=self.path, prefix=".key-")  # 0600
            with os.fdopen(handle, "w") as aside:
                aside.write(generate_key() + "\n")
                aside.flush()
                os.fsync(aside.fileno())
            Path(name).replace(file)
        if file.stat().st_mode & 0o077:
            file.chmod(0o600)
        key = file.read_text().strip()
        if not key:
            raise ConfigurationError(f"The encryption key {file} is empty. Restore it from a backup.")
        return key

    def _make(self) -> None:
        if os.geteuid() == 0 and (private := _private_parent(self.path)) is not None:
            raise ConfigurationError(
                f"The data folder {self.path} lies in {private}, which other users may not enter, but "
                "as root PostgreSQL runs as a system user of its own. Choose another with --data-dir, "
                f"{default_data_dir()} say."
            )
        try:
            new = [parent for parent in self.path.parents if not parent.exists()]
            for folder in (self.path, self.logs, self.prefect, self.work):
                folder.mkdir(parents=True, exist_ok=True)
            if os.geteuid() == 0:
                for folder in (self.path, *new):  # whatever the umask: others may enter, not list
                    folder.chmod(folder.stat().st_mode | 0o011)
        except OSError as error:
            raise ConfigurationError(
                f"The data folder {self.path} cannot be made ({error.strerror}). "
                "Choose another with --data-dir."
            ) from None

    def _hold(self) -> None:
        import fcntl

        lock = (self.path / "lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            holder = lock.read().strip()
            lock.close()
            raise ConflictError(
                f"The data folder {self.path} is in use by another NOVA"
                + (f" (process {holder})" if holder else "")
                + ". Stop that one, or choose another folder with --data-dir."
            ) from None
        lock.seek(0)
        lock.truncate()
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock
