"""A real session of the Python client over a scripted link, with a twin of each of its documents."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import attrs
import trio
from trio_websocket import ConnectionClosed

from broker.actors.transport import Hello, Text
from broker.client import DocumentConflict, DocumentRejected
from broker.client.items import Lost
from broker.client.session import Session
from broker.documents.judging import OUT
from tests.client.twin import Add, Twin
from tests.support.scripted import ScriptedLink

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

    from broker.actors.supervisor import Supervisor
    from broker.client import SessionEnded
    from broker.client.collection import Collection, Document

TOKEN = "e30.e30.c2ln"
FINAL = ("conflict", "rejected", "too_large")


@attrs.define
class Sent:
    """A change as it was sent, and how it ended: `changed`, `refused` or `unknown`."""

    channel: str
    payload: Mapping[str, Any]
    end: str = "unknown"
    revision: str = ""


@attrs.define(eq=False, kw_only=True)
class Tab(Session):
    """A client of a user. `brokers` are those that run; `sent` has the changes by id."""

    name: str
    rng: random.Random
    nursery: trio.Nursery
    brokers: list[Supervisor]
    truth: Mapping[int, Any]
    token: Any = TOKEN
    url: str = "ws://test/ws"
    link: ScriptedLink | None = None
    supervisor: Supervisor | None = None  # to which it is connected
    documents: dict[str, Document | Collection] = attrs.Factory(dict)  # by channel, by which it follows them
    twins: dict[str, Twin] = attrs.Factory(dict)
    sent: dict[str, Sent] = attrs.Factory(dict)
    asked: dict[str, Sent] = attrs.Factory(dict)  # by messageId, on this connection
    frames: int = 0
    conflicts: int = 0

    def follow(self, followed: Document | Collection, *channels: str) -> None:
        """Hold what is shown of these channels against their twins from now on."""
        for channel in channels:
            self.documents[channel] = followed
            self.twins[channel] = Twin(self.truth)

    # --- the connection -----------------------------------------------------------------------------

    async def connect(self) -> Lost | SessionEnded:
        if not self.brokers:
            return Lost("nobody is there")
        self.engine.begin(TOKEN, trio.current_time())
        self.expiring.clear()
        link = ScriptedLink(
            room=self.rng.choice((100, 1000, 20000, 200000)), partial_sends=self.rng.random() < 0.8
        )
        self.link, self.asked = link, {}
        self.supervisor = self.rng.choice(self.brokers)
        self.nursery.start_soon(self.supervisor.serve, link, Hello(peer="test", token=f"t0:{self.name}"))
        try:
            wire: Any = Wire(self, link)
            return await self.converse(wire)
        finally:
            link.drop()

    def said(self, text: str) -> None:
        """What goes out."""
        message = json.loads(text)
        if message["type"] == "state.change":
            payload = message["payload"]
            self.twins[payload["channel"]].sent(payload)
            sent = self.sent.setdefault(payload["id"], Sent(payload["channel"], payload))
            self.asked[message["messageId"]] = sent

    def comes(self, text: bytes) -> None:
        """What the client hears next."""
        message = json.loads(text)
        kind, payload = message["type"], message["payload"]
        asked = self.asked.pop(message.get("messageId", ""), None)
        if kind == "state" and payload["channel"] in self.twins:
            self.frames += 1
            self.twins[payload["channel"]].heard(payload)
        elif kind == "state.ready":
            for channel, twin in self.twins.items():
                if twin.sequence is None and self.covers(message, channel):
                    twin.confirm(0)
        elif asked and kind == "state.changed":
            asked.end, asked.revision = "changed", payload["revisions"][asked.channel]
            self.twins[asked.channel].answered(asked.revision)
        elif asked and kind == "error" and payload["code"] in FINAL:
            asked.end = "refused"
        assert kind != "state.lost", payload

    def covers(self, ready: Mapping[str, Any], channel: str) -> bool:
        named = ready["payload"]["channel"]
        full = self.engine.documents.full(self.documents[channel].name)
        return full in ([named] if isinstance(named, str) else named)

    # --- what is shown ------------------------------------------------------------------------------

    def shown(self, channel: str) -> Any:
        followed = self.documents[channel]
        return followed.value_of(channel)

    def check(self) -> None:
        """No frame shows a value that is neither confirmed nor the user's own."""
        for followed in set(self.documents.values()):
            self.hear_news(followed)
        for channel, twin in self.twins.items():
            shown = self.shown(channel)
            assert twin.holds(shown), f"{self.name} shows {shown} of {channel}, not {twin.shown()}"
            twin.note(shown)
            twin.note(twin.confirmed)  # which what was typed before anything was known replaces
            draft = self.engine.documents.changes.draft(channel)
            if draft and twin.sequence is not None:
                assert draft.confirmed == twin.confirmed, f"{self.name}: {channel}"
                assert draft.pending == twin.pending, f"{self.name}: {channel}: {draft.pending} pending"

    def hear_news(self, followed: Document | Collection) -> None:
        again = []
        while followed.told:
            news = followed.told.popleft()
            assert isinstance(news, DocumentConflict | DocumentRejected), news
            conflict = isinstance(news, DocumentConflict)
            self.conflicts += conflict
            self.twins[news.channel].refused(news.theirs if isinstance(news, DocumentConflict) else None)
            if conflict and self.rng.random() < 0.4:
                again.append(news)
        for news in again:
            self.write_to(news.channel, Add.ONE if news.add else news.mine, check=False)

    def write_to(self, channel: str, patch: Any, *, check: bool = True) -> None:
        self.twins[channel].changed(patch)
        if patch is Add.ONE:
            self.documents[channel].edit(channel, OUT, {"/n": 1})
        else:
            self.documents[channel].edit(channel, patch, None)
        if check:
            self.check()

    @property
    def unsaved(self) -> bool:
        return any(each.unsaved for each in set(self.documents.values()))


@attrs.define(eq=False)
class Wire:
    """Stands for a WebSocket: each text is held against the twins as it passes."""

    tab: Tab
    link: ScriptedLink
    waiting: list[tuple[int, bytes]] = attrs.Factory(list)

    async def get_message(self) -> str:
        self.tab.check()
        while True:
            while self.waiting:
                opcode, payload = self.waiting.pop(0)
                if opcode == 1:
                    self.tab.comes(payload)
                    return payload.decode()
                if opcode == 8:
                    raise ConnectionClosed(None)
            if self.link.cut:
                raise ConnectionClosed(None)
            if self.tab.rng.random() < 0.2:
                await trio.sleep(self.tab.rng.uniform(0, 0.4))
            self.waiting += await self.link.read(self.tab.rng.choice((50, 500, 5000, 100000)))

    async def send_message(self, text: str) -> None:
        self.tab.said(text)  # without letting others run since the client has decided on it
        if not self.link.cut:  # else it goes nowhere, and the reader learns it
            self.link.to_broker.send_nowait(Text(data=text.encode()))
