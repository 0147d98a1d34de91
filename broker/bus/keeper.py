"""Make the broker's own streams, and leave those of others alone.

A stream that the broker made is *ours*: its metadata has a mark (its name and creation time), and the control
bucket has the same pair, with the settings as we last left them. Any edit without metadata wipes the mark
(Terraform, NACK, `nats stream edit --config`); it is restored where the bucket knows the pair. A stream that
is not ours is checked and never changed, until an operator has it adopted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import msgspec
import structlog

from broker.bus import api, terms
from broker.bus.api import STREAM_NOT_FOUND, ApiError, JetStream
from broker.bus.base import Change, Stale, Standing
from broker.errors import NotFound, Unavailable
from broker.nats.link import NotPermitted, away
from broker.subjects import digest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from broker.bus.streams import Wanted
    from broker.bus.values import Values

log = structlog.get_logger("broker.bus")

MARK = "broker_stream"  # the key in the metadata
RECORDS = "owned"  # what the keys of the control bucket begin with
NAME_TAKEN = 10058  # the server's `err_code`s: by a stream with another configuration,
SUBJECTS_TAKEN = 10065  # and by another stream
TRIES = 5  # against other brokers that do the same
REMEMBERED = 16  # versions of our settings that an operator agreed to


@attrs.frozen(kw_only=True)
class Memory:
    """What the control bucket knows of a stream of ours.

    It is ours while its creation time is `created`. `left` are its settings when they last were as we wanted,
    `agreed` the versions of our settings that an operator has consented to.
    """

    created: str
    left: dict[str, Any] = attrs.Factory(dict)
    agreed: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Held:
    """A stream as it is, and what is known of it."""

    info: Mapping[str, Any]
    ours: bool
    marked: bool | None  # True: the whole mark; False: half of it; None: no mark
    memory: Memory
    revision: int

    @property
    def config(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.info["config"]
        return found


@attrs.define(eq=False, kw_only=True)
class Keeper:
    """`wanted` are all streams that the broker works with, by name; `control` is the control bucket.

    In the broker's own nats-server (`embedded`) every stream is ours. `adopted` are the names of those that
    the configuration says to adopt.
    """

    jetstream: JetStream
    control: Values
    wanted: Mapping[str, Wanted]
    embedded: bool = False
    adopted: frozenset[str] = frozenset()
    arranged: dict[str, str] = attrs.Factory(dict)  # name → created, of ours, once they are as configured
    said: dict[str, object] = attrs.Factory(dict)  # by name, so that each is logged once
    failed: dict[tuple[str, str], str] = attrs.Factory(dict)  # the last refusal, by log event and name
    forbidden: set[str] = attrs.Factory(set)  # names of those that our login may not change
    kept: dict[str, object] = attrs.Factory(dict)  # name → the stream as `keep` last found it in order

    async def ensure(self, name: str) -> None:
        """Make the stream when it is missing; update one of ours to the configuration where that loses
        nothing.

        Raises `Unavailable`. Where only an operator can help, the message says what is wrong and which
        command mends it.
        """
        wanted = self.wanted[name]
        for _ in range(TRIES):
            held = await self.look(wanted)
            try:
                if (
                    name in self.adopted
                    and wanted.version not in held.memory.agreed
                    and self.arranged.get(name) != held.memory.created
                    and await self.arrange(held, wanted, consent=True)
                ):
                    continue
                if fault := terms.unusable(held.config, wanted):
                    raise away(fault)
                if held.ours:
                    await self.arrange(held, wanted)
                else:
                    self.tell(name, terms.all_changes(held.config, wanted), ours=False)
            except Stale:
                continue
            return
        raise away(f"other brokers keep changing the stream {name}")

    async def keep(self, names: Sequence[str]) -> None:
        """Ensure those of the streams that have changed since this was last done: one question for all."""
        infos = dict(zip(names, await self.jetstream.infos(names), strict=True))
        memory = infos.get(self.control.stream)  # that of all of them
        for name, info in infos.items():
            found = None if info is None or memory is None else (shape(info), shape(memory), subjects(memory))
            if found is None or found != self.kept.get(name) or any(name == each for _, each in self.failed):
                await self.ensure(name)
                self.kept[name] = found

    def owns(self, info: Mapping[str, Any]) -> bool:
        """Return whether `ensure` has found the stream in this answer to `STREAM.INFO` to be ours."""
        return self.arranged.get(info["config"]["name"]) == api.created(info)

    async def examine(self, name: str) -> Standing:
        """Compare a stream with the configuration.

        Raises `NotFound` for one that is none of `wanted`.
        """
        wanted = self.known(name)
        return standing(await self.look(wanted, make=False), wanted)

    async def adopt(self, name: str) -> Standing:
        """Make the stream ours and as configured; return how it stood before."""
        wanted = self.known(name)
        for _ in range(TRIES):
            held = await self.look(wanted, make=False)
            self.forbidden.discard(name)
            try:
                await self.arrange(held, wanted, consent=True, asked=True)
            except Stale:
                continue
            return standing(held, wanted)
        raise away(f"other brokers keep changing the stream {name}")

    def known(self, name: str) -> Wanted:
        if name not in self.wanted:
            raise NotFound(f"{name[:80]}: the broker works with {', '.join(self.wanted)}")
        return self.wanted[name]

    # --- looking -------------------------------------------------------------------------------------

    async def look(self, wanted: Wanted, *, make: bool = True) -> Held:
        """Return the stream, made when it is missing and `make` says so."""
        try:
            info = await self.jetstream.call(f"STREAM.INFO.{wanted.name}")
        except ApiError as error:
            if error.number != STREAM_NOT_FOUND:
                raise
            if not make:
                raise NotFound(f"{wanted.name}: there is no such stream yet") from error
            info = await self.create(wanted)
        found = await self.control.get(key(wanted.name))
        memory = understood(found.data) if found else None
        created, complete = api.created(info), marked(info)
        if memory is None or memory.created != created:
            # In our own server nobody else has changed what an earlier version left behind.
            left = {setting: terms.held(info["config"], setting) for setting in wanted.settings}
            memory = Memory(created=created, left=left if self.embedded else {})
            known = False
        else:
            known = True
        return Held(
            info=info,
            ours=known or complete is not None or self.embedded,
            marked=complete,
            memory=memory,
            revision=found.revision if found else 0,
        )

    async def create(self, wanted: Wanted) -> dict[str, Any]:
        """Make the stream. Its mark is completed once its creation time is known."""
        name = wanted.name
        try:
            made = await self.jetstream.call(
                f"STREAM.CREATE.{name}", {**wanted.creation, "metadata": {MARK: name}}
            )
        except ApiError as error:
            if error.number == NAME_TAKEN:  # another broker was first
                return await self.jetstream.call(f"STREAM.INFO.{name}")
            if error.number == SUBJECTS_TAKEN:
                [subject] = wanted.required["subjects"]
                keys = " or ".join(wanted.keys[each] for each in ("name", "subjects") if each in wanted.keys)
                raise away(
                    f"the stream {name} cannot be made: another one keeps subjects of {subject}. Set {keys} "
                    f"to use that one, or others; `nats stream ls --subject '{subject}'` names it"
                ) from error
            raise
        log.info("stream_created", stream=name)
        return made

    # --- changing ------------------------------------------------------------------------------------

    async def arrange(
        self, held: Held, wanted: Wanted, *, consent: bool = False, asked: bool = False
    ) -> bool:
        """Update a stream of ours to the configuration, mark it and record how it was left.

        Return False when that is refused. Without `consent` this is done once per process: a later difference
        is the work of somebody else, perhaps a broker with another configuration. Raises `Stale`, and, for an
        operator who `asked`, whatever prevents it.
        """
        name, memory, config = wanted.name, held.memory, held.config
        changed: Mapping[str, Any] = {}
        if consent or self.arranged.get(name) != memory.created:
            changed = terms.plan(config, wanted, memory.left, consent=consent)
        if (changed or not held.marked) and (asked or name not in self.forbidden):
            metadata = {**(config.get("metadata") or {}), MARK: f"{name} {memory.created}"}
            try:
                answer = await self.jetstream.call(
                    f"STREAM.UPDATE.{name}", {**config, **changed, "metadata": metadata}
                )
                config = answer["config"]
                self.tell_change(held, wanted, changed, consent=consent)
            except (ApiError, NotPermitted) as error:
                if asked:
                    raise
                if isinstance(error, NotPermitted):
                    self.forbidden.add(name)
                self.refused("stream_not_changed", name, error)
                if consent:
                    return False
        same = {
            each: value
            for each, value in wanted.settings.items()
            if terms.alike(each, terms.held(config, each), value)
        }
        agreed = memory.agreed
        if consent:
            agreed = (*(each for each in agreed if each != wanted.version), wanted.version)[-REMEMBERED:]
        now = Memory(created=memory.created, left={**memory.left, **same}, agreed=agreed)
        if now != memory or not held.revision:
            try:
                await self.control.put(key(name), msgspec.json.encode(now), revision=held.revision)
            except (ApiError, NotPermitted) as error:  # the stream can be used all the same
                if asked:
                    raise
                self.refused("stream_not_noted", name, error)
        self.arranged[name] = memory.created
        self.tell(name, tuple(terms.changes(config, wanted.settings, wanted)), ours=True)
        return True

    # --- telling -------------------------------------------------------------------------------------

    def tell(self, name: str, differences: tuple[Change, ...], *, ours: bool) -> None:
        """Log once that a stream is used as found, and how it differs."""
        if self.said.get(name) == (differences, ours):
            return
        self.said[name] = differences, ours
        if differences or not ours:
            tell = log.warning if differences else log.info
            tell(
                "stream_used_as_found",
                stream=name,
                ours=ours,
                differs=[str(each) for each in differences],  # configured → found
                next=f"`broker admin adopt {name}` shows the changes and makes it as configured",
            )

    def tell_change(self, held: Held, wanted: Wanted, changed: Mapping[str, Any], *, consent: bool) -> None:
        done = [
            f"{each.key or each.setting}: {each.found} → {each.wanted}"
            for each in terms.changes(held.config, changed, wanted)
        ]
        if consent and (done or not held.ours):
            log.warning("stream_adopted", stream=wanted.name, changed=done)
        elif done:
            log.info("stream_adjusted", stream=wanted.name, changed=done)
        elif held.marked is None:
            log.warning("stream_mark_restored", stream=wanted.name)

    def refused(self, event: str, name: str, error: Unavailable) -> None:
        """Log once what could not be done."""
        if self.failed.get((event, name)) != error.message:
            self.failed[event, name] = error.message
            log.warning(event, stream=name, error=error.message)


def shape(info: Mapping[str, Any]) -> object:
    """Return what `ensure` looks at of a stream."""
    return info["created"], info["config"]


def subjects(info: Mapping[str, Any]) -> object:
    """Return how many keys a bucket has."""
    return info["state"].get("num_subjects")


def marked(info: Mapping[str, Any]) -> bool | None:
    """Return whether a stream's mark is complete; None when it has none of its own.

    A copy, or a stream made from an export, has the mark of another one.
    """
    name = info["config"]["name"]
    mark = (info["config"].get("metadata") or {}).get(MARK)
    if mark == name:  # made by a broker that then ended, or may not update it
        return False
    return True if mark == f"{name} {api.created(info)}" else None


def standing(held: Held, wanted: Wanted) -> Standing:
    return Standing(
        stream=wanted.name,
        ours=held.ours,
        fault=terms.unusable(held.config, wanted),
        changes=terms.all_changes(held.config, wanted),
    )


def key(name: str) -> str:
    return f"{RECORDS}.{digest(name)}"


def understood(data: bytes) -> Memory | None:
    try:
        return msgspec.json.decode(data, type=Memory)
    except (msgspec.DecodeError, UnicodeDecodeError):
        log.warning("stream_memory_not_understood", bytes=len(data))
        return None
