"""Messages and their JSON: strict on the way in, exact on the way out."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import BadMessage, UnknownType
from broker.wire import codec, messages
from broker.wire import messages as m

READABLE: list[tuple[str, m.ClientMessage]] = [
    ('{"type":"ping"}', m.Ping()),
    ('{"type":"ping","payload":{}}', m.Ping()),
    ('{"type":"authenticate","payload":{"token":"t"}}', m.Authenticate(token="t")),
    ('{"type":"authenticate","payload":{"token":"","tenant":"x"}}', m.Authenticate(token="", tenant="x")),
    ('{"type":"authenticate","payload":{"token":"t","tenant":null}}', m.Authenticate(token="t")),
    ('{"type":"subscribe","payload":{"channel":"a"}}', m.Subscribe(channel="a")),
    ('{"type":"subscribe","payload":{"channel":["a","b"]}}', m.Subscribe(channel=["a", "b"])),
    (
        '{"type":"subscribe","payload":{"channel":"a","position":"p","since":"s","last":1}}',
        m.Subscribe(channel="a", position="p", since="s", last=1),
    ),
    (
        '{"type":"subscribe","payload":{"channel":"a","snapshot":true,"durable":"d","lag":"close"}}',
        m.Subscribe(channel="a", snapshot=True, durable="d", lag="close"),
    ),
    ('{"type":"subscribe","payload":{"channel":"a","position":null,"last":null}}', m.Subscribe(channel="a")),
    ('{"type":"unsubscribe","payload":{"channel":["a"]}}', m.Unsubscribe(channel=["a"])),
    (
        '{"type":"acknowledge","payload":{"durable":"d","position":"p"}}',
        m.Acknowledge(durable="d", position="p"),
    ),
    (
        '{"type":"state.change","payload":{"id":"s-1","channel":"a","patch":null,"was":{"b":1}}}',
        m.Change(id="s-1", channel="a", patch=None, was={"b": 1}),
    ),
    (
        '{"type":"state.change","payload":{"id":"s-1","channel":"a","add":{"/b":1},"revision":"p"}}',
        m.Change(id="s-1", channel="a", add={"/b": 1}, revision="p"),
    ),
    (
        '{"type":"state.change","payload":{"id":"s-1","changes":[{"channel":"a","patch":{},"was":null}]}}',
        m.Change(id="s-1", changes=[m.OneChange(channel="a", patch={}, was=None)]),
    ),
    ('{"type":"publish","payload":{"channel":"a","event":null}}', m.Publish(channel="a", event=None)),
    ('{"type":"history","payload":{"channel":"a"}}', m.History(channel="a")),
    (
        '{"type":"state.open","payload":{"channel":"a","position":"p","every_ms":1}}',
        m.StateOpen(channel="a", position="p", every_ms=1),
    ),
    ('{"type":"state.close","payload":{"channel":["a"]}}', m.StateClose(channel=["a"])),
    (
        '{"type":"history","payload":{"channel":["a"],"before":"p","after":"p","since":"t","limit":1}}',
        m.History(channel=["a"], before="p", after="p", since="t", limit=1),
    ),
    (
        '{"type":"presence.enter","payload":{"channel":"a","session":"s"}}',
        m.PresenceEnter(channel="a", session="s"),
    ),
    (
        '{"type":"presence.enter","payload":{"channel":"a","session":"s","state":{"b":1},"away":"hidden"}}',
        m.PresenceEnter(channel="a", session="s", state={"b": 1}, away="hidden"),
    ),
    ('{"type":"presence.update","payload":{"channel":"a"}}', m.PresenceUpdate(channel="a")),
    (
        '{"type":"presence.update","payload":{"channel":"a","state":null,"away":false,"for_ms":1}}',
        m.PresenceUpdate(channel="a", state=None, away=False, for_ms=1),
    ),
    ('{"type":"presence.leave","payload":{"channel":"a"}}', m.PresenceLeave(channel="a")),
    (
        '{"type":"presence.watch","payload":{"channel":"a","position":"p"}}',
        m.PresenceWatch(channel="a", position="p"),
    ),
    ('{"type":"presence.unwatch","payload":{"channel":"a"}}', m.PresenceUnwatch(channel="a")),
    ('{"type":"request","payload":{"method":"a"}}', m.Ask(method="a")),
    (
        '{"type":"request","payload":{"method":"a","data":[1],"timeout_ms":1,"id":"i","traceparent":"t"}}',
        m.Ask(method="a", data=[1], timeout_ms=1, id="i", traceparent="t"),
    ),
    (
        '{"type":"publish","payload":{"channel":"a","event":{"b":[1.5]},"id":"i"}}',
        m.Publish(channel="a", event={"b": [1.5]}, id="i"),
    ),
]


@pytest.mark.parametrize(("text", "message"), READABLE)
def test_every_client_message(text: str, message: m.ClientMessage) -> None:
    """Each message of the protocol page with the least and with all of its fields; `null` is absence."""
    assert codec.decode(text.encode()) == codec.Decoded(message, None)
    with_id = text[:-1] + ',"messageId":"7"}'
    assert codec.decode(with_id.encode()) == codec.Decoded(message, "7")


def test_every_message_is_shown() -> None:
    """The table above leaves none out."""
    assert {type(message) for _, message in READABLE} == set(get_args(m.ClientMessage))


BAD = [
    ("", "not JSON"),
    ("{", "not JSON"),
    ("nonsense", "not JSON"),
    ('{"type":"ping"} {}', "not JSON"),
    ('{"type":"ping","payload":{},}', "not JSON"),
    ('{"type":"ping"}\0', "not JSON"),
    ('{"type":"publish","payload":{"channel":"a","event":NaN}}', "not JSON"),
    ('{"type":"publish","payload":{"channel":"a","event":1e999}}', "not JSON: Number out of range"),
    ('{"type":"publish","payload":{"channel":"a","event":' + "9" * 5000 + "}}", "not JSON: Integer"),
    ('{"type":"publish","payload":{"channel":"a","event":"\\ud800"}}', "not JSON"),
    ("[" * 50_000, "not JSON"),
    ('{"type":"publish","payload":' * 2000, "not JSON"),
    ("[]", "a message is an object"),
    ('"ping"', "a message is an object"),
    ("null", "a message is an object"),
    ("1", "a message is an object"),
    ("{}", "type: a string is required"),
    ('{"type":null}', "type: a string is required"),
    ('{"type":["ping"]}', "type: a string is required"),
    ('{"typ":"ping"}', "type: a string is required"),
    ('{"type":"ping","payload":[]}', "payload: an object is required"),
    ('{"type":"ping","payload":null}', "payload: an object is required"),
    ('{"type":"ping","payload":"{}"}', "payload: an object is required"),
    ('{"type":"ping","payload":{"x":1}}', "payload.x: unknown field; known are "),
    ('{"type":"ping","Payload":{}}', "Payload: unknown field; did you mean 'payload'?"),
    ('{"type":"ping","messageid":"1"}', "messageid: unknown field; did you mean 'messageId'?"),
    ('{"type":"ping","zzz":"1"}', "zzz: unknown field; known are messageId, payload, type"),
    (
        '{"type":"subscribe","payload":{"chanel":"a"}}',
        "payload.chanel: unknown field; did you mean 'channel'?",
    ),
    (
        '{"type":"subscribe","payload":{"channel":"a","Snapshot":true}}',
        "payload.Snapshot: unknown field; did you mean 'snapshot'?",
    ),
    (
        '{"type":"subscribe","payload":{"channel":7,"postion":"x"}}',
        "payload.postion: unknown field; did you mean 'position'?",
    ),
    ('{"type":"subscribe"}', "payload.channel: is required"),
    ('{"type":"subscribe","payload":{}}', "payload.channel: is required"),
    ('{"type":"publish","payload":{"channel":"a"}}', "payload.event: is required"),
    ('{"type":"acknowledge","payload":{"durable":"d"}}', "payload.position: is required"),
    ('{"type":"authenticate","payload":{"token":5}}', "payload.token: must be a string"),
    ('{"type":"authenticate","payload":{"token":"t","tenant":5}}', "payload.tenant: must be a string"),
    ('{"type":"publish","payload":{"channel":["a"],"event":1}}', "payload.channel: must be a string"),
    ('{"type":"publish","payload":{"channel":"a","event":1,"id":1}}', "payload.id: must be a string"),
    ('{"type":"subscribe","payload":{"channel":[]}}', "payload.channel: must be a channel, or a list of"),
    ('{"type":"subscribe","payload":{"channel":null}}', "payload.channel: must be a channel, or a list of"),
    (
        '{"type":"subscribe","payload":{"channel":["a",1]}}',
        "payload.channel: must be a channel, or a list of",
    ),
    (
        '{"type":"subscribe","payload":{"channel":{"a":1}}}',
        "payload.channel: must be a channel, or a list of",
    ),
    ('{"type":"unsubscribe","payload":{"channel":[["a"]]}}', "payload.channel: must be a channel, or a list"),
    ('{"type":"subscribe","payload":{"channel":"a","last":"5"}}', "payload.last: must be a whole number"),
    ('{"type":"subscribe","payload":{"channel":"a","last":5.0}}', "payload.last: must be a whole number"),
    ('{"type":"subscribe","payload":{"channel":"a","last":true}}', "payload.last: must be a whole number"),
    (
        '{"type":"subscribe","payload":{"channel":"a","snapshot":1}}',
        "payload.snapshot: must be true or false",
    ),
    ('{"type":"subscribe","payload":{"channel":"a","snapshot":"true"}}', "payload.snapshot: must be true or"),
    ('{"type":"subscribe","payload":{"channel":"a","position":5}}', "payload.position: must be a string"),
    (
        '{"type":"subscribe","payload":{"channel":"a","lag":"Drop"}}',
        "payload.lag: must be one of replay, latest",
    ),
    ('{"type":"subscribe","payload":{"channel":"a","lag":["drop"]}}', "payload.lag: must be one of replay"),
    ('{"type":"subscribe","payload":{"channel":"a","lag":{"drop":1}}}', "payload.lag: must be one of replay"),
]


@pytest.mark.parametrize(("text", "sentence"), BAD)
def test_refused(text: str, sentence: str) -> None:
    """Each kind of fault is `bad_message` and says where it is, with the nearest name that is right."""
    with pytest.raises(codec.Undecodable) as refused:
        codec.decode(text.encode())
    assert isinstance(refused.value.error, BadMessage)
    assert refused.value.error.message.startswith(sentence)


def test_every_field_has_words_for_its_type() -> None:
    """A field of any type can be refused; what may be anything never is."""
    types = {field.type for fields in codec.FIELDS.values() for field in fields}
    assert types - {Any} <= codec.EXPECTED.keys()


def test_not_text() -> None:
    """Bytes that are no UTF-8 are refused as what they are, within a string or without."""
    for data in (b"\xff", b'{"type":"ping","messageId":"\xff"}', b'\xef\xbb\xbf{"type":"ping"}'):
        with pytest.raises(codec.Undecodable, match="not JSON"):
            codec.decode(data)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("pong", "did you mean 'ping'"),
        ("Subscribe", "did you mean 'subscribe'"),
        ("unsubcribe", "did you mean 'unsubscribe'"),
        (
            "",
            "known are acknowledge, authenticate, history, ping, presence.enter, presence.leave",
        ),
        ("event", "'event' is unknown"),
    ],
)
def test_unknown_type(name: str, sentence: str) -> None:
    """An unknown type is no bad message but `unknown_type`, and names the nearest known one."""
    with pytest.raises(codec.Undecodable) as refused:
        codec.decode(json.dumps({"type": name, "messageId": "1"}).encode())
    assert isinstance(refused.value.error, UnknownType)
    assert sentence in refused.value.error.message
    assert refused.value.message_id == "1"


@pytest.mark.parametrize(
    "text",
    [
        '{"type":"%s","messageId":"1"}',
        '{"type":"ping","messageId":"1","%s":1}',
        '{"type":"ping","messageId":"1","payload":{"%s":1}}',
    ],
)
def test_refusals_are_short(text: str) -> None:
    """What a client sends comes back in a refusal only in part."""
    with pytest.raises(codec.Undecodable) as refused:
        codec.decode((text % ("x" * 60_000)).encode())
    assert len(refused.value.error.message) < 300
    assert refused.value.message_id == "1"


@pytest.mark.parametrize("given", ["1", "", "x" * 64, "ä" * 32, "\0\n"])
def test_message_id(given: str) -> None:
    """Any string of up to 64 bytes; a fault elsewhere still comes back with it."""
    assert codec.decode(json.dumps({"type": "ping", "messageId": given}).encode()).message_id == given
    with pytest.raises(codec.Undecodable) as refused:
        codec.decode(json.dumps({"type": "subscribe", "messageId": given}).encode())
    assert refused.value.message_id == given


def test_an_event_may_be_nested_as_deeply_as_one_of_nats() -> None:
    """The bound is ours, and the same in every version of Python."""
    text = '{"type":"publish","payload":{"channel":"a","event":%s%s}}'
    assert codec.decode((text % ("[" * 1024, "]" * 1024)).encode())
    for deeper in 1025, 9000, 500_000:
        with pytest.raises(codec.Undecodable, match="nested too deeply"):
            codec.decode((text % ("[" * deeper, "]" * deeper)).encode())


BROKEN = [
    r'{"type":"publish","payload":{"channel":"a","event":"\ud83d"},%s}',
    r'{%s,"type":"publish","payload":{"channel":"a","event":"\ud83d"}}',
    r'{"type":"publish","payload":{"channel":"a\udc00","event":1},%s}',
    r'{"type":"publish","payload":{"channel":"a","event":{"\ud83d\ud83d":"\"messageId\":\"2\""}},%s}',
    '{"type":"publish","payload":{"channel":"a","event":{"messageId":"2","x":NaN}},%s}',
    '{"type":"publish","payload":{"channel":"a","event":[1e999,{"messageId":"2"}]},%s}',
    '{"type":"publish","payload":{"channel":"a","event":' + "9" * 5000 + "},%s}",
    '{"type":"publish","payload":{"channel":"a","event":' + "[" * 9000 + "]" * 9000 + "},%s}",
    '{"type":"publish","payload":{"channel":"a","event":01},%s}',
    '{"type":"publish","payload":{"channel":"a","event":"\n"},%s}',
    '{"type":"publish","payload":{"channel":"a","event":"\udcff"},%s}',
    '{"type":"publish",%s,"payload":{"channel":"a","event":"cut o',
    '{"type":"publish",%s,"payload":{"channel":"a","event":"cut o\\',
    '{"type":"ping","messageId":"0",%s,}',
    ' \r\n{ "type":"ping" , %s } {}',
]


@pytest.mark.parametrize("text", BROKEN)
@pytest.mark.parametrize("field", ['"messageId":"1"', '"messageId" :\n "\\u0031"'])
def test_the_id_of_what_is_not_json(text: str, field: str) -> None:
    """It is found wherever the outline of the frame still shows it, and none that stands deeper."""
    with pytest.raises(codec.Undecodable, match="not JSON") as refused:
        codec.decode((text % field).encode(errors="surrogateescape"))
    assert refused.value.message_id == "1"


@pytest.mark.parametrize(
    "text",
    [
        r'{"type":"ping","messageId":"\ud83d"}',
        r'{"type":"ping","messageId":"\q"}',
        '{"type":"ping","messageId":"' + "x" * 65 + '",}',
        '{"type":"ping","messageId":5,}',
        '{"type":"ping","messageId":"1',
        '{"type":"ping","messageId":"\udcff",}',
        '["messageId":"1"]',
        '"messageId":"1"',
        '{"payload":{"messageId":"1"}',
        '{"payload":{"messageId":"1"},"type":"\\',
        '}{"messageId":"1"',
        "",
    ],
)
def test_no_id_in_what_is_not_json(text: str) -> None:
    """What cannot be read, or is none of the frame's own, is not repeated."""
    with pytest.raises(codec.Undecodable) as refused:
        codec.decode(text.encode(errors="surrogateescape"))
    assert refused.value.message_id is None


