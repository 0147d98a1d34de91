"""Who gets what: a trie of patterns with a bounded cache of its answers.

The trie follows the rules of `subjects.covers`: wildcards do not reach into `users.…` and `live.…`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from broker import subjects

if TYPE_CHECKING:
    from collections.abc import Callable

CACHED_ROUTES = 32768  # about 20 MB when full of distinct channels


class Topic:
    """One distinct pattern, with what is left out of it, and the members that share it.

    `room` is where its channels lie (None: anywhere). `serial` grows with each topic made: a tick made
    earlier holds no mask of it. `uses` counts holders, whether they are members yet or not.
    """

    __slots__ = ("deny", "literal", "live", "members", "pattern", "room", "serial", "uses")

    def __init__(self, pattern: str, deny: tuple[str, ...], serial: int) -> None:
        self.pattern = pattern
        self.deny = deny
        self.literal = subjects.is_literal(pattern)
        self.live = subjects.is_live(pattern)
        self.room = subjects.room(pattern)
        self.serial = serial
        self.uses = 0
        self.members: dict[Any, None] = {}  # in order of arrival; a set would vary from run to run

    def admits(self, channel: str) -> bool:
        """Whether the channel matches; what the trie answers for many patterns, for this one."""
        return subjects.covers(self.pattern, channel) and self.allows(channel)

    def allows(self, channel: str) -> bool:
        return not any(subjects.covers(pattern, channel) for pattern in self.deny)


R = TypeVar("R")


class Node:
    """The topics whose patterns end here, and those that end with a `>` after this.

    Each user's private channels are such a node, so it has few parts.
    """

    __slots__ = ("below", "children", "topics")

    def __init__(self) -> None:
        self.children: dict[str, Node] = {}
        self.topics: tuple[Topic, ...] = ()
        self.below: tuple[Topic, ...] = ()


class Router(Generic[R]):
    """Finds the topics of a channel.

    `build` makes what is cached for a channel from the channel and its topics. The cache is kept by
    room (the first token, of `users` the first two), so that a client that comes or goes with its
    private pattern drops nobody else's answers.
    """

    def __init__(self, build: Callable[[str, tuple[Topic, ...]], R]) -> None:
        self.build = build
        self.root = Node()
        self.rooms: dict[str | None, dict[str, R]] = {}
        self.cached = 0

    def add(self, topic: Topic) -> None:
        tokens, below = split(topic.pattern)
        node = self.root
        for token in tokens:
            node = node.children.setdefault(token, Node())
        if below:
            node.below += (topic,)
        else:
            node.topics += (topic,)
        self.forget(topic.pattern)

    def remove(self, topic: Topic) -> None:
        tokens, below = split(topic.pattern)
        path = [self.root]
        for token in tokens:
            path.append(path[-1].children[token])
        if below:
            path[-1].below = tuple(each for each in path[-1].below if each is not topic)
        else:
            path[-1].topics = tuple(each for each in path[-1].topics if each is not topic)
        for node, token in zip(reversed(path[:-1]), reversed(tokens), strict=True):
            child = node.children[token]
            if child.topics or child.below or child.children:
                break
            del node.children[token]
        self.forget(topic.pattern)

    def match(self, channel: str) -> R:
        """What `build` made for the channel, from the cache where it is there."""
        cached = self.rooms.get(subjects.room(channel))
        if cached is not None and (found := cached.get(channel)) is not None:
            return found
        return self.miss(channel)

    def miss(self, channel: str) -> R:
        if self.cached >= CACHED_ROUTES:
            self.clear()
        topics: list[Topic] = []
        collect(self.root, channel.split("."), 0, topics)
        route = self.build(channel, tuple(topic for topic in topics if topic.allows(channel)))
        self.rooms.setdefault(subjects.room(channel), {})[channel] = route
        self.cached += 1
        return route

    def forget(self, pattern: str) -> None:
        """Drops the cached answers that a change of `pattern` can touch."""
        room = subjects.room(pattern)
        if room is None:
            self.clear()
        elif dropped := self.rooms.pop(room, None):
            self.cached -= len(dropped)

    def clear(self) -> None:
        self.rooms.clear()
        self.cached = 0


def split(pattern: str) -> tuple[list[str], bool]:
    """The tokens of a pattern but for a `>` at its end, and whether there is one."""
    tokens = pattern.split(".")
    return (tokens[:-1], True) if tokens[-1] == ">" else (tokens, False)


def collect(node: Node, tokens: list[str], index: int, found: list[Topic]) -> None:
    """Adds the topics of every pattern below `node` that matches the tokens from `index` on."""
    if index == len(tokens):
        found.extend(node.topics)
        return
    children = node.children
    if child := children.get(tokens[index]):
        collect(child, tokens, index + 1, found)
    if subjects.walled(tokens, index):
        return
    if child := children.get("*"):
        collect(child, tokens, index + 1, found)
    found.extend(node.below)
