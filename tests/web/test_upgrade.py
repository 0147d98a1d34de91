"""The handshake: origins, subprotocols, tokens, and the door that is shut when there is no room."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs
from wsproto.utilities import generate_accept_token

from broker.config import Server
from broker.errors import BrokerError, TooManyConnections, TooManyConnects, Unavailable
from broker.http import credentials, queries
from broker.http.heads import Request
from broker.http.responses import Refused
from broker.links.websocket import handshake
from broker.web.origins import Origins
from broker.web.site import Site
from tests.web.harness import KEY, head, running

if TYPE_CHECKING:
    from tests.web.harness import Running

LISTED = Server(origins=("https://app.example", "http://app.example:8000", "https://[2001:db8::1]"))

ORIGINS = {
    "none": (None, 101),
    "listed": ("https://app.example", 101),
    "own port spelled out": ("https://app.example:443", 101),
    "upper case": ("HTTPS://App.Example", 101),
    "listed with a port": ("http://app.example:8000", 101),
    "IPv6": ("https://[2001:DB8::1]", 101),
    "null": ("null", 403),
    "suffix look-alike": ("https://evilapp.example", 403),
    "prefix look-alike": ("https://app.example.evil.org", 403),
    "subdomain": ("https://www.app.example", 403),
    "dot at the end": ("https://app.example.", 403),
    "other scheme": ("http://app.example", 403),
    "other port": ("https://app.example:8443", 403),
    "port left out": ("http://app.example:80", 403),
    "same as Host": ("http://broker.example", 403),
    "with a path": ("https://app.example/", 400),
    "with a user": ("https://app.example@evil.org", 400),
    "several": ("https://app.example https://evil.org", 400),
    "list": ("https://app.example, https://evil.org", 400),
    "no scheme": ("app.example", 400),
    "wildcard": ("*", 400),
    "empty": ("", 400),
}


@pytest.mark.parametrize(("origin", "status"), ORIGINS.values(), ids=ORIGINS)
async def test_origins(origin: str | None, status: int) -> None:
    """Exactly the listed origins, and clients that are no browsers, are let in."""
    async with running(server=LISTED) as port:
        await expect(port, head(origin=origin), status)


SAME_ORIGIN = {
    "http": ("broker.example:8080", "http://broker.example:8080", 101),
    "https before a proxy": ("broker.example", "https://broker.example", 101),
    "own port": ("broker.example:80", "http://broker.example", 101),
    "case": ("Broker.Example:8080", "http://broker.example:8080", 101),
    "IPv6": ("[::1]:8080", "http://[::1]:8080", 101),
    "other port": ("broker.example:8080", "http://broker.example:8081", 403),
    "other name": ("localhost:8080", "http://127.0.0.1:8080", 403),
    "other scheme": ("broker.example", "chrome-extension://broker.example", 403),
    "null": ("broker.example", "null", 403),
}


@pytest.mark.parametrize(("host", "origin", "status"), SAME_ORIGIN.values(), ids=SAME_ORIGIN)
async def test_same_origin(port: Running, host: str, origin: str, status: int) -> None:
    """Without a list only the pages of the same host and port are let in."""
    await expect(port, head(host=host, origin=origin), status)


NEAR = {
    "vite": ("http://localhost:5173", 101),
    "IPv4": ("http://127.0.0.1:3000", 101),
    "IPv6": ("https://[::1]:3000", 101),
    "no port": ("http://localhost", 101),
    "listed": ("https://app.example", 101),
    "elsewhere": ("http://192.168.1.2:3000", 403),
    "name that begins so": ("http://localhost.evil.example", 403),
    "address that begins so": ("http://127.0.0.1.evil.example", 403),
    "extension": ("chrome-extension://localhost", 403),
    "null": ("null", 403),
}


@pytest.mark.parametrize(("origin", "status"), NEAR.values(), ids=NEAR)
async def test_pages_of_this_machine(origin: str, status: int) -> None:
    """In development they are let in from whichever port, beside those that are listed; else they are not."""
    async with running(server=LISTED, site=Site(sign="{}:{}".format)) as port:
        await expect(port, head(origin=origin), status)
    async with running(server=LISTED) as port:
        await expect(port, head(origin=origin), 101 if origin in LISTED.origins else 403)


async def test_a_refused_origin_is_a_warning_once() -> None:
    """With the whole line for the configuration; without a list the own pages stay let in by it."""
    for server, kept in ((LISTED, list(LISTED.origins)), (Server(), ["https://broker.example"])):
        async with running(server=server) as port:
            with capture_logs() as logs:
                for origin in ("https://new.example", "HTTPS://NEW.example:443", "null", "null"):
                    await expect(port, head(origin=origin), 403)
            told = [each for each in logs if each["event"] == "origin_refused"]
            assert [(each["log_level"], each["origin"]) for each in told] == [
                ("warning", "https://new.example"),
                ("warning", "null"),
            ]
            line = told[0]["next"].partition("[server] ")[2]
            assert tomllib.loads(line) == {"origins": [*kept, "https://new.example"]}
            advised = Server(origins=tuple(tomllib.loads(line)["origins"]))
        async with running(server=advised) as port:
            for origin in (*kept, "https://new.example"):
                await expect(port, head(origin=origin), 101)


async def test_refused_origins_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who makes up origins fills no memory."""
    monkeypatch.setattr("broker.web.origins.STRANGERS", 3)
    origins = Origins()
    request = Request(
        method="GET",
        version="1.1",
        path="/ws",
        query="",
        host="a",
        port=None,
        headers={},
    )
    with capture_logs() as logs:
        for number in (0, 1, 2, 2, 3, 4, 5, 5, 0):
            origins.note(f"https://{number}.example", request, "127.0.0.1:1", ())
    assert len(logs) == 7
    assert len(origins.strangers) == 3


