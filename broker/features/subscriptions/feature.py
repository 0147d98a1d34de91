"""The requests `subscribe` and `unsubscribe`, and the effect of a changed token on subscriptions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.errors import Forbidden, Unavailable
from broker.features.port import Feature
from broker.features.subscriptions.joining import Joiner
from broker.features.subscriptions.wishes import Join, Leave, check_subscribe, check_unsubscribe
from broker.session.requests import Request
from broker.wire import messages as m

if TYPE_CHECKING:
    from broker.features.subscriptions.joining import Durables, Sources
    from broker.session.requests import Caller, Requests


class Subscriptions(Feature):
    """Begins and ends subscriptions.

    `sources` resolve starts; `durables` keeps the cursors for starts under a durable name.
    """

    adds = ("filter", "every_ms")

    def __init__(self, sources: Sources, durables: Durables) -> None:
        self.sources = sources
        self.durables = durables

    def requests(self) -> Requests:
        return (
            Request(
                message=m.Subscribe,
                check=check_subscribe,
                perform=self.subscribe,
                replies=(m.Subscribed, m.Gap),
            ),
            Request(
                message=m.Unsubscribe,
                check=check_unsubscribe,
                perform=self.unsubscribe,
                replies=(m.Unsubscribed,),
                unasked=True,
            ),
        )

    async def subscribe(self, caller: Caller, wish: Join, message_id: str | None) -> None:
        """Begin subscriptions. Raise what `Joiner.join` raises, with nothing changed."""
        try:
            await self.join(caller, wish, message_id)
        finally:
            if not caller.closing:  # otherwise it holds nothing any more
                caller.session.recount()

    async def join(self, caller: Caller, wish: Join, message_id: str | None) -> None:
        if wish.durable is not None:
            self.durables.check_free(caller, wish.durable)
        principal, log = caller.attach(), caller.flow.log
        if log is None:
            raise Unavailable("the broker has not reached NATS yet", retry_after=1.0)
        for message in await Joiner(self.sources, self.durables, principal, caller, log, wish).join():
            caller.tell(message, message_id)
        for refused in wish.refused:
            caller.note_refusal(code=refused.code, message=refused.message, channel=refused.channel)
        caller.fell_behind()

    async def unsubscribe(self, caller: Caller, wish: Leave, _: str | None) -> m.Unsubscribed:
        for pattern in wish.patterns:
            caller.flow.leave(pattern)
        self.durables.left(caller)
        caller.session.recount()
        return m.Unsubscribed(channel=wish.channel)

    def rights_changed(self, caller: Caller) -> None:
        """End subscriptions that are no longer allowed, and leave out channels that are now denied."""
        principal, flow = caller.session.client(), caller.flow
        for pattern, deny in dict(flow.subscriptions()).items():
            try:
                denied = principal.check_subscribe(pattern)
            except Forbidden as error:
                flow.leave(pattern)
                self.durables.left(caller)
                caller.tell(m.Unsubscribed(channel=pattern, code=error.code))
                continue
            if denied != deny:
                flow.retune(pattern, denied)
        caller.session.recount()
