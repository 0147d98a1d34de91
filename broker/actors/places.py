"""The places of a user: who has one, and who gives it up for another connection.

There are `limits.connections_per_user`, counted by the user's budget. A newcomer that finds none is not
refused before those that have been silent for a moment were asked whether they are still there: a browser
that lost its network leaves connections behind, which would keep it out until a heartbeat notices. One round
of questions at a time is asked for a user, in the task of the first newcomer; others that come meanwhile
share what it finds. Long polls need a place only while somebody polls.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Protocol

import attrs
import trio

from broker import limits
from broker.actors.boundary import Boundary
from broker.limits import CONNECTIONS

if TYPE_CHECKING:
    from broker.actors.budgets import Budgets
    from broker.actors.transport import LinkState, Transport
    from broker.limits import Budget
    from broker.permissions import Principal
    from broker.session.session import Session

ANSWER_SECONDS = 2.0  # for an answer, beside what the way there and back takes; so long nobody is silent
ROUND_TRIP_SECONDS = 1.5  # at most that are believed of a link: queues on its way make it seem longer
LOOK_SECONDS = 0.05
MOST_ASKED = 64  # in one round: the longest silent of a user who may have very many


class Holder(Protocol):
    """A connection as one that has a place, or wants one.

    `spoke`: when anything last came from its client. `busy`: a message of the client is being dealt with.
    `unsent`: its link has not taken all yet. `resting`: it has given up its place for now.
    """

    transport: Transport
    session: Session
    spoke: float
    busy: bool
    closing: bool
    resting: bool

    @property
    def unsent(self) -> bool: ...

    def held_back(self, since: float) -> bool:
        """Return whether it is us who keep what is unsent from the client."""

    def ask(self) -> None:
        """Ask the client for a sign of life."""

    def give_up_place(self) -> None:
        """Rest, or end: nobody seems to be there."""

    def end_rest(self) -> None:
        """End: more of them rest than may."""

    def spend_from(self, budgets: tuple[Budget, ...]) -> None:
        """Note what it is limited by from now on."""

    def crashed(self, error: Exception) -> None: ...


@attrs.define(eq=False)
class Question:
    """Whether the client of `asked` is still there; `look` says what is known.

    What waits in front of the question on a slow link delays the answer. So its time begins anew with each
    acknowledgement of the client's side while the question is on its way, and whoever still sends them after
    twice the time is alive, unless it is one that cannot answer: that has to have taken something.
    """

    asked: Holder
    at: float
    spoke: float
    before: LinkState
    end: float = inf  # of the question among the bytes that were sent; not known while it waits in here
    acknowledged: int = attrs.field(init=False)
    moved: float = attrs.field(init=False)  # when the link last took something on the way to `end`

    def __attrs_post_init__(self) -> None:
        self.acknowledged, self.moved = self.before.acknowledged, self.at

    def look(self, now: float) -> bool | None:
        """True: it is. False: it is not. None: it has time yet."""
        connection = self.asked
        state = connection.transport.state()
        heard = connection.busy or connection.spoke != self.spoke or state.received > self.before.received
        if heard or connection.closing or connection.held_back(self.at):
            return True
        moved = state.acknowledged > self.before.acknowledged
        if not connection.transport.answers and (moved or not state.known):
            return True
        if self.acknowledged < self.end and (
            state.acknowledged > self.acknowledged or state.silence < now - self.at or state.full
        ):
            self.moved = now
        self.acknowledged = state.acknowledged
        if self.end == inf and not connection.unsent:
            self.end = state.acknowledged + state.pending
        patience = ANSWER_SECONDS + 2 * min(state.round_trip, ROUND_TRIP_SECONDS)
        if self.acknowledged < self.end and self.moved > self.at and now >= self.at + 2 * patience:
            return connection.transport.answers
        return None if now < self.moved + patience else False


@attrs.define(eq=False)
class Round:
    """`dead` are those who did not answer, the longest silent first, once it is over."""

    over: trio.Event = attrs.Factory(trio.Event)
    dead: list[Question] = attrs.Factory(list)


@attrs.define(eq=False)
class Places:
    """Gives and takes the places of all users."""

    budgets: Budgets
    rounds: dict[Budget, Round] = attrs.Factory(dict)

    async def claim(self, connection: Holder, principal: Principal) -> None:
        """Makes a connection one of its user's. Raises `TooManyConnections` and `TooManyConnects`."""
        user = self.budgets.share((principal.tenant, principal.user))
        await self.room(user)
        if not connection.closing:
            now = trio.current_time()
            connection.spend_from(self.budgets.claim(connection.session.budgets, principal, now))
            user.holders = (*user.holders, connection)

    async def come_back(self, connection: Holder) -> None:
        """Gives one that rested its place again. Raises `TooManyConnections`."""
        user = user_of(connection)
        if user is None or not connection.resting:
            return
        await self.room(user)
        if not connection.closing:
            if excess := limits.acquire((user,), CONNECTIONS):
                raise self.budgets.refusal(excess)
            connection.resting = False

    def rest(self, connection: Holder) -> None:
        """Takes the place of one that needs none for now.

        Of more that rest than a user may have connections, the one that was silent longest ends.
        """
        user = user_of(connection)
        if user is None or connection.resting or connection.closing:
            return
        limits.hold((user,), CONNECTIONS, -1)
        connection.resting = True
        resting = [each for each in user.holders if each.resting and not each.closing]
        if len(resting) > user.bounds.held[CONNECTIONS]:
            min(resting, key=since).end_rest()

    def leave(self, connection: Holder) -> None:
        """Takes leave of one that ends; what it holds in its budgets is given back as of all others."""
        user = user_of(connection)
        if user is not None:
            user.holders = tuple(each for each in user.holders if each is not connection)
            if connection.resting:
                limits.hold((user,), CONNECTIONS, 1)

    async def room(self, user: Budget) -> None:
        """Makes room for one more, if that can be; then there is no pause until it is taken."""
        while not user.room(CONNECTIONS) and await self.freed(user):
            pass

    async def freed(self, user: Budget) -> bool:
        """Whether one of a user's connections turned out to be dead, and has given up its place."""
        found = self.rounds.get(user)
        if found is None:
            found = self.rounds[user] = Round()
            try:
                found.dead = await ask(user)
            finally:
                del self.rounds[user]
                found.over.set()
        else:
            await found.over.wait()
        while found.dead:
            question = found.dead.pop(0)
            connection = question.asked
            if not (connection.closing or connection.resting or connection.spoke != question.spoke):
                connection.give_up_place()
                return True
        return False


async def ask(user: Budget) -> list[Question]:
    """Asks those of a user who have been silent for a moment; the questions that got no answer."""
    now = trio.current_time()
    waiting = [each for each in user.holders if not (each.resting or each.closing or each.busy)]
    silent = sorted((each for each in waiting if each.spoke <= now - ANSWER_SECONDS), key=since)
    questions = []
    for connection in silent[:MOST_ASKED]:
        with Boundary(connection):
            questions.append(Question(connection, now, connection.spoke, connection.transport.state()))
            connection.ask()
    dead: list[Question] = []
    while questions:
        await trio.sleep(LOOK_SECONDS)
        open_yet: list[Question] = []
        for question in questions:
            with Boundary(question.asked):
                alive = question.look(trio.current_time())
                if alive is not True:
                    (open_yet if alive is None else dead).append(question)
        questions = open_yet
    return sorted(dead, key=lambda each: each.spoke)


def since(connection: Holder) -> float:
    return connection.spoke


def user_of(connection: Holder) -> Budget | None:
    """The budget that its place is in; None before there is a token."""
    return next((each for each in connection.session.budgets if each.bounds.scope == limits.USER), None)
