"""Errors, with what a client or an operator needs to act on them.

::

    BrokerError
     ├─ ConfigError              the configuration, all faults at once
     ├─ BadMessage               a message that breaks the protocol
     ├─ UnknownType
     ├─ Unauthenticated
     ├─ Forbidden
     │   └─ TenantForbidden
     ├─ InvalidChannel
     ├─ InvalidPosition
     ├─ NotSubscribed
     ├─ Conflict
     │   └─ ChangeConflict       others have changed the same; also a ServiceError
     ├─ TooManySubscriptions
     ├─ TooManyFilters
     ├─ TooManyDocuments
     ├─ TooManyPresent           retry later
     ├─ NotEntered
     ├─ SnapshotTooLarge
     ├─ TooManyConnections
     ├─ RateLimited
     │   └─ TooManyConnects
     ├─ NotFound                 the admin API was asked for something that does not exist
     ├─ TooLarge
     ├─ TokenInvalid
     ├─ TokenExpired
     ├─ TokenRevoked
     ├─ Unavailable              retry later
     ├─ ServiceError             what became of a request that may have reached a service
     │   ├─ Rejected             the service refused it
     │   ├─ Timeout              the service did not answer in time
     │   ├─ UnknownOutcome       whether a change was applied is not known
     │   ├─ BadAnswer            its answer is not JSON
     │   └─ AnswerTooLarge       … or too long; also a TooLarge
     └─ Internal

`code` is sent to the client in an `error` message; `close_code` is the WebSocket close code if the
error ends the connection. The protocol page, "Codes", lists them.
"""

from __future__ import annotations

from enum import IntEnum
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self


class CloseCode(IntEnum):
    """WebSocket close codes: RFC 6455 section 7.4.1, and the broker's own. `meaning` describes each.

    4000-4499: reconnecting may help. 4500-4999: reconnecting does not help until something changes.
    """

    meaning: str

    def __new__(cls, code: int, meaning: str = "") -> Self:
        member = int.__new__(cls, code)
        member._value_, member.meaning = code, meaning
        return member

    NORMAL = 1000, "The client closed the connection, or both sides are done."
    GOING_AWAY = 1001, "The broker is stopping."
    PROTOCOL_ERROR = 1002, "A frame broke RFC 6455."
    UNSUPPORTED_DATA = 1003, "A binary message; messages are text."
    INVALID_PAYLOAD = 1007, "Text that is not UTF-8."
    TOO_BIG = 1009, "A message over the limit `message_bytes`."
    INTERNAL_ERROR = 1011, "The broker failed; reconnect."
    SERVICE_RESTART = 1012, "The broker is restarting, or moves clients to other brokers; reconnect."
    AUTHENTICATION_DEADLINE = 4001, "No token came in time."
    TOKEN_EXPIRED = 4002, "The token expired; reconnect with a new one."
    TOO_SLOW = 4008, "The client fell behind a subscription with lag `close`."
    HEARTBEAT = 4009, "The client did not answer a ping, or read nothing for too long."
    CONNECTION_LIMIT = 4010, "Too many connections, all of them alive; the new one is refused."
    RATE_LIMIT = 4029, "Rate limits were exceeded persistently."
    TOKEN_INVALID = 4500, "The token is not valid."
    TOKEN_REVOKED = 4501, "The token or its user was revoked, or the tenant is suspended."
    FORBIDDEN = 4503, "The token is not for this tenant."
    PROTOCOL_VIOLATION = 4510, "10 bad messages within 60 s."


@attrs.frozen(kw_only=True)
class Contradiction:
    """Where a document, at a revision, is not what a change replaces: its values by JSON Pointer."""

    channel: str
    revision: str
    paths: Mapping[str, Any]


class BrokerError(Exception):
    """Base of every error that the broker raises on purpose.

    `message` is a sentence for the developer of the client: what is wrong and where, never a secret.
    `retry_after` is in seconds.
    """

    code: ClassVar[str] = "internal"
    close_code: ClassVar[CloseCode | None] = None
    retryable: ClassVar[bool] = False
    status: int | None = None  # a service's own code for its refusal
    paths: Mapping[str, str] | None = None  # what is wrong where in a document, by JSON Pointer
    conflict: Sequence[Contradiction] | None = None  # of a change

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after


