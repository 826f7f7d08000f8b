"""Turn the exceptions of E2B's SDK and its transport into SandboxErrors."""

from __future__ import annotations

import e2b
import httpx
from e2b.sandbox.commands.command_handle import CommandExitException

from flows.graphs.errors import SandboxError


def sandbox_error(error: Exception, what: str) -> SandboxError:
    """Return the SandboxError for an exception of the SDK or its transport; `what` is what failed."""
    if isinstance(error, SandboxError):
        return error
    reason, why = reason_of(error)
    return SandboxError(f"{what}: {why}.", reason=reason)


def reason_of(error: Exception) -> tuple[str, str]:
    """Return why a call of the SDK failed: the SandboxError's reason, and a phrase for people."""
    said = str(error).strip().rstrip(".") or type(error).__name__
    match error:
        case e2b.AuthenticationException():
            return "authentication", f"E2B_API_KEY was refused ({said})"
        case e2b.RateLimitException():
            return "rate_limit", f"E2B's rate limit is reached ({said})"
        case e2b.ServiceBusyException():
            return "busy", f"E2B has no free capacity at the moment ({said})"
        case e2b.SandboxNotRunningException() | e2b.SandboxNotFoundException():
            return "gone", f"the sandbox is gone ({said})"
        case e2b.NotEnoughSpaceException():
            return "space", f"the sandbox's disk is full ({said})"
        case CommandExitException():
            return "broken", f"a command ended with status {error.exit_code}: {error.stderr or said}"
        case e2b.TimeoutException() | httpx.TimeoutException() | TimeoutError():
            return "timeout", f"E2B did not answer in time ({said})"
        case e2b.SandboxException(status_code=int(status)) if status >= 500:
            return "unwell", f"E2B failed ({said})"
        case e2b.SandboxException(status_code=int(status)) if status >= 400:
            return "refused", f"E2B refused the request ({said})"
        case e2b.InvalidArgumentException() | e2b.NotFoundException() | e2b.TemplateException():
            return "refused", f"E2B refused the request ({said})"
        case httpx.HTTPError() | OSError():
            return "unreachable", f"E2B cannot be reached ({said})"
    return "broken", said
