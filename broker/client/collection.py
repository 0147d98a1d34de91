"""Documents as applications have them: one, or all of a pattern.

::

    async with session.document("orders.7") as order:
        order.change({"amount": 5})
        await order.saved()
        async for news in order:
            match news:
                case DocumentChanged():
                    show(order.value)
                case DocumentConflict():
                    news.keep("mine" if ask(news.mine, news.theirs) else "theirs")
                case DocumentRejected():
                    print(news.error)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import attrs

from broker import subjects
from broker.client import checks, flags
from broker.client.items import DocumentChanged, DocumentConflict, DocumentLost, DocumentRejected
from broker.documents.judging import OUT
from broker.documents.patches import pointer
from broker.errors import InvalidChannel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from collections.abc import Collection as Some
    from types import TracebackType
    from typing import Self

    from broker.client.documents import Documents
    from broker.client.draft import Draft, Wish
    from broker.client.flags import Flag, Host
    from broker.client.items import News, Payload
    from broker.documents.judging import Left
    from broker.errors import BrokerError

MOST_NEWS = 1000  # that are kept for who does not iterate: the newest


@attrs.define(eq=False)
class Saving:
    """A task that waits until all is saved, and the refusal that it hears of."""

    error: BrokerError | None = None


@attrs.define(eq=False)
class Opened(ABC):
    """What a document and a collection have in common: they are open, and what becomes of changes is told.

    `state` is `pending` until all has come that there is, then `live`; `closed` for good, with `error` if
    the broker or the session has ended it.
    """

    host: Host = attrs.field(repr=False)
    documents: Documents = attrs.field(repr=False)
    name: str
    state: Literal["pending", "live", "closed"] = attrs.field(init=False, default="pending")
    error: BrokerError | None = attrs.field(init=False, default=None)
    drafts: dict[str, Draft] = attrs.field(init=False, factory=dict, repr=False)
    told: deque[News] = attrs.field(init=False, factory=lambda: deque(maxlen=MOST_NEWS), repr=False)
    changed: dict[str, None] = attrs.field(init=False, factory=dict, repr=False)  # channels, to be told
    untold: BrokerError | None = attrs.field(init=False, default=None, repr=False)  # the last refusal
    savings: set[Saving] = attrs.field(init=False, factory=set, repr=False)
    waiting: set[Flag] = attrs.field(init=False, factory=set, repr=False)

    # --- the application's side --------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        try:
            await self.opened()
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                await self.saved()
        finally:
            self.close()

    async def opened(self) -> None:
        """Return once all has come that there is. Raises the `BrokerError` that came instead."""
        await self.until(lambda: self.state != "pending")
        if self.error:
            raise self.error

    async def saved(self) -> None:
        """Return once all changes that were made here are stored.

        Raises the `BrokerError` by which one was refused, unless it was told before by this or by iteration:
        `Conflict`, `Rejected`, `Forbidden`, `UnknownOutcome` when that stayed unknown over several tries, and
        others as the broker answers; `SessionEnded`.
        """
        saving = Saving(self.untold)
        self.untold = None
        self.savings.add(saving)
        try:
            await self.until(lambda: bool(saving.error or not self.unsaved or self.hopeless))
        finally:
            self.savings.discard(saving)
        if error := saving.error or (self.unsaved and self.hopeless):
            raise error

    @property
    def unsaved(self) -> bool:
        """Whether changes that were made here have no answer of the broker."""
        return any(each.unsaved for each in self.drafts.values())

    @property
    def hopeless(self) -> BrokerError | None:
        """Why what is unsaved will have no answer."""
        waits = any(each.early for each in self.drafts.values())
        return self.documents.over or (self.error if waits else None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> News:
        await self.host.say()
        await self.until(lambda: bool(self.told or self.changed or self.state == "closed"))
        if self.told:
            news = self.told.popleft()
            if isinstance(news, DocumentConflict | DocumentRejected) and news.error is self.untold:
                self.untold = None
            return news
        if self.changed:
            channel = next(iter(self.changed))
            del self.changed[channel]
            return DocumentChanged(
                channel=channel, value=self.value_of(channel), invalid=self.invalid_of(channel)
            )
        if self.error:
            raise self.error
        raise StopAsyncIteration

    def close(self) -> None:
        """Leave it. Changes that are unsaved are sent all the same, while the session runs."""
        if self.state != "closed":
            self.state = "closed"
        self.documents.close(self)
        self.happened()
        self.host.wake()

    # --- what is heard -----------------------------------------------------------------------------

    @abstractmethod
    def value_of(self, channel: str) -> Payload | None: ...

    @abstractmethod
    def invalid_of(self, channel: str) -> str | None: ...

    @abstractmethod
    def heard(self, channel: str, value: Any, invalid: str | None) -> None: ...

    def ready(self) -> None:
        if self.state == "pending":
            self.state = "live"
        self.happened()

    def failed(self, error: BrokerError) -> None:
        if self.state != "closed":
            self.error, self.state = error, "closed"
        self.happened()

    def shown(self, channel: str) -> None:
        self.changed[channel] = None
        self.happened()

    def refused(self, channel: str, error: BrokerError, mine: Wish, theirs: Mapping[str, Any] | None) -> None:
        add = {pointer(path): amount for path, amount in mine.add.items()}
        patch = None if mine.patch is OUT else mine.patch
        if theirs:
            again = partial(self.edit, channel, mine.patch, add)
            self.told.append(
                DocumentConflict(channel=channel, mine=patch, add=add, theirs=theirs, error=error, edit=again)
            )
        else:
            self.told.append(DocumentRejected(channel=channel, mine=patch, add=add, error=error))
        for saving in self.savings:
            saving.error = saving.error or error
        if not self.savings:
            self.untold = error
        self.happened()

    def lost(self, channel: str, ids: Some[str], revision: str, paths: Mapping[str, Any]) -> None:
        self.told.append(DocumentLost(channel=channel, ids=tuple(ids), revision=revision, paths=paths))
        self.happened()

    def edit(self, channel: str, patch: Any, add: Mapping[str, float] | None) -> None:
        if self.state == "closed":
            raise self.error or RuntimeError(f"{self.name}: it was closed")
        wish = checks.wish_of(patch, add)
        draft = self.drafts[channel] = self.documents.edit(channel, self)
        draft.change(*wish)
        self.documents.changes.show(self.documents.full(channel))
        self.host.wake()

    def happened(self) -> None:
        """Wake who waits for anything here."""
        for flag in self.waiting:
            flag.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        await flags.until(self.host, self.waiting, condition)


@attrs.define(eq=False)
class Document(Opened):
    """A document, with one's own changes over what the broker has confirmed.

    Iterate to hear what becomes of it: `DocumentChanged`, `DocumentConflict`, `DocumentRejected` and
    `DocumentLost`. Several changes of the value may be told as one. Values are not to be modified: `change`
    them.
    """

    draft: Draft = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self.draft = self.drafts[self.name] = self.documents.edit(self.name, self)
        self.documents.open(self)
        self.host.wake()

    @property
    def value(self) -> Payload | None:
        """The document with one's own changes; None: there is none, or it has not come yet."""
        value: Payload | None = self.draft.value
        return value

    @property
    def confirmed(self) -> Payload | None:
        """The document as it is stored."""
        confirmed: Payload | None = self.draft.confirmed
        return confirmed

    @property
    def revision(self) -> str | None:
        """The position at which `confirmed` was stored."""
        return self.draft.revision

    @property
    def invalid(self) -> str | None:
        """Why what a service has stored there is no document. Then changes are refused."""
        return self.draft.invalid

    @property
    def pending(self) -> int:
        """How many changes are not in `confirmed`."""
        return self.draft.pending

    def change(
        self, patch: Mapping[str, Any] | Left | None = OUT, *, add: Mapping[str, float] | None = None
    ) -> None:
        """Change it by a merge patch (RFC 7396), at once as it is shown; None deletes it.

        `add` is added to numbers, by JSON Pointer to a member (`{"/stock": -1}`), whatever others make of
        them; such a change goes by itself, and is in conflict as a whole. The change is sent as soon as the
        connection and the limits allow, and again until the broker has answered. Raises `TypeError`,
        `ValueError` or `BadMessage` for what no document can hold.
        """
        self.edit(self.name, patch, add)

    def value_of(self, channel: str) -> Payload | None:  # noqa: ARG002  there is one
        return self.value

    def invalid_of(self, channel: str) -> str | None:  # noqa: ARG002  there is one
        return self.invalid

    def heard(self, channel: str, value: Any, invalid: str | None) -> None:  # noqa: ARG002  the draft has it
        self.shown(channel)


