"""Names: tenants, users, channels, patterns and the NATS subjects that stand for them.

A *channel* is what clients see (`orders.7`, `live.cursor.7`, `users.alice.inbox`); a *subject* is what
NATS sees (`events.acme.orders.7`, `live.acme.cursor.7`, `events.acme.users.alice.inbox`). A *pattern*
is a channel in which a whole token may be `*` and the last one `>`, with the meaning that they have
in NATS (https://docs.nats.io/nats-concepts/subjects), and one rule of our own: a wildcard never
reaches into private or live channels from outside. `>` covers neither `users.…` nor `live.…`, and
`live.>` does not cover `live.users.…`.
"""

from __future__ import annotations

import base64
import hashlib
import re
import unicodedata

import attrs

from broker.errors import InvalidChannel

BROADCAST = "_all"
BROKER = "_broker"  # the broker itself, in place of a tenant
LIVE = "live"
USERS = "users"
ME = "me"

MAX_TOKENS = 16
MAX_CHANNEL_BYTES = 256
MAX_USER_BYTES = 128  # leaves half a channel for what follows `users.<user>.`

TENANT = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
ESCAPED = frozenset(".*>%$")
# Characters that make `token_fault` look at a token one by one; hardly any token has one.
ODD = re.compile(r"[^!-~]|[*>]")


def is_tenant(name: str) -> bool:
    """Return whether a token may name this tenant: names that begin with `_` are reserved."""
    return bool(TENANT.match(name)) and not name.startswith("_")


def encode_user(user: str) -> str:
    """Return `user` as one subject token, percent-encoded over its UTF-8 bytes where a subject needs it.

    Raises `ValueError` when it is empty, not valid Unicode, or longer than 128 bytes once encoded.
    """
    encoded = encode_token(user)
    size = len(encoded.encode())
    if not 1 <= size <= MAX_USER_BYTES:
        raise ValueError(f"a user takes 1 to {MAX_USER_BYTES} bytes when encoded, not {size}")
    return encoded


def encode_token(text: str) -> str:
    """Return any text as one subject token or header value; `urllib.parse.unquote` reverses it."""
    return "".join(
        "".join(f"%{byte:02X}" for byte in char.encode()) if needs_escape(char) else char for char in text
    )


def digest(*parts: str) -> str:
    """Return a bucket key for any texts: keys do not allow all that users and names may contain."""
    sha = hashlib.sha256("\0".join(parts).encode()).digest()
    return base64.b32encode(sha).decode().rstrip("=").lower()


def needs_escape(char: str) -> bool:
    return char in ESCAPED or char.isspace() or unicodedata.category(char) in ("Cc", "Cf")


def parse_channel(text: str) -> str:
    """Return `text` if it is a channel to publish to. Raises `InvalidChannel` with the reason if not."""
    tokens = parse(text, wildcards=False)
    if (tokens[0] == USERS and len(tokens) < 3) or (tokens[:2] == [LIVE, USERS] and len(tokens) < 4):
        raise InvalidChannel(f"{shown(text)}: a private channel is users.<user>.<name>")
    return text


def parse_method(text: str) -> str:
    """Return `text` if it is a method of a service: a channel, but neither private nor live.

    Raises `InvalidChannel`.
    """
    if parse_channel(text).partition(".")[0] in (ME, USERS, LIVE):
        raise InvalidChannel(f"{shown(text)}: a method does not begin with me, users or live")
    return text


def parse_pattern(text: str) -> str:
    """Return `text` if it is a pattern or channel. Raises `InvalidChannel` with the reason if not."""
    parse(text, wildcards=True)
    return text


def parse(text: str, *, wildcards: bool) -> list[str]:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidChannel(f"{shown(text)}: a lone surrogate at character {error.start}") from None
    if size > MAX_CHANNEL_BYTES:
        raise InvalidChannel(f"{shown(text)}: {size} bytes; a channel has at most {MAX_CHANNEL_BYTES}")
    tokens = text.split(".")
    if len(tokens) > MAX_TOKENS:
        raise InvalidChannel(f"{shown(text)}: {len(tokens)} tokens; a channel has at most {MAX_TOKENS}")
    if tokens[0][:1] in ("@", "_", "$"):
        raise InvalidChannel(f"{shown(text)}: the first token may not begin with {tokens[0][0]!r}")
    for index, token in enumerate(tokens):
        if wildcards and (token == "*" or (token == ">" and index == len(tokens) - 1)):
            continue
        if fault := token_fault(token):
            raise InvalidChannel(f"{shown(text)}: token {index + 1} {fault}")
    if tokens[0] == LIVE and len(tokens) == 1:
        raise InvalidChannel("live: a live channel is live.<name>")
    return tokens


def token_fault(token: str) -> str | None:
    if not token:
        return "is empty"
    if ODD.search(token) is None:
        return None
    for char in token:
        if char in "*>":
            return f"holds {char!r}, which stands only as a whole token of a pattern"
        if char.isspace():
            return "holds white space"
        if unicodedata.category(char) == "Cc":
            return "holds a control character"
    return None


