"""Settings that only the worker has."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from flows.config import times


class WorkerSettings(BaseSettings):
    """Read from the environment and `.env`; all other settings are in `flows.config.settings`."""

    model_config = SettingsConfigDict(env_file=".env", env_file_encoding="utf-8", extra="ignore", frozen=True)

    grace: float = Field(default=times.WORKER_GRACE, ge=0, validation_alias="NOVA_WORKER_GRACE")
    """Seconds that runs may go on after SIGTERM before they are requeued. Keep it below the time that the
    platform waits before it kills."""
    limit: int = Field(default=10, ge=1, validation_alias="NOVA_WORKER_LIMIT")
    """Runs at once if `--limit` is not given. All of them share one process's memory."""
