"""What of the fault suite runs: a short selection, or all of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

# The rows, and single tests of others, that a plain `pytest` leaves out, and why.
LEFT_OUT: dict[int | str, str] = {
    2: "NATS is down for 30 s",
    3: "a lame duck takes its time, and row 1 is the ruder",
    4: "NATS stands still for 20 s",
    5: "like row 4, seen from the network",
    6: "slow by design",
    7: "the tests of the bus cover it as well",
    8: "the end-to-end tests cover it as well",
    9: "the end-to-end tests cover it as well",
    10: "the tests of the bus cover it as well",
    11: "100 MB, and 5 s of standstill",
    12: "credentials expire in their own time",
    13: "two configurations of NATS that the tests of the bus cover as well",
    14: "needs the right to mount a file system",
    "test_embedded_server_goes_with_its_parent": "the tests of the bus cover it as well",
    16: "the end-to-end tests cover it as well",
    18: "2,000 clients",
    19: "clients that do not read for a while",
    20: "links that are silent for half a minute",
    21: "measures more than it proves",
    22: "an address that fails is asked with growing pauses",
    23: "the end-to-end tests cover it as well",
    25: "four servers, one of them late",
    26: "minutes of random rows",
    27: "a store that is damaged two dozen times; the tests of the bus cover it as well",
    28: "the simulation covers it as well",
    "test_a_full_disk_under_the_embedded_server": "needs the right to mount a file system",
    29: "leaks show in a hundred rounds of everything",
    30: "clocks that are set, each for a while",
    31: "the tests of the bus cover it as well",
    32: "the end-to-end tests cover it as well",
    33: "three brokers, one of them cut off for a while",
    34: "two hundred answers to each of the Python sessions",
    "http": "hundreds of requests, a storm of them, and a gigabyte of junk",
    "protocol": "the end-to-end tests cover the worst of it",
    "tokens": "a thousand of them; `tests/auth` has the same ones",
    "frames": "messages that are not finished for half a minute",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    why = "; ".join(f"{each} ({reason})" for each, reason in LEFT_OUT.items())
    group = parser.getgroup("faults", "the fault suite")
    group.addoption(
        "--faults",
        default="short",
        metavar="short|all|ROW,…",
        help=f"Rows of the fault suite to run. 'short', the default, leaves out: {why}.",
    )
    group.addoption("--faults-seed", type=int, default=1, metavar="N", help="Seed of the fault suite.")
    group.addoption(
        "--faults-soak",
        type=float,
        default=20.0,
        metavar="SECONDS",
        help="Length of the soak, and of stalls.",
    )


def wanted(choice: str, row: int | str, test: str) -> bool:
    """Whether a test of a row is to be run under this choice."""
    if choice == "short":
        return row not in LEFT_OUT and test not in LEFT_OUT
    return choice == "all" or str(row) in choice.split(",")
