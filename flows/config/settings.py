"""NOVA's settings, from environment variables and a `.env` file in the working folder.

Names from the old build are kept (`DATABASE_URL`, `E2B_API_KEY`, `E2B_TEMPLATE`, `PREFECT_API_URL`); new
names begin with `NOVA_`. Prefect and the E2B SDK read their own variables (`PREFECT_*`, `E2B_API_URL`,
`E2B_SANDBOX_URL`, …) themselves.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from flows.config import times
from flows.graphs.errors import ConfigurationError


class Settings(BaseSettings):
    """All settings, each with its unit and default."""

    model_config = SettingsConfigDict(env_file=".env", env_file_encoding="utf-8", extra="ignore", frozen=True)

    database_url: str = Field(default="", validation_alias="DATABASE_URL")
    """URL of NOVA's PostgreSQL; may begin with `postgres://` or `postgresql://`."""
    database_pool_size: int = Field(default=10, ge=1, le=200, validation_alias="NOVA_DATABASE_POOL_SIZE")
    """Database connections that one process may have open."""

    encryption_key: SecretStr = Field(default=SecretStr(""), validation_alias="NOVA_ENCRYPTION_KEY")
    """Fernet keys, separated by commas: the first encrypts, all of them decrypt."""

    e2b_api_key: SecretStr = Field(default=SecretStr(""), validation_alias="E2B_API_KEY")
    """Set: nodes run in E2B's cloud. Empty: as child processes on this machine, for trusted code only."""
    e2b_template: str = Field(default="", validation_alias="E2B_TEMPLATE")
    """Name or id of the E2B template; empty is E2B's base template."""
    e2b_creations_per_second: float = Field(
        default=0.0, ge=0, validation_alias="NOVA_E2B_CREATIONS_PER_SECOND"
    )
    """Sandboxes that one process creates per second; 0 is no limit but E2B's."""
    e2b_sandboxes: int = Field(default=0, ge=0, validation_alias="NOVA_E2B_SANDBOXES")
    """Sandboxes that one process has at once; 0 is no limit but E2B's."""
    e2b_patience: float = Field(default=300.0, gt=0, validation_alias="NOVA_E2B_PATIENCE")
    """Seconds that a sandbox's creation may wait for its turn; the run's timeout does not count them."""

    prefect_api_url: str = Field(default="http://127.0.0.1:4200/api", validation_alias="PREFECT_API_URL")
    prefect_ui_url: str = Field(default="", validation_alias="PREFECT_UI_URL")
    prefect_timeout: float = Field(
        default=times.PREFECT_ANSWER, gt=0, validation_alias="NOVA_PREFECT_TIMEOUT"
    )
    """Seconds that the API waits for Prefect before it answers 503."""
    work_pool: str = Field(default="nova", validation_alias="NOVA_WORK_POOL")

    max_steps: int = Field(default=1000, ge=1, le=1_000_000, validation_alias="NOVA_MAX_STEPS")
    """Steps that a run may take if its graph has no `max_steps`."""
    run_timeout: float = Field(default=600.0, gt=0, validation_alias="NOVA_RUN_TIMEOUT")
    """Seconds that one attempt of a run may last."""
    run_warning: float = Field(default=540.0, gt=0, validation_alias="NOVA_RUN_WARNING")
    """Seconds after which a warning is logged for a run that has not ended."""
    output_limit: int = Field(default=65_536, ge=0, validation_alias="NOVA_OUTPUT_LIMIT")
    """Bytes of stdout, and as many of stderr, kept per node."""
    context_limit: int = Field(default=64 * 1024 * 1024, ge=1024, validation_alias="NOVA_CONTEXT_LIMIT")
    """Bytes that a run's whole context may have, as JSON."""

    lease_seconds: float = Field(default=times.LEASE, gt=0, validation_alias="NOVA_LEASE_SECONDS")
    """Seconds that a lease lasts; renewed every third of that. Once it expires, its worker counts as dead."""
    recovery_interval: float = Field(
        default=times.RECOVERY_INTERVAL, gt=0, validation_alias="NOVA_RECOVERY_INTERVAL"
    )
    """Seconds between two checks for runs whose worker died."""
    crash_limit: int = Field(default=3, ge=1, validation_alias="NOVA_CRASH_LIMIT")
    """Crashes in a row at one step after which the run fails."""
    retries: int = Field(default=3, ge=0, validation_alias="NOVA_RETRIES")
    """Times that a run is retried after an infrastructure failure."""
    retry_delay: float = Field(default=60.0, gt=0, validation_alias="NOVA_RETRY_DELAY")
    """Seconds before a run's first retry; each further retry waits twice as long."""
    retry_delay_max: float = Field(default=600.0, gt=0, validation_alias="NOVA_RETRY_DELAY_MAX")
    """The most seconds before a run's retry."""
    node_retry_delay: float = Field(default=1.0, gt=0, validation_alias="NOVA_NODE_RETRY_DELAY")
    """Seconds before a node is retried within its attempt; each further retry waits twice as long."""
    breaker_threshold: int = Field(default=5, ge=1, validation_alias="NOVA_BREAKER_THRESHOLD")
    """Failures of E2B in a row after which runs wait instead of calling it."""
    breaker_pause: float = Field(default=60.0, gt=0, validation_alias="NOVA_BREAKER_PAUSE")
    """Seconds after which one run tries E2B again."""

    node_code_limit: int = Field(
        default=65_536, ge=1024, le=8 * 1024 * 1024, validation_alias="NOVA_NODE_CODE_LIMIT"
    )
    """Bytes of UTF-8 that a node's code or condition may have when its workflow is saved."""
    max_body: int = Field(default=64 * 1024 * 1024, ge=1024, validation_alias="NOVA_MAX_BODY")
    """Bytes that the body of a request to the API may have."""
    api_url: str = Field(
        default="http://127.0.0.1:8000", validation_alias=AliasChoices("NOVA_API_URL", "API_URL")
    )
    """URL of the API, for the command line."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", validation_alias="NOVA_LOG_LEVEL"
    )

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @property
    def sqlalchemy_url(self) -> str:
        """`database_url` for SQLAlchemy with the driver psycopg2.

        Raises ConfigurationError if it is empty or not PostgreSQL's.
        """
        if not self.database_url:
            raise ConfigurationError(
                "DATABASE_URL is not set. Set it to a PostgreSQL URL (postgresql://user:password@host/name), "
                "or start everything with an embedded database: nova up"
            )
        url, found = re.subn(r"^postgres(ql)?(\+psycopg2)?://", "postgresql+psycopg2://", self.database_url)
        if not found:
            raise ConfigurationError("DATABASE_URL must begin with postgresql:// or postgres://.")
        return url

    @property
    def uses_e2b(self) -> bool:
        """Whether nodes run in E2B sandboxes; otherwise they run as child processes of the worker."""
        return bool(self.e2b_api_key.get_secret_value())

    @property
    def ui_url(self) -> str:
        """The Prefect UI's URL, without a trailing slash."""
        return (self.prefect_ui_url or self.prefect_api_url.removesuffix("/").removesuffix("/api")).rstrip(
            "/"
        )


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """Return this process's settings, read once.

    Raises ConfigurationError, which names every wrong variable.
    """
    try:
        return Settings()
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigurationError(
            f"Wrong settings. Correct them in the environment or in .env: {faults}"
        ) from None
