"""Bytes in order, to a link that accepts as much as it can."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from broker.flow.client import Client


class Pipe:
    """The output to a client. `rest` is what the link has not accepted yet; None when it has accepted
    everything.

    `send` passes bytes to the link as a non-blocking socket does, whose `send` it mostly is. It returns how
    many the link accepted; it raises `BlockingIOError` if none, and another `OSError` if the link is lost.

    `whole`: the link cannot report how much it accepted (TLS), so the bytes passed to it are kept as one
    piece.
    """

    __slots__ = ("client", "held", "rest", "send", "whole")

    def __init__(self, *, send: Callable[[bytes], int], client: Client, whole: bool) -> None:
        self.send = send
        self.client = client
        self.whole = whole
        self.rest: list[bytes | memoryview] | None = None
        self.held: list[bytes | memoryview] | None = None  # between `hold` and `release`

    @property
    def unsent(self) -> int:
        """Return the number of bytes that the link has not accepted yet."""
        return sum(map(len, self.rest)) if self.rest else 0

    def write(self, frames: Sequence[bytes | memoryview]) -> None:
        """Write all of the frames, after the rest of those before."""
        if self.held is not None:
            self.held.extend(frames)
            return
        if self.rest is not None:
            self.rest.extend(frames)
            return
        written = self.offer(frames)
        if written < len(frames) and self.rest is not None:
            self.rest.extend(frames[written:])

    def hold(self) -> None:
        """Keep all that is written until `release`, which must come before any other task has a turn."""
        self.held = []

    def release(self) -> None:
        """Write in one piece what has been held."""
        held, self.held = self.held, None
        if held:
            self.write(held)

    def offer(self, frames: Sequence[bytes | memoryview]) -> int:
        """Write frames while there is no rest, as far as the link accepts them.

        Return the number of frames written, including one of which a rest is kept.
        """
        data = b"".join(frames) if len(frames) > 1 else frames[0]
        if not data:
            return len(frames)
        return self.keep(frames, data, self.try_send(data))

    def keep(self, frames: Sequence[bytes | memoryview], data: bytes | memoryview, sent: int) -> int:
        """Keep the rest of a partly sent frame; `data` is all `frames` joined. Return as `offer` does."""
        if sent == len(data):
            return len(frames)
        if self.whole:
            written, self.rest = len(frames), [memoryview(data)]
        else:
            ends = list(accumulate(map(len, frames)))
            index = bisect_right(ends, sent)
            frame = memoryview(frames[index])  # held by the log anyway: not a copy
            written, self.rest = index + 1, [frame[len(frame) - (ends[index] - sent) :]]
        self.held_up()
        return written

    def took(self, sent: int) -> None:
        """Note that the link has accepted so many bytes of the first kept piece; continue with the others."""
        rest = self.rest
        if rest is None:
            return
        if sent < len(rest[0]):
            rest[0] = memoryview(rest[0])[sent:]
            return
        self.rest = None
        if len(rest) > 1:
            self.write(rest[1:])

    def try_send(self, data: bytes | memoryview) -> int:
        """Return how many bytes the link accepted; on an error all, since the connection is about to end."""
        try:
            return self.send(data)  # type: ignore[arg-type]
        except BlockingIOError:
            return 0
        except Exception as error:  # any: it ends that connection alone
            self.failed(error)
            return len(data)

    def failed(self, error: Exception) -> None:
        """End the connection, because of an error that `send` has raised."""
        if isinstance(error, OSError):
            self.client.link_lost()
        else:
            self.client.crashed(error)

    def held_up(self) -> None:
        """Note that there is a rest now. Called whenever one begins."""
        self.client.held_up()