TOKENS = {
    "none": (head(), None),
    "Authorization": (head(authorization="Bearer a.b.c"), "a.b.c"),
    "case of the scheme": (head(authorization="bearer  a.b.c"), "a.b.c"),
    "a proxy's": (head(authorization="Basic YTpi"), None),
    "subprotocol": (head(sec_websocket_protocol="broker.v1, bearer.a.b.c"), "a.b.c"),
    "subprotocols in two lines, one empty": (
        head(sec_websocket_protocol="broker.v1,,")[:-2] + b"Sec-WebSocket-Protocol: bearer.a.b.c\r\n\r\n",
        "a.b.c",
    ),
    "subprotocol first": (head(sec_websocket_protocol="bearer.a.b.c,broker.v1"), "a.b.c"),
    "query": (head("/ws?access_token=a.b.c"), "a.b.c"),
    "the same thrice": (
        head("/ws?access_token=t", authorization="Bearer t", sec_websocket_protocol="broker.v1, bearer.t"),
        "t",
    ),
    "empty": (head("/ws?access_token="), ""),
}


@pytest.mark.parametrize(("request_bytes", "token"), TOKENS.values(), ids=TOKENS)
async def test_tokens(request_bytes: bytes, token: str | None) -> None:
    """A token is found wherever it may stand."""
    async with running(server=Server(query_token=True)) as port:
        await expect(port, request_bytes, 101)
        assert port.hellos[0].token == token


REFUSED = {
    "two tokens": head("/ws?access_token=a", authorization="Bearer b"),
    "two tokens in one list": head(sec_websocket_protocol="broker.v1, bearer.a, bearer.b"),
    "a token and a subprotocol's": head(
        authorization="Bearer a", sec_websocket_protocol="broker.v1, bearer.b"
    ),
    "parameter twice": head("/ws?tenant=a&tenant=a"),
    "query not UTF-8": head("/ws?tenant=%ff"),
    "Bearer alone": head(authorization="Bearer"),
    "Bearer and two": head(authorization="Bearer a b"),
    "other subprotocol": head(sec_websocket_protocol="broker.v2"),
    "only a token": head(sec_websocket_protocol="bearer.a"),
    "no offer": head(sec_websocket_protocol=""),
    "offer twice": head(sec_websocket_protocol="broker.v1, broker.v1"),
    "offer no token": head(sec_websocket_protocol="broker.v1, a b"),
}


