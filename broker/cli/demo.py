"""The service of `broker dev`, which answers the methods `demo.echo` and `demo.clock` in every tenant."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from broker.errors import TooLarge, Unavailable
from broker.nats import headers
from broker.nats.link import open_link
from broker.nats.login import Server
from broker.wire import events

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.config import Config
    from broker.nats.link import Link

    Work = Callable[[str, bytes], Any]

RETRY_SECONDS = 1.0


def echo(user: str, body: bytes) -> Any:
    if fault := events.not_json(body):  # whoever else may publish to NATS says anything
        raise ValueError(fault)
    return {"user": user, "data": msgspec.Raw(body)}


def clock(_: str, __: bytes) -> Any:
    return {"time": datetime.now(UTC)}


METHODS: dict[str, Work] = {"demo.echo": echo, "demo.clock": clock}


async def serve(url: str, settings: Config) -> None:
    """Answer requests by the NATS server at `url` until cancelled."""
    server = Server.parse(url)
    while True:
        with suppress(Unavailable):
            async with open_link(server, settings.nats) as link:
                for method, work in METHODS.items():
                    subject = f"{settings.subjects.rpc}.*.{method}"
                    await link.subscribe(subject, partial(respond, link, work))
                await link.lost.wait()
        await trio.sleep(RETRY_SECONDS)


def respond(link: Link, work: Work, _: bytes, reply: bytes, block: bytes, body: bytes) -> None:
    """Answer one request, if it is the broker's. Whatever it holds, the next one is answered too."""
    user = headers.parse(block).get("Broker-User")
    if not (reply and user):
        return
    inbox = headers.text(reply)
    try:
        message = link.message(inbox, msgspec.json.encode(work(user, body)), "", None)
    except (TooLarge, ValueError):
        refusal = {"Nats-Service-Error": "it cannot be answered", "Nats-Service-Error-Code": "400"}
        message = link.message(inbox, b"", "", refusal)
    link.put(message)
