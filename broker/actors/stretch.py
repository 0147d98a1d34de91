"""What a task does up to its first wait: nobody else has a turn meanwhile."""

from __future__ import annotations

import types
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator


@types.coroutine
def before_waiting(work: Coroutine[Any, Any, None], act: Callable[[], None]) -> Generator[Any, Any, None]:
    """Run `work`, and call `act` once: before it first waits, or at its end, whichever way that comes."""
    step = partial(work.send, None)
    waits = False
    try:
        while True:
            trap = step()  # what it asks of Trio
            if not waits:
                waits = True
                act()
            try:
                step = partial(work.send, (yield trap))
            except BaseException as error:  # which is thrown into `work` itself
                step = partial(work.throw, error)
    except StopIteration:
        pass
    finally:
        if not waits:
            act()
