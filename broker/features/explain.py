"""Explains why a token may or may not use a channel: subscribe or publish to it, or change a document.
Each decision is a step.

Nothing is decided here. The token is checked by the verifier that admits clients, the channel by the
principal that decides on requests; this module reports their findings, without the token or a secret.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from broker import subjects
from broker.auth.tokens import STEPS
from broker.errors import BrokerError, InvalidChannel, Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from broker.auth.tokens import Verifier
    from broker.bus.base import StreamState
    from broker.config import Limits
    from broker.permissions import Principal, Verdict

SHOWN_PATTERNS = 16


@attrs.frozen(kw_only=True)
class Step:
    """One check. `ok` is None where it decides nothing."""

    step: str
    ok: bool | None
    detail: str


@attrs.frozen(kw_only=True)
class Question:
    """May this token subscribe to the channel, or, with `publish`, publish to it, with `change`, change it?

    `channel` is a channel or pattern as a client writes it; `tenant` the one requested beside the token.
    """

    token: str = attrs.field(repr=False)
    channel: str
    tenant: str | None = None
    publish: bool = False
    change: bool = False


@attrs.frozen(kw_only=True)
class Explanation:
    """The answer, and every step up to it; a step that rules out everything else is the last."""

    allowed: bool
    steps: tuple[Step, ...]


@attrs.frozen(kw_only=True)
class Held:
    """The state of the stream, and the number and oldest sequence of the messages on a channel's subjects."""

    state: StreamState
    count: int
    oldest: int | None


async def explain(
    question: Question,
    *,
    verifier: Verifier,
    admit: Callable[[Principal], None],
    names: subjects.Names,
    limits: Limits,
    held: Callable[[str], Awaitable[Held]],
    now: float,
) -> Explanation:
    """Return everything that would happen to a client with this token, at the Unix time `now`.

    `admit` raises `TokenRevoked` for a banned client. `held` reports on a subject filter of the stream, and
    may raise `Unavailable`.
    """
    steps, principal = await token_steps(question, verifier, now)
    if principal is None:
        return Explanation(allowed=False, steps=tuple(steps))
    try:
        admit(principal)
    except BrokerError as error:
        steps.append(Step(step="revocation", ok=False, detail=error.message))
        return Explanation(allowed=False, steps=tuple(steps))
    steps.append(
        Step(step="revocation", ok=True, detail="neither the token nor its user or tenant is banned")
    )
    try:
        channel = subjects.parse_pattern(subjects.expand_me(question.channel, principal.encoded_user))
    except InvalidChannel as error:
        steps.append(Step(step="channel", ok=False, detail=error.message))
        return Explanation(allowed=False, steps=tuple(steps))
    subscribing, publishing = subscribe_step(principal, channel), publish_step(principal, channel)
    changing = change_step(principal, channel)
    steps += [channel_step(question.channel, channel, principal), subscribing, publishing, changing]
    steps += [
        subject_step(principal, channel, names),
        await start_step(principal, channel, names, limits, held),
    ]
    steps.append(limit_step(limits))
    wanted = changing if question.change else publishing if question.publish else subscribing
    return Explanation(allowed=bool(wanted.ok), steps=tuple(steps))


async def token_steps(
    question: Question, verifier: Verifier, now: float
) -> tuple[list[Step], Principal | None]:
    """Return the findings of the verifier, and the principal if the token is valid."""
    found: dict[str, str] = {}
    principal, refusal = None, None
    try:
        principal = await verifier.verify(
            question.token, now=now, tenant=question.tenant, passed=found.__setitem__
        )
    except BrokerError as error:
        refusal = error.message
    steps = [Step(step=name, ok=True, detail=found[name]) for name in STEPS if name in found]
    if refusal is not None:
        failed = next(name for name in STEPS if name not in found)
        steps.append(Step(step=failed, ok=False, detail=refusal))
    return steps, principal


def channel_step(text: str, channel: str, principal: Principal) -> Step:
    stands = channel if text == channel else f"{text} stands for {channel}"
    return Step(step="channel", ok=True, detail=f"{stands}; private channels begin with {principal.private}.")