class ConfigError(BrokerError):
    """The configuration cannot be used. `faults` has one sentence per fault, which begins with the key."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class BadMessage(BrokerError):
    """A message that cannot be decoded, or breaks the protocol."""

    code = "bad_message"


class UnknownType(BrokerError):
    """A message of an unknown type."""

    code = "unknown_type"


class Unauthenticated(BrokerError):
    """The request needs an authenticated connection."""

    code = "unauthenticated"


class Forbidden(BrokerError):
    """The token does not allow this."""

    code = "forbidden"


class InvalidChannel(BrokerError):
    """Not a valid channel or pattern."""

    code = "invalid_channel"


class InvalidPosition(BrokerError):
    """Not a position of this stream, or above the last one sent on this connection."""

    code = "invalid_position"


class NotSubscribed(BrokerError):
    """There is no such subscription on this connection."""

    code = "not_subscribed"


class Conflict(BrokerError):
    """Another subscribe has the durable name, or others have changed what a change replaces (`conflict`)."""

    code = "conflict"


class TooManySubscriptions(BrokerError):
    """The connection has all the subscriptions that it may have, or the user all the durable names."""

    code = "limit_subscriptions"


class TooManyFilters(BrokerError):
    """The connection has all the filtered subscriptions that it may have, or the tenant all the filters."""

    code = "limit_filters"


class TooManyDocuments(BrokerError):
    """More documents, or bytes of them, than a connection may follow at once, or a tenant may have."""

    code = "limit_documents"


class TooManyPresent(BrokerError):
    """A channel has all the members that it may have, or a connection all channels; or no room is left."""

    code = "limit_presence"
    retryable = True


class NotEntered(BrokerError):
    """The connection is not present in this channel."""

    code = "not_entered"


class SnapshotTooLarge(BrokerError):
    """The snapshot has too many channels or bytes; request fewer."""

    code = "limit_snapshot"


class TooManyConnections(BrokerError):
    """The limit of connections has been reached."""

    code = "limit_connections"
    close_code = CloseCode.CONNECTION_LIMIT
    retryable = True


class RateLimited(BrokerError):
    """Too many of these for now; wait for `retry_after_ms`."""

    code = "rate_limited"
    retryable = True


class TooManyConnects(RateLimited):
    """Connections are opened faster than a limit allows; this one does not exist yet, so it cannot wait."""

    close_code = CloseCode.RATE_LIMIT


class NotFound(BrokerError):
    """The admin API was asked for something that does not exist."""

    code = "not_found"


class TooLarge(BrokerError):
    """The event is over the limit `publish_bytes`, or a service's answer over `message_bytes`."""

    code = "too_large"


class TokenInvalid(BrokerError):
    """The token is not valid."""

    code = "token_invalid"
    close_code = CloseCode.TOKEN_INVALID


class TokenExpired(BrokerError):
    """The token has expired."""

    code = "token_expired"
    close_code = CloseCode.TOKEN_EXPIRED


class TokenRevoked(BrokerError):
    """The token, its user or its tenant was revoked, or the tenant is suspended."""

    code = "token_revoked"
    close_code = CloseCode.TOKEN_REVOKED


class TenantForbidden(Forbidden):
    """The token is valid, but not for the requested tenant."""

    close_code = CloseCode.FORBIDDEN


class Unavailable(BrokerError):
    """Not possible now, for example while NATS is away or the broker stops; retry after `retry_after_ms`."""

    code = "unavailable"
    retryable = True


class ServiceError(BrokerError):
    """A request may have reached a service. Nothing was wrong with it for the broker."""


class Rejected(ServiceError):
    """A service or a schema refused the request, for the reason it gives."""

    code = "rejected"

    def __init__(
        self, message: str, *, status: int | None = None, paths: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.paths = paths


class Timeout(ServiceError):
    """No answer of the service came in time: whether it has acted on the request is not known."""

    code = "timeout"


class UnknownOutcome(ServiceError):
    """Whether the change has been applied is not known; the same change may be sent again."""

    code = "unknown_outcome"


class ChangeConflict(Conflict, ServiceError):
    """Others have changed what a change replaces. Nothing of it is applied."""

    def __init__(self, message: str, conflict: Sequence[Contradiction]) -> None:
        super().__init__(message)
        self.conflict = conflict


class BadAnswer(ServiceError):
    """The service answered with something other than JSON."""

    code = "bad_answer"


class AnswerTooLarge(TooLarge, ServiceError):
    """The service's answer is over the limit `message_bytes`."""


class Internal(BrokerError):
    """The broker failed; a retry may help."""

    code = "internal"
    retryable = True


@cache
def by_code() -> dict[str, type[BrokerError]]:
    """Return the error codes of the broker, each with the class that introduces it.

    Client libraries add codes of their own.
    """
    found: dict[str, type[BrokerError]] = {}
    pending = BrokerError.__subclasses__()
    while pending:
        kind = pending.pop(0)
        if "code" in vars(kind) and kind.__module__ == __name__:
            found.setdefault(kind.code, kind)
        pending += kind.__subclasses__()
    return found
