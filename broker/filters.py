"""Filters: conditions on the JSON of an event.

A filter is a JSON object, all of whose members must hold::

    {"/status": "shipped"}                          the value that a JSON Pointer (RFC 6901) points to
    {"/amount": {"gt": 100, "lte": 500}}            what operators say of it
    {"any": [{"/a": 1}, {"not": {"/b": {"exists": true}}}]}

The browser client has the same rules (`client/filters.js`); `tests/client/filters.json` holds both to them.
"""

from __future__ import annotations

import difflib
import json
import operator
import re
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import attrs

from broker.errors import BadMessage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Test: TypeAlias = "Callable[[Any], bool]"

MAX_NODES = 32  # operators, `any`, `all` and `not`
MAX_BYTES = 4096  # as JSON
MAX_DEPTH = 32  # of a value to compare with
MAX_SHOWN = 40  # characters of a filter's own text in an error
ABSENT: Final = object()  # where a pointer points to nothing; `null` is something
BAD_ESCAPE = re.compile(r"~(?![01])")
INDEX = re.compile(r"(?:0|[1-9][0-9]{0,8})\Z", re.ASCII)
ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}
OPERATORS = ("eq", "ne", "in", "nin", *ORDERS, "exists", "prefix")
GROUPS = ("any", "all", "not")


@attrs.frozen
class Filter:
    """A condition on events. Filters with the same `text` (their JSON, in a fixed order) are equal."""

    text: bytes
    test: Test = attrs.field(eq=False, repr=False)

    def passes(self, event: Any) -> bool:
        """Return whether an event, as decoded JSON, passes. A tombstone always does."""
        return event is None or self.test(event)


def parse(document: Any, name: str = "filter") -> Filter:
    """Return the filter that a JSON value stands for, which is called `name` in errors.

    Raise `BadMessage`, which names the node that is wrong.
    """
    test = Parser().filter(document, name)
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    if len(text) > MAX_BYTES:
        raise BadMessage(f"{name}: {len(text)} bytes; the limit is {MAX_BYTES}")
    return Filter(text, test)


def either(filters: Iterable[Filter | None]) -> Filter | None:
    """Return a filter that passes what any of these passes; None for everything.

    It is also None if there is no such filter within the limits.
    """
    wanted = dict.fromkeys(filters)
    if None in wanted or not wanted:
        return None
    if len(wanted) == 1:
        return next(iter(wanted))
    try:
        return parse({"any": [json.loads(each.text) for each in wanted if each]})
    except BadMessage:
        return None


@attrs.define(eq=False)
class Parser:
    """Makes functions of a filter; `nodes` counts what it consists of."""

    nodes: int = 0

    def filter(self, document: Any, path: str) -> Test:
        if not isinstance(document, dict):
            raise BadMessage(f"{path}: a filter is an object")
        return all_of([test for name, value in document.items() for test in self.member(name, value, path)])

    def member(self, name: str, value: Any, path: str) -> Iterator[Test]:
        if name in GROUPS:
            yield self.group(name, value, f"{path}.{name}")
        elif name == "" or name.startswith("/"):
            path = f"{path}[{shown(name)}]"
            get = getter(name, path)
            if not isinstance(value, dict):
                value = {"eq": value}
            if not value:
                raise BadMessage(f"{path}: name an operator; an object is compared with by eq")
            for each, operand in value.items():
                self.count(path)
                yield at(get, condition(each, operand, f"{path}.{each[:MAX_SHOWN]}"))
        else:
            near = nearest(name, GROUPS) or nearest(name, [f"/{name}"])
            raise BadMessage(f"{path}[{shown(name)}]: neither a JSON Pointer nor any, all or not{near}")

    def group(self, name: str, value: Any, path: str) -> Test:
        self.count(path)
        if name == "not":
            test = self.filter(value, path)
            return lambda event: not test(event)
        if not isinstance(value, list) or not value:
            raise BadMessage(f"{path}: a list of at least one filter")
        tests = [self.filter(each, f"{path}[{index}]") for index, each in enumerate(value)]
        return any_of(tests) if name == "any" else all_of(tests)

    def count(self, path: str) -> None:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise BadMessage(f"{path}: more than {MAX_NODES} nodes")


# --- pointers --------------------------------------------------------------------------------------


