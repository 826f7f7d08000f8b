"""Settings of the worker alone."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from flows.config import times


class WorkerSettings(BaseSettings):
    """Read from the environment and `.env`; everything else is in `flows.config.settings`."""

    model_config = SettingsConfigDict(env_file=".env", env_file_encoding="utf-8", extra="ignore", frozen=True)

    grace: float = Field(default=times.WORKER_GRACE, ge=0, validation_alias="NOVA_WORKER_GRACE")
    """Seconds that runs may go on after SIGTERM before they are handed back. Keep it below what the
    platform waits before it kills."""
    limit: int = Field(default=10, ge=1, validation_alias="NOVA_WORKER_LIMIT")
    """Runs at once where `--limit` is not given: all of them share one process's memory."""
