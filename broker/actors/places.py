"""The places of a user: which connections have one, and which gives it up for another.

A user has `limits.connections_per_user` places, counted by its budget. A new connection that finds none free
is not refused until those that have been silent for a moment have been asked for a sign of life: a browser
that lost its network leaves connections behind, which would keep it out until a heartbeat notices. There is
one round of questions at a time for a user, in the task of the first new connection; others that arrive
meanwhile share its result. Long polls need a place only while a poll is open.
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

ANSWER_SECONDS = 2.0  # for an answer, besides the round trip; less than this does not count as silent
ROUND_TRIP_SECONDS = 1.5  # at most, since queues make the measured round trip longer
LOOK_SECONDS = 0.05
MOST_ASKED = 64  # in one round, the longest silent first


class Holder(Protocol):
    """A connection that has a place or wants one.

    `spoke`: when the client last sent anything. `busy`: a message of the client is being processed. `unsent`:
    its link has not accepted everything yet. `resting`: it has given up its place for now.
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
        """Return whether it is the broker that holds back what is unsent."""

    def ask(self) -> None:
        """Ask the client for a sign of life."""

    def give_up_place(self) -> None:
        """Rest, or end, since the client seems to be gone."""

    def end_rest(self) -> None:
        """End, since too many connections rest."""

    def spend_from(self, budgets: tuple[Budget, ...]) -> None:
        """Use these budgets from now on."""

    def crashed(self, error: Exception) -> None: ...


@attrs.define(eq=False)
class Question:
    """A question whether the client of `asked` is still there; `look` evaluates what is known.

    Data queued ahead of the question on a slow link delays the answer. So its time starts anew with each
    acknowledgement by the peer while the question is on its way. A peer that still acknowledges after twice
    the time counts as alive, unless it cannot answer: then it must have acknowledged something new.
    """

    asked: Holder
    at: float
    spoke: float
    before: LinkState
    end: float = inf  # of the question in the bytes sent; unknown while it has not been sent
    acknowledged: int = attrs.field(init=False)
    moved: float = attrs.field(init=False)  # the last progress towards `end`

    def __attrs_post_init__(self) -> None:
        self.acknowledged, self.moved = self.before.acknowledged, self.at

    def look(self, now: float) -> bool | None:
        """Return True if the client is there, False if it is not, None while it has time left."""
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
    """A round of questions. `dead`, once it is `over`: those without an answer, longest silent first."""

    over: trio.Event = attrs.Factory(trio.Event)
    dead: list[Question] = attrs.Factory(list)


@attrs.define(eq=False)
class Places:
    """Assigns and releases the places of all users."""

    budgets: Budgets
    rounds: dict[Budget, Round] = attrs.Factory(dict)

    async def claim(self, connection: Holder, principal: Principal) -> None:
        """Give a connection a place of its user. Raises `TooManyConnections` and `TooManyConnects`."""
        user = self.budgets.share((principal.tenant, principal.user))
        await self.make_room(user)
        if not connection.closing:
            now = trio.current_time()
            connection.spend_from(self.budgets.claim(connection.session.budgets, principal, now))
            user.holders = (*user.holders, connection)

    async def come_back(self, connection: Holder) -> None:
        """Give a resting connection a place again. Raises `TooManyConnections`."""
        user = user_of(connection)
        if user is None or not connection.resting:
            return
        await self.make_room(user)
        if not connection.closing:
            if excess := limits.acquire((user,), CONNECTIONS):
                raise self.budgets.refusal(excess)
            connection.resting = False

    def rest(self, connection: Holder) -> None:
        """Take the place of a connection that needs none for now.

        If more connections rest than a user may have, the longest silent one ends.
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
        """Remove a connection that ends; what it holds in its budgets is given back elsewhere."""
        user = user_of(connection)
        if user is not None:
            user.holders = tuple(each for each in user.holders if each is not connection)
            if connection.resting:
                limits.hold((user,), CONNECTIONS, 1)

    async def make_room(self, user: Budget) -> None:
        """Free a place if possible; there is no checkpoint between this and taking it."""
        while not user.has_room(CONNECTIONS) and await self.freed(user):
            pass

    async def freed(self, user: Budget) -> bool:
        """Return whether a connection of the user turned out to be dead and has given up its place."""
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
    """Ask the connections of a user that have been silent for a moment; return the unanswered questions."""
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
    """Return the user's budget, which has the connection's place; None before there is a token."""
    return next((each for each in connection.session.budgets if each.bounds.scope == limits.USER), None)
