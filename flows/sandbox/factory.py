"""Choose where nodes run: in E2B if there is a key, else on this machine."""

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
    """Return E2B's provider if `E2B_API_KEY` is set, else the local one.

    Logs a warning once for the local one: its sandboxes isolate nothing.
    """
    if settings.uses_e2b:
        throttle = CreationThrottle(
            settings.e2b_creations_per_second, settings.e2b_sandboxes, settings.e2b_patience
        )
        return E2BProvider(
            settings.e2b_template,
            settings.e2b_api_key.get_secret_value(),
            throttle,
            installation=_installation(settings),
        )
    log.warning(
        "E2B_API_KEY is not set: nodes run as child processes on this machine and can reach its files and "
        "its network. Run only code that you trust."
    )
    return LocalProvider()


def _installation(settings: Settings) -> str:
    """Return the label of this installation's sandboxes, made from the encryption key.

    All processes of an installation share that key, and no other installation has it.
    """
    key = settings.encryption_key.get_secret_value().partition(",")[0]
    return hashlib.sha256(f"nova sandboxes {key}".encode()).hexdigest()[:16]