def subscribe_step(principal: Principal, pattern: str) -> Step:
    verdict = principal.subscribing(pattern)
    detail = reason(verdict, pattern)
    if verdict.allowed and verdict.left_out:
        detail += f"; denied and left out of it: {', '.join(verdict.left_out)}"
    return Step(step="subscribe", ok=verdict.allowed, detail=detail)


def publish_step(principal: Principal, channel: str) -> Step:
    return writing_step("publish", principal, channel, principal.publishing, principal.check_publish)


def change_step(principal: Principal, channel: str) -> Step:
    return writing_step("change", principal, channel, principal.changing, principal.check_change)


def writing_step(
    name: str,
    principal: Principal,
    channel: str,
    weigh: Callable[[str], Verdict],
    check: Callable[[str], None],
) -> Step:
    try:
        subjects.parse_channel(channel)
        check(channel)
    except InvalidChannel as error:
        return Step(step=name, ok=False, detail=error.message)
    except BrokerError as error:
        plain = error.message if principal.monitoring else reason(weigh(channel), channel)
        return Step(step=name, ok=False, detail=plain)
    return Step(step=name, ok=True, detail=reason(weigh(channel), channel))


def reason(verdict: Verdict, pattern: str) -> str:
    """Return the pattern that decides; if none does, the nearest one."""
    if verdict.within is None:
        near = max(verdict.allowing, key=lambda allowed: common(allowed, pattern), default=None)
        hint = f"; the nearest is {near}" if near and common(near, pattern) else ""
        more = ", …" if len(verdict.allowing) > SHOWN_PATTERNS else ""
        allowed = ", ".join(verdict.allowing[:SHOWN_PATTERNS]) + more or "there is none"
        return f"within no allowed pattern ({allowed}){hint}"
    if verdict.denied is not None:
        return f"within the allowed {verdict.within}, but denied as a whole by {verdict.denied}"
    return f"within the allowed {verdict.within}"


def common(one: str, other: str) -> int:
    """Return how far two patterns agree from the beginning: two for an equal token, one for a wildcard."""
    count = 0
    for a, b in zip(one.split("."), other.split("."), strict=False):
        if a != b and not {a, b} & {"*", ">"}:
            break
        count += 2 if a == b else 1
    return count


def subject_step(principal: Principal, channel: str, names: subjects.Names) -> Step:
    own, live = names.subject(principal.tenant, channel), subjects.is_live(channel)
    everybody = names.subject(subjects.BROADCAST, channel)
    private = f".{channel}".startswith((".users.", ".live.users."))
    kept = "live: plain NATS, never kept" if live else "stored: kept in the stream, replayable"
    where = own if private else f"{own} and, for every tenant, {everybody}"
    return Step(step="subject", ok=None, detail=f"{kept}; published under {where}")


async def start_step(
    principal: Principal,
    channel: str,
    names: subjects.Names,
    limits: Limits,
    held: Callable[[str], Awaitable[Held]],
) -> Step:
    if subjects.is_live(channel):
        return Step(step="starts", ok=None, detail="from now only: live channels have no history")
    try:
        found = await held(names.subject(principal.tenant, channel))
    except Unavailable as error:
        return Step(step="starts", ok=None, detail=f"not known: {error.message}")
    state, most = found.state, limits.last_events
    matching = "none is kept under the tenant's own subject"
    if found.oldest is not None:
        # "At most": in NATS a wildcard matches private channels too, and not every message is an event.
        matching = f"at most {found.count} kept, the oldest at {state.incarnation}-{found.oldest}"
    return Step(
        step="starts",
        ok=None,
        detail=f"position {state.incarnation}-{state.first - 1} to {state.incarnation}-{state.last}, since, "
        f"last up to {most}, snapshot up to {limits.snapshot_channels} channels, durable; {matching}",
    )


def limit_step(limits: Limits) -> Step:
    return Step(
        step="limits",
        ok=None,
        detail=f"{limits.connections_per_user} connections of a user, "
        f"{limits.subscriptions_per_connection} subscriptions of each, "
        f"{limits.messages_per_minute:g} publications of a user a minute, {limits.messages_burst:g} at once, "
        f"{limits.publish_bytes} bytes each",
    )
