"""A session of polls: a connection whose client comes and goes, as a `Transport` that stays.

A session acts as the client of its connection: it subscribes by the protocol's own messages, and takes what
the connection sends while a poll waits. Between polls it takes nothing; the connection is then behind like
that of any slow client, and reads on from its position at the next poll.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
import msgspec
import trio
from msgspec import UNSET, UnsetType

from broker import subjects
from broker.actors.transport import Closed, Inbound, LinkLost, LinkState, Resting, Text
from broker.errors import CloseCode, Unavailable
from broker.http.refusals import from_error, from_message
from broker.http.responses import JSON, Response
from broker.links.poll.documents import Documents, events_alone
from broker.links.poll.messages import Gathered, Message, Poll, Polled, lag, payload
from broker.wire import frames, messages, sse

if TYPE_CHECKING:
    from collections.abc import Mapping

SESSION_SECONDS = 60.0  # without a poll
GRACE_SECONDS = 5.0  # from a poll to the next one, in which it keeps its place among its user's connections
DOT = "."  # in a name, between the session's id and the count of answers
ANSWER_BYTES = 64 * 1024  # an answer that has this much is sent; more waits for the next poll
CATCH_UP_SECONDS = 5.0  # that a poll waits for events that exist already, whatever `wait` is


class Failed(Exception):
    """A poll cannot be served; `response` says why."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status)
        self.response = response


decoder = msgspec.json.Decoder(Message)


class Sessions(dict[str, "PollTransport"]):
    """The sessions of a port, by id, until their connections end."""

    def find(self, name: str | None) -> PollTransport | None:
        """Return the session of that name, old or new, unless it has ended."""
        session = self.get((name or "").partition(DOT)[0])
        return None if session is None or session.ended else session

    def leave(self, name: str) -> None:
        """End the session of that name, if there is one: its page has gone."""
        if session := self.find(name):
            session.left_by_client = True
            session.end()


