"""The demo: an invoice workflow, the mail and PDF it works on, and the story that `nova demo` tells.

The tests use its mail servers and invoices too: they are real ones.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from flows.graphs.errors import ConfigurationError

WORKFLOW_FILE = Path(__file__).with_name("invoice.yaml")
"""The sample workflow "Invoice Processing V3", as `nova workflows apply` takes it."""


def require_demo() -> None:
    """Raise ConfigurationError, with the line that helps, when the extra `demo` is not installed."""
    for module in ("pymap", "aiosmtpd", "pymupdf"):
        if importlib.util.find_spec(module) is None:
            raise ConfigurationError(
                f'The package {module} is missing. Install it with: pip install "nova-prefect[demo]"'
            )
