"""The protocol's errors as answers of the public port: a status, and the code in the problem document."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from msgspec import UNSET

from broker.web.problems import Refused, Response, problem
from broker.web.upgrade import the_token
from broker.wire.session import to_message

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from broker.errors import BrokerError
    from broker.web.heads import Request
    from broker.wire.messages import Error

STATUS = {
    "bad_message": 400,
    "unknown_type": 400,
    "invalid_channel": 400,
    "invalid_position": 400,
    "limit_snapshot": 400,
    "not_subscribed": 400,
    "unauthenticated": 401,
    "token_invalid": 401,
    "token_expired": 401,
    "token_revoked": 401,
    "forbidden": 403,
    "conflict": 409,
    "too_large": 413,
    "limit_connections": 429,
    "limit_subscriptions": 429,
    "rate_limited": 429,
    "internal": 500,
    "unavailable": 503,
}
CHALLENGE = 'Bearer realm="broker"'
RETRY_SECONDS = 1  # of what may be retried and nobody knows when


def told(error: Error) -> Response:
    """What the broker tells a client, as the answer of its request (RFC 6750 section 3, RFC 9457)."""
    status = STATUS[error.code]
    headers = []
    if status == 401:
        headers.append(("WWW-Authenticate", f'{CHALLENGE}, error="invalid_token"'))
    if error.retry_after_ms is not UNSET:
        headers.append(("Retry-After", str(max(1, ceil(error.retry_after_ms / 1000)))))
    elif error.retryable:
        headers.append(("Retry-After", str(RETRY_SECONDS)))
    detail = error.message.removeprefix("payload.")
    return problem(status, detail, *headers, code=error.code, retry_after_ms=error.retry_after_ms)


def refused(error: BrokerError) -> Response:
    """The same for an error that nobody has told yet."""
    return told(to_message(error))


def credentials(
    request: Request, query: Mapping[str, Sequence[str]], *, query_token: bool
) -> tuple[str, str | None]:
    """The token of a request and the tenant that it asks for. Raises `Refused`, 401 without a token."""
    in_query = query.get("access_token")
    token = the_token(request, None, in_query[0] if in_query else None, query_token=query_token)
    if token is None:
        raise Refused(401, "Authorization: Bearer and a token is missing.", ("WWW-Authenticate", CHALLENGE))
    tenant = query.get("tenant")
    return token, tenant[0] if tenant else None
