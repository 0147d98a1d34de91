"""The first stretch of a task: what it does before its first wait, while no other task runs."""

from __future__ import annotations

import types
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator


@types.coroutine
def before_waiting(work: Coroutine[Any, Any, None], act: Callable[[], None]) -> Generator[Any, Any, None]:
    """Run `work`, and call `act` once: just before `work` first waits, or when it ends without waiting.

    `act` must not raise: whatever is to wake `work` knows of it already.
    """
    step = partial(work.send, None)
    waits = False
    try:
        while True:
            trap = step()  # its request to Trio
            if not waits:
                waits = True
                act()
            try:
                step = partial(work.send, (yield trap))
            except BaseException as error:  # thrown into `work` itself
                step = partial(work.throw, error)
    except StopIteration:
        pass
    finally:
        if not waits:
            act()
