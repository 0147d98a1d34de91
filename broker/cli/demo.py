"""The service of `broker dev`, in every tenant: it answers the methods of `METHODS`, and owns a document."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import msgspec
import trio

from broker.cli.local import DEMO_ORDER
from broker.errors import Rejected, TooLarge, Unavailable
from broker.nats import headers
from broker.nats.link import open_link
from broker.nats.login import Server
from broker.wire import events

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.config import Config
    from broker.nats.link import Link

RETRY_SECONDS = 1.0
CHANNEL = "demo.orders"
ON_HOLD = 5  # each such order is refused
MOST = 1000  # the amount of the document


@attrs.frozen(kw_only=True)
class Asked:
    """A request of a user (encoded). `publish` takes events for the channel of the orders of its tenant."""

    user: str
    body: bytes
    publish: Callable[[Any], None]


class Approval(msgspec.Struct):
    order: int


def echo(asked: Asked) -> Any:
    if fault := events.not_json(asked.body):  # whoever else may publish to NATS says anything
        raise ValueError(fault)
    return {"user": asked.user, "data": msgspec.Raw(asked.body)}


def clock(_: Asked) -> Any:
    return {"time": datetime.now(UTC)}


def approve(asked: Asked) -> Any:
    """Approve an order: an event tells everybody, before the answer tells who asked."""
    order = msgspec.json.decode(asked.body, type=Approval).order
    if order % ON_HOLD == 0:
        raise Rejected(f"order {order} is on hold", status=409)
    asked.publish({"text": f"order {order} is approved", "by": asked.user})
    return {"order": order}


class Change(msgspec.Struct):
    patch: dict[str, Any] | None = None


class Changes(msgspec.Struct):
    changes: list[Change]


def judge(asked: Asked) -> Any:
    """Refuse an amount that nobody can order; agree to everything else."""
    return {"changes": [verdict(each) for each in msgspec.json.decode(asked.body, type=Changes).changes]}


def verdict(change: Change) -> dict[str, Any]:
    amount = (change.patch or {}).get("amount")
    if amount is None or (isinstance(amount, int) and 0 <= amount <= MOST):
        return {}
    words = f"an amount is a whole number from 0 to {MOST}"
    return {"error": {"code": 422, "message": words, "paths": {"/amount": words}}}


METHODS: dict[str, Callable[[Asked], Any]] = {
    "demo.echo": echo,
    "demo.clock": clock,
    "demo.approve": approve,
}


async def serve(url: str, settings: Config) -> None:
    """Answer requests by the NATS server at `url` until cancelled."""
    server, subjects = Server.parse(url), settings.subjects
    while True:
        with suppress(Unavailable):
            async with open_link(server, settings.nats) as link:
                for method, work in METHODS.items():
                    handle = partial(respond, link, work, subjects.events)
                    await link.subscribe(f"{subjects.rpc}.*.{method}", handle)
                handle = partial(respond, link, judge, subjects.events)
                await link.subscribe(f"{subjects.changes}.*.{DEMO_ORDER}", handle)
                await link.lost.wait()
        await trio.sleep(RETRY_SECONDS)


def respond(
    link: Link,
    work: Callable[[Asked], Any],
    prefix: str,
    subject: bytes,
    reply: bytes,
    block: bytes,
    body: bytes,
) -> None:
    """Answer one request, if it is the broker's. Whatever it holds, the next one is answered too."""
    user, tenant = headers.parse(block).get("Broker-User"), headers.text(subject).split(".")[1]
    if not (reply and user):
        return

    def put(subject: str, body: bytes, fields: dict[str, str] | None = None) -> None:
        link.put(link.message(subject, body, "", fields))

    def publish(event: Any) -> None:
        put(f"{prefix}.{tenant}.{CHANNEL}", msgspec.json.encode(event))

    inbox = headers.text(reply)
    try:
        put(inbox, msgspec.json.encode(work(Asked(user=user, body=body, publish=publish))))
    except Rejected as error:
        put(inbox, b"", refusal(error.message, error.status))
    except (TooLarge, ValueError):
        put(inbox, b"", refusal("it cannot be answered", 400))


def refusal(words: str, code: int | None) -> dict[str, str]:
    """Return the headers of an answer that refuses, as the NATS services API has them (ADR-32)."""
    return {"Nats-Service-Error": words, "Nats-Service-Error-Code": str(code)}
