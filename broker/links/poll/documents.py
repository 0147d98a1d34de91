"""The documents that a session of polls follows, by the messages of its connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from broker.links.poll.messages import Followed
from broker.wire.following import BOTH, Following, composed, taken_apart

if TYPE_CHECKING:
    from broker.links.poll.messages import Gathered, Message, Poll
    from broker.wire import messages, sse


@attrs.define(eq=False)
class Documents:
    """What is open for the newest poll. No I/O."""

    following: Following | None = None
    opened: set[str] = attrs.Factory(set)  # those of its channels that are open
    told: str = ""  # the place that the newest answer had

    @property
    def unready(self) -> bool:
        """Whether some have not come yet."""
        return self.following is not None and not self.following.ready

    def composed(self, events: str | None) -> str | None:
        """Return the position for the client: of the events, or where it follows documents of both."""
        return events if self.following is None else composed(events, self.told)

    # --- what a poll asks for ------------------------------------------------------------------------

    def stands(self, poll: Poll, stood: str | None, *, known: bool, lost: bool) -> str | None:
        """Return where a client stands: None if it has no documents, "" if it has some, unknown which.

        `stood` is where it says, `known` whether it has polled in this session before, and `lost` whether it
        lacks the newest answer.
        """
        if stood is not None:
            return stood
        if self.following is not None:
            return "" if lost else self.told
        return None if known or poll.session is None or poll.position is not None else ""

    def tune(
        self, poll: Poll, stands: str | None, rights: messages.Authenticated, *, lost: bool
    ) -> list[tuple[str, dict[str, Any]]]:
        """Return the messages that open what a poll asks for and close the rest; none if that is so already.

        What has come before them does not count any more.
        """
        before, self.following = self.following, None
        if poll.state is not None:
            self.following = Following(poll.state, poll.state_every_ms, rights, stands)
            if before and before.as_asked(self.following) and stands == self.told and not lost:
                self.following = before
                return []
        wanted = set() if self.following is None else self.following.channels
        found = [("state.close", {"channel": gone})] if (gone := sorted(self.opened - wanted)) else []
        self.opened &= wanted
        self.taken()
        return found if self.following is None else [*found, ("state.open", self.following.wish)]

    # --- what comes of it ----------------------------------------------------------------------------

    def hear(self, message: Message, said: sse.Payload, gathered: Gathered) -> None:
        following = self.following
        if following is None:
            return
        match message.type:
            case "state":
                gathered.documents.append(message.payload)
                if following.ready:
                    following.position = said.position or ""
            case "state.opened":
                gathered.forget_documents()
                gathered.documents_recovered = bool(said.recovered)
                gathered.refused += message.field("refused")
                self.opened = set(message.field("channel"))
                following.opened(recovered=bool(said.recovered), partial=bool(said.refused))
            case "state.ready":
                following.told(said.position)
            case "state.closed" if message.message_id is None:
                closed = message.field("channel")
                self.opened.difference_update(closed if isinstance(closed, list) else [closed])
                gathered.refused.append({"channel": closed, "code": message.field("code")})

    def taken(self) -> None:
        """Note that the client stands where all that has come so far leads to."""
        self.told = "" if self.following is None else self.following.place

    def answer(self, gathered: Gathered) -> Followed | None:
        """Return what an answer says; None if its poll asks for no documents."""
        if self.following is None:
            return None
        return Followed(
            documents=gathered.documents,
            recovered=gathered.documents_recovered,
            ready=self.following.ready,
        )


def events_alone(position: str | None) -> tuple[str | None, str | None]:
    """Return the position in the events, and where a client stands in documents, if it has any."""
    if position is None or BOTH not in position:
        return position, None
    events, documents = taken_apart(position)
    return events or None, documents