def shown(text: str) -> str:
    """Return `text` for a message: quoted, escaped and shortened."""
    quoted = ascii(text[:80])  # an escape takes up to ten characters
    return quoted if len(text) <= 80 and len(quoted) <= 82 else quoted[:78] + "...'"


def expand_me(text: str, user: str) -> str:
    """Return `text` with a leading `me` or `live.me` replaced by the prefix of `user` (encoded)."""
    if text == ME or text.startswith(ME + "."):
        return f"{USERS}.{user}{text[len(ME) :]}"
    if text == f"{LIVE}.{ME}" or text.startswith(f"{LIVE}.{ME}."):
        return f"{LIVE}.{USERS}.{user}{text[len(LIVE) + 1 + len(ME) :]}"
    return text


def is_live(channel: str) -> bool:
    """Return whether a channel or pattern is live: plain NATS, never stored."""
    return channel.startswith("live.")


def is_literal(pattern: str) -> bool:
    """Return whether a pattern is a channel, that is, has no wildcard."""
    return not {"*", ">"} & set(pattern.split("."))


def room(pattern: str) -> str | None:
    """Return the subtree that contains every channel of a pattern; None if there is more than one.

    A subtree is a first token; below `users` it is the first two, since each client has its own there.
    """
    first, _, rest = pattern.partition(".")
    if first == USERS:
        second = rest.partition(".")[0]
        return None if second in ("*", ">") else f"{first}.{second}"
    return None if first in ("*", ">") else first


def walled(tokens: list[str], index: int) -> bool:
    """Return whether the token at `index` begins a subtree that no wildcard matches from outside."""
    token = tokens[index]
    if index == 0:
        return token in (USERS, LIVE)
    return index == 1 and token == USERS and tokens[0] == LIVE


def covers(outer: str, inner: str) -> bool:
    """Return whether `outer` matches every channel that `inner` (a channel or pattern) matches."""
    wide, narrow = outer.split("."), inner.split(".")
    for index, token in enumerate(wide):
        if index == len(narrow):
            return False
        if token in ("*", ">") and walled(narrow, index):
            return False
        if token == ">":
            return True
        if narrow[index] == ">" or (token not in ("*", narrow[index])):
            return False
    return len(wide) == len(narrow)


def overlaps(one: str, other: str) -> bool:
    """Return whether some channel matches both patterns."""
    left, right = one.split("."), other.split(".")
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        wild_a, wild_b = a in ("*", ">"), b in ("*", ">")
        if (wild_a and walled(right, index)) or (wild_b and walled(left, index)):
            return False
        if a == ">" or b == ">":
            return True
        if not (wild_a or wild_b or a == b):
            return False
    return len(left) == len(right)


@attrs.frozen(kw_only=True)
class Names:
    """The configured subject prefixes, and the mapping between subjects and channels."""

    events: str = "events"
    live: str = "live"
    deadletter: str = "deadletter"
    rpc: str = "rpc"
    state: str = "state"
    changes: str = "changes"
    presence: str = "presence"
    own: str = "_broker"  # messages that brokers send to themselves and each other

    def subject(self, tenant: str, channel: str) -> str:
        """Return the subject of a channel, or the subject filter of a pattern, in `tenant`."""
        if is_live(channel):
            return f"{self.live}.{tenant}.{channel[len(LIVE) + 1 :]}"
        return f"{self.events}.{tenant}.{channel}"

    def document(self, tenant: str, channel: str) -> str:
        """Return the subject of the document `channel`, or the subject filter of a pattern, in `tenant`."""
        return f"{self.state}.{tenant}.{channel}"

    def question(self, tenant: str, channel: str) -> str:
        """Return the subject on which the service that owns the document `channel` is asked."""
        return f"{self.changes}.{tenant}.{channel}"

    def members(self, tenant: str, channel: str) -> str:
        """Return the subject filter of who is present in a channel: `<user>.<session>` follow it."""
        return f"{self.presence}.{tenant}.{channel.count('.') + 1}.{channel}.*.*"

    def method(self, tenant: str, method: str) -> str:
        """Return the subject on which the services of `tenant` answer."""
        return f"{self.rpc}.{tenant}.{method}"

    def split(self, subject: str) -> tuple[str, str]:
        """Return the tenant and channel of a subject under `events` or `live`, neither of them checked.

        Raises `InvalidChannel` when the subject has another prefix or no channel.
        """
        for prefix, before in ((self.events, ""), (self.live, "live.")):
            if subject.startswith(prefix + "."):
                tenant, dot, channel = subject[len(prefix) + 1 :].partition(".")
                if dot:
                    return tenant, before + channel
        raise InvalidChannel(f"{shown(subject)}: no channel under {self.events} or {self.live}")
