"""What all runs of one process share: the connections, the key, the leases."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from flows.config.settings import Settings
from flows.credentials.cipher import Cipher
from flows.runs.lease_keeper import LeaseKeeper
from flows.store.database import Database


@dataclass(frozen=True)
class Process:
    """Opened once, and never closed: a process that runs flows does so until its end."""

    database: Database
    cipher: Cipher
    leases: LeaseKeeper


@lru_cache(maxsize=4)
def process(settings: Settings) -> Process:
    """Return what this process's runs share; raises ConfigurationError."""
    url = settings.sqlalchemy_url
    database = Database(url, settings.database_pool_size)
    keeper = LeaseKeeper(database, Database(url, 1), settings.lease_seconds)
    keeper.start()
    return Process(database, Cipher(settings.encryption_key.get_secret_value()), keeper)
