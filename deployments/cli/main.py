"""The command `nova`. Commands import what they need when they run, so that `nova --help` is quick."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from deployments.cli import clients, run, runs, serve, template, workflows
from deployments.cli.terminal import fail
from flows.graphs.errors import ConfigurationError, InvalidInputError, NovaError


class _Group(TyperGroup):
    """Turns expected errors into one sentence and an exit code: 2 for wrong input, 1 for the rest."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (InvalidInputError, ConfigurationError) as error:
            fail(str(error), 2)
        except NovaError as error:
            fail(str(error))
        except KeyboardInterrupt:
            raise SystemExit(130) from None


app = typer.Typer(
    name="nova",
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="NOVA runs workflows for companies: graphs of small Python programs, on Prefect.",
)

run.register(app)
serve.register(app)
app.add_typer(workflows.app, name="workflows")
app.add_typer(runs.app, name="runs")
app.add_typer(clients.app, name="clients")
app.add_typer(template.app, name="template")
