"""Whose tokens are believed, and what they allow."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from wsproto.events import Ping, TextMessage

from tests.auth.forge import forge, jwk, private_key
from tests.auth.issuer import Issuer, key_set
from tests.keys.files import OTHER_SECRET, SECRET
from tests.keys.world import World, row
from tests.support import websocket
from tests.support.http import ask
from tests.support.raw import open_raw
from tests.web.harness import head

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

NO_SECRET = {"auth.keys.0.secret_file": None}
PUBLIC = NO_SECRET | {"auth.keys.0.algorithms": ["ES256"]}


async def let_in(world: World, token: str, *, query: str = "") -> str:
    """Who a token is taken for, or why it is refused."""
    async with websocket.connect(f"{world.running.ws}{query}", token=None) as client:
        await client.expect("connection.established")
        await client.send("authenticate", {"token": token})
        message = await client.receive()
        payload = message["payload"]
        return str(payload["code"] if message["type"] == "error" else payload["tenant"])


def with_token(
    *, algorithm: str = "HS256", typ: str = "JWT", query: str = "", ahead: int = 0, **claims: Any
) -> Callable[[World], Awaitable[object]]:  # fmt: skip
    """Return how to see whether a token with these claims is believed; None leaves a claim out."""

    async def see(world: World) -> object:
        now = time.time()
        given = {"sub": "alice", "tenant": "acme", "iat": int(now) + ahead, "exp": int(now) + 600} | claims
        payload = {name: value for name, value in given.items() if value is not None}
        head = {"alg": algorithm, "typ": typ, "kid": "test"}
        key = private_key("ES256") if algorithm == "ES256" else SECRET.encode()
        return await let_in(world, forge(payload, head=head, algorithm=algorithm, key=key), query=query)

    return see


public = with_token(algorithm="ES256")

row("auth.keys.0.secret_file", "FILES/other-secret")(with_token())
row("auth.keys.0.secret", OTHER_SECRET, basis=SECRET, beside=NO_SECRET)(with_token())
row("auth.keys.0.algorithms", ["HS512"])(with_token(algorithm="HS512"))
row("auth.keys.0.pem_file", "FILES/other.pem", basis="FILES/es256.pem", beside=PUBLIC)(public)
row("auth.keys.0.jwks_file", "FILES/other.json", basis="FILES/es256.json", beside=PUBLIC)(public)
row("auth.keys.0.tenants", ["globex"])(with_token())
row("auth.keys.0.tenant", "globex", basis="acme", beside={"auth.keys.0.tenants": None})(
    with_token(tenant=None)
)
row("auth.keys.0.monitoring", False, basis=True)(with_token(tenant=None, tenants=["*"], query="?tenant=acme"))
row("auth.keys.0.issuer", "https://id.example")(with_token(iss="https://other.example"))
row("auth.keys.0.audience", "broker")(with_token(aud="another"))
row("auth.tenant_claim", "app.tenant")(with_token(app={"tenant": "globex"}))
row("auth.type", ["other"])(with_token(typ="other"))
row("auth.leeway", 600)(with_token(ahead=120))


@row("auth.keys.0.name", "other")
async def named(world: World) -> object:
    """What operators are told of the key that has signed a token."""
    admin = (world.directory / "state" / "admin.token").read_text().strip()
    question = {"token": world.broker.token(), "channel": "a"}
    answer = await ask(world.running.admin, "POST", "/api/v1/explain", token=admin, json=question)
    return [each["detail"] for each in answer.json["steps"] if each["step"] == "key"]


@row(
    "auth.keys.0.jwks_url", "http://127.0.0.1:PORT/jwks", basis="http://127.0.0.1:9/jwks",
    beside=PUBLIC | {"auth.keys.0.issuer": "*"}, how="starting",
)  # fmt: skip
async def fetched(world: World) -> object:
    issuer = Issuer(key_set(jwk("ES256", kid="test")))
    await world.listen(issuer.serve)
    world.nursery.start_soon(world.serve)
    await world.ready.wait()
    return await public(world)


@row("auth.expiring_seconds", 0.01, beside={"auth.leeway": 0, "limits.heartbeat_seconds": 4.3})
async def expiring(world: World) -> object:
    """Whether a client hears of the end of its token before it is pinged: else half-way to that."""
    client = await world.stack.enter_async_context(open_raw(world.running.ws))
    await client.upgrade(head(authorization=f"Bearer {world.broker.token(ttl=8)}"))
    while True:
        event = await client.event()
        if isinstance(event, Ping):
            return "ping"
        if isinstance(event, TextMessage) and "connection.expiring" in event.data:
            return "expiring"


@row("permissions.subscribe", ["b"])
async def subscribe(world: World) -> object:
    client = await world.client()
    await client.send("subscribe", {"channel": "a"})
    return (await client.receive())["type"]


@row("permissions.publish", [])
async def publish(world: World) -> object:
    client = await world.client()
    await client.send("publish", {"channel": "a", "event": 1})
    return (await client.receive())["type"]


@row("permissions.request", ["a"])
async def request(world: World) -> object:
    client = await world.client()
    await client.send("request", {"method": "a"})
    return (await client.expect("error"))["code"]


@row("permissions.deny", ["a"])
async def deny(world: World) -> object:
    client = await world.client()
    await client.send("subscribe", {"channel": "a"})
    return (await client.receive())["type"]
