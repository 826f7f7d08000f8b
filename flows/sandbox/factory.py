"""Which sandboxes to use: E2B's where there is a key, else this machine's."""

from __future__ import annotations

import hashlib
import logging
from functools import lru_cache

from flows.config.settings import Settings
from flows.sandbox.e2b.provider import E2BProvider
from flows.sandbox.e2b.throttle import CreationThrottle
from flows.sandbox.local import LocalProvider
from flows.sandbox.port import SandboxProvider

log = logging.getLogger(__name__)


@lru_cache(maxsize=4)
def provider(settings: Settings) -> SandboxProvider:
    """Choose by `E2B_API_KEY`; local sandboxes are warned of, once, since they do not contain anything."""
    if settings.uses_e2b:
        turns = CreationThrottle(
            settings.e2b_creations_per_second, settings.e2b_sandboxes, settings.e2b_patience
        )
        return E2BProvider(
            settings.e2b_template,
            settings.e2b_api_key.get_secret_value(),
            turns,
            installation=_installation(settings),
        )
    log.warning(
        "E2B_API_KEY is not set: nodes run as child processes of this machine, with its files and "
        "its network. Run only code that you trust."
    )
    return LocalProvider()


def _installation(settings: Settings) -> str:
    """What this installation's sandboxes are known by: all its processes share the key, and no other does."""
    key = settings.encryption_key.get_secret_value().partition(",")[0]
    return hashlib.sha256(f"nova sandboxes {key}".encode()).hexdigest()[:16]
