"""Ports of loopback that are kept for who listens there later, or again."""

from __future__ import annotations

import socket
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def hold() -> socket.socket:
    """Return a socket that keeps its port until it is closed, without listening.

    Linux lets others that set SO_REUSEADDR listen at a port that is bound so, and gives it neither to a
    client nor to a listener that wants any free one. One that is looked for and let go may be another's next.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held


def number(held: socket.socket) -> int:
    """Return the port."""
    return int(held.getsockname()[1])


@contextmanager
def held_ports(count: int = 1) -> Iterator[list[int]]:
    """Keep some ports for the length of a block."""
    with ExitStack() as stack:
        yield [number(stack.enter_context(hold())) for _ in range(count)]
