"""Whole lives of a client in virtual time, against the broker's own state machine: what passes is survived.

`SIMULATION_SEEDS=1000` runs more seeds; a failing test names its seed, which replays it exactly.
"""

from __future__ import annotations

import random

import pytest

from broker.client import Duplicate, Published, UnknownOutcome
from broker.errors import Internal, Timeout
from tests.client.model import FAULTS, Fault, Life
from tests.support.seeds import simulated

BACK_SECONDS = 30.0
CHANNELS = [f"c{number}" for number in range(400)]


def is_open(life: Life) -> bool:
    return life.link is not None and life.link.open and life.engine.authenticated and life.end is None


def until_open(life: Life, most: float) -> None:
    while not is_open(life) and life.now < most:
        life.step(most)
    assert is_open(life), f"not back at {life.now:.0f} s"


def settled(life: Life) -> None:
    """Everything is as the application was told: subscriptions here and there, each publish once or not."""
    assert life.link
    assert life.wanted == set(life.link.session.standing.subscriptions()), "another picture"
    for number, promise in life.outcomes.items():
        copies = [body for _, _, body in life.stored if body == str(number).encode()]
        copies += [body for body in life.live if body == str(number).encode()]
        match promise.outcome:
            case Published():
                assert len(copies) == 1, f"{number}: {promise.outcome}, stored {len(copies)} times"
            case UnknownOutcome():
                assert len(copies) <= 1, f"{number}: stored {len(copies)} times"
            case None:
                raise AssertionError(f"{number} was never answered")
            case _:
                assert not copies, f"{number}: {promise.outcome!r}, and stored"
    for number, asked in life.asked.items():
        acted = life.acted.count(str(number).encode())
        match asked.outcome:
            case {"data": data}:
                assert (data, acted) == (number, 1), f"{number}: answered {data}, acted {acted} times"
            case Timeout() | Internal():
                assert acted <= 1, f"{number}: acted {acted} times"
            case None:
                raise AssertionError(f"{number} was never answered")
            case _:
                assert not acted, f"{number}: {asked.outcome!r}, and acted"


@pytest.mark.parametrize("lasts", [0.0, 3.0, 45.0, 200.0])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault[0]}-{fault[1]}".encode().hex()[:24])
def test_back_within_30_seconds(fault: tuple[str, object], lasts: float) -> None:
    """Each answer that a client can get, once and for a while, at the beginning and in the middle."""
    for seed in range(6):
        life = Life(seed=seed, token_life=120.0 if seed % 2 else 3600.0)
        begins = 0.0 if seed < 2 else 20.0 + seed
        strikes = Fault(*fault, begins=begins, ends=begins + (lasts or 300.0), once=not lasts)
        life.faults.append(strikes)
        life.subscribe("a.>", "b")
        life.publish(1)
        life.ask(5, 5.0)
        life.until(begins)
        life.subscribe("c")
        life.publish(2)
        life.publish(3, "live.x")
        life.ask(4, 30.0)
        life.until(begins + lasts)
        gone = life.now
        until_open(life, gone + BACK_SECONDS)
        life.faults.clear()
        life.until(gone + 200.0)
        until_open(life, life.now + BACK_SECONDS)
        life.until(life.now + 30.0)
        settled(life)
        assert life.wanted == {"a.>", "b", "c"}
        assert life.connections < 30 + lasts  # no storm of attempts


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault[0]}-{fault[1]}".encode().hex()[:24])
def test_a_request_is_sent_once(fault: tuple[str, object]) -> None:
    """Whatever strikes while it is on its way, and once more when it is answered or given up."""
    life = Life(seed=1)
    until_open(life, BACK_SECONDS)
    for number in (1, 2):
        life.faults.append(Fault(*fault, begins=life.now, ends=life.now + 60.0, once=True))
        life.ask(number, 30.0)
        life.until(life.now + 61.0)
        until_open(life, life.now + BACK_SECONDS)
        settled(life)


@simulated(15)
def test_storms(seed: int) -> None:
    """Subscriptions, and publishes, in heaps, while faults of all kinds strike and last."""
    lots = random.Random(seed)
    life = Life(seed=seed, window=lots.choice([600.0, 120.0, 5.0]), token_life=lots.choice([60.0, 3600.0]))
    number, held = 0, list[str]()
    for _ in range(lots.randint(5, 40)):
        if lots.random() < 0.4:
            begins = life.now + lots.uniform(0, 3)
            where, how = lots.choice(FAULTS)
            once, ends = lots.random() < 0.5, begins + lots.expovariate(1 / 20)
            life.faults.append(Fault(where, how, begins, ends, once))
        for _ in range(lots.choice([0, 0, 1, 3, 100])):
            name = lots.choice(CHANNELS)
            if name in held:
                life.unsubscribe(name)
                held.remove(name)
            elif len(held) < 100:
                life.subscribe(name)
                held.append(name)
        for _ in range(lots.choice([0, 1, 5, 30])):
            number += 1
            life.publish(number, lots.choice(["a.b", "a.c", "live.x"]))
        for _ in range(lots.choice([0, 1, 5, 40])):
            number += 1
            life.ask(number, lots.choice([0.01, 0.5, 5.0, 30.0]))
        life.until(life.now + lots.choice([0.0, 0.01, 0.03, 1.0, 20.0]))
    life.faults.clear()
    gone = life.now
    until_open(life, gone + BACK_SECONDS + 10.0)
    life.until(gone + 1500.0)
    until_open(life, life.now + BACK_SECONDS)
    life.until(life.now + 60.0)
    settled(life)
    assert life.wanted == set(held)
    assert not set(life.closes) & {1009, 4029, 4510}
    assert max(life.sizes, default=0) <= life.limits.message_bytes


