"""The generation of the stream: detect that its store has lost events, and invalidate old positions.

A server that comes back with an older or a damaged store assigns sequences a second time, under the same
`created`. So the sequence of a recent event and the time at which NATS stored it (a milestone) are kept in
memory, in the control bucket for other brokers, and, since that usually shares the store, in a file. A broker
that does not find that event again increases the generation in the bucket, where all others read it.

The bucket is authoritative. The stream's metadata repeats the number in case the bucket is lost; any edit of
the stream may wipe it, and it is put back. A generation is the Unix time at which it began, so that a number
forgotten with the store is never used again.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import attrs
import msgspec
import structlog
import trio

from broker.beats import beat
from broker.bus import api
from broker.bus.base import Stale
from broker.errors import Unavailable
from broker.nats.link import NotPermitted, away

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from broker.bus.values import Values

log = structlog.get_logger("broker.bus")

GENERATION = "broker_generation"  # key in the stream's metadata
KEEP_SECONDS = 5.0
LOOKS = 4  # before an event counts as lost: a new leader may not have caught up
LOOK_SECONDS = 0.5
TRIES = 5  # against other brokers that do the same


@attrs.frozen(kw_only=True)
class Milestone:
    """An event that the stream held in one of its generations.

    `created` names the stream, `time` is when NATS stored the event, in nanoseconds since 1970; 0 where
    nothing but its sequence is known.
    """

    created: str
    generation: int
    sequence: int = 0
    time: int = 0


@attrs.frozen(kw_only=True)
class Loss:
    """What is lost: all after the sequence `after` (None: not known), at least up to a milestone."""

    after: int | None
    since: str | None
    milestone: Milestone

    def tell(self, stream: str, generation: int) -> None:
        log.error(
            "stream_lost_events",
            stream=stream,
            after=self.after,
            count=None if self.after is None else self.milestone.sequence - self.after,
            since=self.since,
            known=self.milestone.sequence,
            known_stored=rfc3339(self.milestone.time) if self.milestone.time else None,
            generation=generation,
        )


@attrs.define(eq=False, kw_only=True)
class Generations:
    """The stream's generation, and the milestones that prove it.

    `values` is the control bucket, `file` is where the milestone is kept outside of NATS. `changed` is called
    when another broker has begun a new generation. Only streams that are ours by `owns` are written to.
    """

    jetstream: api.JetStream
    values: Values
    stream: str
    file: Path | None
    changed: Callable[[], None]
    owns: Callable[[Mapping[str, Any]], bool]
    newest: Milestone | None = None
    filed: Milestone | None = None  # what the file says
    reported: Mapping[str, Any] = attrs.Factory(dict)  # what the server last reported as lost
    trouble: str = ""  # with the file, as last logged

    def number(self, info: Mapping[str, Any]) -> int:
        """Return the generation of the stream in an answer to `STREAM.INFO`, as far as known."""
        known = self.newest
        mine = known.generation if known and of(known, info) else 0
        return max(mine, repeated(info))

    def incarnation(self, info: Mapping[str, Any]) -> str:
        """Return the name of the stream in its generation, as far as known."""
        return api.incarnation(info, self.number(info))

    def advance(self, sequence: int, stored: int) -> None:
        """Record the event that the feed has reached, stored at `stored` (nanoseconds since 1970)."""
        if self.newest is not None:
            self.newest = attrs.evolve(self.newest, sequence=sequence, time=stored)

    async def settle(self) -> dict[str, Any]:
        """Determine the generation, and return the answer to `STREAM.INFO` that belongs to it.

        Raises `Unavailable`.
        """
        if self.filed is None:
            await self.read_file()
        for _ in range(TRIES):
            info = await self.info()
            held = await self.values.get(key(info))
            in_bucket = understood(held.data) if held else None
            known = [each for each in (in_bucket, self.newest, self.filed) if each and of(each, info)]
            number = max([repeated(info), *(each.generation for each in known)])
            known = sorted(
                (each for each in known if each.generation == number and each.sequence),
                key=lambda each: each.sequence,
            )
            if loss := await self.loss(known):
                number, known = max(number + 1, int(time.time())), []
            # Stored together with the generation: events may be lost before the next milestone is due.
            newest = known[-1] if known else await self.last(info, number)
            if number != (in_bucket.generation if in_bucket else 0):
                fresh = msgspec.json.encode(newest)
                try:
                    await self.values.put(key(info), fresh, revision=held.revision if held else 0)
                except Stale:
                    continue
            if loss:
                loss.tell(self.stream, number)
            info = await self.repeat(number)
            self.tell_reported(info)
            self.newest = newest
            await self.write_file()
            return info
        raise away(f"other brokers keep changing the generation of the stream {self.stream}")

    def tell_reported(self, info: Mapping[str, Any]) -> None:
        """Log what the server itself reports as lost; it repeats that until it is restarted."""
        lost = info["state"].get("lost") or {}
        if lost != self.reported:
            self.reported = lost
            if lost:
                messages = lost.get("msgs") or []
                log.error(
                    "stream_reports_loss", stream=self.stream, count=len(messages), bytes=lost.get("bytes")
                )

    async def info(self, **query: object) -> dict[str, Any]:
        return await self.jetstream.call(f"STREAM.INFO.{self.stream}", query or None)

    async def loss(self, known: list[Milestone]) -> Loss | None:
        """Return what is lost, confirmed by several looks; `known` is in stream order."""
        for look in range(LOOKS):
            if look:
                await trio.sleep(LOOK_SECONDS)
            found = await self.look_for(reversed(known))
            if found is None:
                return None
        return found

    async def look_for(self, milestones: Iterable[Milestone]) -> Loss | None:
        """Return what is lost by the newest milestone that was not deleted: if that is there, nothing is."""
        for milestone in milestones:
            sequence = milestone.sequence
            stored = await self.stored(sequence)
            if stored is not None and milestone.time:
                same = stored == milestone.time
                return None if same else Loss(after=None, since=None, milestone=milestone)
            state = (await self.info(deleted_details=True))["state"]
            if sequence > state["last_seq"]:
                return Loss(after=state["last_seq"], since=state["last_ts"], milestone=milestone)
            trimmed = not state["messages"] or sequence < state["first_seq"]
            if milestone.time and not trimmed and sequence not in (state.get("deleted") or ()):
                return Loss(after=sequence - 1, since=None, milestone=milestone)
        return None

    async def stored(self, sequence: int) -> int | None:
        """Ask the stream's leader when the message at a sequence was stored; None without such a message."""
        try:
            answer = await self.jetstream.call(f"STREAM.MSG.GET.{self.stream}", {"seq": sequence})
        except api.ApiError as error:
            if error.number in api.NOT_THERE:
                return None
            raise
        return api.nanoseconds(answer["message"]["time"])

    async def last(self, info: Mapping[str, Any], number: int) -> Milestone:
        """Return the end of the stream, as the first milestone."""
        sequence = info["state"]["last_seq"]
        stored = await self.stored(sequence) if sequence else None
        return Milestone(created=api.created(info), generation=number, sequence=sequence, time=stored or 0)

    async def repeat(self, number: int) -> dict[str, Any]:
        """Repeat the generation in the stream's metadata, and return `STREAM.INFO` after that."""
        info = await self.info()
        if number == repeated(info) or not self.owns(info):
            return info
        metadata = {**info["config"].get("metadata", {}), GENERATION: str(number)}
        try:
            await self.jetstream.call(
                f"STREAM.UPDATE.{self.stream}", {**info["config"], "metadata": metadata}
            )
        except (api.ApiError, NotPermitted) as error:  # the bucket has it, and is authoritative
            log.warning("generation_not_repeated", stream=self.stream, error=error.message)
        return await self.info()

    # --- keeping -------------------------------------------------------------------------------------

    async def keep(self) -> None:
        """Keep a milestone every few seconds and watch for new generations, until cancelled."""
        try:
            while True:
                await beat(KEEP_SECONDS)
                await self.write_file()
                try:
                    await self.store()
                except (Unavailable, Stale) as error:  # another was first, or it is stored later
                    log.debug("milestone_not_stored", error=repr(error))
        finally:
            with trio.CancelScope(shield=True):
                await self.write_file()

    async def store(self) -> None:
        newest = self.newest
        if newest is None:
            return
        held = await self.values.get(f"stream.{newest.created}")
        in_bucket = understood(held.data) if held else None
        if in_bucket and in_bucket.generation > newest.generation:
            self.changed()
        elif in_bucket is None or standing(in_bucket) < standing(newest):
            await self.values.put(
                f"stream.{newest.created}",
                msgspec.json.encode(newest),
                revision=held.revision if held else 0,
            )

    async def read_file(self) -> None:
        if self.file is None:
            return
        try:
            self.filed = understood(await trio.Path(self.file).read_bytes())
        except FileNotFoundError:
            return
        except OSError as error:
            self.file_fails(error)

    async def write_file(self) -> None:
        newest = self.newest
        if self.file is None or newest is None or newest == self.filed:
            return
        try:
            await trio.to_thread.run_sync(replace, self.file, msgspec.json.encode(newest))
        except OSError as error:
            self.file_fails(error)
        else:
            self.filed, self.trouble = newest, ""

    def file_fails(self, error: OSError) -> None:
        if self.trouble != (trouble := error.strerror or repr(error)):
            self.trouble = trouble
            log.warning("milestone_file_unusable", path=str(self.file), error=trouble)


def of(milestone: Milestone, info: Mapping[str, Any]) -> bool:
    return milestone.created == api.created(info)


def standing(milestone: Milestone) -> tuple[int, int]:
    return milestone.generation, milestone.sequence


def key(info: Mapping[str, Any]) -> str:
    return f"stream.{api.created(info)}"


def repeated(info: Mapping[str, Any]) -> int:
    """Return the generation in the metadata."""
    text = info["config"].get("metadata", {}).get(GENERATION, "0")
    return int(text) if text.isdecimal() else 0


def understood(data: bytes) -> Milestone | None:
    try:
        return msgspec.json.decode(data, type=Milestone)
    except (msgspec.DecodeError, UnicodeDecodeError):
        log.warning("milestone_not_understood", bytes=len(data))
        return None


def rfc3339(stored: int) -> str:
    return datetime.fromtimestamp(stored / 1e9, UTC).isoformat()


def replace(path: Path, data: bytes) -> None:
    """Replace a file atomically: a power cut leaves the old one or the new one."""
    new = path.with_suffix(".new")
    with new.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
