"""The AsyncAPI document is true: by the official parser, and by what the broker reads and writes."""

from __future__ import annotations

import json
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Struct, UnsetType, to_builtins

from broker.errors import CloseCode
from broker.http import queries
from broker.http.responses import Refused
from broker.links import sse
from broker.links.poll import messages as polls
from broker.subjects import Names
from broker.web import asyncapi
from broker.wire import codec, frames
from broker.wire import messages as m
from tests.support import described
from tests.support.node import run
from tests.support.requests import TABLE

if TYPE_CHECKING:
    from pathlib import Path

TEXT = st.text(max_size=20)
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False).filter(
    lambda x: not x.is_integer()
)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
SIMPLE: dict[Any, st.SearchStrategy[Any]] = {
    str: TEXT,
    int: st.integers(),
    float: NUMBERS,
    bool: st.booleans(),
    type(None): st.none(),
    UnsetType: st.just(UNSET),
    Any: JSON,
}
CODES = ("Error", "Refused", "Unsubscribed")
CHECK = """
const {Parser} = require(process.argv[1]);
new Parser().parse(require("node:fs").readFileSync(0, "utf8")).then(({document, diagnostics}) => {
  console.log(JSON.stringify({
    faults: diagnostics.filter((each) => each.severity < 2).map((each) => [each.path, each.message]),
    messages: document ? document.allMessages().all().map((each) => each.name()) : null,
  }));
});
"""


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a type as the message classes have them."""
    if hint in SIMPLE:
        return SIMPLE[hint]
    if isinstance(hint, type) and issubclass(hint, Struct):
        return messages(hint)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is Annotated:
        return values(arguments[0]).filter(bool)  # the one constraint that there is: not empty
    if origin in (Union, UnionType):
        return st.one_of([values(each) for each in arguments])
    if origin is list:
        return st.lists(values(arguments[0]), max_size=3)
    assert origin is dict
    return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=3)


def messages(kind: Any) -> st.SearchStrategy[Any]:
    hints = get_type_hints(kind, include_extras=True)
    fields = {name: values(hints[name]) for name in kind.__struct_fields__}
    if kind.__name__ in CODES:
        codes = st.sampled_from(sorted(asyncapi.error_codes()))
        fields["code"] = codes | st.just(UNSET) if kind is m.Unsubscribed else codes
    return st.builds(kind, **fields)


@given(message=st.one_of([messages(kind) for kind in get_args(m.ServerMessage)]), message_id=st.none() | TEXT)
def test_what_the_broker_encodes(message: m.ServerMessage, message_id: str | None) -> None:
    """Whatever value a message of the broker has, its JSON is as described."""
    described.check(json.loads(codec.encode(message, message_id)))


@given(
    channel=st.sampled_from(["orders.7", "live.x"]),
    body=JSON,
    publisher=st.none() | TEXT,
    catch_up=st.none() | st.integers(1, 9),
    trace=st.booleans(),
)
def test_events(channel: str, body: Any, publisher: str | None, catch_up: int | None, trace: bool) -> None:
    """Events are spliced and not encoded, and are as described all the same."""
    sequence = 0 if channel.startswith("live.") else 7
    framed = frames.event(frames.event_head(channel, "inc"), sequence, json.dumps(body).encode(), publisher)
    if catch_up is not None:
        framed = frames.mark(framed, catch_up)
    if trace:
        framed = frames.trace(framed, "00-" + "1" * 32 + "-" + "2" * 16 + "-01")
    message = json.loads(framed[{126: 4, 127: 10}.get(framed[1], 2) :])
    described.check(message)
    assert ("position" in message["payload"]) == bool(sequence)


def attempts(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    """What clients might send: right, nearly right, and wrong."""
    hints = get_type_hints(m.CLIENT_MESSAGES[kind], include_extras=True)
    fields = {
        name: values(hints[name]).filter(lambda value: value is not UNSET).map(to_builtins)
        for name in m.CLIENT_MESSAGES[kind].__struct_fields__
    }
    anything = dict.fromkeys(fields, JSON) | {"chanel": TEXT}
    payload = st.one_of(
        st.fixed_dictionaries(fields),
        st.fixed_dictionaries({}, optional=fields),
        st.tuples(st.fixed_dictionaries(fields), st.fixed_dictionaries({}, optional=anything)).map(
            lambda both: both[0] | both[1]
        ),
        JSON,
    )
    message_id = st.none() | st.text(alphabet="abc", max_size=70) | st.integers()
    return st.fixed_dictionaries(
        {"type": st.just(kind)}, optional={"payload": payload, "messageId": message_id, "id": TEXT}
    )


@given(attempt=st.one_of([attempts(kind) for kind in m.CLIENT_MESSAGES]))
def test_what_clients_may_send(attempt: dict[str, Any]) -> None:
    """The broker reads a client's message exactly when it is as described."""
    try:
        codec.decode(json.dumps(attempt).encode())
    except codec.Undecodable:
        read = False
    else:
        read = True
    assert described.validator(attempt["type"]).is_valid(attempt) == read


