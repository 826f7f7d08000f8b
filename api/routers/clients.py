"""Clients and their credentials. Secrets are stored and never shown."""

from __future__ import annotations

from typing import cast

from fastapi import APIRouter
from sqlalchemy.orm import Session

from api import requests, schemas, views
from api.body import BodyRoute
from api.dependencies import DatabaseDep, Limit, ServicesDep, Skip
from api.documentation import documented
from api.errors import NameTakenError
from api.responses import JsonResponse
from flows.credentials import vault
from flows.credentials.fields import split
from flows.graphs.errors import ConflictError
from flows.store import clients
from flows.store.clients import ClientFields
from flows.store.models import Client, Credential

router = APIRouter(prefix="/clients", tags=["clients"], route_class=BodyRoute)


@router.post("", **documented(201, schemas.Client, 400, 413, 415, 422))
async def create_client(database: DatabaseDep, body: requests.ClientCreate) -> JsonResponse:
    """Make a client without credentials."""

    def write(session: Session) -> Client:
        try:
            return clients.create(session, slug=body.slug, name=body.name, active=body.active)
        except ConflictError as error:
            raise NameTakenError(str(error)) from None

    return JsonResponse(views.client(await database.run(write)), 201)


@router.get("", **documented(200, schemas.Clients, 422))
async def list_clients(database: DatabaseDep, skip: Skip = 0, limit: Limit = 100) -> JsonResponse:
    """List clients by slug."""
    rows, total = await database.run(lambda session: clients.list_(session, skip, limit))
    return JsonResponse({"clients": [views.client(row) for row in rows], "total": total})


@router.get("/{slug}", **documented(200, schemas.Client, 404, 422))
async def get_client(database: DatabaseDep, slug: str) -> JsonResponse:
    """Get one client with its credentials, secrets as `***`."""
    return JsonResponse(views.client(await database.run(lambda session: clients.get(session, slug))))


@router.put("/{slug}", **documented(200, schemas.Client, 404, 413, 415, 422))
async def update_client(database: DatabaseDep, slug: str, body: requests.ClientUpdate) -> JsonResponse:
    """Change a client's name, or whether it is active."""
    fields = cast(ClientFields, body.model_dump(exclude_unset=True))
    return JsonResponse(
        views.client(await database.run(lambda session: clients.update(session, slug, **fields)))
    )


@router.delete("/{slug}", **documented(200, schemas.Message, 404, 422))
async def delete_client(database: DatabaseDep, slug: str) -> JsonResponse:
    """Delete a client with its credentials. Its executions stay."""
    await database.run(lambda session: clients.delete(session, slug))
    return JsonResponse({"message": f"Client {slug} is deleted."})


@router.post("/{slug}/credentials", **documented(201, schemas.Credential, 404, 413, 415, 422))
async def put_credential(services: ServicesDep, slug: str, body: requests.CredentialPut) -> JsonResponse:
    """Add credentials, or replace those of the same kind and label."""
    public, secret = split(body.kind, body.fields)

    def write(session: Session) -> Credential:
        return clients.put_credential(
            session,
            slug,
            kind=body.kind,
            label=body.label,
            primary=body.primary,
            public=public,
            secret=vault.seal_credential(services.cipher, secret),
        )

    return JsonResponse(views.credential(await services.database.run(write)), 201)


@router.get("/{slug}/credentials", **documented(200, schemas.Credentials, 404, 422))
async def list_credentials(database: DatabaseDep, slug: str) -> JsonResponse:
    """List a client's credentials, secrets as `***`."""
    row = await database.run(lambda session: clients.get(session, slug))
    shown = [views.credential(credential) for credential in row.credentials]
    return JsonResponse({"credentials": shown, "total": len(shown)})


@router.delete("/{slug}/credentials/{kind}/{label}", **documented(200, schemas.Message, 404, 422))
async def delete_credential(database: DatabaseDep, slug: str, kind: str, label: str) -> JsonResponse:
    """Remove credentials; if they were primary, the oldest others of their kind become primary."""
    await database.run(lambda session: clients.remove_credential(session, slug, kind, label))
    return JsonResponse({"message": f"The {kind} credentials {label} of {slug} are removed."})