@settings(deadline=None)
@given(data=st.binary() | st.text(st.sampled_from('{}[]",:\\messageId1 ')).map(str.encode))
def test_any_bytes_have_an_id_or_none(data: bytes) -> None:
    """Whatever comes, looking for its id ends, and finds nothing else."""
    with suppress(codec.Undecodable):
        codec.decode(data)
    assert codec.stray_id(data) is None or codec.is_message_id(codec.stray_id(data))


@pytest.mark.parametrize("given", [5, "x" * 65, "ä" * 33, ["1"], {}, False])
def test_no_message_id(given: Any) -> None:
    """Another one is refused, and not repeated."""
    with pytest.raises(codec.Undecodable, match="messageId: a string of at most 64 bytes") as refused:
        codec.decode(json.dumps({"type": "ping", "messageId": given}).encode())
    assert refused.value.message_id is None


def test_of_doubled_keys_the_last_counts() -> None:
    """As in every browser's `JSON.parse`, and the same at each level: no two readers differ."""
    text = '{"type":"subscribe","type":"publish","payload":{},"payload":{"channel":"a","channel":"b",'
    text += '"event":{"x":1,"x":2}},"messageId":"1","messageId":"2"}'
    expected = codec.Decoded(m.Publish(channel="b", event={"x": 2}), "2")
    assert codec.decode(text.encode()) == expected
    assert json.loads(text)["payload"] == {"channel": "b", "event": {"x": 2}}


