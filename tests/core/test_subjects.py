"""Names: what is one and what is not, and the algebra of patterns against its plain meaning."""

from __future__ import annotations

import itertools
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import subjects
from broker.errors import InvalidChannel
from broker.subjects import Names

TEXT = st.text(max_size=20) | st.text("ab.*>%$@_ \u2028\u200b\x00\x7fäme", max_size=12)


@pytest.mark.parametrize("name", ["a", "A-z_0", "x" * 64, "-", "a_"])
def test_tenant(name: str) -> None:
    """Tenants are short and plain."""
    assert subjects.is_tenant(name)


@pytest.mark.parametrize(
    "name", ["", "_all", "_", "x" * 65, "a.b", "a b", "*", ">", "é", "a\n", "a\x00", "\u0661"]
)
def test_no_tenant(name: str) -> None:
    """Reserved names, other characters and other alphabets are no tenants."""
    assert not subjects.is_tenant(name)


@pytest.mark.parametrize(
    ("user", "encoded"),
    [
        ("alice", "alice"),
        ("a.b", "a%2Eb"),
        ("*>%$", "%2A%3E%25%24"),
        ("a b\t\x7f", "a%20b%09%7F"),
        ("ä\u2028\u00a0", "ä%E2%80%A8%C2%A0"),
        ("\u200b\ufeff\u0085", "%E2%80%8B%EF%BB%BF%C2%85"),
        ("auth0|5f", "auth0|5f"),
        ("e\u0301", "e\u0301"),
        ("x" * 128, "x" * 128),
    ],
)
def test_encode_user(user: str, encoded: str) -> None:
    """What a subject could not hold is written as upper-case hex of its UTF-8 bytes, the rest stays."""
    assert subjects.encode_user(user) == encoded


@pytest.mark.parametrize("user", ["", "x" * 129, "." * 43, "ä" * 65, "\ud800", "a\udfff"])
def test_no_user(user: str) -> None:
    """A user is not empty, valid Unicode, and fits into half a channel."""
    with pytest.raises(ValueError, match=r"128|surrogates"):
        subjects.encode_user(user)


def decode_user(encoded: str) -> str:
    """The naive way back, which exists only if no two users are encoded alike."""
    data = bytearray()
    rest = encoded.encode()
    while rest:
        if rest[:1] == b"%":
            data.append(int(rest[1:3], 16))
            rest = rest[3:]
        else:
            data.append(rest[0])
            rest = rest[1:]
    return data.decode()


@settings(deadline=None)
@given(TEXT)
def test_encoded_user_is_a_token(user: str) -> None:
    """Whoever can be encoded can be decoded again, and is one token of private channels and nothing else."""
    try:
        room = subjects.encode_user(user)
    except ValueError:
        return
    assert decode_user(room) == user
    assert subjects.parse_channel(f"users.{room}.inbox") == f"users.{room}.inbox"
    assert subjects.parse_channel(f"x.{room}").count(".") == 1


def test_every_character_of_a_user() -> None:
    """No character of Unicode gets through that a subject or a log line should not hold."""
    for code in itertools.chain(range(0xD800), range(0xE000, 0x110000)):
        char = chr(code)
        encoded = subjects.encode_user(char)
        if encoded == char:
            assert char not in ".*>%$"
            assert not char.isspace()
            assert unicodedata.category(char) not in ("Cc", "Cf")
        else:
            assert encoded == "".join(f"%{byte:02X}" for byte in char.encode())


GOOD = ["a", "a.b.c", "ä.b", "a.$b._c.@d", "users.alice.inbox", "live.x", "live.users.a.b", "me", "a.live"]
PATTERNS = ["*", ">", "a.*", "a.>", "*.*.b", "live.>", "live.*", "users.*.>", "users.alice", "a.*.>"]
NONE = [
    ("", "token 1 is empty"),
    (".", "token 1 is empty"),
    ("a.", "token 2 is empty"),
    ("a..b", "token 2 is empty"),
    (".a", "token 1 is empty"),
    ("a b", "token 1 holds white space"),
    ("a.b\r\n", "token 2 holds white space"),
    ("a.\u00a0", "token 2 holds white space"),
    ("a\x00", "token 1 holds a control character"),
    ("a.\x7f", "token 2 holds a control character"),
    ("a\u0085", "token 1 holds white space"),
    ("a.b*", "token 2 holds '*'"),
    ("a.>b", "token 2 holds '>'"),
    ("a.**", "token 2 holds '*'"),
    (">.a", "token 1 holds '>'"),
    ("$JS.API.>", "may not begin with '$'"),
    ("_INBOX.>", "may not begin with '_'"),
    ("@a", "may not begin with '@'"),
    ("live", "a live channel is live.<name>"),
    (".".join("a" * 17), "17 tokens"),
    ("a" * 257, "257 bytes"),
    ("ä" * 129, "258 bytes"),
    ("a.\ud800", "a lone surrogate at character 2"),
]


