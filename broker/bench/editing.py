"""The processes of `documents`: who changes one, and a client that reads what comes, byte by byte."""

from __future__ import annotations

import json
import select
import socket
import time
from typing import TYPE_CHECKING, Any

import attrs
import msgspec

from broker.bench.asking import reported
from broker.bench.dialects import masked
from broker.bench.load import DELIVERED
from broker.bench.meter import now
from broker.bench.publisher import WAIT_SECONDS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection

    from broker.bench.dialects import BrokerClient
    from broker.bench.meter import Meter

TEXT = 1
BUFFER = 1 << 16
RETRY_SECONDS = 0.1


class Refused(ConnectionError):
    """The broker has answered with the error `said`."""

    def __init__(self, said: dict[str, Any]) -> None:
        super().__init__(str(said))
        self.said = said


@attrs.define(eq=False)
class Peer:
    """A client that is read message by message, each with its size on the wire in bytes."""

    link: socket.socket
    rest: bytes = b""
    position: str = ""  # up to which everything of the newest open has come
    asked: int = 0

    @classmethod
    def connect(cls, client: BrokerClient) -> Peer:
        """Connect and wait until it is let in."""
        host, _, port = client.host.rpartition(":")
        link = socket.create_connection((host, int(port)), WAIT_SECONDS)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer = cls(link)
        link.sendall(client.request())
        while b"\r\n\r\n" not in peer.rest:
            peer.fill()
        peer.rest = peer.rest.partition(b"\r\n\r\n")[2]
        peer.until("connection.authenticated")
        return peer

    def fill(self) -> None:
        data = self.link.recv(BUFFER)
        if not data:
            raise ConnectionError(self.rest.decode(errors="replace") or "closed by the broker")
        self.rest += data

    def say(self, kind: str, payload: Any) -> None:
        self.asked += 1
        message = {"type": kind, "payload": payload, "messageId": str(self.asked)}
        self.link.sendall(masked(TEXT, msgspec.json.encode(message)))

    def next(self) -> tuple[int, dict[str, Any]] | None:
        """Return the next message that is here wholly, after the size of its frame (RFC 6455, 5.2)."""
        data = self.rest
        if len(data) < 2:
            return None
        length, body = data[1], 2
        if length > 125:
            body = 4 if length == 126 else 10
            length = int.from_bytes(data[2:body])
        end = body + length
        if len(data) < max(body, end):
            return None
        self.rest = data[end:]
        return (
            (end, json.loads(data[body:end])) if data[0] & 15 == TEXT else (end, {"type": "", "payload": {}})
        )

    def receive(self) -> tuple[int, dict[str, Any]]:
        """Wait for the next message. Raise `Refused` for an error, `ConnectionError` at the end."""
        while (found := self.next()) is None:
            self.fill()
        if found[1]["type"] == "error":
            raise Refused(found[1]["payload"])
        return found

    def until(self, kind: str) -> list[tuple[int, dict[str, Any]]]:
        """Return what comes up to a message of this kind."""
        found = [self.receive()]
        while found[-1][1]["type"] != kind:
            found.append(self.receive())
        return found

    def open(self, channel: Any, position: str | None = None) -> list[tuple[int, dict[str, Any]]]:
        """Open documents, once the broker can; return the messages that bring them."""
        until = time.monotonic() + WAIT_SECONDS
        while True:
            self.say("state.open", {"channel": channel} | ({"position": position} if position else {}))
            try:
                *found, (_, ready) = self.until("state.ready")
            except Refused as refused:
                if not refused.said["retryable"] or time.monotonic() > until:
                    raise
                time.sleep(RETRY_SECONDS)
            else:
                self.position = ready["payload"]["position"]
                return [each for each in found if each[1]["type"] == "state"]


@attrs.frozen
class Edit:
    """Change one document for so long; every client one member of its own, one change at a time."""

    channel: str
    seconds: float


@attrs.define(eq=False)
class Editor:
    """A client that changes a member, named as it is; `began` is when it sent the change under way."""

    name: str
    peer: Peer
    number: int = 0
    began: int = 0

    def change(self, channel: str) -> None:
        before, self.number = self.number, self.number + 1
        patch, was = {self.name: self.number}, {self.name: before or None}
        change = {"id": f"{self.name}-{self.number}", "channel": channel, "patch": patch, "was": was}
        self.began = now()
        self.peer.say("state.change", change)

    def changed(self) -> bool:
        """Read; return whether the change under way is answered."""
        self.peer.fill()
        answered = False
        while found := self.peer.next():
            if found[1]["type"] == "error":
                raise Refused(found[1]["payload"])
            answered |= found[1]["type"] == "state.changed"
        return answered


def run(clients: Sequence[BrokerClient], channel: str, meter: Meter, pipe: Connection) -> None:
    """Let clients open a document, and change it when they are told to; the time goes to `openings`."""
    with reported(pipe):
        editors: dict[int, Editor] = {}
        poll = select.epoll()
        for number, client in enumerate(clients):
            editor = Editor(f"e{number}", Peer.connect(client))
            editor.peer.open(channel)
            editors[editor.peer.link.fileno()] = editor
            poll.register(editor.peer.link.fileno(), select.EPOLLIN)
        pipe.send(0)
        while True:
            edit: Edit = pipe.recv()
            pipe.send(0)
            work(edit, editors, poll, meter)


def work(edit: Edit, editors: dict[int, Editor], poll: select.epoll, meter: Meter) -> None:
    began = now()
    end = time.monotonic() + edit.seconds
    for editor in editors.values():
        editor.change(edit.channel)
    left = len(editors)
    while left:
        for file, _ in poll.poll(WAIT_SECONDS):
            editor = editors[file]
            if not editor.changed():
                continue
            meter.latencies.add(now() - editor.began)
            meter.numbers[DELIVERED] += 1
            if time.monotonic() < end:
                editor.change(edit.channel)
            else:
                left -= 1
    meter.openings.add(now() - began)
