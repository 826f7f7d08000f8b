"""The credential keys that a sandbox's context gets, and how secrets are kept out of everything else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any
from urllib.parse import quote, quote_plus

_STARS = "***"


class Overlay:
    """The context keys from a client's credentials, secrets included; its repr shows only their names.

    Only `fragments()` returns secrets, for the sandbox. Everything that leaves a run goes through `redact`
    (texts) or `contains_secret` (JSON).
    """

    def __init__(
        self, public: Mapping[str, Any], secrets: Mapping[str, str], extra_secrets: Iterable[str] = ()
    ) -> None:
        self.public = dict(public)
        self._secrets = dict(secrets)
        # An empty password is no secret: every text contains it.
        self._texts = frozenset(text for text in (*secrets.values(), *extra_secrets) if text)

    @property
    def keys(self) -> frozenset[str]:
        """Names of the overlay's context keys."""
        return frozenset(self.public) | frozenset(self._secrets)

    def fragments(self) -> dict[str, bytes]:
        """Return every key with its value as JSON, unencrypted; for the sandbox only."""
        everything = {**self.public, **self._secrets}
        return {key: json.dumps(value).encode("ascii") for key, value in everything.items()}

    def redact(self, text: str) -> str:
        """Return the text with `***` for each secret, in any escaped form; longer secrets first."""
        return self._pattern.sub(_STARS, text) if self._pattern else text

    def redact_key(self, key: str) -> str:
        """Return the name of a context key, redacted only for secrets that no key contains by chance.

        These have at least 8 characters, not only letters. So the password `postgres` does not rename the key
        `postgres_url`, which would break the workflow.
        """
        distinctive = [text for text in self._texts if _is_distinctive(text)]
        return self.redact(key) if any(form in key for text in distinctive for form in _forms(text)) else key

    def contains_secret(self, fragment: bytes) -> bool:
        """Return whether a JSON text in ASCII contains a secret, in any escaped form.

        A short or common secret is found in nearly everything; that is safe.
        """
        return any(form in fragment for form in self._json_forms)

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        forms = sorted({form for text in self._texts for form in _forms(text)}, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, forms))) if forms else None

    @cached_property
    def _json_forms(self) -> tuple[bytes, ...]:
        forms = {_json(form).encode("ascii") for text in self._texts for form in _forms(text)}
        # A form that contains another form is found with the shorter one.
        return tuple(
            form for form in forms if not any(other in form for other in forms if len(other) < len(form))
        )

    def __repr__(self) -> str:
        return f"Overlay(keys={sorted(self.keys)}, secrets=***)"


def _forms(text: str) -> Iterator[str]:
    """Yield the text, and its forms in connection strings, JSON, logs and tracebacks."""
    data = text.encode("utf-8", "surrogatepass")
    yield text
    for encoded in (quote(data, safe=""), quote(data), quote_plus(data)):
        yield encoded
        yield re.sub("%[0-9A-F]{2}", lambda match: match[0].lower(), encoded)
    yield _json(text)
    yield json.dumps(text, ensure_ascii=False)[1:-1]
    yield repr(text)[1:-1]
    yield repr(data)[2:-1]


def _is_distinctive(text: str) -> bool:
    return len(text) >= 8 and not text.replace("_", "").isalpha()


def _json(text: str) -> str:
    return json.dumps(text)[1:-1]
