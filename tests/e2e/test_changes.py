"""`state.change` and `POST /state`: clients change documents, over a real nats-server."""

from __future__ import annotations

import base64
import json
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio

from broker import config
from broker.auth import tokens
from tests.e2e.test_calls import service
from tests.support import command
from tests.support.broker import Broker, configure, run_broker
from tests.support.http import ask
from tests.support.metrics import scrape, scraped
from tests.support.websocket import connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.nats import NatsServer
    from tests.support.rawnats import Message, RawNats
    from tests.support.websocket import Client

SCHEMA = {"properties": {"amount": {"type": "number", "minimum": 0}}}
RIGHTS: dict[str, Any] = {"change": [">"], "deny": ["secret.>"]}


@asynccontextmanager
async def changing(directory: Path, url: str, **limits: Any) -> AsyncIterator[Broker]:
    schema = directory / "schema.json"
    schema.write_text(json.dumps(SCHEMA))
    documents = (
        config.Documents(channel="owned.>", owner="service"),
        config.Documents(channel="ruled.>", schema=schema),
        config.Documents(channel="orders.>"),
        config.Documents(channel="secret.>"),
    )
    limits = {"changes_burst": 1000, "connections_per_user": 1000} | limits
    settings = configure(directory / "broker", url, state={"documents": documents}, limits=limits)
    async with run_broker(directory / "broker", settings) as broker:
        await can_change(broker)
        yield broker


async def can_change(broker: Broker) -> None:
    """Return once the broker has the stream of documents, for which nothing else waits."""
    token = broker.token(user="witness", **RIGHTS)
    nothing = {"id": "s-1", "channel": "orders.none", "patch": {"a": 1}, "was": {"a": None}}
    with trio.fail_after(60):
        while (await ask(broker.running.http, "POST", "/state", json=nothing, token=token)).status != 409:
            await trio.sleep(0.05)


async def change(client: Client, id: str, channel: str = "orders.7", **fields: Any) -> dict[str, Any]:  # noqa: A002
    """The payload of the reply, or of the error."""
    return await tell(client, {"id": id, "channel": channel, **fields})


async def tell(client: Client, payload: dict[str, Any]) -> dict[str, Any]:
    await client.send("state.change", payload)
    while True:
        message = await client.receive()
        if message["type"] in ("state.changed", "error"):
            answer: dict[str, Any] = message["payload"]
            return answer


async def stored(nats: RawNats, channel: str = "orders.7") -> tuple[Any, int, str]:
    """What any service reads with one get: the value, its sequence, and its headers."""
    found = await nats.api("STREAM.MSG.GET.STATE", last_by_subj=f"state.acme.{channel}")
    message = found["message"]
    body = base64.b64decode(message.get("data", ""))
    header = base64.b64decode(message.get("hdrs", "")).decode()
    return json.loads(body) if body else None, message["seq"], header


def sequence(answer: dict[str, Any], channel: str = "orders.7") -> int:
    return int(answer["revisions"][channel].rpartition("-")[2])


