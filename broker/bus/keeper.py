"""Makes the broker's streams, and keeps its hands off those of others.

A stream that the broker made is *ours*: it carries a mark in its metadata, its name and when it was created,
and the control bucket knows the pair too, with the settings in which we left it. Any edit without metadata
wipes the mark (Terraform, NACK, `nats stream edit --config`); it is put back where the bucket knows the pair.
What is not ours is looked at and never changed, until somebody has it adopted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import msgspec
import structlog

from broker.bus import api, terms
from broker.bus.api import STREAM_NOT_FOUND, ApiError, JetStream
from broker.bus.base import Change, Stale, Standing
from broker.bus.bridge import NotPermitted, away
from broker.errors import NotFound, Unavailable
from broker.subjects import digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.bus.streams import Wanted
    from broker.bus.values import Values

log = structlog.get_logger("broker.bus")

MARK = "broker_stream"  # the key in the metadata
RECORDS = "owned"  # what the keys of the control bucket begin with
NAME_TAKEN = 10058  # the server's `err_code`s: by a stream with another configuration,
SUBJECTS_TAKEN = 10065  # and by another stream
TRIES = 5  # against other brokers that do the same
REMEMBERED = 16  # versions of the settings that were agreed to


@attrs.frozen(kw_only=True)
class Memory:
    """What the control bucket knows of a stream of ours.

    It is ours while it was created at `created`. `left` are the settings that it had when last they were as
    we wanted them, `agreed` the versions of our settings that somebody has consented to.
    """

    created: str
    left: dict[str, Any] = attrs.Factory(dict)
    agreed: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Held:
    """A stream as it is, and what is known of it."""

    info: Mapping[str, Any]
    ours: bool
    marked: bool | None  # with a whole mark, or half of one, or none
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
    arranged: dict[str, str] = attrs.Factory(dict)  # name → created, of ours, once they are in line
    said: dict[str, object] = attrs.Factory(dict)  # by name, so that it is said once
    failed: dict[tuple[str, str], str] = attrs.Factory(dict)  # the last refusal, by what and name
    forbidden: set[str] = attrs.Factory(set)  # names of those that we may not change

    async def ensure(self, name: str) -> None:
        """Make the stream when it is missing; bring one of ours into line where that loses nothing.

        Raises `Unavailable`; where only the operator can mend it the message says what and by which command.
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

    def owns(self, info: Mapping[str, Any]) -> bool:
        """Return whether what `STREAM.INFO` describes was found to be ours by `ensure`."""
        return self.arranged.get(info["config"]["name"]) == api.created(info)

    async def examine(self, name: str) -> Standing:
        """Return how a stream stands to the configuration.

        Raises `NotFound` for one that is none of `wanted`.
        """
        wanted = self.known(name)
        return standing(await self.look(wanted, make=False), wanted)

    async def adopt(self, name: str) -> Standing:
        """Make the stream ours, and as the configuration has it; what it was before."""
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
            # What an earlier version left behind in our own server was changed by nobody else.
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
        """Make the stream. Its mark is completed as soon as it is known when it was created."""
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
        """Bring a stream of ours into line, mark it and record how it was left; return False when refused.

        Without consent that is done once in the life of a process: what changes later was changed by
        somebody else, be it a broker with another file. Raises `Stale`, and for somebody who `asked`
        whatever is in the way.
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
        """Say once what is used as it was found although it differs."""
        if self.said.get(name) == (differences, ours):
            return
        self.said[name] = differences, ours
        if differences or not ours:
            tell = log.warning if differences else log.info
            tell(
                "stream_used_as_found",
                stream=name,
                ours=ours,
                differs=[str(each) for each in differences],  # ours → theirs
                next=f"`broker admin adopt {name}` shows and makes it as the configuration has it",
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
        """Say once what could not be done."""
        if self.failed.get((event, name)) != error.message:
            self.failed[event, name] = error.message
            log.warning(event, stream=name, error=error.message)


def marked(info: Mapping[str, Any]) -> bool | None:
    """Return whether a stream's mark is complete; None without one that is its own.

    A copy, or what was made from somebody's export, has the mark of another one.
    """
    name = info["config"]["name"]
    mark = (info["config"].get("metadata") or {}).get(MARK)
    if mark == name:  # made, and then the broker ended or may not change it
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
