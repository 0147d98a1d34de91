"""The events of a load: each says when it was published and which one of its channel it is."""

from __future__ import annotations

import re

# Once in each event, and nowhere else in what a server sends: events are counted by it. Shorter, and the head
# of some frame would hold it.
MARK = b"#~~#"
LENGTH = len(MARK) + 19 + 1 + 10  # of the mark and what follows it
FOUND = re.compile(rb"#~~#(\d{19}) (\d{10})")
SMALLEST = len(b'{"type":"bench","payload":"#~~#%019d %010d "}' % (0, 0))


def event(sent: int, number: int, size: int) -> bytes:
    """An event of `size` bytes (at least `SMALLEST`), sent at `sent` ns, the channel's `number`-th."""
    return b'{"type":"bench","payload":"#~~#%019d %010d %b"}' % (sent, number, b"x" * (size - SMALLEST))


def numbered(number: int) -> bytes:
    """What only the event of this number holds."""
    return b" %010d " % number