async def test_two_clients_edit_one_document(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """Disjoint edits merge; the same field conflicts; a repetition is known after others changed it back."""
    async with (
        changing(tmp_path, nats.url) as broker,
        broker.client(user="ä.nn", **RIGHTS) as ann,
        broker.client(user="bob", **RIGHTS) as bob,
    ):
        made = await change(ann, "ann-1", patch={"status": "new", "amount": 1}, was=None)
        assert (await stored(publisher))[:2] == ({"status": "new", "amount": 1}, sequence(made))
        one = await change(ann, "ann-2", patch={"status": "packed"}, was={"status": "new"})
        two = await change(bob, "bob-1", patch={"amount": 2}, was={"amount": 1.0})
        assert (await stored(publisher))[0] == {"status": "packed", "amount": 2}
        lost = await change(
            bob, "bob-2", patch={"status": "lost", "amount": 3}, was={"status": "new", "amount": 2}
        )
        assert lost["code"] == "conflict"
        assert not lost["retryable"]
        where = {
            "channel": "orders.7",
            "revision": two["revisions"]["orders.7"],
            "paths": {"/status": "packed"},
        }
        assert lost["conflict"] == [where]
        back = await change(bob, "bob-3", patch={"status": "new"}, was={"status": "packed"})
        again = await change(ann, "ann-2", patch={"status": "packed"}, was={"status": "new"})
        assert again["revisions"] == back["revisions"]
        value, _, header = await stored(publisher)
        assert value == {"status": "new", "amount": 2}
        assert "Broker-User: bob" in header
        assert f"Broker-Base: {sequence(two)}" in header
        assert "ann-2:" in header
        added = await change(ann, "ann-3", add={"/amount": -2}, revision=one["revisions"]["orders.7"])
        assert (await stored(publisher))[:2] == ({"status": "new", "amount": 0}, sequence(added))
        stale = await change(bob, "bob-4", patch=None, revision=back["revisions"]["orders.7"])
        assert stale["conflict"][0]["paths"] == {"": {"status": "new", "amount": 0}}
        with trio.fail_after(60):
            found: dict[str, Any] = {}
            while "message" not in found:
                found = await publisher.api("STREAM.MSG.GET.AUDIT", last_by_subj="audit.acme.changed")
        noted = json.loads(base64.b64decode(found["message"]["data"]))
        assert (noted["channel"], noted["kind"]) == ("orders.7", "changed")
        assert {"id", "revision", "user", "connection", "peer"} <= noted.keys()
        gone = await change(bob, "bob-5", patch=None, revision=added["revisions"]["orders.7"])
        assert (await stored(publisher))[:2] == (None, sequence(gone))
        assert (await change(ann, "ann-4", patch={"a": 1}, was={"a": None}))["conflict"][0]["paths"] == {
            "": None
        }
        assert "revisions" in await change(ann, "ann-5", patch={"a": 1}, was=None)


async def test_who_follows_a_document_learns_whose_changes_they_are(tmp_path: Path, nats: NatsServer) -> None:
    async with (
        changing(tmp_path, nats.url) as broker,
        broker.client(user="ä.nn", **RIGHTS) as client,
        broker.client(user="bob", subscribe=[">"]) as follower,
    ):
        await change(client, "s-1", patch={"long": "x" * 1000, "n": 1}, was=None)
        await follower.send("state.open", {"channel": "orders.>"})
        await follower.until("state.ready")
        made = await change(client, "s-2", patch={"n": 2}, was={"n": 1})
        told = await follower.until("state")
        assert (told["patch"], told["revision"]) == ({"n": 2}, made["revisions"]["orders.7"])
        assert told["by"] == [{"user": "ä.nn", "id": "s-2"}]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no right": ({"channel": "secret.1", "patch": {}, "was": None}, "forbidden"),
    "no document": ({"channel": "news.1", "patch": {}, "was": None}, "forbidden"),
    "live": ({"channel": "live.orders.1", "patch": {}, "was": None}, "forbidden"),
    "a pattern": ({"channel": "orders.*", "patch": {}, "was": None}, "invalid_channel"),
    "no channel": ({"patch": {}, "was": None}, "bad_message"),
    "no condition": ({"channel": "orders.1", "patch": {"a": 1}}, "bad_message"),
    "a leaf that was lacks": ({"channel": "orders.1", "patch": {"a": 1}, "was": {}}, "bad_message"),
    "a prototype": ({"channel": "orders.1", "patch": {"__proto__": 1}, "was": None}, "bad_message"),
    "a list": ({"channel": "orders.1", "patch": [1], "was": None}, "bad_message"),
    "no id": ({"channel": "orders.1", "patch": {}, "was": None, "id": "x"}, "bad_message"),
    "no revision": ({"channel": "orders.1", "patch": None, "revision": "x"}, "invalid_position"),
    "too large": ({"channel": "orders.1", "patch": {"a": "x" * 33_000}, "was": None}, "too_large"),
    "by its schema": ({"channel": "ruled.1", "patch": {"amount": -1}, "was": None}, "rejected"),
    "none": ({"changes": []}, "bad_message"),
    "both": (
        {"channel": "orders.1", "changes": [{"channel": "orders.1", "patch": {}, "was": None}]},
        "bad_message",
    ),
    "twice": ({"changes": [{"channel": "orders.1", "patch": {}, "was": None}] * 2}, "bad_message"),
    "two owners": (
        {"changes": [{"channel": each, "patch": {}, "was": None} for each in ("orders.1", "owned.1")]},
        "bad_message",
    ),
    "unknown field": (
        {"changes": [{"channel": "orders.1", "patch": {}, "was": None, "what": 1}]},
        "bad_message",
    ),
    "nobody decides": ({"channel": "owned.1", "patch": {}, "was": None}, "unavailable"),
}


