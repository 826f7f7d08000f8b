"""`nova template`: the E2B template that sandboxes are made from."""

from __future__ import annotations

import asyncio
import os
import re
import time
from typing import TYPE_CHECKING, Annotated

import typer

from deployments.cli.environment import with_dotenv
from deployments.cli.terminal import fail
from flows.graphs.errors import ConfigurationError

if TYPE_CHECKING:
    from e2b import LogEntry

_HASH = re.compile(r" \[[0-9a-f]{64}]$")
"""The hash that E2B writes after each step."""

app = typer.Typer(no_args_is_help=True, help="Build the E2B template that sandboxes are made from.")


@app.command()
def build(
    name: Annotated[
        str, typer.Option(help="Name of the template in your E2B team; NAME:TAG keeps several versions.")
    ] = "nova-runner",
    cpus: Annotated[int, typer.Option(min=1, help="CPUs of each sandbox.")] = 2,
    memory: Annotated[int, typer.Option(min=128, help="Memory of each sandbox in MiB.")] = 1024,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Build every step anew, from the newest Python image on.")
    ] = False,
) -> None:
    """Build the template in E2B's cloud: Python with the packages that workflows use, and NOVA's runner.

    Needs E2B_API_KEY. Takes a few minutes, a few seconds where little has changed. Prints the line for the
    settings of the workers at the end: nova template build >> .env

    A template of this name is replaced when the build is ready. Build it again after each upgrade of NOVA,
    before or after the workers: where runner and worker differ, the worker brings its own, which costs each
    run a moment.
    """
    # The SDK reads its own variables (E2B_DOMAIN, say), which may stand in `.env` alone.
    os.environ.update({key: value for key, value in with_dotenv().items() if key.startswith("E2B_")})
    from flows.config.settings import get_settings
    from flows.sandbox.e2b import template

    api_key = get_settings().e2b_api_key.get_secret_value()
    if not api_key:
        raise ConfigurationError(
            "E2B_API_KEY is not set. Make a key at https://e2b.dev/dashboard?tab=keys and put it into the "
            "environment or a .env file."
        )
    started = time.monotonic()

    def tell(entry: LogEntry) -> None:
        if entry.level != "debug":
            message = _HASH.sub("", entry.message.rstrip())
            typer.echo(f"{time.monotonic() - started:7.1f} s  {message}", err=True)

    try:
        asyncio.run(
            template.build(name, api_key=api_key, cpus=cpus, memory=memory, cache=not no_cache, on_log=tell)
        )
    except KeyboardInterrupt:
        fail("Stopped waiting. A build that has begun goes on in E2B's cloud.", 130)
    typer.echo("The template is ready. The setting of the workers:", err=True)
    print(f"E2B_TEMPLATE={name}")
