"""Routing: a trie of patterns with a bounded cache of its results.

The trie follows the rules of `subjects.covers`: wildcards do not reach into `users.…` and `live.…`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from broker import subjects

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.eventlog.selection import Selection

CACHED_ROUTES = 32768  # about 20 MB when full of distinct channels


R = TypeVar("R")


class Node:
    """The selections whose patterns end here, and those that end with a `>` after this.

    Every user's private channels have such a node, so it has few attributes.
    """

    __slots__ = ("below", "children", "selections")

    def __init__(self) -> None:
        self.children: dict[str, Node] = {}
        self.selections: tuple[Selection, ...] = ()
        self.below: tuple[Selection, ...] = ()


class Router(Generic[R]):
    """Finds the selections of a channel.

    `build` makes the cached value of a channel from the channel and its selections. The cache is divided by
    room (the first token, below `users` the first two), so that a client that arrives or leaves with its
    private pattern does not invalidate other entries.
    """

    def __init__(self, build: Callable[[str, tuple[Selection, ...]], R]) -> None:
        self.build = build
        self.root = Node()
        self.rooms: dict[str | None, dict[str, R]] = {}
        self.cached = 0

    def add(self, selection: Selection) -> None:
        tokens, below = split(selection.pattern)
        node = self.root
        for token in tokens:
            node = node.children.setdefault(token, Node())
        if below:
            node.below += (selection,)
        else:
            node.selections += (selection,)
        self.forget(selection.pattern)

    def remove(self, selection: Selection) -> None:
        tokens, below = split(selection.pattern)
        path = [self.root]
        for token in tokens:
            path.append(path[-1].children[token])
        if below:
            path[-1].below = tuple(each for each in path[-1].below if each is not selection)
        else:
            path[-1].selections = tuple(each for each in path[-1].selections if each is not selection)
        for node, token in zip(reversed(path[:-1]), reversed(tokens), strict=True):
            child = node.children[token]
            if child.selections or child.below or child.children:
                break
            del node.children[token]
        self.forget(selection.pattern)

    def match(self, channel: str) -> R:
        """Return the value that `build` made for the channel, from the cache if possible."""
        cached = self.rooms.get(subjects.room(channel))
        if cached is not None and (found := cached.get(channel)) is not None:
            return found
        return self.miss(channel)

    def miss(self, channel: str) -> R:
        if self.cached >= CACHED_ROUTES:
            self.clear()
        selections: list[Selection] = []
        collect(self.root, channel.split("."), 0, selections)
        route = self.build(channel, tuple(selection for selection in selections if selection.allows(channel)))
        self.rooms.setdefault(subjects.room(channel), {})[channel] = route
        self.cached += 1
        return route

    def forget(self, pattern: str) -> None:
        """Drop the cached values that a change of `pattern` can affect."""
        room = subjects.room(pattern)
        if room is None:
            self.clear()
        elif dropped := self.rooms.pop(room, None):
            self.cached -= len(dropped)

    def clear(self) -> None:
        self.rooms.clear()
        self.cached = 0


def split(pattern: str) -> tuple[list[str], bool]:
    """Return the tokens of a pattern without a final `>`, and whether there is one."""
    tokens = pattern.split(".")
    return (tokens[:-1], True) if tokens[-1] == ">" else (tokens, False)


def collect(node: Node, tokens: list[str], index: int, found: list[Selection]) -> None:
    """Add the selections of every pattern below `node` that matches the tokens from `index` on."""
    if index == len(tokens):
        found.extend(node.selections)
        return
    children = node.children
    if child := children.get(tokens[index]):
        collect(child, tokens, index + 1, found)
    if subjects.walled(tokens, index):
        return
    if child := children.get("*"):
        collect(child, tokens, index + 1, found)
    found.extend(node.below)