async def test_changes_that_are_refused(tmp_path: Path, nats: NatsServer) -> None:
    """Each with its code, over both ways; nothing is stored."""
    status = {"forbidden": 403, "rejected": 502, "too_large": 413, "unavailable": 503}
    async with changing(tmp_path, nats.url, messages_per_minute=1000, messages_burst=1000) as broker:
        token = broker.token(**RIGHTS)
        for name, (payload, code) in REFUSED.items():
            payload = {"id": "s-1", **payload}
            async with broker.client(token=token) as client:
                assert (await tell(client, payload))["code"] == code, name
            answer = await ask(broker.running.http, "POST", "/state", json=payload, token=token)
            assert (answer.json["code"], answer.status) == (code, status.get(code, 400)), name
        payload = {"id": "s-1", "channel": "ruled.1", "patch": {"amount": -1}, "was": None}
        answer = await ask(broker.running.http, "POST", "/state", json=payload, token=token)
        assert answer.json["paths"] == {"/amount": "-1 is less than the minimum of 0"}
        payload |= {"patch": {"amount": 1}}
        answer = await ask(broker.running.http, "POST", "/state", json=payload, token=token)
        assert answer.status == 200
        assert sequence(answer.json, "ruled.1") == 1
        payload |= {"id": "s-2", "patch": {"amount": 2}}
        answer = await ask(broker.running.http, "POST", "/state", json=payload, token=token)
        assert (answer.status, answer.json["conflict"][0]["paths"]) == (409, {"": {"amount": 1}})


async def test_rates_and_what_is_switched_off(tmp_path: Path, nats: NatsServer, broker: Broker) -> None:
    async with broker.client(**RIGHTS) as client:  # without documents
        assert (await change(client, "s-1", patch={}, was=None))["code"] == "unknown_type"
    async with (
        changing(tmp_path, nats.url, changes_per_second=1, changes_burst=2) as limited,
        limited.client(**RIGHTS) as client,
        limited.client(user="bob", change=["orders.8"]) as bob,
    ):
        codes = [(await change(client, f"s-{n}", patch={}, was=None)).get("code") for n in range(1, 4)]
        assert codes == [None, None, "rate_limited"]
        assert (await change(bob, "b-1", patch={}, was=None))["code"] == "forbidden"
        assert "revisions" in await change(bob, "b-2", "orders.8", patch={}, was=None)