def test_three_hundred_in_a_turn() -> None:
    """So many are asked for, and let go, one after the other: few messages, and none is refused for rate."""
    life = Life(seed=0)
    life.until(1.0)
    for name in CHANNELS[:300]:
        life.subscribe(name)
    life.until(5.0)
    assert life.kinds.count("subscribe") <= 3
    assert life.link
    assert len(life.link.session.standing.subscriptions()) == 128
    for name in CHANNELS[:300]:
        life.unsubscribe(name)
    life.until(10.0)
    assert life.kinds.count("unsubscribe") <= 2
    assert not life.link.session.standing.subscriptions()
    assert [each["code"] for each in life.errors] == ["limit_subscriptions"] * 2
    assert not life.closes


def test_let_go_before_it_was_answered() -> None:
    """What is asked for in its place waits until it can be let go: at no time is there no room."""
    life = Life(seed=0)
    life.until(1.0)
    life.subscribe(*CHANNELS[:128])
    life.until(1.01)
    assert "subscribe" in life.kinds  # and is on its way
    life.unsubscribe(*CHANNELS[:128])
    life.subscribe(*CHANNELS[128:256])
    life.until(10.0)
    settled(life)
    assert life.wanted == set(CHANNELS[128:256])
    assert not life.errors


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize("kind", ["subscribe", "unsubscribe", "publish"])
def test_what_is_never_answered(kind: str, once: bool) -> None:
    """Once it is said again on another connection; for ever it is refused within a bound. Others go on."""
    life = Life(seed=0)
    life.subscribe("kept")
    life.until(1.0)
    life.subscribe("gone")
    life.until(2.0)
    life.faults.append(Fault(f"no answer to {kind}", None, 2.0, 3000.0, once))
    life.subscribe("more")
    life.unsubscribe("gone")
    life.publish(1)
    life.publish(2, "live.x")
    life.until(700.0)
    until_open(life, 730.0)
    life.until(760.0)
    assert all(each.outcome is not None for each in life.outcomes.values())
    if once:
        settled(life)
        assert life.wanted == {"kept", "more"}
        assert life.connections == 2
    elif kind == "subscribe":
        assert not life.wanted  # after the cut those that were held are asked for again, too
        assert {each["code"] for each in life.errors} == {"bad_message"}
    elif kind == "publish":
        assert all(isinstance(each.outcome, UnknownOutcome) for each in life.outcomes.values())
        settled(life)
    else:
        settled(life)
        assert life.connections == 2  # where nothing is held
    assert life.connections < 40


def test_a_list_that_is_scrolled() -> None:
    """A window of 100 channels moves over thousands: what is passed is let go, and the last are held."""
    life = Life(seed=0)
    rows = [f"row{number}" for number in range(5000)]
    life.subscribe(*rows[:100])
    life.until(1.0)
    for at in range(100, 5000):
        life.unsubscribe(rows[at - 100])
        life.subscribe(rows[at])
        life.until(life.now + 0.016)
    life.until(life.now + 60.0)
    settled(life)
    assert life.wanted == set(rows[4900:])
    assert not life.errors
    assert not life.closes
    assert life.connections == 1


def test_long_names_go_in_lists_that_fit() -> None:
    """A list longer than `message_bytes` is cut, and none ends the connection."""
    life = Life(seed=0)
    life.subscribe(*(f"{number}.{'x' * 250}" for number in range(128)))
    life.subscribe(*(f"{number}.{'é' * 120}" for number in range(128)), snapshot=True)
    life.until(10.0)
    assert life.link
    assert len(life.link.session.standing.subscriptions()) == 128
    life.unsubscribe(*life.wanted)
    life.until(20.0)
    assert not life.link.session.standing.subscriptions()
    assert max(life.sizes) <= life.limits.message_bytes
    assert not life.closes


def test_an_id_that_somebody_has() -> None:
    """The second event under an id is not stored, and that is said, after the first one's answer too."""
    life = Life(seed=0)
    life.publish(1, event_id="x")
    life.until(1.0)
    life.publish(2, event_id="x")
    life.until(2.0)
    settled(life)
    assert isinstance(life.outcomes[2].outcome, Duplicate)


@pytest.mark.parametrize(("life_seconds", "most"), [(10.0, 250), (60.0, 45), (3600.0, 3)])
@pytest.mark.parametrize("jump", [0.0, 7200.0, -7200.0])
def test_renewal_by_the_life_that_is_left(life_seconds: float, most: int, jump: float) -> None:
    """Whatever the wall clock says a token is renewed at about half of its life, and the connection stays."""
    life = Life(seed=0, token_life=life_seconds)
    life.jumped = jump
    life.until(1200.0)
    assert life.connections == 1
    assert life.tokens <= most
    assert not life.closes
