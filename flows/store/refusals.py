"""Which of PostgreSQL's errors pass by themselves, and which it would answer again.

Who takes a refusal for an outage waits for ever, and who takes an outage for a refusal gives a run up for a
moment's trouble. psycopg2 throws both together in its OperationalError: the SQLSTATE tells them apart
(https://www.postgresql.org/docs/current/errcodes-appendix.html).
"""

from __future__ import annotations

import re
from typing import Final

from sqlalchemy.exc import DataError, DBAPIError, InterfaceError, InternalError, OperationalError

from flows.graphs.errors import DatabaseRefusedError

MAY_PASS: Final = {
    "08": "the connection broke",
    "25006": "the server is a standby, for as long as a failover takes",
    "25P03": "the transaction was idle for too long",
    "40001": "two transactions were in each other's way",
    "40003": "whether the statement was done is unknown",
    "40P01": "two transactions waited for each other",
    "53300": "all connections are taken",
    "55P03": "somebody else has the lock",
    "57P": "the server stops, starts, or ends sessions",
}
"""SQLSTATEs, or what they begin with, of what may be otherwise in a moment. No SQLSTATE: no answer at all."""

_NO_PRIVILEGE: Final = "42501"
_BAD_VALUE: Final = "22"
"""The class of values that no column takes. PostgreSQL's words for them quote the value."""


def sqlstate(error: Exception) -> str | None:
    """The SQLSTATE that PostgreSQL gave; None where it did not answer."""
    return getattr(getattr(error, "orig", None), "pgcode", None)


def is_outage(error: DBAPIError) -> bool:
    """Whether it may pass by itself."""
    code = sqlstate(error)
    if error.connection_invalidated:
        return True
    if code is None:
        return isinstance(error, OperationalError | InterfaceError)
    return code.startswith(tuple(MAY_PASS))


def is_refusal(error: DBAPIError) -> bool:
    """Whether PostgreSQL would refuse it again: disk full, a limit, a timeout, a value that does not fit.

    A statement that makes no sense to it, or a row that breaks a constraint, is a fault of ours instead.
    """
    code = sqlstate(error)
    if code is None or is_outage(error):
        return False
    return code == _NO_PRIVILEGE or isinstance(error, OperationalError | InternalError | DataError)


def refused(error: DBAPIError) -> DatabaseRefusedError:
    """The refusal in PostgreSQL's own words, without any value of the statement's."""
    code = sqlstate(error) or ""
    if code.startswith(_BAD_VALUE):
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error.orig).__name__).lower()
    else:
        diagnosis = getattr(error.orig, "diag", None)
        words = str(getattr(diagnosis, "message_primary", None) or type(error.orig).__name__)
    return DatabaseRefusedError(f"PostgreSQL refused this ({code}): {words.rstrip('.')}.", code=code)
