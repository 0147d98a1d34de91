"""The admin API over the whole broker: every route answers as its document says, and does what it says."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import structlog
import trio
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

from broker.operations import storage
from tests.support import command
from tests.support.admin import Admin
from tests.support.broker import configure, run_broker
from tests.support.raw import ask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.broker import Broker
    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats


@pytest.fixture
async def admin(broker: Broker, tmp_path: Path) -> Admin:
    return await Admin.of(broker.running.admin, tmp_path / "broker")


@pytest.fixture
def own_logging() -> Iterator[None]:
    """What a broker in this process changes about logging ends with the test."""
    root, settings = logging.getLogger(), structlog.get_config()
    level = root.level
    yield
    root.setLevel(level)
    structlog.configure(**settings)


async def eventually(admin: Admin, target: str, holds: Callable[[Any], bool]) -> Any:
    """What is answered, once it holds."""
    with trio.fail_after(45):
        while not holds(found := await admin.ask("GET", target)):
            pass
    return found


async def letters(admin: Admin, publisher: RawNats, *messages: tuple[str, bytes]) -> list[dict[str, Any]]:
    """Publishes what is no event; the dead letters, newest first, once they are all there."""
    for subject, body in messages:
        await publisher.store(subject, body)
    count = len(messages)
    found = await eventually(admin, "/dead-letters", lambda page: len(page["letters"]) == count)
    listed: list[dict[str, Any]] = found["letters"]
    return listed


STREAMS = ("KV_broker_control", "EVENTS", "DEADLETTER", "BROKER", "KV_broker_cursors", "AUDIT", "PRESENCE")


@pytest.mark.usefixtures("own_logging")
async def test_every_route(broker: Broker, admin: Admin, publisher: RawNats) -> None:
    """The document is valid OpenAPI 3.1, and everything in it answers as it says."""
    validate(admin.document, cls=OpenAPIV31SpecValidator)
    await admin.ask("GET", "/api/openapi.json")
    assert await admin.ask("GET", "/readiness") == {
        "ready": True, "reasons": [], "connected": True, "draining": False,
    }  # fmt: skip
    async with broker.client() as client:
        await client.subscribe(["orders.>", "live.x"])
        [listed] = (await admin.ask("GET", "/connections"))["connections"]
        await admin.ask("GET", f"/connections/{listed['id']}")
        await admin.ask("GET", "/tenants")
        await admin.ask("GET", "/tenants/acme")
        await admin.ask("POST", "/publish", '{"tenant":"acme","channel":"orders.7","event":1}', status=202)
        await admin.ask("GET", "/history?tenant=acme")
        await letters(admin, publisher, *[("events.acme.a", b"{")] * 2)
        await admin.ask("GET", "/dead-letters/1")
        await admin.ask("POST", "/dead-letters/1/replay", '{"event":{}}')
        await admin.ask("DELETE", "/dead-letters/2")
        await admin.ask("DELETE", "/dead-letters")
        await admin.ask("DELETE", f"/connections/{listed['id']}")
        await admin.ask("DELETE", "/connections?tenant=acme")
        question = {"token": broker.token(), "channel": "orders.7"}
        assert (await admin.ask("POST", "/explain", json.dumps(question)))["allowed"]
        await eventually(admin, "/closes", lambda answer: bool(answer["closes"]))
        await eventually(admin, "/audit", lambda answer: bool(answer["records"]))
        followed = await admin.send("GET", "/api/v1/trace?tenant=acme&channel=%3E&seconds=0.01")
        assert followed.headers["content-type"] == "application/x-ndjson"
        admin.asked.add("trace")
        await admin.ask("POST", "/revocations", '{"tenant":"acme","user":"bob"}', status=201)
        await admin.ask("PUT", "/tenants/globex/suspension", '{"reason":"unpaid"}')
        assert len((await admin.ask("GET", "/revocations"))["revocations"]) == 2
        await admin.ask("DELETE", "/tenants/globex/suspension")
        await admin.ask("DELETE", "/revocations?tenant=acme&user=bob")
        level = await admin.ask("GET", "/log-level")
        await admin.ask("PUT", "/log-level", json.dumps(level))
        await admin.ask("GET", "/configuration")
        names = {each["stream"]: each["ours"] for each in (await admin.ask("GET", "/streams"))["streams"]}
        assert names == dict.fromkeys(STREAMS, True)
        assert (await admin.ask("GET", "/streams/AUDIT"))["fault"] is None
        assert (await admin.ask("POST", "/streams/EVENTS/adopt"))["differences"] == []
        await admin.ask("GET", "/streams/ORDERS", status=404)
    documented = {
        operation["operationId"] for path in admin.document["paths"].values() for operation in path.values()
    }
    # There are no documents here: test_documents_admin.py.
    assert admin.asked == {each for each in documented if "document" not in each.split("_")[-1]} | {
        "document"
    }


async def test_nothing_of_it_is_public(broker: Broker, admin: Admin) -> None:
    """The public port knows none of these paths, with whatever token."""
    for path in admin.document["paths"]:
        answer = await ask(broker.running.http, path)
        assert answer.problem["status"] == 404
        assert "/api" not in answer.problem["detail"].replace(path[:80], "")
        public = attrs.evolve(admin, url=broker.running.http)
        assert (await public.send("GET", path)).status == 404


async def test_connections(broker: Broker, admin: Admin) -> None:
    """Filters hold together, and pages go through all in a steady order."""
    async with (
        broker.client("acme", "alice") as one,
        broker.client("acme", "bob"),
        broker.client("globex", "alice"),
        broker.stranger(),
    ):
        everyone = await eventually(admin, "/connections", lambda page: len(page["connections"]) == 4)
        ids = [each["id"] for each in everyone["connections"]]
        assert ids == sorted(ids)
        for query, count in (
            ("tenant=acme", 2),
            ("tenant=acme&user=alice", 1),
            ("user=alice", 2),
            ("address=127.0.0.1", 4),
            ("address=127.0.0.2", 0),
            ("transport=websocket&tenant=globex", 1),
            ("transport=sse", 0),
            ("behind=false", 4),
            ("behind=true", 0),
        ):
            assert len((await admin.ask("GET", f"/connections?{query}"))["connections"]) == count, query
        paged, cursor = [], ""
        while cursor is not None:
            page = await admin.ask("GET", f"/connections?limit=3&cursor={cursor}")
            paged += [each["id"] for each in page["connections"]]
            cursor = page["next"]
        assert paged == ids
        await one.subscribe("orders.>", durable="mail", lag="latest", filter={"/n": {"gt": 1}})
        [mine] = (await admin.ask("GET", "/connections?tenant=acme&user=alice"))["connections"]
        report = await admin.ask("GET", f"/connections/{mine['id']}")
        assert report["principal"]["private"] == "users.alice"
        [channel] = report["channels"]
        assert (channel["channel"], channel["lag"], channel["durable"]) == ("orders.>", "latest", "mail")
        assert channel["filter"] == '{"/n":{"gt":1}}'
        assert channel["live"]
        [durable] = report["durables"]
        assert durable["name"] == "mail"
        assert report["position"] == await one.position()
        tenant = await admin.ask("GET", "/tenants/acme")
        assert (tenant["connections"], tenant["users"], tenant["topics"]) == (2, 2, 1)
        assert [each["tenant"] for each in (await admin.ask("GET", "/tenants"))["tenants"]] == [
            "acme",
            "globex",
        ]
    await admin.ask("GET", "/connections/none", status=404)
    await admin.ask("GET", "/tenants/none", status=404)
    await admin.ask("GET", "/connections?limit=0", status=400)


async def test_a_connection_that_is_behind(broker: Broker, admin: Admin, publisher: RawNats) -> None:
    """Who does not read is shown as behind, by how much, and with what it holds."""
    async with broker.client(receive_buffer=4096) as slow:
        await slow.subscribe("big")
        body = json.dumps("x" * 50_000).encode()
        for _ in range(60):
            await publisher.store("events.acme.big", body)
        found = await eventually(admin, "/connections?behind=true", lambda page: page["connections"] != [])
        [behind] = found["connections"]
        full = await eventually(admin, f"/connections/{behind['id']}", lambda each: each["lag"] > 10)
        assert full["behind"]
        assert full["unsent_bytes"] > 0
        assert full["progress"] is not None
        assert (await admin.ask("GET", "/tenants/acme"))["behind"] == 1
        sequence = int(full["head"].rpartition("-")[2]) - int(full["position"].rpartition("-")[2])
        assert sequence == full["lag"]


async def test_disconnect(broker: Broker, admin: Admin) -> None:
    """One, a user's or a tenant's connections end with the code and reason asked for; others stay."""
    async with (
        broker.client("acme", "alice") as alice,
        broker.client("acme", "bob") as bob,
        broker.client("acme", "carol") as carol,
        broker.client("globex", "alice") as other,
    ):
        everyone = await eventually(admin, "/connections", lambda page: len(page["connections"]) == 4)
        ids = {(each["tenant"], each["user"]): each["id"] for each in everyone["connections"]}
        ended = await admin.ask("DELETE", f"/connections/{ids['acme', 'alice']}")
        assert ended == {"disconnected": 1}
        assert await alice.closed() == 1012
        ended = await admin.ask("DELETE", "/connections?tenant=acme&user=bob&code=4501&reason=gone")
        assert ended == {"disconnected": 1}
        assert await bob.closed() == 4501
        assert (await admin.ask("DELETE", "/connections?tenant=acme")) == {"disconnected": 1}
        assert await carol.closed() == 1012
        await other.quiet()
    await admin.ask("DELETE", "/connections", status=400)
    await admin.ask("DELETE", "/connections?tenant=acme&code=1000", status=400)
    await admin.ask("DELETE", "/connections/none", status=404)


async def test_publish_and_history(broker: Broker, admin: Admin, publisher: RawNats) -> None:
    """What is published arrives as any event does, byte for byte; history has it and pages through it."""
    await letters(admin, publisher, ("events.acme.a.0", b"{"))
    async with broker.client() as client:
        await client.subscribe(["a.>", "live.a"])

        async def publish(channel: str, event: str, *, tenant: str = "acme", **more: Any) -> Any:
            fields = {"tenant": tenant, "channel": channel, **more}
            body = f'{json.dumps(fields)[:-1]}, "event": {event}}}'
            return await admin.ask("POST", "/publish", body, status=202)

        first = await publish("a.1", '{"b": 1.0}', id="x")
        again = await publish("a.1", '{"b": 1.0}', id="x")
        assert (again["duplicate"], again["position"]) == (True, first["position"])
        assert await publish("live.a", "2") == {"position": None, "duplicate": False}
        await publish("a.2", "3", tenant="_all")
        await publish("users.alice.a", "4")
        await publish("a.3", "5")
        seen = await client.events(4)
        assert sorted(event["event"] if isinstance(event["event"], int) else 1 for event in seen) == [
            1,
            2,
            3,
            5,
        ]
        assert next(each for each in seen if each["channel"] == "a.1")["position"] == first["position"]
    page = await admin.ask("GET", "/history?tenant=acme")
    assert [each["channel"] for each in page["events"]] == ["a.1", "a.2", "a.3"]
    assert [each["tenant"] for each in page["events"]] == ["acme", "_all", "acme"]
    answer = await admin.send("GET", "/api/v1/history?tenant=acme")
    assert b'"event":{"b": 1.0}' in answer.body
    collected, after = [], page["oldest"].rpartition("-")[0] + "-0"
    while after is not None:
        page = await admin.ask("GET", f"/history?tenant=acme&after={after}&limit=1")
        collected += [each["channel"] for each in page["events"]]
        after = page["next"]
    assert collected == ["a.1", "a.2", "a.3"]
    for query, channels in (
        ("last=2", ["a.2", "a.3"]),
        ("channel=a.*&limit=1", ["a.3"]),
        ("since=2020-01-01T00:00:00Z&limit=2", ["a.1", "a.2"]),
        ("since=2100-01-01T00:00:00Z", []),
        ("channel=users.alice.>", ["users.alice.a"]),
        ("channel=a.2", ["a.2"]),
    ):
        page = await admin.ask("GET", f"/history?tenant=acme&{query}")
        assert [each["channel"] for each in page["events"]] == channels, query
    for query in (
        "last=2&since=2020-01-01T00:00:00Z",
        "channel=live.a",
        "channel=a..b",
        "after=x-1",
        "after=1",
    ):
        await admin.ask("GET", f"/history?tenant=acme&{query}", status=400)


async def test_who_published(broker: Broker, admin: Admin, publisher: RawNats) -> None:
    """History names the client that published, also where a service wrote nonsense into that header."""
    async with broker.client(user="jürgen @ example.org") as client:
        await client.send("publish", {"channel": "a", "event": 1})
        await client.until("published")
    await publisher.store("events.acme.a", b"2", header=b"NATS/1.0\r\nBroker-User: \xff\r\n\r\n")
    page = await admin.ask("GET", "/history?tenant=acme")
    assert [each["publisher"] for each in page["events"]] == ["jürgen @ example.org", "\ufffd"]


@pytest.mark.parametrize(
    "body",
    [
        '{"tenant":"acme","channel":"a","event":1e999}',
        '{"tenant":"acme","channel":"a","event":{"metadata":{"tenant_id":"globex"}}}',
        '{"tenant":"acme","channel":"a"}',
        '{"tenant":"acme","channel":"a.*","event":1}',
        '{"tenant":"acme","channel":"me.a","event":1}',
        '{"tenant":"acme.b","channel":"a","event":1}',
        '{"tenant":"_broker","channel":"a","event":1}',
        '{"tenant":"_all","channel":"users.alice.a","event":1}',
        '{"tenant":"acme","channel":"a","event":1,"id":"a b"}',
        '{"tenant":"acme","channel":"a","event":1,"id":"a\\r\\nb: c"}',
        b'{"tenant":"acme","channel":"a","event":"\xff"}',
    ],
)
async def test_nothing_is_published_that_is_no_event(admin: Admin, body: str | bytes) -> None:
    """What would be a dead letter, or goes where no event may, is refused and not stored."""
    await admin.ask("POST", "/publish", body, status=400)
    assert (await admin.ask("GET", "/history?tenant=acme"))["events"] == []
    assert (await admin.ask("GET", "/dead-letters"))["letters"] == []


async def test_dead_letters(broker: Broker, admin: Admin, publisher: RawNats) -> None:
    """They are listed by tenant and reason, newest first, a page at a time, and shown with what they hold."""
    found = await letters(
        admin,
        publisher,
        ("events.acme.a", b"\xff"),
        ("events.globex.a", b"{"),
        ("events.acme.a", b'{"metadata":{"tenant_id":"x"}}'),
        ("events.acme.$x", b"1"),
    )
    reasons = ["invalid_channel", "tenant_mismatch", "not_json", "not_json"]
    assert [each["reason"] for each in found] == reasons
    for query, count in (("tenant=acme", 3), ("reason=not_json", 2), ("tenant=acme&reason=not_json", 1)):
        assert len((await admin.ask("GET", f"/dead-letters?{query}"))["letters"]) == count
    page = await admin.ask("GET", "/dead-letters?limit=3")
    assert [each["sequence"] for each in page["letters"]] == [4, 3, 2]
    page = await admin.ask("GET", f"/dead-letters?limit=3&cursor={page['next']}")
    assert [each["sequence"] for each in page["letters"]] == [1]
    assert page["next"] is None
    shown = await admin.ask("GET", "/dead-letters/1")
    assert (shown["body"], shown["body_base64"], shown["headers"]["Broker-Subject"]) == (
        None,
        "/w==",
        "events.acme.a",
    )
    assert (await admin.ask("GET", "/dead-letters/2"))["body"] == "{"
    assert await admin.ask("DELETE", "/dead-letters?reason=not_json&tenant=acme") == {"deleted": 1}
    assert await admin.ask("DELETE", "/dead-letters?tenant=acme") == {"deleted": 2}
    left = await admin.ask("GET", "/dead-letters")
    assert [each["sequence"] for each in left["letters"]] == [2]
    await admin.ask("GET", "/dead-letters/1", status=404)
    await admin.ask("GET", "/dead-letters/x", status=404)
    await admin.ask("DELETE", "/dead-letters?tenant=", status=400)


async def test_many_dead_letters(admin: Admin, publisher: RawNats) -> None:
    """A reason that few of many have is found, and only those are purged."""
    other = b'{"metadata":{"tenant_id":"x"}}'
    for number in range(1, 251):
        await publisher.store("events.acme.a", other if number in (4, 121, 131) else b"{")
    target = "/dead-letters?reason=tenant_mismatch"
    await eventually(admin, "/dead-letters?limit=1000", lambda page: len(page["letters"]) == 250)
    found, cursor = [], 1000
    while cursor is not None:
        page = await admin.ask("GET", f"{target}&limit=1&cursor={cursor}")
        found += [each["sequence"] for each in page["letters"]]
        cursor = page["next"]
    assert found == [131, 121, 4]
    assert await admin.ask("DELETE", target) == {"deleted": 3}
    assert len((await admin.ask("GET", "/dead-letters?limit=1000"))["letters"]) == 247


async def test_replay(broker: Broker, admin: Admin, publisher: RawNats) -> None:
    """A dead letter becomes an event where it was meant to, with another body, and goes."""
    await letters(admin, publisher, ("events.acme.a", b"{"), ("events.acme.$x", b"1"))
    async with broker.client() as client:
        await client.subscribe("a")
        refused = await admin.ask("POST", "/dead-letters/1/replay", status=409)
        assert "give the event" in refused["detail"]
        await admin.ask("POST", "/dead-letters/2/replay", '{"event":1}', status=409)
        bad = '{"event":{"metadata":{"tenant_id":"globex"}}}'
        await admin.ask("POST", "/dead-letters/1/replay", bad, status=400)
        done = await admin.ask("POST", "/dead-letters/1/replay", '{"event":{"mended": 1.0}}')
        assert (done["tenant"], done["channel"], done["duplicate"]) == ("acme", "a", False)
        [event] = await client.events(1)
        assert (event["event"], event["position"]) == ({"mended": 1.0}, done["position"])
        await admin.ask("POST", "/dead-letters/1/replay", '{"event":{"mended": 1.0}}', status=404)
        await client.quiet()
    assert len((await admin.ask("GET", "/dead-letters"))["letters"]) == 1


async def test_replay_as_it_is(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """After the limit was raised that made it a dead letter, its own body is published again."""
    directory = tmp_path / "broker"
    small = configure(directory, nats.url, limits={"event_bytes": 2048, "publish_bytes": 2048})
    body = json.dumps("x" * 4000).encode()
    async with run_broker(directory, small) as broker:
        await letters(await Admin.of(broker.running.admin, directory), publisher, ("events.acme.a", body))
    async with run_broker(directory, configure(directory, nats.url)) as broker, broker.client() as client:
        await client.subscribe("a")
        admin = await Admin.of(broker.running.admin, directory)
        await admin.ask("POST", "/dead-letters/1/replay")
        assert (await client.events(1))[0]["event"] == "x" * 4000


async def test_revocations(broker: Broker, admin: Admin) -> None:
    """Who is revoked or suspended is closed and kept out until that is lifted; nobody else is."""
    async with (
        broker.client("acme", "alice") as alice,
        broker.client("acme", "bob") as bob,
        broker.client("globex", "bob") as other,
    ):
        [listed] = (await admin.ask("GET", "/connections?tenant=acme&user=alice"))["connections"]
        report = await admin.ask("GET", f"/connections/{listed['id']}")
        token_id = report["principal"]["token_id"]
        body = json.dumps({"tenant": "acme", "token_id": token_id, "reason": "stolen"})
        ban = await admin.ask("POST", "/revocations", body, status=201)
        assert (ban["kind"], ban["token_id"], ban["user"], ban["reason"]) == (
            "token",
            token_id,
            None,
            "stolen",
        )
        assert ban["until"] is not None
        assert await alice.closed() == 4501
        await bob.quiet()
        suspended = await admin.ask("PUT", "/tenants/acme/suspension")
        assert (suspended["kind"], suspended["until"]) == ("suspension", None)
        assert await bob.closed() == 4501
        await other.quiet()
        kinds = [each["kind"] for each in (await admin.ask("GET", "/revocations?tenant=acme"))["revocations"]]
        assert sorted(kinds) == ["suspension", "token"]
        assert (await admin.ask("GET", "/revocations?tenant=globex"))["revocations"] == []
        await admin.ask("DELETE", "/tenants/acme/suspension")
        async with broker.client("acme", "carol") as carol:
            await carol.quiet()
        until = "2100-01-01T00:00:00Z"
        body = json.dumps({"tenant": "globex", "until": until})
        assert (await admin.ask("POST", "/revocations", body, status=201))["until"] == until
        assert await other.closed() == 4501
        await admin.ask("DELETE", "/revocations?tenant=globex")
        async with broker.client("globex", "bob") as back:
            await back.quiet()
    await admin.ask("DELETE", "/revocations?tenant=globex", status=404)
    await admin.ask("DELETE", "/tenants/acme/suspension", status=404)
    for wrong in (
        '{"tenant":"acme","user":"a","token_id":"b"}',
        '{"tenant":"a.b"}',
        '{"tenant":"acme","until":"2001-01-01T00:00:00Z"}',
        '{"tenant":"acme","until":"soon"}',
        '{"user":"a"}',
        '{"tenant":"acme","user":""}',
    ):
        await admin.ask("POST", "/revocations", wrong, status=400)


async def test_the_configuration_hides_secrets(tmp_path: Path, nats: NatsServer) -> None:
    """What is in force is shown but for secrets."""
    from broker import config

    settings = configure(tmp_path / "broker", nats.url)
    key = config.Key(name="k", secret="s3cret-s3cret-s3cret-s3cret-s3cret", tenants=("*",))
    settings = attrs.evolve(settings, auth=config.Auth(keys=(key,)))
    async with run_broker(tmp_path / "broker", settings) as broker:
        admin = await Admin.of(broker.running.admin, tmp_path / "broker")
        answer = await admin.send("GET", "/api/v1/configuration")
    shown = json.loads(answer.body)
    assert b"s3cret" not in answer.body
    assert shown["auth"]["keys"][0]["secret"] == "(hidden)"
    assert shown["limits"]["connections"] == 10000
    assert admin.token.encode() not in answer.body


async def test_not_ready(broker: Broker, admin: Admin, nats: NatsServer) -> None:
    """Without NATS the reasons are told, and what needs it is answered with 503."""
    await nats.kill9()
    found = await eventually(admin, "/readiness", lambda each: not each["ready"])
    assert found["reasons"]
    await admin.ask("GET", "/dead-letters", status=503)
    await admin.ask("GET", "/connections")
    await nats.start()
    await eventually(admin, "/readiness", lambda each: bool(each["ready"]))


async def test_the_token_is_made_once(tmp_path: Path, nats: NatsServer) -> None:
    """The broker's own token is for its owner alone and outlives a restart; a configured one replaces it."""
    directory = tmp_path / "broker"
    settings = configure(directory, nats.url)
    async with run_broker(directory, settings):
        path = directory / "admin.token"
        assert path.stat().st_mode & 0o777 == 0o600
        token = path.read_text()
    async with run_broker(directory, settings) as broker:
        assert path.read_text() == token
    (tmp_path / "mine").touch(mode=0o600)
    (tmp_path / "mine").write_text("an-operators-own-token\n")
    settings = configure(directory, nats.url, server={"admin_token_file": tmp_path / "mine"})
    async with run_broker(directory, settings) as broker:
        admin = Admin(broker.running.admin, token.strip())
        assert (await admin.send("GET", "/api/v1/readiness")).status == 401
        admin.token = "an-operators-own-token"
        assert (await admin.send("GET", "/api/v1/readiness")).status == 200


