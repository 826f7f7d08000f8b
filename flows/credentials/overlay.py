"""What a client's credentials lay over the context in the sandbox, and how it is kept out of all else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any
from urllib.parse import quote, quote_plus

_STARS = "***"


class Overlay:
    """The context keys that a client brings, secret ones included; shows only their names.

    `fragments()` alone hands the secrets out, for the sandbox. Everything that leaves a run goes through
    `redact` (texts) or `contains_secret` (JSON).
    """

    def __init__(
        self, public: Mapping[str, Any], secrets: Mapping[str, str], extra_secrets: Iterable[str] = ()
    ) -> None:
        self.public = dict(public)
        self._secrets = dict(secrets)
        # An empty password is no secret: it is part of every text.
        self._texts = frozenset(text for text in (*secrets.values(), *extra_secrets) if text)

    @property
    def keys(self) -> frozenset[str]:
        """Names of the context keys that are laid over."""
        return frozenset(self.public) | frozenset(self._secrets)

    def fragments(self) -> dict[str, bytes]:
        """Every key with its value as JSON, in clear: for the sandbox alone."""
        everything = {**self.public, **self._secrets}
        return {key: json.dumps(value).encode("ascii") for key, value in everything.items()}

    def redact(self, text: str) -> str:
        """The text with `***` for each secret, however it is escaped; longer secrets go first."""
        return self._pattern.sub(_STARS, text) if self._pattern else text

    def redact_key(self, key: str) -> str:
        """As `redact`, for the name of a context key.

        Only for secrets that no key is made of by chance: at least 8 characters, and not letters alone.
        `postgres` as a password must not rename the key `postgres_url`, and break the workflow.
        """
        telling = [text for text in self._texts if _is_telling(text)]
        return self.redact(key) if any(form in key for text in telling for form in _forms(text)) else key

    def contains_secret(self, fragment: bytes) -> bool:
        """Whether a JSON text (ASCII, as `context.dumps` writes it) holds a secret, however it is escaped.

        A short or ordinary secret is found in nearly everything; that is the safe side.
        """
        return any(form in fragment for form in self._json_forms)

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        forms = sorted({form for text in self._texts for form in _forms(text)}, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, forms))) if forms else None

    @cached_property
    def _json_forms(self) -> tuple[bytes, ...]:
        forms = {_json(form).encode("ascii") for text in self._texts for form in _forms(text)}
        # A form that holds another is found with that one.
        return tuple(
            form for form in forms if not any(other in form for other in forms if len(other) < len(form))
        )

    def __repr__(self) -> str:
        return f"Overlay(keys={sorted(self.keys)}, secrets=***)"


def _forms(text: str) -> Iterator[str]:
    """The text itself and the ways in which connection strings, logs and tracebacks write it."""
    data = text.encode("utf-8", "surrogatepass")
    yield text
    for encoded in (quote(data, safe=""), quote(data), quote_plus(data)):
        yield encoded
        yield re.sub("%[0-9A-F]{2}", lambda match: match[0].lower(), encoded)
    yield _json(text)
    yield json.dumps(text, ensure_ascii=False)[1:-1]
    yield repr(text)[1:-1]
    yield repr(data)[2:-1]


def _is_telling(text: str) -> bool:
    return len(text) >= 8 and not text.replace("_", "").isalpha()


def _json(text: str) -> str:
    return json.dumps(text)[1:-1]
