"""Documents through the admin API and `broker admin state`, over a real nats-server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from broker import config
from tests.support import command, rawnats
from tests.support.admin import Admin
from tests.support.broker import configure, run_broker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.broker import Broker
    from tests.support.nats import NatsServer

DOCUMENTS = {"state": {"documents": (config.Documents(channel="orders.*"),)}}
ORDER = "/documents/acme/orders.7"


@pytest.fixture
async def broker(tmp_path: Path, nats: NatsServer) -> AsyncIterator[Broker]:
    settings = configure(
        tmp_path / "broker", nats.url, **DOCUMENTS, permissions={"change": (">",), "publish": (">",)}
    )
    async with run_broker(tmp_path / "broker", settings) as running:
        async with running.client() as client:  # waits for the stream, which nothing else does
            await client.send("state.open", {"channel": "orders.0"})
            await client.until("state.ready")
        yield running


async def made(broker: Broker, channel: str, value: dict[str, Any]) -> str:
    """Makes a document as a client; its revision."""
    async with broker.client() as client:
        change = {"id": f"{channel.replace('.', '')}-1", "channel": channel, "patch": value, "was": None}
        await client.send("state.change", change)
        revision: str = (await client.expect("state.changed"))["revisions"][channel]
        return revision


async def test_documents_are_listed_shown_and_replaced(broker: Broker, tmp_path: Path) -> None:
    """Those of one tenant, page by page; replaced at a revision; clients that have one open see it."""
    admin = await Admin.of(broker.running.admin, tmp_path / "broker")
    assert await admin.ask("GET", "/documents?tenant=acme") == {"documents": [], "next": None}
    revisions = [await made(broker, f"orders.{n}", {"n": n}) for n in (7, 8, 9)]
    page = await admin.ask("GET", "/documents?tenant=acme&limit=2")
    assert [(each["channel"], each["value"]) for each in page["documents"]] == [
        ("orders.7", {"n": 7}),
        ("orders.8", {"n": 8}),
    ]
    rest = await admin.ask("GET", f"/documents?tenant=acme&channel=orders.*&cursor={page['next']}")
    assert ([each["channel"] for each in rest["documents"]], rest["next"]) == (["orders.9"], None)
    assert (await admin.ask("GET", "/documents?tenant=globex"))["documents"] == []
    shown = await admin.ask("GET", ORDER)
    assert (shown["revision"], shown["publisher"], shown["size"], shown["invalid"]) == (
        revisions[0], "alice", 7, None,
    )  # fmt: skip
    async with broker.client() as client:
        await client.send("state.open", {"channel": "orders.7"})
        await client.until("state.ready")
        wish = json.dumps({"value": {"n": 70, "by": "operator"}, "revision": revisions[0]})
        written = await admin.ask("PUT", ORDER, wish)
        seen = await client.expect("state")
        assert (seen["value"], seen["revision"]) == ({"n": 70, "by": "operator"}, written["revision"])
        refused = await admin.ask("PUT", ORDER, wish, status=409)
        assert written["revision"] in refused["detail"]
        again = {"id": "orders7-1", "channel": "orders.7", "patch": {"n": 7}, "was": None}
        await client.send("state.change", again)  # known still: a service's write forgets nothing
        assert (await client.expect("state.changed"))["id"] == "orders7-1"
        await admin.ask("DELETE", ORDER)
        assert (await client.expect("state"))["value"] is None
    await admin.ask("GET", ORDER, status=404)
    await admin.ask("DELETE", ORDER, status=404)
    operations = {"list_documents", "show_document", "put_document", "delete_document"}
    assert operations <= admin.asked


async def test_what_is_no_document(broker: Broker, nats: NatsServer, tmp_path: Path) -> None:
    """It is refused when it is given, and shown with why where a service has stored it."""
    admin = await Admin.of(broker.running.admin, tmp_path / "broker")
    async with rawnats.connect(nats.url) as service:
        await service.store("state.acme.orders.1", b"[1]")
    shown = await admin.ask("GET", "/documents/acme/orders.1")
    assert (shown["value"], bool(shown["invalid"])) == (None, True)
    for target, body, status in (
        (ORDER, '{"value": [1]}', 400),
        (ORDER, '{"value": {"a": 1, "a": 2}}', 400),
        (ORDER, '{"value": {}, "revision": "other-1"}', 400),
        ("/documents/acme/orders.*", '{"value": {}}', 400),
        ("/documents/_all/orders.7", '{"value": {}}', 400),
        ("/documents/acme/live.x", '{"value": {}}', 400),
    ):
        assert (await admin.ask("PUT", target, body, status=status))["detail"]
    await admin.ask("GET", "/documents?tenant=*", status=400)


async def test_where_there_are_none(nats: NatsServer, tmp_path: Path) -> None:
    """Without documents in the configuration it is said so."""
    async with run_broker(tmp_path / "broker", configure(tmp_path / "broker", nats.url)) as broker:
        admin = await Admin.of(broker.running.admin, tmp_path / "broker")
        told = await admin.ask("GET", "/documents?tenant=acme", status=404)
        assert "state.documents" in told["detail"]


async def test_by_the_command(broker: Broker, tmp_path: Path) -> None:
    """List, get, set, delete, and what goes wrong with each."""

    async def state(*arguments: str) -> command.Result:
        return await command.broker(
            "admin", "state", *arguments, "--tenant", "acme", "--data-dir", tmp_path / "broker"
        )

    done = await state("set", "orders.7", '{"n": 1}')
    assert done.code == 0, done.err
    revision = json.loads(done.out)["revision"]
    assert json.loads((await state("get", "orders.7")).out)["value"] == {"n": 1}
    listed = json.loads((await state("list", "orders.*")).out)["documents"]
    assert [each["revision"] for each in listed] == [revision]
    done = await state("set", "orders.7", '{"n": 2}', "--revision", f"{revision}0")
    assert (done.code, revision in done.err) == (1, True)
    assert (await state("delete", "orders.7")).code == 2  # nobody is there to confirm
    assert (await state("delete", "orders.7", "--yes", "--revision", revision)).code == 0
    done = await state("get", "orders.7")
    assert (done.code, "no such document" in done.err) == (1, True)
