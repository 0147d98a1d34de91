"""A link that takes what it likes and a verifier that believes everybody, for tests under the fake clock."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
import trio

from broker import subjects
from broker.actors.transport import Closed, Inbound, LinkLost, LinkState, Text
from broker.errors import TokenInvalid
from broker.permissions import Principal
from broker.wire import frames, sse
from tests.support.sse import Parser

if TYPE_CHECKING:
    import random

    from broker.actors.supervisor import Supervisor
    from broker.wire.frames import Framing


async def until_let_in(supervisor: Supervisor) -> None:
    """Until the broker knows whose tokens were revoked, before which nobody is served."""
    while supervisor.control.trouble():
        await trio.sleep(0.01)


@attrs.define(eq=False, kw_only=True)
class ScriptedLink:
    """A client's link whose kernel buffer holds `room` bytes until the client reads them."""

    name: ClassVar[str] = "scripted"
    answers: ClassVar[bool] = True
    comes_and_goes: ClassVar[bool] = False
    framing: Framing | None = None
    room: int
    buffer: bytearray = attrs.Factory(bytearray)
    readable: trio.Event = attrs.Factory(trio.Event)
    writable: trio.Event = attrs.Factory(trio.Event)
    cut: bool = False
    known: LinkState = attrs.Factory(LinkState)
    partial_sends: bool = True
    breaks: random.Random | None = None  # makes sends crash now and then, those by the tenant's task

    def __attrs_post_init__(self) -> None:
        self.to_broker, self.from_client = trio.open_memory_channel[Inbound](1000)

    to_broker: trio.MemorySendChannel[Inbound] = attrs.field(init=False)
    from_client: trio.MemoryReceiveChannel[Inbound] = attrs.field(init=False)

    # --- the broker's side

    def limit_messages(self, message_bytes: int) -> None: ...

    def behind(self, *, begins: bool) -> None: ...

    async def receive(self) -> Inbound:
        try:
            return await self.from_client.receive()
        except trio.EndOfChannel:
            return Closed(code=1006, by="link")

    def send_nowait(self, data: bytes | memoryview) -> int:
        if self.cut:
            raise BrokenPipeError
        if self.breaks and "Tenant" in trio.lowlevel.current_task().name and self.breaks.random() < 0.003:
            raise RuntimeError("a scripted crash")
        if not self.partial_sends:
            return 0
        if not (taken := self.take(data)) and data:
            raise BlockingIOError
        return taken

    def take(self, data: bytes | memoryview) -> int:
        taken = min(len(data), self.room - len(self.buffer))
        self.buffer += data[:taken]
        self.readable.set()
        return taken

    async def send_some(self, data: bytes | memoryview) -> int:
        sent = 0
        while True:
            if self.cut:
                raise LinkLost
            sent += self.take(data[sent:])
            if sent == len(data) or (sent and self.partial_sends):
                await trio.lowlevel.checkpoint()
                return sent
            self.writable = trio.Event()
            await self.writable.wait()

    def frame(self, message: bytes) -> bytes:
        return frames.text(message)

    def ping(self, position: str | None) -> bytes:
        return frames.frame(frames.PING, b"")

    def close(self, code: int, reason: str) -> bytes:
        return frames.close(code, reason)

    def ask(self) -> bytes:
        return self.ping(None)

    def state(self) -> LinkState:
        return self.known

    async def linger(self) -> None: ...

    def abort(self) -> None:
        self.drop()

    # --- the client's side

    def say(self, kind: str, payload: dict[str, Any], **extra: Any) -> None:
        if not self.cut:  # it may have been cut off without knowing
            self.to_broker.send_nowait(
                Text(data=json.dumps({"type": kind, "payload": payload, **extra}).encode())
            )

    def drop(self) -> None:
        """The client is gone, without a word."""
        self.cut = True
        self.writable.set()
        self.readable.set()
        self.to_broker.close()

    async def read(self, most: int) -> list[tuple[int, bytes]]:
        """Takes up to `most` bytes out of the kernel; the whole frames that they complete."""
        while not self.buffer and not self.cut:
            self.readable = trio.Event()
            await self.readable.wait()
        self.received += self.buffer[:most]
        del self.buffer[:most]
        self.writable.set()
        found = []
        while (frame := parse_frame(self.received)) is not None:
            found.append(frame)
        return found

    received: bytearray = attrs.Factory(bytearray)


@attrs.define(eq=False, kw_only=True)
class ScriptedStream(ScriptedLink):
    """The same with a stream of Server-Sent Events; the client can speak all the same."""

    answers: ClassVar[bool] = False
    framing: Framing | None = sse.event
    parser: Parser = attrs.Factory(Parser)

    def frame(self, message: bytes) -> bytes:
        return sse.message(message, None, None)

    def ping(self, position: str | None) -> bytes:
        return sse.heartbeat(position)

    def close(self, code: int, reason: str) -> bytes:
        return sse.comment(f"{int(code)} {reason}")

    async def read(self, most: int) -> list[tuple[int, bytes]]:
        while not self.buffer and not self.cut:
            self.readable = trio.Event()
            await self.readable.wait()
        piece = bytes(self.buffer[:most])
        del self.buffer[:most]
        self.writable.set()
        said = len(self.parser.comments)
        found = []
        for text, place in self.parser.feed(piece):
            event = json.loads(text)
            payload = event["payload"]
            if event["type"] == "event" and not {"catch_up", "paced"} & payload.keys():
                assert payload.get("position", place) == place  # that of a live event is the one before
            found.append((1, text.encode()))
        closes = self.parser.comments[said:]
        return found + [(8, int(each.split()[0]).to_bytes(2) + each.encode()) for each in closes if each]


def parse_frame(data: bytearray) -> tuple[int, bytes] | None:
    """Takes the first whole server frame off `data`."""
    if len(data) < 2:
        return None
    size, start = data[1], 2
    if size == 126:
        size, start = int.from_bytes(data[2:4]), 4
    elif size == 127:
        size, start = int.from_bytes(data[2:10]), 10
    if len(data) < start + size:
        return None
    payload = bytes(data[start : start + size])
    opcode = data[0] & 15
    del data[: start + size]
    return opcode, payload


@attrs.define(eq=False)
class ScriptedVerifier:
    """Tokens are "tenant:user"."""

    deny: tuple[str, ...] = ()
    change: tuple[str, ...] = ()

    async def verify(self, token: str, *, now: float, tenant: str | None = None) -> Principal:
        name, colon, user = token.partition(":")
        if not colon:
            raise TokenInvalid("scripted")
        return Principal(
            tenant=name,
            user=user,
            encoded_user=subjects.encode_user(user),
            expires_at=now + 80000,
            life=80000.0,
            subscribe=(">", "live.>"),
            publish=(">", "live.>"),
            deny=self.deny,
            change=self.change,
        )

    def again(self, principal: Principal) -> Principal:
        return principal
