"""`nova clients`: the companies that workflows run for, and their credentials."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from deployments.cli.remote import Api, ApiUrl
from flows.graphs.errors import InvalidInputError, NotFoundError

app = typer.Typer(no_args_is_help=True, help="Add, list and remove clients and their credentials.")

Slug = Annotated[str, typer.Argument(help="The client's slug: what a run names it by.")]
PasswordFile = Annotated[
    Path | None,
    typer.Option(
        help="File that holds the password; - reads a line of standard input. Without it, the environment "
        "variable named below is read, else you are asked.",
        show_default=False,
    ),
]


@app.command()
def add(
    slug: Slug,
    name: Annotated[str | None, typer.Option(help="Name of the company; the slug when not given.")] = None,
    label: Annotated[
        str, typer.Option(help="Label of the credentials, where a client has several.")
    ] = "default",
    primary: Annotated[
        bool, typer.Option("--primary", help="Make these the ones that nodes get; the first are in any case.")
    ] = False,
    email_user: Annotated[str | None, typer.Option(help="User name of the mailbox.")] = None,
    email_password_file: PasswordFile = None,
    imap_host: Annotated[str | None, typer.Option(help="IMAP server.")] = None,
    imap_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Its port; 993 if not given.")
    ] = None,
    smtp_host: Annotated[str | None, typer.Option(help="SMTP server.")] = None,
    smtp_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Its port; 587 if not given.")
    ] = None,
    sender: Annotated[
        list[str] | None, typer.Option(help="Address whose mail is read; may be given several times.")
    ] = None,
    db_host: Annotated[
        str | None, typer.Option(help="PostgreSQL server, or the folder of its socket.")
    ] = None,
    db_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Its port; 5432 if not given.")
    ] = None,
    db_name: Annotated[str | None, typer.Option(help="Name of the database.")] = None,
    db_user: Annotated[str | None, typer.Option(help="User of the database.")] = None,
    db_password_file: PasswordFile = None,
    api_url: ApiUrl = None,
) -> None:
    """Add a client, or add or change the credentials of one.

    With --email-user it gets credentials of a mailbox, with --db-user those of a database. Passwords are
    never arguments, which a shell would remember: they come from a file, from standard input, from the
    variables NOVA_EMAIL_PASSWORD and NOVA_DB_PASSWORD, or you are asked.
    """
    email = {
        "email_user": email_user,
        "imap_host": imap_host,
        "imap_port": imap_port,
        "smtp_host": smtp_host,
        "smtp_port": smtp_port,
        "sender_whitelist": sender or None,
    }
    database = {"db_host": db_host, "db_port": db_port, "db_name": db_name, "db_user": db_user}
    credentials = {}
    if given := _given(email, "email_user"):
        given["email_password"] = password(
            f"Password of the mailbox {email_user}", email_password_file, "NOVA_EMAIL_PASSWORD"
        )
        credentials["email"] = given
    if given := _given(database, "db_user"):
        given["db_password"] = password(
            f"Password of the database user {db_user}", db_password_file, "NOVA_DB_PASSWORD"
        )
        credentials["database"] = given
    with Api(api_url) as api:
        word = put_client(api, slug, name)
        for kind, fields in credentials.items():
            put_credential(api, slug, kind, label, primary, fields)
    print(f"{word} {slug}" + (f" with credentials: {', '.join(credentials)}" if credentials else ""))


@app.command("list")
def list_(api_url: ApiUrl = None) -> None:
    """List all clients and what credentials they have; never a password."""
    from deployments.cli.tables import show

    with Api(api_url) as api:
        found = api.pages("/clients", "clients")
    show(
        ["slug", "name", "active", "credentials"],
        [
            [
                client["slug"],
                client["name"],
                "yes" if client["active"] else "no",
                ", ".join(
                    f"{c['kind']}/{c['label']}{' (primary)' if c['primary'] else ''}"
                    for c in client["credentials"]
                ),
            ]
            for client in found
        ],
        empty="There are no clients. Add one with: nova clients add SLUG",
    )


@app.command()
def remove(
    slug: Slug,
    credential: Annotated[
        str | None,
        typer.Option(metavar="KIND/LABEL", help="Remove only these credentials: email/default, say."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    api_url: ApiUrl = None,
) -> None:
    """Remove a client with all its credentials, or one set of its credentials. Its executions stay."""
    what = f"the credentials {credential} of {slug}" if credential else f"{slug} and all its credentials"
    path = f"/clients/{quote(slug, safe='')}"
    if credential:
        kind, slash, label = credential.partition("/")
        if not slash:
            raise InvalidInputError("--credential is written KIND/LABEL: email/default, say.")
        path += f"/credentials/{quote(kind, safe='')}/{quote(label, safe='')}"
    if not yes:
        typer.confirm(f"Remove {what}?", abort=True)
    with Api(api_url) as api:
        api.delete(path)
    print(f"removed {what}")


def _given(fields: dict[str, Any], user: str) -> dict[str, Any]:
    """Return the given fields; raises InvalidInputError if there are some, but not the user."""
    given = {key: value for key, value in fields.items() if value is not None}
    if given and user not in given:
        names = ", ".join("--" + key.replace("_", "-") for key in given)
        raise InvalidInputError(f"--{user.replace('_', '-')} is missing; without it {names} cannot be used.")
    return given


def put_client(api: Api, slug: str, name: str | None) -> str:
    """Make a client, or change the name of one; returns "added" or "updated"."""
    try:
        found = api.get(f"/clients/{quote(slug, safe='')}")
    except NotFoundError:
        api.post("/clients", {"slug": slug, "name": name or slug})
        return "added"
    if name is not None and found["name"] != name:
        api.put(f"/clients/{quote(slug, safe='')}", {"name": name})
    return "updated"


def put_credential(api: Api, slug: str, kind: str, label: str, primary: bool, fields: dict[str, Any]) -> None:
    """Add or replace one set of a client's credentials."""
    body = {"kind": kind, "label": label, "primary": primary, "fields": fields}
    api.post(f"/clients/{quote(slug, safe='')}/credentials", body)


def password(prompt: str, file: Path | None, variable: str) -> str:
    """Return a password from a file, standard input (`-`), an environment variable or the terminal.

    Raises InvalidInputError when none of them gives one.
    """
    if file is not None and str(file) == "-":
        return sys.stdin.readline().rstrip("\r\n")
    if file is not None:
        try:
            return file.read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInputError(f"The password file {file} cannot be read: {error}") from None
    if variable in os.environ:
        return os.environ[variable]
    if not sys.stdin.isatty():
        raise InvalidInputError(
            f"{prompt}: give it with a password file (- is standard input) or {variable}."
        )
    answer: str = typer.prompt(prompt, hide_input=True)
    return answer
