"""A client that also follows documents and changes them, each change until it knows what came of it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import attrs
import trio

from broker.documents.patches import apply
from tests.faults.support.books import Tried
from tests.faults.support.client import RETRY_MS, Client

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.support.books import Books

BOARDS, OWNED = ("board.0", "board.1"), "owned.0"  # which the broker and a service decide on
CHANNELS = (*BOARDS, OWNED)
OPENS = ["board.>", "owned.>"]
OPEN = "open"  # the id of that request
EDIT_SECONDS = 0.05, 0.3  # between two changes
TRIES = 6  # of a change whose outcome the broker says it does not know
GIVES_UP = 0.3  # how often it does not send again what certainly was not applied
FINAL = ("conflict", "rejected", "too_large")
UNKNOWN = ("unknown_outcome", "timeout", "internal")


@attrs.define(eq=False, kw_only=True)
class Editor(Client):
    """Holds the documents in `docs`, with revision and value, as a naive reader of the protocol does."""

    books: Books
    over: Callable[[], bool]  # no further changes
    docs: dict[str, tuple[str, Any]] = attrs.field(factory=dict)
    upto: str | None = None  # everything has come up to there
    fresh: set[str] | None = None  # what has come since it began anew
    ready: trio.Event = attrs.field(factory=trio.Event)  # on the present connection

    def closed(self, code: int | None) -> None:
        if self.ready.is_set():
            self.ready = trio.Event()
        super().closed(code)

    async def live(self) -> None:
        await super().live()
        await self.open_documents()

    async def open_documents(self) -> None:
        start = {"position": self.upto} if self.upto else {}
        await self.say("state.open", {"channel": OPENS} | start, OPEN)

    async def hear(self, message: dict[str, Any]) -> None:
        if message["type"] == "state":
            self.document(message["payload"])
        else:
            await super().hear(message)

    async def heard(self, kind: str, payload: dict[str, Any], message_id: str | None) -> None:
        match kind:
            case "state.opened":
                assert not payload["refused"], payload
                if not payload["recovered"]:
                    self.fresh, self.upto = set(), None
            case "state.ready":
                if self.fresh is not None:
                    self.docs = {name: each for name, each in self.docs.items() if name in self.fresh}
                self.fresh, self.upto = None, payload["position"]
                self.ready.set()
            case "state.closed":
                self.wrong(f"{kind} {payload}")
            case "error" if message_id == OPEN:
                assert payload["retryable"], payload
                await trio.sleep(payload.get("retry_after_ms", RETRY_MS) / 1000)
                await self.open_documents()

    def document(self, payload: dict[str, Any]) -> None:
        channel, revision = payload["channel"], payload["revision"]
        before, held = self.docs.get(channel, ("", None))
        stream, _, number = revision.rpartition("-")
        if before.rpartition("-")[0] == stream and int(number) < int(before.rpartition("-")[2]):
            self.wrong(f"{payload} after {before}")
        if "from" in payload:
            if payload["from"] != before:
                self.wrong(f"{payload} is no difference from {before}")
            value = apply(held, payload["patch"])
        else:
            value = payload["value"]
        self.docs[channel] = revision, value
        self.books.saw(self.name, self.tenant, channel, revision, value)
        if self.fresh is not None:
            self.fresh.add(channel)
        elif self.ready.is_set():
            self.upto = payload["position"]

    def wrong(self, what: str) -> None:
        self.books.problems.append(f"{self.describe()}: {what}")

    # --- changes ------------------------------------------------------------------------------------

    async def edit(self) -> None:
        """Changes documents, one after the other."""
        for number in itertools.count(1):
            await trio.sleep(self.random.uniform(*EDIT_SECONDS))
            await self.ready.wait()
            if self.over():
                return
            await self.send_change(*self.make(f"{self.name}-{number}"))

    def make(self, identity: str) -> tuple[Tried, dict[str, Any]]:
        """A change of what it has seen."""
        mood, channel = self.random.random(), self.random.choice(CHANNELS)
        revision, value = self.docs.get(channel, ("", None))
        own = {"patch": {"seen": {identity: True}}, "was": {"seen": {identity: None}}}
        some = [each for each in BOARDS if self.docs.get(each, ("", None))[1]]
        if mood < 0.1 and len(some) > 1:
            change: dict[str, Any] = {"changes": [{"channel": each, **own} for each in some]}
            tried = Tried(id=identity, tenant=self.tenant, channels=tuple(some))
            return self.books.begin(tried), {"id": identity} | change
        if value is None:
            change = {"patch": {"hot": identity, "sum": 0, "seen": {identity: ""}}, "was": None}
        elif mood < 0.4:
            change = own
        elif mood < 0.7:
            hot = value["hot"]
            change = {
                "patch": {"hot": identity, "seen": {identity: hot}},
                "was": {"hot": hot, "seen": {identity: None}},
            }
        else:
            change = own | {"add": {"/sum": 1}, "revision": revision}
        tried = Tried(id=identity, tenant=self.tenant, channels=(channel,), adds="add" in change)
        return self.books.begin(tried), {"id": identity, "channel": channel} | change

    async def send_change(self, tried: Tried, payload: dict[str, Any]) -> None:
        """Sends it as it is until its outcome is known."""
        unsure, tries = False, 0
        while not self.ended:
            await self.subscribed.wait()
            answer = await self.ask("state.change", payload)
            if answer is None:
                unsure = True
                tried.cut_short = True
                continue
            said = answer["payload"]
            code = said.get("code")
            if code is None:
                tried.revisions = said["revisions"]
                tried.ended("changed")
                return
            tried.codes.append((trio.current_time(), code))
            tries += code in UNKNOWN
            unsure |= code in UNKNOWN
            if code in FINAL or tries == TRIES or (not unsure and self.random.random() < GIVES_UP):
                tried.ended("unknown" if tries == TRIES else "refused")
                return
            assert unsure or said["retryable"], said
            await trio.sleep(said.get("retry_after_ms", RETRY_MS) / 1000)
