"""The admin API: which request is answered by what."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.operations import reports
from broker.operations import streams as whose
from broker.web import openapi
from broker.web.router import DOCUMENT, Route
from broker.web.schemas import Document

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker.operations.bans import Bans
    from broker.operations.process import Operations
    from broker.operations.storage import Storage
    from broker.operations.streams import Streams

V1 = "/api/v1"


def described(routes: Sequence[Route]) -> list[Route]:
    """The routes, and one more for the document that describes them all."""
    described = list(routes)

    def document() -> Document:
        return openapi.document(described)

    summary = "Describe all this as OpenAPI"
    described.append(Route(method="GET", path=DOCUMENT, summary=summary, handle=document, answer=Document))
    return described


def routes(
    operations: Operations, storage: Storage, bans: Bans, streams: Streams, *others: Route
) -> list[Route]:
    ours = [*process_routes(operations), *stored_routes(storage), *ban_routes(bans), *stream_routes(streams)]
    return described([*ours, *others])


def process_routes(do: Operations) -> list[Route]:
    """What can be asked about this broker process."""
    return [
        Route(
            method="GET",
            path=f"{V1}/connections",
            summary="List connections, by id, filtered",
            handle=do.connections,
            query=reports.ConnectionFilter,
            answer=reports.ConnectionPage,
        ),
        Route(
            method="DELETE",
            path=f"{V1}/connections",
            summary="End the connections of a tenant, or of one of its users",
            handle=do.disconnect_all,
            query=reports.Disconnect,
            answer=reports.Disconnected,
        ),
        Route(
            method="GET",
            path=f"{V1}/connections/{{id}}",
            summary="Show one connection in full",
            handle=do.connection,
            answer=reports.ConnectionReport,
        ),
        Route(
            method="DELETE",
            path=f"{V1}/connections/{{id}}",
            summary="End one connection",
            handle=do.disconnect,
            query=reports.Farewell,
            answer=reports.Disconnected,
        ),
        Route(
            method="GET",
            path=f"{V1}/tenants",
            summary="List the tenants that have clients here",
            handle=do.tenants,
            answer=reports.TenantList,
        ),
        Route(
            method="GET",
            path=f"{V1}/tenants/{{tenant}}",
            summary="Show one tenant in full",
            handle=do.tenant,
            answer=reports.TenantReport,
        ),
        Route(
            method="GET",
            path=f"{V1}/readiness",
            summary="Tell whether an event can travel, and why not",
            handle=do.readiness,
            answer=reports.Readiness,
        ),
        Route(
            method="GET",
            path=f"{V1}/log-level",
            summary="Show the log level",
            handle=do.log_level,
            answer=reports.LogLevel,
        ),
        Route(
            method="PUT",
            path=f"{V1}/log-level",
            summary="Set the log level, until the next reload or restart",
            handle=do.set_log_level,
            body=reports.LogLevel,
            answer=reports.LogLevel,
        ),
        Route(
            method="GET",
            path=f"{V1}/configuration",
            summary="Show the configuration in force, without secrets",
            handle=do.configuration,
            answer=reports.Configuration,
        ),
    ]


def stored_routes(do: Storage) -> list[Route]:
    """What can be asked about, and done with, what is stored."""
    return [
        Route(
            method="POST",
            path=f"{V1}/publish",
            summary="Publish an event as a service does",
            handle=do.publish,
            body=reports.Publish,
            answer=reports.Published,
            status=202,
        ),
        Route(
            method="GET",
            path=f"{V1}/history",
            summary="Read stored events of a tenant",
            handle=do.history,
            query=reports.HistoryFilter,
            answer=reports.HistoryPage,
        ),
        Route(
            method="GET",
            path=f"{V1}/dead-letters",
            summary="List dead letters, newest first, filtered",
            handle=do.list_letters,
            query=reports.LetterFilter,
            answer=reports.LetterPage,
        ),
        Route(
            method="DELETE",
            path=f"{V1}/dead-letters",
            summary="Purge dead letters: all, or those of a tenant or reason",
            handle=do.purge_letters,
            query=reports.LetterSelection,
            answer=reports.Deleted,
        ),
        Route(
            method="GET",
            path=f"{V1}/dead-letters/{{sequence}}",
            summary="Show a dead letter with its headers and body",
            handle=do.letter,
            answer=reports.LetterReport,
        ),
        Route(
            method="DELETE",
            path=f"{V1}/dead-letters/{{sequence}}",
            summary="Take out one dead letter",
            handle=do.delete_letter,
            answer=reports.Deleted,
        ),
        Route(
            method="POST",
            path=f"{V1}/dead-letters/{{sequence}}/replay",
            summary="Publish a dead letter again, as it is or with another event, and take it out",
            handle=do.replay,
            body=reports.Replay,
            answer=reports.Replayed,
        ),
    ]


def ban_routes(do: Bans) -> list[Route]:
    """Who is kept out, on every broker."""
    return [
        Route(
            method="GET",
            path=f"{V1}/revocations",
            summary="List the revocations and suspensions that hold",
            handle=do.revocations,
            query=reports.BanFilter,
            answer=reports.BanList,
        ),
        Route(
            method="POST",
            path=f"{V1}/revocations",
            summary="Revoke a token, or the tokens of a user or tenant",
            handle=do.revoke,
            body=reports.Revoke,
            answer=reports.BanReport,
            status=201,
        ),
        Route(
            method="DELETE",
            path=f"{V1}/revocations",
            summary="Lift a revocation",
            handle=do.restore,
            query=reports.BanSelection,
            answer=reports.BanReport,
        ),
        Route(
            method="PUT",
            path=f"{V1}/tenants/{{tenant}}/suspension",
            summary="Suspend a tenant",
            handle=do.suspend,
            body=reports.Suspend,
            answer=reports.BanReport,
        ),
        Route(
            method="DELETE",
            path=f"{V1}/tenants/{{tenant}}/suspension",
            summary="Lift the suspension of a tenant",
            handle=do.resume,
            answer=reports.BanReport,
        ),
    ]


def stream_routes(do: Streams) -> list[Route]:
    """Whose the streams are, and how they stand to the configuration."""
    return [
        Route(
            method="GET",
            path=f"{V1}/streams",
            summary="List the streams and buckets that the broker works with",
            handle=do.streams,
            answer=whose.StreamList,
        ),
        Route(
            method="GET",
            path=f"{V1}/streams/{{stream}}",
            summary="Show whether a stream is ours, and in what it differs from the configuration",
            handle=do.stream,
            answer=whose.StreamReport,
        ),
        Route(
            method="POST",
            path=f"{V1}/streams/{{stream}}/adopt",
            summary="Make a stream ours, and as the configuration has it; answers what it was before",
            handle=do.adopt,
            answer=whose.StreamReport,
        ),
    ]