async def test_log_level(tmp_path: Path) -> None:
    """The level changes while the broker runs, in what it logs and in what it says is in force."""
    listen = ("--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--data-dir", tmp_path)
    async with command.start("dev", *listen) as running:
        await running.until("Try next")
        url = json.loads((tmp_path / "broker.json").read_text())["admin"]
        admin = await Admin.of(url, tmp_path)
        assert await admin.ask("GET", "/log-level") == {"level": "info"}
        await admin.ask("PUT", "/log-level", '{"level":"debug"}')
        assert (await admin.ask("GET", "/configuration"))["log"]["level"] == "debug"
        await admin.ask("GET", "/connections/none", status=404)
        assert '"level": "debug"' in await running.until("request_refused", "stderr")
        await admin.ask("PUT", "/log-level", '{"level":"loud"}', status=400)


async def test_odd_values_have_a_clear_answer(admin: Admin, broker: Broker, publisher: RawNats) -> None:
    """Whatever stands in a query, a body or in what others have stored: it is refused, or answered."""
    async with broker.client():
        await eventually(admin, "/audit", lambda page: bool(page["records"]))
    for target in (
        "/audit?since=2026-01-01T00:00:00",
        f"/audit?cursor={'9' * 5000}",
        "/audit?cursor=0",
        "/history?tenant=acme&since=2026-01-01T00:00:00",
    ):
        await admin.ask("GET", target, status=400)
    deep = b"[" * 40_000
    for event, message_id in ((deep, b"x"), (deep + b"]" * 40_000, b"x"), (b"1", rb"x\n")):
        body = b'{"tenant":"acme","channel":"a","event":%b,"id":"%b"}' % (event, message_id)
        refused = await admin.ask("POST", "/publish", body, status=400)
        assert refused["detail"].startswith("Invalid body: ")
    await admin.ask("GET", "/dead-letters/0", status=404)
    until = json.dumps({"user": "bob", "tenant": "acme", "until": "9999-12-31T23:59:59Z"})
    assert (await admin.ask("POST", "/revocations", until, status=201))["until"] == "9999-12-31T23:59:59Z"
    header = "NATS/1.0\r\nBroker-Sequence: \u00b2\r\n\r\n".encode()
    await publisher.store("deadletter.acme.a", b"x", header=header)
    (letter,) = (await admin.ask("GET", "/dead-letters"))["letters"]
    assert letter["stored_sequence"] == 0
    for body in (b"no json", b"[]", deep):
        await publisher.store("audit.acme.admin", body)
    target = "/audit?tenant=acme&kind=admin"
    records = (await eventually(admin, target, lambda page: len(page["records"]) >= 4))["records"]
    assert {"unreadable_bytes": len(deep)} in records
    assert len(records) == 4


async def test_large_events_make_small_pages(
    admin: Admin, publisher: RawNats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer is bounded by bytes: what comes of the newest has no hole, and pages have everything."""
    monkeypatch.setattr(storage, "ANSWER_BYTES", 2 * 65536)
    await publisher.store("events._all.a", b"1")
    for _ in range(10):
        await publisher.store("events.acme.a", b'"%b"' % (b"x" * 60_000))
    newest = (await admin.ask("GET", "/history?tenant=acme&last=100"))["events"]
    assert 1 < len(newest) < 5
    assert {each["tenant"] for each in newest} == {"acme"}
    position = newest[0]["position"].partition("-")[0] + "-0"
    sizes: list[int] = []
    while position:
        page = await admin.ask("GET", f"/history?tenant=acme&after={position}")
        sizes.append(len(page["events"]))
        position = page["next"]
    assert sum(sizes) == 11
    assert max(sizes) < 6
