"""The environment of the parts of `nova up`.

The parts must reach each other, even if a profile, `.env` or variable of the user points elsewhere. So the
`.env` of the folder in which nova was started is read once, here, and the parts run in a folder without one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from flows.graphs.errors import ConfigurationError

SERVER_SETTINGS = Path(__file__).parents[1] / "prefect-server.env"
"""How Prefect's server is tuned: compose.yaml gives the same file to its container."""
PREFECT_DATABASE = "PREFECT_API_DATABASE_CONNECTION_URL"
_KEPT = {PREFECT_DATABASE, "PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING"}
"""Prefect's variables that the user may set, besides the tuned ones. NOVA sets addresses and paths."""
_KEPT_PREFIXES = (
    "PREFECT_LOGGING_",
    "PREFECT_SERVER_LOGGING_",
    "PREFECT_WORKER_",
    "PREFECT_SERVER_SERVICES_",
)


@lru_cache(maxsize=1)
def tuned() -> Mapping[str, str]:
    """Return the server's variables that differ from Prefect's defaults; the file explains each."""
    from dotenv import dotenv_values

    found = dotenv_values(SERVER_SETTINGS, encoding="utf-8", interpolate=False)
    return {key: value for key, value in found.items() if value is not None}


def with_dotenv() -> dict[str, str]:
    """Return this process's environment over the `.env` of the working folder; raises ConfigurationError."""
    from dotenv import dotenv_values

    try:
        file = dotenv_values(".env", encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"The file .env cannot be read: {error}") from None
    return {key: value for key, value in file.items() if value is not None} | dict(os.environ)


def outside() -> dict[str, str]:
    """Return what the user has set, without the addresses of Prefect's server and profiles."""
    return {
        key: value
        for key, value in with_dotenv().items()
        if not key.startswith("PREFECT_") or key in {*_KEPT, *tuned()} or key.startswith(_KEPT_PREFIXES)
    }


def bare() -> dict[str, str]:
    """Return only what PostgreSQL needs: no variables of libpq and no locale."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def parts(
    base: Mapping[str, str],
    *,
    database_url: str,
    prefect_database_url: str,
    encryption_key: str,
    api_port: int,
    prefect_port: int,
    prefect_home: Path,
) -> dict[str, str]:
    """Return the environment of Prefect's server, the API, the worker and `nova deploy`."""
    prefect = f"http://127.0.0.1:{prefect_port}"
    return {
        # Defaults, which the user may have set differently.
        **tuned(),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "NOVA_WORKER_GRACE": "2",  # after Ctrl-C nobody wants to wait for 30 s
        "PREFECT_WORKER_PREFETCH_SECONDS": "0",  # strict priorities: nothing is taken before it is due
        **base,
        "NOVA_WORK_POOL": base.get("NOVA_WORK_POOL") or "nova",
        "DATABASE_URL": database_url,
        "NOVA_ENCRYPTION_KEY": encryption_key,
        "NOVA_API_URL": f"http://127.0.0.1:{api_port}",
        PREFECT_DATABASE: prefect_database_url,
        "PREFECT_API_URL": f"{prefect}/api",
        "PREFECT_UI_URL": prefect,
        "PREFECT_HOME": str(prefect_home),
        "PREFECT_PROFILES_PATH": str(prefect_home / "profiles.toml"),
        "PREFECT_SERVER_UI_ENABLED": "true",
        "DO_NOT_TRACK": "1",
        "PYTHONUNBUFFERED": "1",
    }
