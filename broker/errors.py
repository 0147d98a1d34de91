"""What can go wrong, told so that a client and an operator can act on it.

::

    BrokerError
     ├─ ConfigError              the configuration, all faults at once
     ├─ BadMessage               a frame that breaks the protocol page
     ├─ UnknownType
     ├─ Unauthenticated
     ├─ Forbidden
     ├─ InvalidChannel
     ├─ InvalidPosition
     ├─ NotSubscribed
     ├─ Conflict
     ├─ LimitReached             code says which limit
     ├─ NotFound                 the admin API was asked for what is not there
     ├─ TooLarge
     ├─ TokenError               code says: token_invalid, token_expired, token_revoked
     ├─ Unavailable              retry later
     └─ Internal

`code` goes to the client in an `error` message, `close_code` is the WebSocket close code where the
error ends the connection. Codes are those of the protocol's code table.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar


class CloseCode(IntEnum):
    """WebSocket close codes: RFC 6455 section 7.4.1, and the broker's own.

    4000-4499: reconnecting may help. 4500-4999: it will not before something changes.
    """

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    INVALID_PAYLOAD = 1007
    TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    AUTHENTICATION_DEADLINE = 4001
    TOKEN_EXPIRED = 4002
    TOO_SLOW = 4008
    HEARTBEAT = 4009
    CONNECTION_LIMIT = 4010
    RATE_LIMIT = 4029
    TOKEN_INVALID = 4500
    TOKEN_REVOKED = 4501
    FORBIDDEN = 4503
    PROTOCOL_VIOLATION = 4510


class BrokerError(Exception):
    """Base of every error that the broker raises on purpose.

    `message` is a sentence for the client's developer: what and where, never a secret.
    `retry_after` is in seconds.
    """

    code: ClassVar[str] = "internal"
    close_code: ClassVar[CloseCode | None] = None
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after


class ConfigError(BrokerError):
    """The configuration cannot be used. `faults` holds one sentence for each fault, key first."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class BadMessage(BrokerError):
    code = "bad_message"


class UnknownType(BrokerError):
    code = "unknown_type"


class Unauthenticated(BrokerError):
    code = "unauthenticated"


class Forbidden(BrokerError):
    code = "forbidden"


class InvalidChannel(BrokerError):
    code = "invalid_channel"


class InvalidPosition(BrokerError):
    code = "invalid_position"


class NotSubscribed(BrokerError):
    code = "not_subscribed"


class Conflict(BrokerError):
    code = "conflict"


class TooManySubscriptions(BrokerError):
    code = "limit_subscriptions"


class SnapshotTooLarge(BrokerError):
    code = "limit_snapshot"


class TooManyConnections(BrokerError):
    code = "limit_connections"
    close_code = CloseCode.CONNECTION_LIMIT
    retryable = True


class RateLimited(BrokerError):
    code = "rate_limited"
    retryable = True


class TooManyConnects(RateLimited):
    """They come faster than a limit allows. There is no connection yet that could wait."""

    close_code = CloseCode.RATE_LIMIT


class NotFound(BrokerError):
    code = "not_found"


class TooLarge(BrokerError):
    code = "too_large"


class TokenInvalid(BrokerError):
    code = "token_invalid"
    close_code = CloseCode.TOKEN_INVALID


class TokenExpired(BrokerError):
    code = "token_expired"
    close_code = CloseCode.TOKEN_EXPIRED


class TokenRevoked(BrokerError):
    """The token, its user or its tenant was revoked, or the tenant is suspended."""

    code = "token_revoked"
    close_code = CloseCode.TOKEN_REVOKED


class TenantForbidden(Forbidden):
    """The token is good, but not for the tenant that was asked for."""

    close_code = CloseCode.FORBIDDEN


class Unavailable(BrokerError):
    code = "unavailable"
    retryable = True


class Internal(BrokerError):
    code = "internal"
    retryable = True