@pytest.mark.parametrize("owned", [False, True], ids=["of the broker", "of a service"])
async def test_several_documents_at_once(
    tmp_path: Path, nats: NatsServer, publisher: RawNats, owned: bool
) -> None:
    """All of them, or none."""
    one, two = (f"{'owned' if owned else 'orders'}.{n}" for n in (1, 2))

    def agree(message: Message) -> tuple[bytes, ...]:
        patch = json.loads(message.body)["changes"][0].get("patch") or {}
        return (b'{"error":{"message":"no"}}' if patch.get("a") == "bad" else b"{}",)

    async with (
        changing(tmp_path, nats.url) as broker,
        broker.client(**RIGHTS) as client,
        service(publisher, "changes.acme.>", agree) as asked,
    ):
        both = [
            {"channel": two, "patch": {"a": 2}, "was": None},
            {"channel": one, "patch": {"a": 1}, "was": None},
        ]
        made = await tell(client, {"id": "s-1", "changes": both})
        assert [(await stored(publisher, each))[:2] for each in (one, two)] == [
            ({"a": 1}, sequence(made, one)),
            ({"a": 2}, sequence(made, two)),
        ]
        assert [each.subject.decode() for each in asked] == [
            f"changes.acme.{each}" for each in (one, two) if owned
        ]
        wrong = [
            {"channel": one, "patch": {"a": 5}, "was": {"a": 1}},
            {"channel": two, "patch": {"a": 6}, "was": {"a": 1}},
        ]
        refused = await tell(client, {"id": "s-2", "changes": wrong})
        assert [(each["channel"], each["paths"]) for each in refused["conflict"]] == [(two, {"/a": 2})]
        if owned:
            wrong[1] = {"channel": two, "patch": {"a": "bad"}, "was": {"a": 2}}
            assert (await tell(client, {"id": "s-3", "changes": wrong}))["code"] == "rejected"
        assert (await stored(publisher, one))[0] == {"a": 1}
        moved = [
            {"channel": one, "patch": {"a": None}, "was": {"a": 1}},
            {"channel": two, "patch": {"a": 3}, "was": {"a": 2}},
        ]
        done = await tell(client, {"id": "s-4", "changes": moved})
        assert (await tell(client, {"id": "s-4", "changes": moved})) == done
        assert [(await stored(publisher, each))[0] for each in (one, two)] == [{}, {"a": 3}]


ANSWERS: dict[str, tuple[bytes, dict[str, Any] | None, Any]] = {
    "agrees": (b"{}", None, {"a": 2, "b": 0}),
    "agrees to each": (b'{"changes":[{}]}', None, {"a": 2, "b": 0}),
    "amends": (b'{"changes":[{"patch":{"a":3,"by":"x"}}]}', None, {"a": 3, "b": 0, "by": "x"}),
    "refuses": (
        b'{"changes":[{"error":{"code":7,"message":"is shipped","paths":{"/a":"fixed"}}}]}',
        {"code": "rejected", "message": "is shipped", "status": 7, "paths": {"/a": "fixed"}},
        {"a": 1, "b": 0},
    ),
    "refuses all": (b'{"error":{"message":"no"}}', {"code": "rejected", "message": "no"}, {"a": 1, "b": 0}),
    "too few": (b'{"changes":[]}', {"code": "bad_answer"}, {"a": 1, "b": 0}),
    "no json": (b"{", {"code": "bad_answer"}, {"a": 1, "b": 0}),
    "no object": (b"[]", {"code": "bad_answer"}, {"a": 1, "b": 0}),
    "no patch": (b'{"changes":[{"patch":1}]}', {"code": "bad_answer"}, {"a": 1, "b": 0}),
    "no change": (b'{"changes":[{"what":1}]}', {"code": "bad_answer"}, {"a": 1, "b": 0}),
    "no revision": (b'{"revision":7}', {"code": "bad_answer"}, {"a": 1, "b": 0}),
}