@pytest.mark.parametrize("text", [*GOOD, "a" * 256, ".".join("a" * 16)])
def test_channel(text: str) -> None:
    """Channels are patterns too; the limits are exact."""
    assert subjects.parse_channel(text) == text
    assert subjects.parse_pattern(text) == text


@pytest.mark.parametrize("text", PATTERNS)
def test_pattern(text: str) -> None:
    """Wildcards stand as whole tokens of patterns and nowhere in a channel to publish into."""
    assert subjects.parse_pattern(text) == text
    with pytest.raises(InvalidChannel):
        subjects.parse_channel(text)


@pytest.mark.parametrize(("text", "told"), NONE)
def test_no_channel(text: str, told: str) -> None:
    """What is neither channel nor pattern is refused with the token and the reason, shortly."""
    for parse in (subjects.parse_channel, subjects.parse_pattern):
        with pytest.raises(InvalidChannel) as caught:
            parse(text)
        assert told in caught.value.message
        assert caught.value.message.isascii()
        assert len(caught.value.message) < 200


@pytest.mark.parametrize("text", ["users", "users.alice", "live.users", "live.users.alice"])
def test_private_channel_needs_a_name(text: str) -> None:
    """Nothing is published into the root of a private room."""
    with pytest.raises(InvalidChannel, match="private channel"):
        subjects.parse_channel(text)


@settings(deadline=None)
@given(TEXT)
def test_parse_against_the_rules(text: str) -> None:
    """A pattern is exactly what the protocol page, "Names", says, read literally."""
    tokens = text.split(".")

    def good(index: int, token: str) -> bool:
        if token == "*" or (token == ">" and index == len(tokens) - 1):
            return True
        return token != "" and not any(
            char in "*>" or char.isspace() or unicodedata.category(char) == "Cc" for char in token
        )

    wanted = (
        len(tokens) <= 16
        and not any("\ud800" <= char <= "\udfff" for char in text)
        and len(text.encode(errors="surrogatepass")) <= 256
        and tokens[0][:1] not in ("@", "_", "$")
        and text != "live"
        and all(good(index, token) for index, token in enumerate(tokens))
    )
    try:
        subjects.parse_pattern(text)
    except InvalidChannel:
        assert not wanted
    else:
        assert wanted


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("me", "users.u"),
        ("me.a", "users.u.a"),
        ("me.>", "users.u.>"),
        ("live.me.a", "live.users.u.a"),
        ("live.me", "live.users.u"),
        ("a.me.b", "a.me.b"),
        ("mean.a", "mean.a"),
        ("live.mean", "live.mean"),
        ("live.a.me", "live.a.me"),
        ("users.me.a", "users.me.a"),
        ("", ""),
    ],
)
def test_expand_me(text: str, expanded: str) -> None:
    """`me` stands for the own room as the first token, or the second of a live channel, only."""
    assert subjects.expand_me(text, "u") == expanded


@settings(deadline=None)
@given(TEXT, TEXT)
def test_me_is_the_own_room(user: str, rest: str) -> None:
    """Whatever follows `me`, it stays in the user's own room, and expanding twice changes nothing more."""
    try:
        room = subjects.encode_user(user)
        once = subjects.parse_pattern(subjects.expand_me(f"me.{rest}", room))
        live = subjects.parse_pattern(subjects.expand_me(f"live.me.{rest}", room))
    except (ValueError, InvalidChannel):
        return
    assert subjects.covers(f"users.{room}.>", once)
    assert subjects.covers(f"live.users.{room}.>", live)
    assert subjects.expand_me(once, room) == once
    assert subjects.expand_me(live, room) == live


# The oracle: what a pattern means, channel by channel. "z" stands in no pattern, so it is every other name.
CHANNEL_TOKENS = ("a", "b", "users", "live", "z")
CHANNELS = [channel for size in range(1, 5) for channel in itertools.product(CHANNEL_TOKENS, repeat=size)]
ALPHABET = ("a", "users", "live", "*")
SMALL = [
    ".".join((*tokens, *last))
    for size in range(4)
    for tokens in itertools.product(ALPHABET, repeat=size)
    for last in ((), (">",))
    if tokens or last
]