@pytest.mark.parametrize("request_bytes", REFUSED.values(), ids=REFUSED)
async def test_refused(request_bytes: bytes) -> None:
    """What contradicts itself or speaks another protocol gets 400."""
    async with running(server=Server(query_token=True)) as port:
        await expect(port, request_bytes, 400)


async def test_query_token_off(port: Running) -> None:
    """A token in the address is refused where it is not wanted, and is in no answer."""
    answer = await port.ask(head("/ws?access_token=secret"))
    assert answer.status == 400
    assert b"secret" not in answer.body


async def test_subprotocol_answered(port: Running) -> None:
    """Only broker.v1 is ever answered, never the token; without an offer nothing is."""
    for offer, answered in (
        ("broker.v1", "broker.v1"),
        ("bearer.a, broker.v2, broker.v1", "broker.v1"),
        (None, None),
    ):
        async with port.client() as client:
            headers = await client.upgrade(
                head(sec_websocket_protocol=offer, sec_websocket_extensions="permessage-deflate")
            )
        assert headers.get("sec-websocket-protocol") == answered
        assert "sec-websocket-extensions" not in headers
        assert headers["sec-websocket-accept"] == generate_accept_token(KEY.encode()).decode()


async def test_hello(port: Running) -> None:
    """The peer is the socket's, whatever X-Forwarded-For claims; the tenant is the query's."""
    async with port.client() as client:
        await client.upgrade(
            head("/ws?tenant=a%C3%A4&x=1", x_forwarded_for="192.0.2.1", forwarded="for=192.0.2.1")
        )
        await port.works()
    hello = port.hellos[0]
    assert hello.peer.startswith("127.0.0.1:")
    assert hello.tenant == "aä"
    assert port.hellos[1].tenant is None


@pytest.mark.parametrize(
    ("refusal", "status", "after"),
    [
        (Unavailable("The broker is draining.", retry_after=2.5), 503, "3"),
        (TooManyConnections("Your address has 10000."), 429, "1"),
        (TooManyConnects("Your address is too fast.", retry_after=0.1), 429, "1"),
    ],
)
async def test_no_room(port: Running, refusal: BrokerError, status: int, after: str) -> None:
    """Without room, here or for this client, a good handshake gets Retry-After; others go on, it later."""
    port.refusal = refusal
    answer = await port.ask(head())
    assert answer.status == status
    assert answer.headers["retry-after"] == after
    assert answer.problem["detail"] == refusal.message
    assert (await port.ask(head("/healthz"))).status == 200
    port.refusal = None
    await port.works()


@given(query=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E)), header=st.text(max_size=60))
def test_any_values(query: str, header: str) -> None:
    """Whatever query and headers hold, the handshake holds or is refused."""
    headers = {
        "upgrade": "websocket",
        "connection": "upgrade",
        "sec-websocket-version": "13",
        "sec-websocket-key": KEY,
        "sec-websocket-protocol": f"broker.v1,{header}",
        "authorization": f"Bearer {header}",
    }
    request = Request(
        method="GET",
        version="1.1",
        path="/ws",
        query=query,
        host="a",
        port=None,
        headers=headers,
    )
    try:
        opening = handshake.decide(request)
        found = queries.parse(request.query)
        credentials.token_of(request, found, query_token=True, offered=opening.token)
    except Refused:
        return
    assert opening.response.count(b"\r\n\r\n") == 1
    assert opening.response.endswith(b"\r\n\r\n")


async def expect(port: Running, request_bytes: bytes, status: int) -> None:
    """The request gets `status`, and the next client is served."""
    if status == 101:
        async with port.client() as client:
            await client.upgrade(request_bytes)
    else:
        answer = await port.ask(request_bytes)
        assert answer.status == status
        assert answer.problem["status"] == status
    await port.works()
