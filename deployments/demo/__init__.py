"""The demo: an invoice workflow, its mail and PDF, and the flow of `nova demo`.

The mail servers and invoices are real, so the tests use them, too.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from flows.graphs.errors import ConfigurationError

WORKFLOW_FILE = Path(__file__).with_name("invoice.yaml")
"""The sample workflow "Invoice Processing V3", a file for `nova workflows apply`."""


def require_demo() -> None:
    """Raise ConfigurationError with the command to run if the extra `demo` is not installed."""
    for module in ("pymap", "aiosmtpd", "pymupdf"):
        if importlib.util.find_spec(module) is None:
            raise ConfigurationError(
                f'The package {module} is missing. Install it with: pip install "nova-prefect[demo]"'
            )