def reached(pattern: tuple[str, ...], channel: tuple[str, ...], before: tuple[str, ...] = ()) -> bool:
    """Whether `pattern` matches `channel`, by the words of the protocol, one token after the other."""
    if not pattern or not channel:
        return not pattern and not channel
    token, name = pattern[0], channel[0]
    private = (before == () and name in ("users", "live")) or (before == ("live",) and name == "users")
    if token == ">":
        return not private
    if token == "*":
        return not private and reached(pattern[1:], channel[1:], (*before, name))
    return token == name and reached(pattern[1:], channel[1:], (*before, name))


def meaning(pattern: str) -> frozenset[int]:
    tokens = tuple(pattern.split("."))
    return frozenset(index for index, channel in enumerate(CHANNELS) if reached(tokens, channel))


MEANINGS = {pattern: meaning(pattern) for pattern in SMALL}


@pytest.mark.parametrize("outer", SMALL)
def test_covers_and_overlaps(outer: str) -> None:
    """For every pair of small patterns, covers means a subset and overlaps a common channel."""
    for inner in SMALL:
        assert subjects.covers(outer, inner) == (MEANINGS[inner] <= MEANINGS[outer]), inner
        assert subjects.overlaps(outer, inner) == bool(MEANINGS[inner] & MEANINGS[outer]), inner


@pytest.mark.parametrize("pattern", SMALL)
def test_room(pattern: str) -> None:
    """A pattern has a room when all channels that it means lie in that one, else none."""
    rooms = {subjects.room(".".join(CHANNELS[index])) for index in MEANINGS[pattern]}
    assert rooms == {subjects.room(pattern)} or (subjects.room(pattern) is None and len(rooms) > 1)


@pytest.mark.parametrize("pattern", SMALL)
def test_literal(pattern: str) -> None:
    """A pattern is literal when it means itself and nothing else."""
    means = {".".join(CHANNELS[index]) for index in MEANINGS[pattern]}
    assert subjects.is_literal(pattern) == (means == {pattern})


LONG = st.lists(st.sampled_from(["a", "b", "users", "live", "*"]), max_size=4).flatmap(
    lambda tokens: st.sampled_from([[*tokens, ">"], tokens or ["*"]])
)


@settings(deadline=None)
@given(LONG, LONG, st.lists(st.sampled_from(CHANNEL_TOKENS), min_size=1, max_size=8))
def test_long_patterns(outer: list[str], inner: list[str], channel: list[str]) -> None:
    """A channel that the inner one reaches is reached by what covers it; two that share one overlap."""
    one, other, name = ".".join(outer), ".".join(inner), ".".join(channel)
    within, without = reached(tuple(inner), tuple(channel)), reached(tuple(outer), tuple(channel))
    assert subjects.covers(other, name) == within
    if subjects.covers(one, other):
        assert without or not within
    if within and without:
        assert subjects.overlaps(one, other)
    assert subjects.overlaps(one, other) == subjects.overlaps(other, one)
    assert subjects.covers(one, one)


def test_walls() -> None:
    """No wildcard reaches into private or live channels from outside."""
    for outer in (">", "*", "*.>", "*.*", "*.*.*"):
        for inner in ("users.a.b", "users.>", "live.a", "live.>", "live.users.a.b"):
            assert not subjects.covers(outer, inner)
            assert not subjects.overlaps(outer, inner)
    assert not subjects.covers("live.>", "live.users.a.b")
    assert subjects.covers("users.>", "users.a.b")


@pytest.mark.parametrize(
    ("channel", "subject"),
    [
        ("orders.7", "events.acme.orders.7"),
        ("users.u.a", "events.acme.users.u.a"),
        ("live.cursor", "live.acme.cursor"),
        ("live.users.u.a", "live.acme.users.u.a"),
        ("a.live", "events.acme.a.live"),
        (">", "events.acme.>"),
        ("live.>", "live.acme.>"),
    ],
)
def test_subject(channel: str, subject: str) -> None:
    """A channel of a tenant and its subject stand for each other."""
    assert Names().subject("acme", channel) == subject
    assert Names().split(subject) == ("acme", channel)


@settings(deadline=None)
@given(LONG, st.sampled_from(["acme", "_all", "live", "events"]), st.sampled_from(["ev", "a.b", "live"]))
def test_subjects_and_back(tokens: list[str], tenant: str, prefix: str) -> None:
    """Whatever the configured prefixes, a subject gives back its tenant and channel."""
    names = Names(events=f"{prefix}.stored", live=f"{prefix}.live")
    channel = ".".join(tokens)
    if channel != "live":
        assert names.split(names.subject(tenant, channel)) == (tenant, channel)


@pytest.mark.parametrize(
    "subject", ["", "events", "events.", "events.acme", "other.acme.a", "eventsx.acme.a"]
)
def test_no_subject(subject: str) -> None:
    """A subject of something else is none of ours."""
    with pytest.raises(InvalidChannel):
        Names().split(subject)