def test_integers_keep_their_value() -> None:
    """Up to where 64 bits end and beyond: it is the session that refuses those."""
    for number in (2**63, 2**64, -(2**63) - 1, 10**400):
        text = f'{{"type":"publish","payload":{{"channel":"a","event":[{number}]}}}}'
        message = codec.decode(text.encode()).message
        assert isinstance(message, m.Publish)
        assert message.event == [number]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = sorted({field for cls in messages.CLIENT_MESSAGES.values() for field in cls.__struct_fields__})
DOCUMENTS = st.fixed_dictionaries(
    {"type": st.sampled_from(sorted(messages.CLIENT_MESSAGES)) | JSON},
    optional={
        "payload": st.dictionaries(st.sampled_from(FIELDS), JSON | st.just("a"), max_size=4) | JSON,
        "messageId": st.text(max_size=70) | JSON,
    },
)


@settings(deadline=None, max_examples=400)
@given(document=DOCUMENTS | JSON)
def test_any_document_is_a_message_or_refused(document: Any) -> None:
    """Nothing that a client can send raises anything else, or becomes a value of another type."""
    try:
        decoded = codec.decode(json.dumps(document).encode())
    except codec.Undecodable:
        return
    given = {key: value for key, value in document.get("payload", {}).items() if value is not None}
    held = {key: value for key, value in msgspec.structs.asdict(decoded.message).items() if value is not None}
    assert json.dumps(held, sort_keys=True) == json.dumps(given, sort_keys=True)
    assert decoded.message.type == document["type"]