@attrs.define(eq=False)
class PollTransport:
    """A session."""

    name: ClassVar[str] = "poll"
    partial_sends: ClassVar[bool] = True  # all or nothing
    answers: ClassVar[bool] = False
    comes_and_goes: ClassVar[bool] = True
    framing: ClassVar[None] = None  # it reads the frames of WebSocket clients
    sessions: Sessions
    id: str = attrs.Factory(lambda: secrets.token_urlsafe(16))
    turns: int = 0  # of its name: answers that have a position in common have names that differ
    live_alone: bool = False  # whether who stands where the newest answer ends lacks only its live events
    missed: list[str] = attrs.Factory(list)  # live channels with events in an answer that was lost
    paced: list[msgspec.Raw] = attrs.Factory(list)  # events in the newest answer that move no position
    repeated: list[msgspec.Raw] = attrs.Factory(list)  # those of one that was lost
    token_hash: bytes = b""  # of the token that the connection has
    tenant: str | None = None  # asked for with that token
    talking: trio.Lock = attrs.Factory(trio.Lock)
    changed: trio.lowlevel.ParkingLot = attrs.Factory(trio.lowlevel.ParkingLot)  # some state of the session
    outgoing: list[bytes] = attrs.Factory(list)  # messages to the connection
    count: int = 0  # of messages so far
    reply: Message | None = None  # the newest
    buffer: bytearray = attrs.Factory(bytearray)  # bytes sent by the connection, not read yet
    size: int = 0  # bytes sent by the connection, not in an answer yet
    turn: object = None  # identifies the poll that waits
    idle_since: float = attrs.Factory(trio.current_time)  # when the last poll ended
    expected: float = attrs.Factory(lambda: trio.current_time() + GRACE_SECONDS)  # the next poll, until then
    asked: tuple[object, ...] | None = None  # the channels of the newest poll, and their options
    held: set[str] = attrs.Factory(set)  # the subscriptions that came of them
    encoded_user: str = ""
    place: sse.Place = attrs.Factory(sse.Place)
    resume_position: str | None = None  # where the client stands, as far as is known
    start: dict[str, Any] = attrs.Factory(dict)  # where the subscriptions began
    is_behind: bool = False
    reconnect_after_ms: int | None = None
    limits: msgspec.Raw | UnsetType = UNSET  # for the next answer
    error: messages.Error | None = None  # that ended the connection
    resting: bool = False  # the connection knows that nobody polls
    ended: bool = False
    cut: bool = False  # by the broker: nothing more is taken, though a poll may still wait
    left_by_client: bool = False
    gathered: Gathered = attrs.Factory(Gathered)
    rights: messages.Authenticated | None = None  # of the token
    documents: Documents = attrs.Factory(Documents)

    def __attrs_post_init__(self) -> None:
        self.sessions[self.id] = self

    @property
    def full_name(self) -> str:
        """The session's name for the client. One that comes with an older name lacks the newest answer."""
        return f"{self.id}{DOT}{self.turns}" if self.turns else self.id

    # --- the connection's side ----------------------------------------------------------------------

    def behind(self, *, begins: bool) -> None:
        self.is_behind = begins
        self.changed.unpark_all()

    def limit_messages(self, message_bytes: int) -> None:
        """Do nothing: the port bounds the bodies of polls."""

    async def receive(self) -> Inbound:
        while not self.outgoing:
            polled = self.turn is not None or self.talking.locked()
            until = (
                math.inf if polled else self.idle_since + SESSION_SECONDS if self.resting else self.expected
            )
            if self.left_by_client:
                return Closed(code=CloseCode.NORMAL, reason="the client left", by="client")
            if self.ended:
                return Closed(code=CloseCode.GOING_AWAY, reason="a poll was broken off", by="link")
            if trio.current_time() >= until:
                if not self.resting:
                    self.resting = True
                    return Resting()
                self.ended = True
                reason = (
                    f"no poll for {SESSION_SECONDS:g} s" if self.encoded_user else "no token was accepted"
                )
                return Closed(code=CloseCode.GOING_AWAY, reason=reason, by="broker")
            with trio.move_on_at(until):
                await self.changed.park()
        return Text(data=self.outgoing.pop(0))

    @property
    def open(self) -> bool:
        return self.talking.locked() or (self.turn is not None and self.size < ANSWER_BYTES)

    def send_nowait(self, data: bytes | memoryview) -> int:
        if self.cut or (self.ended and not self.open):
            raise LinkLost
        if not self.open:
            return 0
        self.buffer += data
        self.size += len(data)
        self.changed.unpark_all()
        return len(data)

    async def send_some(self, data: bytes | memoryview) -> int:
        await trio.lowlevel.checkpoint()
        while not (sent := self.send_nowait(data)):
            await self.changed.park()
        return sent

    def frame(self, message: bytes) -> bytes:
        return frames.text(message)

    def ping(self, position: str | None) -> bytes:  # noqa: ARG002 - each poll asks for P
        return b""

    def ask(self) -> bytes:
        """End the poll that waits, if any: a client that is there polls again."""
        if self.turn is not None:
            self.let_go(GRACE_SECONDS)
            self.changed.unpark_all()
        return b""

    def state(self) -> LinkState:
        return LinkState()

    def close(self, code: int, reason: str) -> bytes:  # noqa: ARG002 - an error has said why
        self.end()
        return b""

    async def linger(self) -> None:
        await trio.lowlevel.checkpoint()

    def abort(self) -> None:
        self.cut = True
        self.end()
        self.sessions.pop(self.id, None)

    def end(self) -> None:
        self.ended = True
        self.changed.unpark_all()

    # --- the poll's side ----------------------------------------------------------------------------

    async def answer(self, poll: Poll, token: str, tenant: str | None) -> Response:
        """Wait for something to answer a poll with, and return the answer. A newer poll ends an older one."""
        turn, grace = object(), GRACE_SECONDS
        position, stood = events_alone(poll.position)
        poll = msgspec.structs.replace(poll, position=position)
        try:
            async with self.talking:
                self.resting = False
                await self.authenticate(token, tenant)
                self.turn = turn
                self.changed.unpark_all()
                at_once = self.asked is None and not (poll.start or stood)
                known = self.asked is not None
                lost = self.asked is not None and self.lost(poll)
                stands = await self.tune(poll)
                stood = self.documents.stands(poll, stood, known=known, lost=lost)
                await self.tune_documents(poll, stood, lost=lost)
                stands, full_name = self.documents.composed(stands), self.full_name
            await self.gather(turn, 0 if at_once else poll.wait)
            return self.taken() if self.turn is turn else self.document(Gathered(), stands, full_name)
        except Failed as failed:
            if not self.encoded_user:  # no token was accepted: no client knows the session
                self.end()
            return failed.response
        except trio.Cancelled:
            grace = 0.0  # the client has gone, and is not expected again
            raise
        finally:
            if self.turn is turn:
                self.let_go(grace)
            self.changed.unpark_all()

    def let_go(self, grace: float) -> None:
        """Record that nobody polls; the next poll is expected within `grace` seconds."""
        self.turn, self.idle_since = None, trio.current_time()
        self.expected = self.idle_since + grace

    async def authenticate(self, token: str, tenant: str | None) -> None:
        """Verify that the token is valid, and of the session's user. Raises `Failed`."""
        token_hash = hashlib.sha256(token.encode()).digest()
        if hmac.compare_digest(token_hash, self.token_hash) and tenant in (None, self.tenant):
            return
        self.token_hash = b""  # if this is cancelled, nobody knows which of the two the connection has
        reply = await self.request("authenticate", {"token": token} | ({"tenant": tenant} if tenant else {}))
        self.rights = msgspec.json.decode(reply.payload, type=messages.Authenticated)
        self.encoded_user = self.rights.private.split(".")[1]
        self.token_hash, self.tenant = token_hash, tenant

    def lost(self, poll: Poll) -> bool:
        """Whether the newest answer did not arrive, so that its content has to be sent again."""
        if poll.position not in (None, self.resume_position):
            return True
        if poll.session == self.full_name:
            return False
        if self.live_alone and poll.position is not None:
            # Nothing of it was kept. A gap goes with the next answer that has something to say: told at once,
            # a client that always sends the first name would get one answer after another.
            self.missed = sorted(filter(subjects.is_live, self.held))
            self.repeated = self.paced
            return False
        return True

    async def tune(self, poll: Poll) -> str | None:
        """Subscribe to what a poll asks for; return the position of the client. Raises `Failed`."""
        options = msgspec.json.encode(poll.options)  # 1 and true are not the same
        channels_of = poll.channels or []
        asked = (*channels_of, options)
        lost = self.asked is not None and self.lost(poll)
        # A client that has been told a position, and sends a start instead, begins again.
        anew = bool(self.resume_position and poll.start and poll.position is None)
        if asked == self.asked and not (lost or anew):
            await self.request("ping", {})  # it counts as a request, and its reply has P
            return self.resume_position
        before, self.asked = self.asked, None
        try:
            wanted = {subjects.expand_me(each, self.encoded_user): each for each in channels_of}
            start = poll.start
            if before is not None and not start:
                start = (
                    self.start if lost or self.resume_position is None else {"position": self.resume_position}
                )
            self.start = start if anew else self.start or start
            # The subscriptions may hold the durable name; they begin again.
            gone = self.held if "durable" in start else self.held - wanted.keys()
            if gone:
                await self.request("unsubscribe", {"channel": sorted(gone)})
                self.gathered.keep(wanted)
            if not (lost or anew) and before is not None and before[-1] == options:
                # Stored channels begin again with those that join them. Live ones have no position.
                joins = wanted.keys() - self.held
                kept = {each for each in self.held - gone if not joins or subjects.is_live(each)}
            else:
                kept = set()
            if channels := [each for name, each in wanted.items() if name not in kept]:
                reply = await self.subscribe(poll, channels, start, known=before is not None, lost=lost)
            else:
                reply = await self.request("ping", {})
            self.held = self.held & kept | set(reply.field("channel") or ())
            self.asked = asked
            return self.resume_position
        finally:
            if self.asked is None:  # failed or cancelled halfway: the next poll begins a new session
                self.end()

    async def subscribe(
        self, poll: Poll, channels: list[str], start: Mapping[str, Any], *, known: bool, lost: bool
    ) -> Message:
        """Subscribe to these channels, or subscribe to them again."""
        wish = {"channel": channels} | poll.options | dict(start)
        reply = await self.request("subscribe", wish)
        alive = [each for each in reply.field("channel") if subjects.is_live(each)]
        again = [each for each in alive if lost or each in self.held]
        self.gathered.refused = reply.field("refused")
        self.gathered.recovered = reply.field("recovered")
        if not known and poll.session is not None and not start:
            self.gathered.recovered = False  # what came since is unknown
        if again:  # live events in a lost answer are gone
            self.gathered.gaps.append(lag(again))
            self.turns += 1  # the answers that follow may repeat positions that have been told
        self.resume_position = None if self.place.unfinished else reply.field("position")
        return reply

    async def tune_documents(self, poll: Poll, stood: str | None, *, lost: bool) -> None:
        """Follow the documents that a poll asks for; `stood` is where its client stands. Raises `Failed`."""
        wishes = self.documents.tune(poll, stood, self.rights, lost=lost) if self.rights else []
        if not wishes:
            return
        asked, self.asked = self.asked, None
        self.gathered.forget_documents()
        try:
            for kind, wish in wishes:
                await self.request(kind, wish)
            self.asked = asked
        finally:
            if self.asked is None:  # as in `tune`
                self.end()

    async def gather(self, turn: object, wait: float) -> None:
        """Wait for something to answer with, at most `wait` seconds."""
        until = trio.current_time() + wait
        with trio.move_on_after(CATCH_UP_SECONDS):
            while not self.over(turn) and (self.is_behind or self.documents.unready) and self.open:
                await self.changed.park()
        with trio.move_on_at(until):
            while not (self.over(turn) or self.gathered.says):
                await self.changed.park()

    def over(self, turn: object) -> bool:
        self.read()
        return self.turn is not turn or self.ended or self.reconnect_after_ms is not None

    def taken(self) -> Response:
        """Return the answer with all that has been gathered."""
        self.read()
        if self.error is not None:
            return from_message(self.error)
        gathered, self.gathered = self.gathered, Gathered()
        if self.missed:
            gathered.gaps.insert(0, lag(self.missed))
            self.missed = []
        self.paced = [each for each in gathered.events if payload.decode(each).paced]
        gathered.events[:0], self.repeated = self.repeated, []
        before, self.resume_position, self.size = self.resume_position, self.place.position, len(self.buffer)
        self.turns += bool(gathered) and (before is None or self.resume_position in (None, before))
        moved = before != self.resume_position
        self.live_alone = not gathered.refused if moved else gathered.live_alone
        self.documents.taken()
        return self.document(gathered, self.documents.composed(self.resume_position), self.full_name)

    def document(self, gathered: Gathered, position: str | None, full_name: str) -> Response:
        polled = Polled(
            session=full_name,
            events=gathered.events,
            gaps=gathered.gaps,
            state=self.documents.answer(gathered) or UNSET,
            position=UNSET if position is None else position,
            recovered=gathered.recovered,
            refused=gathered.refused or UNSET,
            reconnect_after_ms=UNSET if self.reconnect_after_ms is None else self.reconnect_after_ms,
            limits=self.limits,
        )
        self.limits = UNSET
        return Response(status=200, body=msgspec.json.encode(polled), media_type=JSON)

    # --- what the two say to each other -----------------------------------------------------------

    async def request(self, kind: str, wish: dict[str, Any]) -> Message:
        """Send a message to the connection, and return its reply. Raises `Failed`."""
        self.count += 1
        message = {"type": kind, "payload": wish, "messageId": str(self.count)}
        self.outgoing.append(msgspec.json.encode(message))
        self.changed.unpark_all()
        while True:
            self.read()
            reply = self.reply
            if reply is not None and reply.message_id == str(self.count):
                if reply.type == "error":
                    raise Failed(from_message(to_error(reply)))
                return reply
            if self.ended:
                ended = Unavailable("the session has ended; poll again", retry_after=1.0)
                raise Failed(from_message(self.error) if self.error else from_error(ended))
            await self.changed.park()

    def read(self) -> None:
        """Read the complete frames in the buffer."""
        for data in frames.take(self.buffer):
            self.hear(decoder.decode(data))

    def hear(self, message: Message) -> None:
        followed = sse.Told(message.type, payload.decode(message.payload))
        match message.type:
            case "event":
                self.gathered.events.append(message.payload)
            case "gap":
                self.gathered.gaps.append(message.payload)
            case "subscribed":
                self.place.unfinished.clear()
                self.gathered.restart()
                self.size = len(self.buffer) + self.gathered.size
            case "state" | "state.opened" | "state.ready" | "state.closed":
                self.documents.hear(message, followed.payload, self.gathered)
                if message.type == "state.opened":
                    self.size = len(self.buffer) + self.gathered.size
            case "unsubscribed" if message.message_id is None:
                channel = message.field("channel")
                self.held.discard(channel)
                self.gathered.refused.append({"channel": channel, "code": message.field("code")})
            case "connection.established":
                self.limits = msgspec.json.decode(message.payload, type=dict[str, msgspec.Raw])["limits"]
            case "connection.draining":
                self.reconnect_after_ms = followed.payload.reconnect_after_ms
            case "error" if message.message_id is None:
                self.error = to_error(message)
        if (
            message.message_id is not None and message.type != "gap"
        ):  # it follows the reply to the same message
            self.reply = message
        self.place.follow(followed)


def to_error(message: Message) -> messages.Error:
    return messages.Error(**msgspec.json.decode(message.payload))
