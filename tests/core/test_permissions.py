"""What a principal may do, against the channels that its patterns mean."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import subjects
from broker.errors import Forbidden
from broker.permissions import Principal
from tests.core.test_subjects import MEANINGS, SMALL, meaning


def principal(
    *,
    subscribe: tuple[str, ...] = (),
    publish: tuple[str, ...] = (),
    deny: tuple[str, ...] = (),
    monitoring: bool = False,
) -> Principal:
    return Principal(
        tenant="acme",
        user="a.b",
        encoded_user="a%2Eb",
        expires_at=1.0,
        life=1.0,
        subscribe=subscribe,
        publish=publish,
        deny=deny,
        monitoring=monitoring,
    )


def test_own_room() -> None:
    """The own private channels are always allowed, stored and live, to read and to write."""
    found = principal()
    assert found.private == "users.a%2Eb"
    for pattern in ("users.a%2Eb.>", "users.a%2Eb.x", "live.users.a%2Eb.*"):
        assert found.check_subscribe(pattern) == ()
    for channel in ("users.a%2Eb.x", "live.users.a%2Eb.x.y"):
        found.check_publish(channel)


@pytest.mark.parametrize(
    "pattern",
    [">", "a", "users.>", "users.*.x", "users.a%2Eb", "users.other.x", "live.x", "live.users.other.x"],
)
def test_nothing_else_without_permission(pattern: str) -> None:
    """Without permissions there is nothing beyond the own room."""
    with pytest.raises(Forbidden):
        principal().check_subscribe(pattern)
    with pytest.raises(Forbidden):
        principal().check_publish(pattern)


@pytest.mark.parametrize(
    ("allowed", "pattern", "good"),
    [
        (("a.>",), "a.b", True),
        (("a.>",), "a.*", True),
        (("a.>",), "a", False),
        (("a.>",), ">", False),
        (("a.*", "b.*"), "*.x", False),
        (("a", "b"), "b", True),
        ((">",), "users.other.x", False),
        ((">",), "live.x", False),
        (("live.>",), "live.x", True),
        (("live.>",), "live.users.other.x", False),
        (("users.other.>",), "users.other.x", True),
        (("users.*.x",), "users.other.x", True),
    ],
)
def test_subscribe(allowed: tuple[str, ...], pattern: str, good: bool) -> None:
    """A subscription lies within one allowed pattern as a whole; it is not narrowed and not put together."""
    found = principal(subscribe=allowed, publish=())
    if good:
        assert found.check_subscribe(pattern) == ()
    else:
        with pytest.raises(Forbidden, match="not within a pattern"):
            found.check_subscribe(pattern)


def test_lists_are_apart() -> None:
    """The right to read is no right to write, nor the other way round."""
    found = principal(subscribe=("r.>",), publish=("w.>",))
    found.check_subscribe("r.a")
    found.check_publish("w.a")
    with pytest.raises(Forbidden):
        found.check_publish("r.a")
    with pytest.raises(Forbidden):
        found.check_subscribe("w.a")


def test_deny() -> None:
    """Denied channels are left out of a wider subscription, and refused where they are all of it."""
    found = principal(subscribe=(">",), publish=(">",), deny=("a.secret.>", "b", "users.a%2Eb.audit"))
    assert found.check_subscribe(">") == ("a.secret.>", "b")
    assert found.check_subscribe("a.>") == ("a.secret.>",)
    assert found.check_subscribe("a.*.x") == ("a.secret.>",)
    assert found.check_subscribe("a.open") == ()
    assert found.check_subscribe("users.a%2Eb.>") == ("users.a%2Eb.audit",)
    for pattern in ("a.secret.>", "a.secret.x", "b", "users.a%2Eb.audit"):
        with pytest.raises(Forbidden, match="denied"):
            found.check_subscribe(pattern)
        if ">" not in pattern:
            with pytest.raises(Forbidden, match="denied"):
                found.check_publish(pattern)


def test_monitoring_only_subscribes() -> None:
    """A monitoring principal publishes nothing, not even into its own room."""
    found = principal(subscribe=(">",), publish=(">",), monitoring=True)
    assert found.check_subscribe(">") == ()
    for channel in ("a", "users.a%2Eb.x"):
        with pytest.raises(Forbidden, match="may only subscribe"):
            found.check_publish(channel)


SOME = st.lists(st.sampled_from(SMALL), max_size=3).map(tuple)


@settings(deadline=None)
@given(SOME, SOME, st.sampled_from(SMALL))
def test_never_more_than_allowed(allowed: tuple[str, ...], deny: tuple[str, ...], pattern: str) -> None:
    """Of an accepted subscription, which is allowed as a whole, exactly the denied channels are missing."""
    found = principal(subscribe=allowed, deny=deny)
    wanted = MEANINGS[pattern]
    own = [meaning(mine) for mine in found.own]
    inside = any(wanted <= MEANINGS[outer] for outer in allowed) or any(wanted <= mine for mine in own)
    denied = any(wanted <= MEANINGS[outer] for outer in deny)
    if not inside or denied:
        with pytest.raises(Forbidden):
            found.check_subscribe(pattern)
        return
    left_out = found.check_subscribe(pattern)
    got = wanted.difference(*(MEANINGS[outer] for outer in left_out))
    assert got == wanted.difference(*(MEANINGS[outer] for outer in deny))
    assert all(subjects.overlaps(outer, pattern) for outer in left_out)


@settings(deadline=None)
@given(
    SOME, SOME, st.sampled_from([pattern for pattern in SMALL if not {"*", ">"} & set(pattern.split("."))])
)
def test_publish_as_allowed(allowed: tuple[str, ...], deny: tuple[str, ...], channel: str) -> None:
    """A channel may be published into when an allowed pattern means it and no denied one does."""
    found = principal(publish=allowed, deny=deny)
    (index,) = MEANINGS[channel]
    if any(index in MEANINGS[outer] for outer in allowed) and not any(index in MEANINGS[no] for no in deny):
        found.check_publish(channel)
    else:
        with pytest.raises(Forbidden):
            found.check_publish(channel)
