"""`nova up` and `nova demo`: everything on this machine, in the foreground."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import typer

from deployments.cli.terminal import say

DataDirOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder for the databases, logs and the encryption key. Default: /var/lib/nova for root, "
        "else ~/.local/share/nova; the demo has a folder `demo` of its own in it.",
        show_default=False,
    ),
]
ApiPort = Annotated[int, typer.Option(min=0, max=65535, help="Port of the API; 0 is any free one.")]
PrefectPort = Annotated[
    int, typer.Option(min=0, max=65535, help="Port of Prefect's server and UI; 0 is any free one.")
]
Limit = Annotated[int, typer.Option(min=1, help="Runs that the worker does at once.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show all output of all parts.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(up)
    app.command()(demo)


def up(
    data_dir: DataDirOption = None,
    api_port: ApiPort = 8000,
    prefect_port: PrefectPort = 4200,
    limit: Limit = 2,
    verbose: Verbose = False,
) -> None:
    """Start everything in the foreground: PostgreSQL, Prefect's server and UI, the API, a worker.

    Without DATABASE_URL it brings a PostgreSQL of its own (the extra `local`). Prefect's server has its
    database there too, unless PREFECT_API_DATABASE_CONNECTION_URL is set. A part that dies is started
    again. Ctrl-C stops everything. Ready when it says "NOVA is ready".
    """
    from deployments.cli.datadir import default_data_dir
    from deployments.cli.processes import require_local
    from deployments.cli.stack import Options, Stack

    require_local()
    stack = Stack(Options(data_dir or default_data_dir(), api_port, prefect_port, limit, verbose), say)

    async def work() -> int:
        say(f"NOVA starts; its data is in {stack.data.path}")
        async with stack.running():
            say(f"API docs        {stack.api_url}/docs")
            say(f"Prefect UI      {stack.prefect_url}")
            say(f"Logs            {stack.data.logs}")
            say("NOVA is ready")
            await asyncio.Event().wait()
        return 0

    raise SystemExit(until_interrupted(work))


def demo(
    data_dir: DataDirOption = None,
    api_port: ApiPort = 8000,
    prefect_port: PrefectPort = 4200,
    limit: Limit = 2,
    verbose: Verbose = False,
    leave: Annotated[
        bool, typer.Option("--exit", help="Stop everything at the end; exit 0 only if the run succeeded.")
    ] = False,
) -> None:
    """Start everything, and run an invoice workflow on sample mail to see it work.

    On top of `nova up`: a mail server with an invoice in the mailbox of the sample client `idom`, and a
    database of that client's. The workflow reads the mail, takes the PDF apart, decides on the amount and
    stores the invoice; its Chain of Work is shown. Its nodes run on this machine, where the sample mail
    is, also when E2B_API_KEY is set. Needs the extras `local` and `demo`.
    """
    from deployments.cli.datadir import default_data_dir
    from deployments.cli.processes import require_local
    from deployments.cli.stack import Options, Stack
    from deployments.demo import require_demo
    from deployments.demo.story import tell

    require_local()
    require_demo()
    folder = data_dir or default_data_dir() / "demo"
    # The sample client's own database is on the embedded server in any case.
    options = Options(folder, api_port, prefect_port, limit, verbose, embedded=True)
    stack = Stack(options, say, extra_env={"E2B_API_KEY": ""})

    async def work() -> int:
        say(f"NOVA's demo starts; its data is in {stack.data.path}")
        async with stack.running():
            succeeded = await tell(stack, stays=not leave)
            if leave:
                return 0 if succeeded else 1
            await asyncio.Event().wait()
        return 0

    raise SystemExit(until_interrupted(work))


def until_interrupted(work: Callable[[], Awaitable[int]]) -> int:
    """Run `work` until it returns an exit code, or a signal ends it (130 for Ctrl-C, 0 for SIGTERM).

    A signal cancels the work once; it then cleans up. Further signals are ignored meanwhile: cleaning
    up takes a limited time.
    """
    code: int | None = None

    async def main() -> int:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(work())

        def stop(exit_code: int) -> None:
            nonlocal code
            if code is None:
                code = exit_code
                say("Stopping …")
                task.cancel()

        for number, exit_code in ((signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGHUP, 0)):
            loop.add_signal_handler(number, stop, exit_code)
        try:
            result = await task
        except asyncio.CancelledError:
            if code is None:
                raise
            result = code
        if code is not None:
            say("Stopped.")
        return result

    try:
        return asyncio.run(main())
    except BaseExceptionGroup as group:  # of a TaskGroup: one failure is reported
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None