async def test_a_service_decides(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """Each form of its answer; it is asked with all that it has to know."""
    said = [b"{}"]
    async with (
        changing(tmp_path, nats.url) as broker,
        broker.client(user="al.ice", **RIGHTS) as client,
        service(publisher, "changes.acme.owned.>", lambda _: (said[0],)) as asked,
    ):
        for number, (name, (answer, error, value)) in enumerate(ANSWERS.items()):
            channel, said[0] = f"owned.{number}", b"{}"
            made = await change(client, "s-1", channel, patch={"a": 1, "b": 0}, was=None)
            said[0] = answer
            got = await change(client, "s-2", channel, patch={"a": 2}, was={"a": 1})
            assert {key: got[key] for key in error or {}} == (error or {}), name
            assert ("revisions" in got) is (error is None), name
            assert (await stored(publisher, channel))[0] == value, name
            question = json.loads(asked[-1].body)
            assert question == {
                "changes": [{"id": "s-2", "user": "al%2Eice", "patch": {"a": 2}, "was": {"a": 1}}],
                "value": {"a": 1, "b": 0},
                "revision": made["revisions"][channel],
            }
        conflict = await change(client, "s-3", channel, patch={"a": 2}, was={"a": 5})
        assert conflict["code"] == "conflict"


async def test_a_service_that_writes_itself_or_does_not_answer(
    tmp_path: Path, nats: NatsServer, publisher: RawNats
) -> None:
    """What it writes is the change; without its answer nobody knows, and a repetition finds out."""
    written: list[int] = []

    async def write() -> None:
        written.append(await publisher.store("state.acme.owned.1", b'{"a":1,"mine":true}'))

    mute = await publisher.subscribe("changes.acme.owned.2")
    await publisher.flush()
    async with (
        changing(tmp_path, nats.url) as broker,
        broker.client(**RIGHTS) as client,
        service(publisher, "changes.acme.owned.1", lambda _: (b'{"revision":"abc-9"}',)),
    ):
        await write()
        got = await change(client, "s-1", "owned.1", patch={"b": 1}, was={"b": None})
        assert got["revisions"] == {"owned.1": "abc-9"}
        with trio.fail_after(60):
            unknown = await change(client, "s-1", "owned.2", patch={"b": 1}, was=None)
        assert (unknown["code"], unknown["retryable"]) == ("unknown_outcome", False)
        assert (await mute.receive()).subject == b"changes.acme.owned.2"
        await publisher.store("state.acme.orders.7", b"[1]")
        invalid = await change(client, "s-2", patch={"b": 1}, was={"b": None})
        assert invalid["code"] == "rejected"
        assert "no document" in invalid["message"]
        # The feed may be later than the answers.
        shown = await scraped(
            broker.running.admin, lambda found: found.total("broker_document_foreign_writes_total") == 2
        )
        assert shown.total("broker_changes_total", outcome="unknown_outcome") == 1
        assert shown.total("broker_changes_total", outcome="changed") == 1


async def test_an_update_that_is_lost(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """A write that has not seen a confirmed one takes its place: whoever made that is told."""
    async with (
        changing(tmp_path, nats.url) as broker,
        broker.client(**RIGHTS) as client,
        broker.client(user="bob", **RIGHTS) as other,
    ):
        made = await change(client, "s-1", patch={"a": 1}, was=None)
        await change(client, "s-2", patch={"a": 2, "b": 1}, was={"a": 1, "b": None})
        header = f"NATS/1.0\r\nBroker-Base: {sequence(made)}\r\n\r\n".encode()
        revision = await publisher.store("state.acme.orders.7", b'{"a":7}', header=header)
        lost = await client.until("state.lost")
        assert (lost["ids"], lost["channel"], lost["paths"]) == (["s-2"], "orders.7", {"/a": 7, "/b": None})
        assert lost["revision"].endswith(f"-{revision}")
        await other.quiet()
        assert (await scrape(broker.running.admin)).total("broker_changes_lost_total") == 1


async def test_two_brokers_write_the_same(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """All edits of different fields are there in the end, and each sum is whole."""
    edits, counts = 10, 4
    async with (
        changing(tmp_path, nats.url, changes_per_second=10_000) as one,
        run_broker(tmp_path / "other", one.config) as two,
        one.client(**RIGHTS) as first,
    ):
        await can_change(two)
        made = await change(first, "first-1", patch={"n": 0}, was=None)

        async def edit(broker: Broker, name: str) -> None:
            async with broker.client(user=name, **RIGHTS) as client:
                was: Any = None
                for n in range(1, edits + 1):
                    got = await change(client, f"{name}-{2 * n}", patch={name: n}, was={name: was})
                    assert "revisions" in got, got
                    was = n
                    add = {"add": {"/n": 1}, "revision": made["revisions"]["orders.7"]}
                    got = await change(client, f"{name}-{2 * n + 1}", **add)
                    assert "revisions" in got, got

        async with trio.open_nursery() as nursery:
            for number in range(counts):
                nursery.start_soon(edit, (one, two)[number % 2], f"c{number}")
        value, _, _ = await stored(publisher)
        assert value == {"n": edits * counts, **{f"c{number}": edits for number in range(counts)}}


TEMPLATE = """
[server]
listen = "127.0.0.1:0"
admin_listen = "127.0.0.1:0"
data_dir = "state"
[nats]
urls = ["{nats}"]
[stream]
max_bytes = "64MiB"
[permissions]
change = [">"]
[limits]
changes_burst = 1000
requests_in_flight = 64
[[state.documents]]
channel = "orders.>"
[[auth.keys]]
name = "main"
secret_file = "secret"
tenants = ["acme"]
"""


@asynccontextmanager
async def process(file: Path) -> AsyncIterator[tuple[command.Running, dict[str, str]]]:
    async with command.start("serve", "--config", file) as running:
        await running.until('"ready"', "stderr")
        yield running, json.loads((file.parent / "state" / "broker.json").read_text())


async def test_a_broker_that_is_killed(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """kill -9 with changes under way, some of them written: sent again, each is applied once.

    Meanwhile others have changed the same there and back, so that values tell nothing.
    """
    (tmp_path / "secret").touch(mode=0o600)
    (tmp_path / "secret").write_text("0123456789abcdef" * 4)
    file = tmp_path / "broker.toml"
    file.write_text(TEMPLATE.format(nats=nats.url))
    auth = config.load(file, {}, production=True).auth
    token = tokens.sign(auth, tenant="acme", user="ann", now=time.time(), ttl=3600)
    count, wishes = 24, dict[str, Any]()
    async with process(file) as (running, state), connect(state["ws"], token=token) as client:
        made: dict[str, Any] = {"code": "unavailable"}
        with trio.fail_after(60):
            while "code" in made:
                made = await change(client, "first-1", patch={"n": 0, "a": "A"}, was=None)
        revision = made["revisions"]["orders.7"]
        for number in range(count):
            wishes[f"s{number}-1"] = {"add": {"/n": 1}, "revision": revision}
        wishes["t-1"] = {"patch": {"a": "B"}, "was": {"a": "A"}}
        for id_, fields in wishes.items():
            await client.send("state.change", {"id": id_, "channel": "orders.7", **fields})
        applied = {(await client.until("state.changed"))["id"] for _ in range(3)}
        running.process.kill()
        await running.end()
    async with process(file) as (_, state), connect(state["ws"], token=token) as client:
        back: dict[str, Any] = {"code": "unavailable"}
        with trio.fail_after(60):
            while "code" in back and back["code"] == "unavailable":
                back = await change(client, "u-1", patch={"a": "A"}, was={"a": "B"})
        there = (await stored(publisher))[0]["a"] if "code" in back else "A"
        assert there == "A"
        known = applied & wishes.keys()
        before = (await stored(publisher))[0]["n"]
        assert before >= len(known - {"t-1"})
        for id_, fields in wishes.items():
            assert "revisions" in await change(client, id_, **fields), id_
        value, last, _ = await stored(publisher)
        assert value["n"] == count
        for id_, fields in wishes.items():
            assert "revisions" in await change(client, id_, **fields), id_
        assert (await stored(publisher))[:2] == (value, last)
