"""The admin API: its routes, and what answers each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.operations import reports
from broker.operations import streams as whose
from broker.web import openapi
from broker.web.router import DOCUMENT, Endpoint
from broker.web.schemas import Document

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker.operations.bans import Bans
    from broker.operations.documents import Documents
    from broker.operations.process import Operations
    from broker.operations.storage import Storage
    from broker.operations.streams import Streams

V1 = "/api/v1"


def described(routes: Sequence[Endpoint]) -> list[Endpoint]:
    """Return the routes, and one more for the document that describes them all."""
    described = list(routes)

    def document() -> Document:
        return openapi.document(described)

    summary = "Describe this API as OpenAPI"
    described.append(Endpoint(method="GET", path=DOCUMENT, summary=summary, handle=document, answer=Document))
    return described


def routes(
    operations: Operations,
    storage: Storage,
    documents: Documents,
    bans: Bans,
    streams: Streams,
    *others: Endpoint,
) -> list[Endpoint]:
    ours = [
        *process_routes(operations),
        *stored_routes(storage),
        *document_routes(documents),
        *ban_routes(bans),
        *stream_routes(streams),
    ]
    return described([*ours, *others])


def process_routes(do: Operations) -> list[Endpoint]:
    """Return the routes about this broker process."""
    return [
        Endpoint(
            method="GET",
            path=f"{V1}/connections",
            summary="List connections by id, with filters",
            handle=do.connections,
            query=reports.ConnectionFilter,
            answer=reports.ConnectionPage,
        ),
        Endpoint(
            method="DELETE",
            path=f"{V1}/connections",
            summary="End the connections of a tenant, or of one of its users",
            handle=do.disconnect_all,
            query=reports.Disconnect,
            answer=reports.Disconnected,
        ),
        Endpoint(
            method="GET",
            path=f"{V1}/connections/{{id}}",
            summary="Show one connection in full",
            handle=do.connection,
            answer=reports.ConnectionReport,
        ),
        Endpoint(
            method="DELETE",
            path=f"{V1}/connections/{{id}}",
            summary="End one connection",
            handle=do.disconnect,
            query=reports.Farewell,
            answer=reports.Disconnected,
        ),
        Endpoint(
            method="GET",
            path=f"{V1}/tenants",
            summary="List the tenants that have clients here",
            handle=do.tenants,
            answer=reports.TenantList,
        ),
        Endpoint(
            method="GET",
            path=f"{V1}/tenants/{{tenant}}",
            summary="Show one tenant in full",
            handle=do.tenant,
            answer=reports.TenantReport,
        ),
        Endpoint(
            method="GET",
            path=f"{V1}/readiness",
            summary="Show whether an event can travel through, and if not, why",
            handle=do.readiness,
            answer=reports.Readiness,
        ),
        Endpoint(
            method="GET",
            path=f"{V1}/log-level",
            summary="Show the log level",
            handle=do.log_level,
            answer=reports.LogLevel,
        ),
        Endpoint(
            method="PUT",
            path=f"{V1}/log-level",
            summary="Set the log level, until the next reload or restart",
            handle=do.set_log_level,
            body=reports.LogLevel,
            answer=reports.LogLevel,
        ),
        Endpoint(
            method="GET",
            path=f"{V1}/configuration",
            summary="Show the configuration in force, without secrets",
            handle=do.configuration,
            answer=reports.Configuration,
        ),
    ]


def stored_routes(do: Storage) -> list[Endpoint]:
    """Return the routes about stored events and dead letters."""
    return [
        Endpoint(
            method="POST",
            path=f"{V1}/publish",
            summary="Publish an event as a service does",
            handle=do.publish,
            body=reports.Publish,
            answer=reports.Published,
            status=202,
        ),
        Endpoint(
            method="GET",
            path=f"{V1}/history",
            summary="Read stored events of a tenant",
            handle=do.history,
            query=reports.HistoryFilter,
            answer=reports.HistoryPage,
        ),
        Endpoint(
            method="GET",
            path=f"{V1}/dead-letters",
            summary="List dead letters, newest first, with filters",
            handle=do.list_letters,
            query=reports.LetterFilter,
            answer=reports.LetterPage,
        ),
        Endpoint(
            method="DELETE",
            path=f"{V1}/dead-letters",
            summary="Purge dead letters: all, or those of a tenant or reason",
            handle=do.purge_letters,
            query=reports.LetterSelection,
            answer=reports.Deleted,
        ),
        Endpoint(
            method="GET",
            path=f"{V1}/dead-letters/{{sequence}}",
            summary="Show a dead letter with its headers and body",
            handle=do.letter,
            answer=reports.LetterReport,
        ),
        Endpoint(
            method="DELETE",
            path=f"{V1}/dead-letters/{{sequence}}",
            summary="Delete one dead letter",
            handle=do.delete_letter,
            answer=reports.Deleted,
        ),
        Endpoint(
            method="POST",
            path=f"{V1}/dead-letters/{{sequence}}/replay",
            summary="Publish a dead letter again, as it is or with another event, and delete it",
            handle=do.replay,
            body=reports.Replay,
            answer=reports.Replayed,
        ),
    ]


def document_routes(do: Documents) -> list[Endpoint]:
    """Return the routes about documents."""
    path = f"{V1}/documents/{{tenant}}/{{channel}}"
    return [
        Endpoint(
            method="GET",
            path=f"{V1}/documents",
            summary="List the documents of a tenant",
            handle=do.list_documents,
            query=reports.DocumentFilter,
            answer=reports.DocumentPage,
        ),
        Endpoint(
            method="GET",
            path=path,
            summary="Show a document",
            handle=do.show_document,
            answer=reports.DocumentReport,
        ),
        Endpoint(
            method="PUT",
            path=path,
            summary="Replace a document as a whole, or make one, without asking its service or a schema",
            handle=do.put_document,
            body=reports.PutDocument,
            answer=reports.DocumentWritten,
        ),
        Endpoint(
            method="DELETE",
            path=path,
            summary="Delete a document",
            handle=do.delete_document,
            query=reports.DocumentRevision,
            answer=reports.DocumentWritten,
        ),
    ]


def ban_routes(do: Bans) -> list[Endpoint]:
    """Return the routes about revocations and suspensions, which hold on every broker."""
    return [
        Endpoint(
            method="GET",
            path=f"{V1}/revocations",
            summary="List the revocations and suspensions in force",
            handle=do.revocations,
            query=reports.BanFilter,
            answer=reports.BanList,
        ),
        Endpoint(
            method="POST",
            path=f"{V1}/revocations",
            summary="Revoke a token, or the tokens of a user or tenant",
            handle=do.revoke,
            body=reports.Revoke,
            answer=reports.BanReport,
            status=201,
        ),
        Endpoint(
            method="DELETE",
            path=f"{V1}/revocations",
            summary="Lift a revocation",
            handle=do.restore,
            query=reports.BanSelection,
            answer=reports.BanReport,
        ),
        Endpoint(
            method="PUT",
            path=f"{V1}/tenants/{{tenant}}/suspension",
            summary="Suspend a tenant",
            handle=do.suspend,
            body=reports.Suspend,
            answer=reports.BanReport,
        ),
        Endpoint(
            method="DELETE",
            path=f"{V1}/tenants/{{tenant}}/suspension",
            summary="Lift the suspension of a tenant",
            handle=do.resume,
            answer=reports.BanReport,
        ),
    ]


def stream_routes(do: Streams) -> list[Endpoint]:
    """Return the routes about the ownership and the configuration of streams."""
    return [
        Endpoint(
            method="GET",
            path=f"{V1}/streams",
            summary="List the streams and buckets that the broker uses",
            handle=do.streams,
            answer=whose.StreamList,
        ),
        Endpoint(
            method="GET",
            path=f"{V1}/streams/{{stream}}",
            summary="Show whether a stream is the broker's, and how it differs from the configuration",
            handle=do.stream,
            answer=whose.StreamReport,
        ),
        Endpoint(
            method="POST",
            path=f"{V1}/streams/{{stream}}/adopt",
            summary="Adopt a stream and configure it as it should be; returns its earlier state",
            handle=do.adopt,
            answer=whose.StreamReport,
        ),
    ]