@attrs.define(eq=False)
class Collection(Opened):
    """All documents of a pattern. Iterate as over a `Document`."""

    rows: dict[str, Any] = attrs.field(init=False, factory=dict, repr=False)
    reasons: dict[str, str] = attrs.field(init=False, factory=dict, repr=False)

    def __attrs_post_init__(self) -> None:
        self.documents.open(self)
        self.host.wake()

    @property
    def all(self) -> Mapping[str, Payload]:
        """The documents by channel, with one's own changes, as they are at any time."""
        return MappingProxyType(self.rows)

    @property
    def invalid(self) -> Mapping[str, str]:
        """Why what services have stored is no document, by channel, at any time."""
        return MappingProxyType(self.reasons)

    def change(
        self,
        channel: str,
        patch: Mapping[str, Any] | Left | None = OUT,
        *,
        add: Mapping[str, float] | None = None,
    ) -> None:
        """Change one of them, or make one, as `Document.change` does."""
        checks.check_document(channel)
        if not subjects.covers(self.documents.full(self.name), self.documents.full(channel)):
            raise InvalidChannel(f"{channel}: not within {self.name}")
        self.edit(channel, patch, add)

    def value_of(self, channel: str) -> Payload | None:
        value: Payload | None = self.rows.get(channel)
        return value

    def invalid_of(self, channel: str) -> str | None:
        return self.reasons.get(channel)

    def heard(self, channel: str, value: Any, invalid: str | None) -> None:
        if invalid:
            self.reasons[channel] = invalid
        else:
            self.reasons.pop(channel, None)
        draft = self.documents.changes.draft(channel)
        self.put(channel, draft.value if draft else value)

    def shown(self, channel: str) -> None:
        if draft := self.documents.changes.draft(channel):
            self.put(channel, draft.value)

    def put(self, channel: str, value: Any) -> None:
        if value is None:
            self.rows.pop(channel, None)
        else:
            self.rows[channel] = value
        super().shown(channel)
