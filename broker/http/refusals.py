"""The protocol's errors as HTTP responses: a status, and the code in the problem document."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from msgspec import UNSET, to_builtins

from broker.http.credentials import CHALLENGE
from broker.http.responses import problem
from broker.session.session import to_message

if TYPE_CHECKING:
    from broker.errors import BrokerError
    from broker.http.responses import Response
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
    "limit_documents": 429,
    "limit_filters": 429,
    "limit_subscriptions": 429,
    "rate_limited": 429,
    "internal": 500,
    "rejected": 502,
    "bad_answer": 502,
    "unavailable": 503,
    "timeout": 504,
    "unknown_outcome": 504,
}
RETRY_SECONDS = 1  # for what may be retried, where nobody knows when


def from_message(error: Error) -> Response:
    """Return an error that the protocol has for the client as a response (RFC 6750 section 3, RFC 9457)."""
    status = STATUS[error.code]
    headers = []
    if status == 401:
        headers.append(("WWW-Authenticate", f'{CHALLENGE}, error="invalid_token"'))
    if error.retry_after_ms is not UNSET:
        headers.append(("Retry-After", str(max(1, ceil(error.retry_after_ms / 1000)))))
    elif error.retryable:
        headers.append(("Retry-After", str(RETRY_SECONDS)))
    if (
        error.status is not UNSET and 400 <= error.status <= 499
    ):  # the service's own: its 401 is about no token of ours
        status = error.status
    detail = error.message if error.code == "rejected" else error.message.removeprefix("payload.")
    return problem(
        status,
        detail,
        *headers,
        code=error.code,
        retry_after_ms=error.retry_after_ms,
        paths=error.paths,
        conflict=UNSET if error.conflict is UNSET else to_builtins(error.conflict),
    )


def from_error(error: BrokerError) -> Response:
    """Return a response for an error that is not a message yet."""
    return from_message(to_message(error))
