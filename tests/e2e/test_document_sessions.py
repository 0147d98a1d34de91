"""Documents in both sessions, against a real broker: edited by two, and over a kill."""

from __future__ import annotations

import json
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import trio

from broker.client import DocumentConflict, DocumentRejected
from broker.documents.memory import Entry, Memory
from broker.errors import Conflict, Rejected
from tests.client import shells
from tests.client.shells import SHELLS, Running
from tests.e2e import test_client_sessions as sessions
from tests.e2e.test_changes import changing, stored
from tests.support.ports import held_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

    from broker.client import Document
    from tests.client.shells import Shell
    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats

T = TypeVar("T")
TEMPLATE = sessions.TEMPLATE.replace("[limits]", 'change = [">"]\n[limits]') + (
    '[[state.documents]]\nchannel = "owned.>"\nowner = "service"\n'
)


@pytest.fixture(params=SHELLS)
def running(request: pytest.FixtureRequest) -> Running:
    """Runs a session at an address for the length of a block: on Trio, and on asyncio."""
    return SHELLS[request.param]


@pytest.fixture
def file(tmp_path: Path, nats: NatsServer) -> Iterator[Path]:
    """The configuration of a broker that comes back at the same address."""
    (tmp_path / "secret").touch(mode=0o600)
    (tmp_path / "secret").write_text("0123456789abcdef" * 4)
    path = tmp_path / "broker.toml"
    with held_ports() as [port]:
        path.write_text(TEMPLATE.format(nats=nats.url, port=port))
        yield path


async def inside(session: Shell, work: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
    with trio.fail_after(sessions.PATIENCE_SECONDS):
        return await shells.inside(session, work)


async def until(document: Document, value: Any) -> None:
    """Return once this is confirmed."""
    while document.confirmed != value:
        await anext(document)


async def conflict(document: Document) -> DocumentConflict:
    async for news in document:
        if isinstance(news, DocumentConflict):
            return news
    raise AssertionError("no conflict")


async def test_two_edit_one_document(tmp_path: Path, nats: NatsServer, running: Running) -> None:
    """Edits of different members merge; the same one conflicts, and either may be kept."""
    async with (
        changing(tmp_path, nats.url) as broker,
        running(broker.running.ws, broker.token(user="ann", subscribe=[">"], change=[">"])) as hers,
        running(broker.running.ws, broker.token(user="bob", subscribe=[">"], change=[">"])) as his,
    ):
        ann, bob = [await inside(each, opened) for each in (hers, his)]
        made, merged = {"amount": 1, "note": "a"}, {"amount": 2, "note": "b"}

        async def make(_: Any) -> None:
            ann.change(made)
            assert ann.value == made
            await ann.saved()

        async def amount(_: Any) -> None:
            await until(ann, made)
            ann.change({"amount": 2})
            await until(ann, merged)

        async def note(_: Any) -> None:
            await until(bob, made)
            bob.change({"note": "b"})
            await until(bob, merged)

        async def offline(session: Any) -> None:
            """What is changed now is not sent yet."""
            session.engine.gate.hold("changes", inf)
            bob.change({"amount": 4, "note": "c"})

        async def first(_: Any) -> None:
            ann.change({"amount": 3})
            await ann.saved()

        async def online(session: Any) -> None:
            session.engine.gate.held.clear()
            with pytest.raises(Conflict):
                await bob.saved()
            news = await conflict(bob)
            assert (news.mine, dict(news.theirs)) == ({"amount": 4}, {"/amount": 3})
            await until(bob, {"amount": 3, "note": "c"})
            news.keep("mine")
            await bob.saved()
            bob.close()

        async def end(session: Any) -> None:
            await until(ann, {"amount": 4, "note": "c"})
            async with session.collection("orders.*") as orders:
                assert orders.all == {"orders.7": {"amount": 4, "note": "c"}}
                orders.change("orders.8", {"amount": 1})
            ann.change(None)
            await until(ann, None)
            async with session.document("orders.stock1") as stock, session.document("orders.stock2") as other:
                stock.change(add={"/left": 5})
                assert stock.value == {"left": 5}
                stock.change(add={"/left": -1})
                moved = {"channel": "orders.stock1", "patch": {"to": 2}, "add": {"/left": -2}}
                revisions = await session.change([moved, {"channel": "orders.stock2", "add": {"/left": 2}}])
                assert revisions.keys() == {"orders.stock1", "orders.stock2"}
                await until(stock, {"left": 2, "to": 2})
                await until(other, {"left": 2})
                with pytest.raises(Conflict):
                    await session.change([moved, {"channel": "orders.stock2", "add": {"/left/deep": 2}}])
                assert (stock.value, other.value) == ({"left": 2, "to": 2}, {"left": 2})

        async def refused(session: Any) -> None:
            async with session.document("ruled.1") as ruled:
                ruled.change({"amount": -1})
                with pytest.raises(Rejected) as raised:
                    await ruled.saved()
                assert raised.value.paths == {"/amount": "-1 is less than the minimum of 0"}
                assert (ruled.value, isinstance(await rejected(ruled), DocumentRejected)) == (None, True)

        await inside(hers, make)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(inside, hers, amount)
            nursery.start_soon(inside, his, note)
        await inside(his, offline)
        await inside(hers, first)
        await inside(his, online)
        await inside(hers, end)
        await inside(his, refused)


async def opened(session: Any) -> Document:
    document: Document = session.document("orders.7")
    await document.opened()
    return document


async def rejected(document: Document) -> Any:
    while not isinstance(news := await anext(document), DocumentRejected):
        pass
    return news


async def test_a_change_over_a_kill(file: Path, publisher: RawNats, running: Running) -> None:
    """It was written, the broker was killed before it could say so, and others came after: applied once."""
    asked = await publisher.subscribe("changes.acme.owned.1")
    await publisher.flush()
    documents: list[Document] = []

    async def change(session: Any) -> None:
        document = session.document("owned.1")
        documents.append(document)
        await document.opened()
        document.change({"a": 1})

    async def end(_: Any) -> None:
        [document] = documents
        await document.saved()
        await until(document, {"a": 2})
        assert (document.value, document.pending) == ({"a": 2}, 0)

    async with running(sessions.address(file), sessions.token(file)) as session:
        async with sessions.serve(file) as broker:
            await inside(session, change)
            with trio.fail_after(sessions.PATIENCE_SECONDS):
                [sent] = json.loads((await asked.receive()).body)["changes"]
            broker.process.kill()
        known = Memory().with_changes([Entry(session=sent["id"][:-2], n=1, user=sent["user"], base=0)])
        header = f"NATS/1.0\r\nBroker-Changes: {known}\r\n\r\n".encode()
        await publisher.store("state.acme.owned.1", b'{"a":1}', header=header)
        last = await publisher.store("state.acme.owned.1", b'{"a":2}', header=header)
        async with sessions.serve(file):
            await inside(session, end)
    assert (await stored(publisher, "owned.1"))[:2] == ({"a": 2}, last)
    assert asked.statistics().current_buffer_used == 0
