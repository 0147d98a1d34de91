"""Buckets, windows and budgets against naive twins that remember everything."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.limits import TokenBucket, Window

# Times and rates that a float holds exactly, so that the twin may compare with ==.
STEPS = st.lists(st.integers(0, 40).map(lambda n: n / 8), max_size=60)


@settings(deadline=None)
@given(steps=STEPS, rate=st.sampled_from([0.25, 1.0, 2.0, 8.0]), burst=st.integers(1, 6))
def test_bucket_admits_what_has_flowed_in(steps: list[float], rate: float, burst: int) -> None:
    """One is admitted when a whole one is there; a refusal takes nothing and says how long to wait."""
    now = 1000.0
    bucket = TokenBucket(rate=rate, burst=burst, now=now)
    level = Fraction(burst)
    for step in steps:
        now += step
        level = min(Fraction(burst), level + Fraction(step) * Fraction(rate))
        assert bucket.full(now) == (level == burst)
        wait = bucket.charge(now)
        if level >= 1:
            assert wait == 0
            level -= 1
        else:
            assert wait == (1 - level) / Fraction(rate)
            patient = TokenBucket(rate=rate, burst=burst, now=now)
            patient.level = bucket.level
            assert patient.charge(now + wait) == 0, "waited as told, and refused again"


@settings(deadline=None)
@given(steps=STEPS, seconds=st.integers(1, 10), limit=st.integers(1, 5))
def test_window_counts_the_last_seconds(steps: list[float], seconds: int, limit: int) -> None:
    """It says so at each hit that makes `limit` of them within `seconds`, and keeps no older ones."""
    window = Window(limit=limit, seconds=seconds)
    hits: list[float] = []
    now = 0.0
    for step in steps:
        now += step
        hits.append(now)
        recent = [each for each in hits if each > now - seconds]
        assert window.hit(now) == (len(recent) >= limit)
        assert list(window.times) == recent
        later = now + seconds / 2
        assert window.count(later) == sum(each > later - seconds for each in hits)
