"""The service of `broker dev`, over a real nats-server: whatever it is asked, the next one is answered."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import trio

from broker import config
from broker.cli import demo

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats

BROKERS = b"NATS/1.0\r\nBroker-User: al%2Eice\r\n\r\n"


@pytest.fixture
async def service(nats: NatsServer, publisher: RawNats) -> AsyncIterator[RawNats]:
    """A client of NATS beside the service, once that answers."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(demo.serve, nats.url, config.Config())
        while (await publisher.request("rpc.acme.demo.clock", b"null", header=BROKERS)).header:
            await trio.sleep(0.01)  # nobody is there yet
        yield publisher
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("body", "header"),
    [
        # Larger by what is around it, since the user's name is escaped there.
        (b'"%b"' % (b"x" * ((1 << 20) - 100)), BROKERS.replace(b"al%2Eice", b'"' * 50)),
        (b"{", BROKERS),
        (b"", BROKERS),
        (b"1", BROKERS.replace(b"al%2Eice", b"\xff")),
    ],
    ids=["large", "no JSON", "empty", "no user"],
)
async def test_what_cannot_be_answered_is_refused(service: RawNats, body: bytes, header: bytes) -> None:
    refused = await service.request("rpc.acme.demo.echo", body, header=header)
    assert b"Nats-Service-Error-Code: 400\r\n" in refused.header
    answer = await service.request("rpc.globex.demo.echo", b"[1]", header=BROKERS)
    assert json.loads(answer.body) == {"user": "al%2Eice", "data": [1]}


async def test_an_approved_order_is_an_event_of_the_tenant(service: RawNats) -> None:
    """It comes before the answer; one that is on hold is refused, and nobody hears of it."""
    stored = await service.subscribe("events.>")
    for order, refused in ((5, True), (6, False)):
        answer = await service.request("rpc.acme.demo.approve", b'{"order":%d}' % order, header=BROKERS)
        assert (b"Nats-Service-Error-Code: 409" in answer.header) is refused
    event = stored.receive_nowait()
    assert (event.subject, json.loads(event.body)["text"]) == (
        b"events.acme.demo.orders",
        "order 6 is approved",
    )
    with pytest.raises(trio.WouldBlock):
        stored.receive_nowait()


async def test_it_answers_the_broker_alone(service: RawNats) -> None:
    """What lacks the broker's header, or a place for the answer, is left alone."""
    inbox = await service.subscribe("inbox")
    for reply, header in ((b"inbox", b""), (b"", BROKERS), (b"inbox", BROKERS)):
        await service.publish("rpc.acme.demo.echo", b"1", reply=reply, header=header)
    assert json.loads((await inbox.receive()).body)["data"] == 1
    await service.flush()
    with pytest.raises(trio.WouldBlock):
        inbox.receive_nowait()


async def test_it_decides_on_changes_of_its_document(service: RawNats) -> None:
    """An amount that nobody can order is refused, with where; and whatever it is asked, it goes on."""
    refused = await service.request("changes.acme.demo.order", b"{", header=BROKERS)
    assert b"Nats-Service-Error-Code: 400" in refused.header
    changes = [
        {"id": "a-1", "patch": patch} for patch in ({"amount": 1001}, {"amount": 7}, {"note": "x"}, None)
    ]
    body = json.dumps({"changes": changes, "value": None, "revision": "s-0"}).encode()
    answer = await service.request("changes.acme.demo.order", body, header=BROKERS)
    refusal, *agreed = json.loads(answer.body)["changes"]
    assert (refusal["error"]["code"], list(refusal["error"]["paths"]), agreed) == (
        422,
        ["/amount"],
        [{}, {}, {}],
    )
