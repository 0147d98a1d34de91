"""The public port: what a request is for, and what its link becomes."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import attrs
import structlog
import trio

from broker.actors.boundary import Boundary
from broker.actors.transport import Hello, LinkLost
from broker.descriptors import UNBOUNDED
from broker.errors import BrokerError, Unavailable
from broker.web import heads, longpoll, origins, polls, posts, proxies, proxy_protocol, queries, sse, upgrade
from broker.web.listeners import accept
from broker.web.longpoll import PollTransport
from broker.web.origins import Strangers
from broker.web.pages import Exchange, check, health, respond, revalidated
from broker.web.problems import Refused, Response
from broker.web.refusals import credentials, refused
from broker.web.site import TOKEN, TOKEN_BYTES, Site
from broker.web.sse import SseTransport
from broker.web.streaming import until_left
from broker.web.websocket import WebSocketTransport

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from broker import config
    from broker.actors.transport import Transport
    from broker.descriptors import Descriptors
    from broker.web.heads import Request
    from broker.web.links import Link
    from broker.web.posts import Post

CROWDED_SECONDS = 60.0  # without, and the next time is told again
HEALTH = {"/healthz": ("GET", "HEAD"), "/readyz": ("GET", "HEAD")}
# What a page of another origin asks for beforehand takes OPTIONS, too.
PAGES: dict[str, Sequence[str]] = {
    "/ws": ("GET", "HEAD"),
    "/sse": ("GET", "HEAD", "OPTIONS"),
    "/poll": ("GET", "HEAD", "POST", "OPTIONS"),
    **dict.fromkeys(posts.PAGES, ("POST", "OPTIONS")),
    **HEALTH,
}

LEFT = Response(status=204, body=b"", media_type="text/plain")

log = structlog.get_logger()

Headers: TypeAlias = tuple[tuple[str, str], ...]
Serve: TypeAlias = "Callable[[Transport, Hello], Awaitable[None]]"


@attrs.define(eq=False)
class PublicPort:
    """Takes connections from the sockets to the actors.

    What `serve` returns has a client for as long as it runs, and cuts its link at the end. `admission` keeps
    a place for a peer on its way to `serve` or for its `post`, or raises why there is none now. `health`
    says why no event can travel now, `remarks` what else does not work.
    """

    server: config.Server
    limits: config.Limits
    serve: Serve = attrs.field(kw_only=True)
    post: Post = attrs.field(kw_only=True)
    admission: Callable[[str], AbstractContextManager[None]] = attrs.field(kw_only=True)
    health: Callable[[], str | None] = attrs.field(kw_only=True)
    remarks: Callable[[], Sequence[str]] = attrs.field(kw_only=True, default=tuple)
    ssl_context: ssl.SSLContext | None = attrs.field(kw_only=True, default=None)
    descriptors: Descriptors = attrs.field(kw_only=True, default=UNBOUNDED)
    responses: Counter[int] = attrs.field(kw_only=True, factory=Counter)  # by status
    site: Site = attrs.field(kw_only=True, factory=Site)
    polls: dict[str, PollTransport] = attrs.field(init=False, factory=dict)
    strangers: Strangers = attrs.field(init=False, factory=Strangers)
    crowded: float = attrs.field(init=False, default=-math.inf)  # when there were last too few descriptors
    nursery: trio.Nursery = attrs.field(init=False)

    async def run(
        self,
        listeners: Sequence[socket.socket],
        *,
        nursery: trio.Nursery,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accepts until it is cancelled, then closes `listeners`. The connections live in `nursery`."""
        self.nursery = nursery
        await accept(
            listeners,
            self.handle,
            nursery=nursery,
            context=lambda: self.ssl_context,
            full=self.descriptors.full,
            task_status=task_status,
        )

    async def handle(self, link: Link) -> Awaitable[None] | None:
        exchange = Exchange(link.peer, "request_crashed")
        serving = None
        with Boundary(exchange):
            try:
                serving = await self.open(link)
                exchange.response = None
            except Refused as refused:
                exchange.response = refused.response
        if exchange.lost:
            raise LinkLost
        if exchange.response:
            await self.answer(link, exchange.response)
        return serving

    async def open(self, link: Link) -> Awaitable[None] | None:
        """Answers a request, or returns what its link is from then on. Raises `Refused`."""
        request, trailing = await heads.read(link, self.limits, partial(self.begin, link))
        request = self.believe(link, request)
        try:
            found = await self.find(link, request, trailing)
        except Refused as refused:
            raise Refused.by(refused.response.to(request.method)) from None
        if isinstance(found, Response):
            await self.answer(link, found.to(request.method))
            return None
        return found

    async def find(self, link: Link, request: Request, trailing: bytes) -> Response | Awaitable[None] | None:
        """The answer, unless it has been given, or what the link is from then on. Raises `Refused`."""
        check(request, PAGES | self.site.pages)
        if request.path in HEALTH:
            return health(request, self.health, self.remarks)
        self.look_for_room(link)
        if request.path in self.site.pages:
            return await self.page(link, request, trailing)
        shared = origins.shared(self.origin(link, request))
        try:
            found = await self.exchange(link, request, trailing, shared)
        except Refused as refused:
            raise Refused.by(refused.response.beside(shared)) from None
        return found.beside(shared) if isinstance(found, Response) else found

    def look_for_room(self, link: Link) -> None:
        """Raises `Refused` (503) where the last descriptors are kept for others than clients."""
        if link.raw.fileno() < self.descriptors.crowded:
            return
        before, self.crowded = self.crowded, trio.current_time()
        if self.crowded > before + CROWDED_SECONDS:
            log.warning(
                "descriptors_short",
                limit=self.descriptors.limit,
                next="raise LimitNOFILE= of the service, or lower limits.connections",
            )
        raise Refused.by(refused(Unavailable("this broker has no room; others may have", retry_after=5.0)))

    async def exchange(
        self, link: Link, request: Request, trailing: bytes, shared: Headers
    ) -> Response | Awaitable[None] | None:
        """What the port is there for, for pages of the allowed origins and for whoever is none."""
        match request.method, request.path:
            case "OPTIONS", path:
                return origins.preflight(PAGES[path][:-1])
            case _, "/ws":
                return await self.websocket(link, request, trailing)
            case _, "/sse":
                return self.events(link, request, shared)
            case _, "/poll":
                return await self.polled(link, request, trailing)
            case _, path:
                await self.posted(link, request, trailing, shared, posts.PAGES[path])
        return None

    def origin(self, link: Link, request: Request) -> str | None:
        """Of the page that the request is from, if it is from one. Raises `Refused`."""
        listed = self.server.origins
        try:
            return origins.check(request, frozenset(listed), loopback=self.site.development)
        except origins.NotAllowed as refused:
            self.strangers.note(refused.origin, request, link.peer, listed)
            raise

    async def answer(self, link: Link, response: Response) -> None:
        self.responses[response.status] += 1
        await respond(link, response)

    def hello(self, link: Link, token: str | None, tenant: str | None) -> Hello:
        return Hello(peer=link.peer, token=token, tenant=tenant, certificate=link.certificate)

    async def websocket(self, link: Link, request: Request, trailing: bytes) -> Awaitable[None]:
        """Brings the link to WebSocket, with what the client sent after its request."""
        opening = upgrade.decide(request, peer=link.peer, query_token=self.server.query_token)
        with self.place(link):
            await link.send_all(opening.response)
            self.responses[101] += 1
        transport = WebSocketTransport(link, self.limits.message_bytes)
        transport.feed(trailing)
        certificate = link.certificate
        hello = attrs.evolve(opening.hello, certificate=certificate) if certificate else opening.hello
        try:
            return self.serve(transport, hello)
        except LinkLost:
            raise
        except Exception as error:  # too late for an answer in HTTP
            log.exception("request_crashed", peer=link.peer)
            raise LinkLost from error

    def events(self, link: Link, request: Request, shared: Headers) -> Response | Awaitable[None]:
        """`GET /sse`: the link carries events from now on."""
        known = (*sse.PARAMETERS, sse.LAST_EVENT_ID)
        query = queries.fields(request.query, known, repeated=("channel",), spellings=sse.SPELLINGS)
        token, tenant = credentials(request, query, query_token=self.server.query_token)
        wish = sse.subscribe(query, request.headers.get("last-event-id"))
        if request.method == "HEAD":  # of what would come; nothing is subscribed for it
            return sse.head(request.version)
        link.give_up_after(self.limits.stall_seconds)
        transport = SseTransport(link, wish, self.responses, shared, request.version)
        with self.place(link):
            return self.serve(transport, self.hello(link, token, tenant))

    async def polled(self, link: Link, request: Request, trailing: bytes) -> Response:
        """`GET` and `POST /poll`."""
        in_query = request.method != "POST"
        names, repeated = (polls.PARAMETERS, ("channel",)) if in_query else ((), ())
        query = queries.fields(request.query, names, repeated=repeated)
        body = b"" if in_query else await self.body(link, request, trailing)
        ask = polls.from_query(query) if in_query else polls.from_body(body)
        if isinstance(ask, polls.Leave):
            longpoll.leave(self.polls, ask.session)
            return LEFT
        token, tenant = credentials(request, query, query_token=self.server.query_token)
        if request.method == "HEAD":  # no session begins for it, and none is asked
            return polls.HEAD
        tenant = ask.tenant if tenant is None else tenant
        session = longpoll.find(self.polls, ask.session) or self.begin_session(link, tenant)
        response = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(until_left, link, nursery.cancel_scope)
            response = await session.answer(ask, token, tenant)
            nursery.cancel_scope.cancel()
        if response is None:
            raise LinkLost
        return response

    def begin_session(self, link: Link, tenant: str | None) -> PollTransport:
        with self.place(link):
            session = PollTransport(self.polls)
            serving = self.serve(session, self.hello(link, None, tenant))
        self.nursery.start_soon(outlive, serving)
        return session

    async def posted(
        self, link: Link, request: Request, trailing: bytes, shared: Headers, page: posts.Page
    ) -> None:
        """`POST /publish` and its like."""
        query = queries.fields(request.query, ())
        token, tenant = credentials(request, query, query_token=self.server.query_token)
        with self.place(link):
            body = await self.body(link, request, trailing)
            message = page.message_of(body)
            reply = await self.post(message, token=token, tenant=tenant, peer=link.peer)
            await self.answer(link, page.answer(reply).beside(shared))

    async def page(self, link: Link, request: Request, trailing: bytes) -> Response:
        """A file, or in development mode a token for the demo page."""
        if request.path != TOKEN:
            return revalidated(request, self.site.file(request, link.peer))
        self.site.check_token(request, link.peer)
        body = await heads.read_body(
            link, request, trailing, most=TOKEN_BYTES, seconds=self.limits.body_seconds
        )
        return self.site.token(body)

    async def body(self, link: Link, request: Request, trailing: bytes) -> bytes:
        limits = self.limits
        return await heads.read_body(
            link,
            request,
            trailing,
            most=limits.message_bytes,
            seconds=limits.body_seconds,
            limit="limits.message_bytes",
        )

    @contextmanager
    def place(self, link: Link) -> Iterator[None]:
        """Keeps a place for the client of a link. Raises `Refused` when there is none."""
        with ExitStack() as stack:
            try:
                stack.enter_context(self.admission(link.peer))
            except BrokerError as error:
                raise Refused.by(refused(error)) from None
            yield

    async def begin(self, link: Link) -> None:
        """What comes before HTTP: the word of a trusted proxy on the client, where it is to say so; TLS."""
        trusted = proxies.networks(self.server.trusted_proxies)
        if self.server.proxy_protocol and proxies.trusted(link.peer, trusted):
            try:
                link.peer = await proxy_protocol.read(link) or link.peer
            except proxy_protocol.Malformed as error:
                log.warning("proxy_header_refused", peer=link.peer, reason=str(error))
                raise LinkLost from None
        await link.open()

    def believe(self, link: Link, request: Request) -> Request:
        """The request as the client made it, and the client's address, by the headers of trusted proxies."""
        trusted = proxies.networks(self.server.trusted_proxies)
        if not proxies.trusted(link.peer, trusted):
            return request
        forwarded_for = request.headers.get("x-forwarded-for")
        if forwarded_for is not None:
            link.peer = proxies.client(link.peer, forwarded_for, trusted)
        return proxies.outer(request)


async def outlive(serving: Awaitable[None]) -> None:
    """A connection that is no link's own."""
    await serving