# --- from the broker -------------------------------------------------------------------------------

WRITTEN: list[tuple[m.ServerMessage, dict[str, Any]]] = [
    (
        m.Established(
            connection_id="c", protocol="broker.v1", features=[], heartbeat_seconds=25.0, limits={"a": 1}
        ),
        {
            "connection_id": "c",
            "protocol": "broker.v1",
            "features": [],
            "heartbeat_seconds": 25,
            "limits": {"a": 1},
        },
    ),
    (
        m.Authenticated(tenant="t", user="u", private="users.u", expires_at="e", permissions={"deny": []}),
        {"tenant": "t", "user": "u", "private": "users.u", "expires_at": "e", "permissions": {"deny": []}},
    ),
    (m.Expiring(expires_at="e"), {"expires_at": "e"}),
    (m.Draining(reconnect_after_ms=5), {"reconnect_after_ms": 5}),
    (m.Draining(reconnect_after_ms=5, position="p"), {"reconnect_after_ms": 5, "position": "p"}),
    (
        m.Subscribed(
            channel=["a"],
            refused=[m.Refused(channel="b", code="forbidden", message="no")],
            position="p",
            recovered=True,
            live=False,
            catch_up=1,
        ),
        {
            "channel": ["a"],
            "refused": [{"channel": "b", "code": "forbidden", "message": "no"}],
            "position": "p",
            "recovered": True,
            "live": False,
            "catch_up": 1,
        },
    ),
    (
        m.Subscribed(channel=["a"], refused=[], position="p", recovered=False, live=True),
        {"channel": ["a"], "refused": [], "position": "p", "recovered": False, "live": True},
    ),
    (
        m.SubscriptionLive(channel="a", position="p", catch_up=2),
        {"channel": "a", "position": "p", "catch_up": 2},
    ),
    (m.SubscriptionLive(channel=["a", "b"], position="p"), {"channel": ["a", "b"], "position": "p"}),
    (m.Unsubscribed(channel="a"), {"channel": "a"}),
    (m.Unsubscribed(channel="a", code="forbidden"), {"channel": "a", "code": "forbidden"}),
    (m.Gap(channel="a", reason="lag"), {"channel": "a", "reason": "lag"}),
    (
        m.Gap(channel=["a"], reason="limit", start="f", end="t", count=0, catch_up=3),
        {"channel": ["a"], "reason": "limit", "from": "f", "to": "t", "count": 0, "catch_up": 3},
    ),
    (m.Source(state="interrupted"), {"state": "interrupted"}),
    (m.Answered(data={"a": None}), {"data": {"a": None}}),
    (m.Published(), {}),
    (m.Published(id="i", position="p", duplicate=True), {"id": "i", "position": "p", "duplicate": True}),
    (m.Acknowledged(durable="d", position="p"), {"durable": "d", "position": "p"}),
    (
        m.StateOpened(channel=["a"], refused=[], position="p", recovered=True),
        {"channel": ["a"], "refused": [], "position": "p", "recovered": True},
    ),
    (m.StateReady(channel="a", position="p"), {"channel": "a", "position": "p"}),
    (m.StateClosed(channel="a"), {"channel": "a"}),
    (m.StateClosed(channel=["a"], code="forbidden"), {"channel": ["a"], "code": "forbidden"}),
    (
        m.Past(channel="a", events=[], first="p", last="q", more=True, recovered=False),
        {"channel": "a", "events": [], "first": "p", "last": "q", "more": True, "recovered": False},
    ),
    (m.Changed(id="s-1", revisions={"a": "p"}), {"id": "s-1", "revisions": {"a": "p"}}),
    (
        m.Lost(ids=["s-1"], channel="a", revision="p", paths={"/b": None}),
        {"ids": ["s-1"], "channel": "a", "revision": "p", "paths": {"/b": None}},
    ),
    (m.PresenceEntered(channel="a", position="p"), {"channel": "a", "position": "p"}),
    (m.PresenceUpdated(channel="a"), {"channel": "a"}),
    (m.PresenceLeft(channel="a"), {"channel": "a"}),
    (m.PresenceLeft(channel="a", code="replaced"), {"channel": "a", "code": "replaced"}),
    (
        m.PresenceWatched(channel="a", position="p", recovered=True, detail="full"),
        {"channel": "a", "position": "p", "recovered": True, "detail": "full"},
    ),
    (m.PresenceUnwatched(channel="a"), {"channel": "a"}),
    (m.PresenceUnwatched(channel="a", code="forbidden"), {"channel": "a", "code": "forbidden"}),
    (
        m.Presence(
            channel="a",
            position="p",
            set=[m.Member(user="u", session="s", since="t", state=None, away="lost")],
            gone=[m.Departed(user="u", session="r")],
            users=1,
            sessions=1,
            whole=True,
            complete=True,
        ),
        {
            "channel": "a",
            "position": "p",
            "set": [{"user": "u", "session": "s", "since": "t", "state": None, "away": "lost"}],
            "gone": [{"user": "u", "session": "r"}],
            "users": 1,
            "sessions": 1,
            "whole": True,
            "complete": True,
        },
    ),
    (m.Pong(), {}),
    (m.Pong(position="p"), {"position": "p"}),
    (m.Error(code="c", message="m", retryable=False), {"code": "c", "message": "m", "retryable": False}),
    (
        m.Error(code="c", message="m", retryable=True, retry_after_ms=10),
        {"code": "c", "message": "m", "retryable": True, "retry_after_ms": 10},
    ),
    (
        m.Error(
            code="c",
            message="m",
            retryable=False,
            paths={"/b": "no"},
            conflict=[m.Contradiction(channel="a", revision="p", paths={"/b": 1})],
        ),
        {
            "code": "c",
            "message": "m",
            "retryable": False,
            "paths": {"/b": "no"},
            "conflict": [{"channel": "a", "revision": "p", "paths": {"/b": 1}}],
        },
    ),
]


@pytest.mark.parametrize(("message", "payload"), WRITTEN)
def test_every_server_message(message: m.ServerMessage, payload: dict[str, Any]) -> None:
    """Each message of the protocol page under the names that stand there; what is not set is not there."""
    assert json.loads(codec.encode(message)) == {"type": message.type, "payload": payload}
    assert json.loads(codec.encode(message, "7"))["messageId"] == "7"
    assert json.loads(codec.encode(message, ""))["messageId"] == "", "the client's own choice, if an odd one"


def test_every_server_message_is_shown() -> None:
    """The table above leaves none out."""
    assert {type(message) for message, _ in WRITTEN} == set(get_args(m.ServerMessage))


@settings(deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_text_arrives_as_it_is(text: str) -> None:
    """Any text in any message is valid JSON on the wire."""
    document = msgspec.json.decode(codec.encode(m.Error(code="c", message=text, retryable=False), text))
    assert document["payload"]["message"] == document["messageId"] == text


@pytest.mark.parametrize(("channels", "named"), [(["a"], "a"), (["a", "b"], ["a", "b"])])
def test_named(channels: list[str], named: Any) -> None:
    """Unasked, the broker names one channel as itself and more as a list."""
    assert m.named(iter(channels)) == named
