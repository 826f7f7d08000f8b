"""What all runs of one process share: the connections, the key, the leases, the sandboxes."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache

from flows.config.settings import Settings
from flows.credentials.cipher import Cipher
from flows.runs.lease_keeper import LeaseKeeper
from flows.sandbox.factory import provider
from flows.sandbox.prewarm import RunSandboxes
from flows.store.database import Database


@dataclass(frozen=True)
class Process:
    """Opened once for a process that runs flows, and open until the process ends."""

    database: Database
    cipher: Cipher
    leases: LeaseKeeper
    sandboxes: RunSandboxes


pretended: ContextVar[Process | None] = ContextVar("pretended", default=None)
"""What the runs below this context share in place of what the process has: a test lets several workers live
in one process."""


def process(settings: Settings) -> Process:
    """Return what this process's runs share; raises ConfigurationError."""
    return pretended.get() or opened(settings)


@lru_cache(maxsize=4)
def opened(settings: Settings) -> Process:
    """Open what the runs of a process share, once for each settings; raises ConfigurationError."""
    url = settings.sqlalchemy_url
    database = Database(url, settings.database_pool_size)
    keeper = LeaseKeeper(database, Database(url, 1), settings.lease_seconds)
    keeper.start()
    cipher = Cipher(settings.encryption_key.get_secret_value())
    return Process(database, cipher, keeper, RunSandboxes(provider(settings)))