def getter(pointer: str, path: str) -> Callable[[Any], Any]:
    """Return a function from an event to what a JSON Pointer points to in it, or `ABSENT`."""
    if BAD_ESCAPE.search(pointer):
        raise BadMessage(f"{path}: in a JSON Pointer ~ is written ~0, and / in a name ~1")
    tokens = [each.replace("~1", "/").replace("~0", "~") for each in pointer.split("/")[1:]]
    steps = [(token, int(token) if INDEX.match(token) else None) for token in tokens]

    def get(value: Any) -> Any:
        for token, index in steps:
            if type(value) is dict:
                value = value.get(token, ABSENT)
            elif type(value) is list and index is not None and index < len(value):
                value = value[index]
            else:
                return ABSENT
        return value

    return get


def at(get: Callable[[Any], Any], test: Test) -> Test:
    return lambda event: test(get(event))


# --- operators -------------------------------------------------------------------------------------


def condition(name: str, operand: Any, path: str) -> Test:
    """Return what an operator says of a value. Of an absent one `ne` and `nin` are true."""
    if name in ("eq", "ne"):
        check_depth(operand, path)
        test = equal_to(operand)
        return test if name == "eq" else lambda value: not test(value)
    if name in ("in", "nin"):
        if not isinstance(operand, list):
            raise BadMessage(f"{path}: a list of values")
        check_depth(operand, path)
        test = among(operand)
        return test if name == "in" else lambda value: not test(value)
    if name in ORDERS:
        return ordered(ORDERS[name], operand, path)
    if name == "exists":
        if not isinstance(operand, bool):
            raise BadMessage(f"{path}: true or false")
        return lambda value: (value is not ABSENT) is operand
    if name == "prefix":
        if not isinstance(operand, str):
            raise BadMessage(f"{path}: a string")
        return lambda value: type(value) is str and value.startswith(operand)
    raise BadMessage(f"{path}: unknown operator{nearest(name, OPERATORS)}")


def equal_to(operand: Any) -> Test:
    if isinstance(operand, dict | list):
        return lambda value: same(value, operand)
    if is_number(operand):
        return number_that(operator.eq, operand)
    if isinstance(operand, str):
        return lambda value: value == operand  # of nothing but text that is true
    return lambda value: value is operand


def among(operands: list[Any]) -> Test:
    scalars = {key(each) for each in operands if not isinstance(each, dict | list)}
    others = [each for each in operands if isinstance(each, dict | list)]

    def test(value: Any) -> bool:
        if type(value) is dict or type(value) is list:
            return any(same(value, each) for each in others)
        return key(value) in scalars

    return test


def ordered(compare: Callable[[Any, Any], bool], operand: Any, path: str) -> Test:
    if is_number(operand):
        return number_that(compare, operand)
    if isinstance(operand, str):
        return lambda value: type(value) is str and compare(value, operand)  # Python's are by code point
    raise BadMessage(f"{path}: a number or a string")


def number_that(compare: Callable[[Any, Any], bool], operand: float) -> Test:
    limit = double(operand)

    def test(value: Any) -> bool:
        kind = type(value)
        return compare(value, limit) if kind is float else kind is int and compare(double(value), limit)

    return test


def same(value: Any, wanted: Any) -> bool:
    """Return whether two JSON values are equal, whatever the order of members."""
    if type(wanted) is dict:
        return (
            type(value) is dict
            and value.keys() == wanted.keys()
            and all(same(value[name], each) for name, each in wanted.items())
        )
    if type(wanted) is list:
        return type(value) is list and len(value) == len(wanted) and all(map(same, value, wanted))
    return bool(key(value) == key(wanted))


def key(value: Any) -> Any:
    """Return what equal scalars, and no others, have in common: Python holds True to be 1."""
    if type(value) is bool:
        return (value,)
    return double(value) if is_number(value) else value


def is_number(value: Any) -> bool:
    return type(value) is int or type(value) is float


def double(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def check_depth(operand: Any, path: str) -> None:
    pending = [(operand, 0)]
    while pending:
        value, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise BadMessage(f"{path}: nested deeper than {MAX_DEPTH}")
        within = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        pending += [(each, depth + 1) for each in within]


# --- helpers ---------------------------------------------------------------------------------------


def all_of(tests: list[Test]) -> Test:
    if len(tests) == 1:
        return tests[0]

    def test(event: Any) -> bool:
        for each in tests:  # noqa: SIM110  a generator takes longer, and this is what an event costs
            if not each(event):
                return False
        return True

    return test


def any_of(tests: list[Test]) -> Test:
    if len(tests) == 1:
        return tests[0]

    def test(event: Any) -> bool:
        for each in tests:  # noqa: SIM110  likewise
            if each(event):
                return True
        return False

    return test


def shown(text: str) -> str:
    return json.dumps(text[:MAX_SHOWN] + "…" * (len(text) > MAX_SHOWN), ensure_ascii=False)


def nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name[:MAX_SHOWN], list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
