"""`python -m deployments.cli` is `nova`."""

from deployments.cli.main import app

app()