@st.composite
def bodies(draw: st.DrawFn) -> Any:
    """Bodies of polls: right, nearly right, and wrong."""
    hints = get_type_hints(polls.Poll, include_extras=True)
    known = {name: values(hint) for name, hint in hints.items()}
    known |= {"lag": st.none() | st.sampled_from(get_args(m.Lag)), "wait": NUMBERS | st.integers(-1, 61)}
    channels = {"channels": known.pop("channels")}
    chosen = draw(st.fixed_dictionaries(channels, optional=known))
    anything = dict.fromkeys((*channels, *known.keys() - {"lag"}, "chanels"), JSON)
    wrong = draw(st.fixed_dictionaries({}, optional=anything))
    leave = {"session": draw(TEXT | st.none()), "leave": draw(st.booleans())}
    return draw(st.sampled_from([chosen, chosen | wrong, wrong, list(wrong), leave, leave | wrong]))


@given(body=bodies())
def test_what_a_poll_may_be(body: Any) -> None:
    """The broker reads the body of a poll exactly when it is as described."""
    try:
        polls.from_body(json.dumps(body).encode())
    except Refused:
        read = False
    else:
        read = True
    assert described.asked("post_poll").is_valid(body) == read


def test_requests_are_those_of_the_port() -> None:
    """Each page with its methods and its parameters, and the messages that are posted."""
    found = described.document()
    operations = found["operations"]
    described_pages: dict[str, set[str]] = {}
    for name, operation in operations.items():
        if (binding := operation.get("bindings", {}).get("http")) is None:
            continue
        path = described.resolved(operation["channel"])["address"]
        described_pages.setdefault(path, set()).add(binding["method"])
        known = {
            "get_sse": {"channel", "state", sse.STATE_EVERY_MS, *sse.PARAMETERS, sse.LAST_EVENT_ID},
            "get_poll": {"channel", "state", *polls.PARAMETERS},
            "get_history": {*m.History.__struct_fields__},
            "get_state": {"channel", "position"},
            "get_presence": {"channel"},
        }.get(name, set())
        assert binding["query"]["properties"].keys() == known | set(queries.COMMON)
    pages = {each.path: {*each.methods} - {"OPTIONS", "HEAD"} for each in described.PROTOCOL}
    assert described_pages == {path: pages[path] for path in pages.keys() - {"/ws"}}
    subscribe = {*m.Subscribe.__struct_fields__}
    assert {"channel", *sse.PARAMETERS} == subscribe
    assert {"channels", *subscribe} - {"channel"} == set(polls.NAMES) - {
        "tenant", "session", "wait", "state", "state_every_ms",
    }  # fmt: skip
    pages_of = [request.page for request in TABLE.values() if request.page]
    assert {page.path for page in pages_of} == {
        "/publish", "/acknowledge", "/request", "/history", "/state", "/presence",
    }  # fmt: skip
    for page in pages_of:
        method = "get" if page.query is not None else "post"
        reply = operations[f"{method}_{page.path.removeprefix('/')}"]["reply"]["messages"]
        status = [described.resolved(each)["bindings"]["http"].get("statusCode") for each in reply]
        assert status == [page.status, None]


def test_every_code_is_there_with_its_meaning() -> None:
    """The tables of the protocol page, with a sentence for each code."""
    schemas = described.document()["components"]["schemas"]
    close = {each["const"]: each["description"] for each in schemas["CloseCode"]["oneOf"]}
    assert close == {int(each): each.meaning for each in CloseCode}
    errors = {each["const"]: each["description"] for each in schemas["ErrorCode"]["oneOf"]}
    assert set(errors) == {
        "bad_message", "unknown_type", "unauthenticated", "forbidden", "invalid_channel", "invalid_position",
        "not_subscribed", "conflict", "limit_subscriptions", "limit_snapshot", "limit_connections",
        "limit_filters", "limit_documents", "limit_presence", "not_entered",
        "rate_limited", "too_large", "token_invalid", "token_expired", "token_revoked", "unavailable",
        "rejected", "timeout", "unknown_outcome", "bad_answer", "internal",
    }  # fmt: skip
    assert all([*errors.values(), *close.values()])


def test_every_class_describes_itself() -> None:
    """Descriptions come from docstrings, so each class has one."""
    components = described.document()["components"]
    for name, schema in components["schemas"].items():
        assert schema["description"].endswith("."), name
        assert not schema["description"].startswith(f"{name}("), name  # attrs or dataclasses made it
    assert all(message["summary"].endswith(".") for message in components["messages"].values())


def test_configured_prefixes() -> None:
    """The subjects are those of this broker."""
    channels = described.document(Names(events="facts", live="now"))["channels"]
    assert channels["stored"]["address"] == "facts.{tenant}.{channel}"
    assert channels["live"]["address"] == "now.{tenant}.{channel}"


def test_the_official_parser_takes_it(node: str, modules: Path) -> None:
    """@asyncapi/parser finds no fault and all messages."""
    document = json.dumps(described.document())
    checked = run(node, "-e", CHECK, str(modules / "@asyncapi" / "parser"), stdin=document)
    assert checked.returncode == 0, checked.stderr
    found = json.loads(checked.stdout)
    assert found["faults"] == []
    assert set(found["messages"]) >= {*m.CLIENT_MESSAGES, *asyncapi.SERVER_MESSAGES}
