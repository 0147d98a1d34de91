"""Every key of the configuration is applied: something in a running broker differs when the key differs.

Each key has a row, which runs the whole program twice, with another value under that key alone, and looks. A
key without a row fails here; so does one that nothing applies, since then both runs look alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast, get_args, get_origin

import attrs
import pytest

from broker.config import Config, checks
from tests.keys import clients, documents, files, limits, presence, sources, surfaces
from tests.keys.world import ROWS, UNSET, Row, look

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TABLES = (clients, documents, limits, presence, sources, surfaces)  # importing them registers their rows
SHORT_SECONDS = 0.3  # for what is to stay away: nothing here waits for it to come
LONG_SECONDS = 15.0

pytestmark = pytest.mark.usefixtures("quiet_logs")


def keys(table: type[attrs.AttrsInstance], *above: str) -> Iterator[tuple[str, Any]]:
    """Each key and its default; those of an entry in a list are under "0"."""
    for field in attrs.fields(table):
        path, kind = (*above, field.name), cast("type[attrs.AttrsInstance]", field.type)
        entry = get_args(kind)[0] if get_origin(kind) is tuple else None
        if path[1:] in [("limits", *each)[1:] for each in checks.ELSEWHERE]:
            continue
        if attrs.has(kind):
            yield from keys(kind, *path)
        elif entry is not None and attrs.has(entry):
            yield from keys(entry, *path, "0")
        else:
            yield ".".join(path), field.default


DEFAULTS = dict(keys(Config))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with certificates, keys and tokens."""
    directory = tmp_path_factory.mktemp("keys")
    files.make(directory)
    return directory


def test_each_key_has_a_row() -> None:
    """And no row is for a key that is no more."""
    assert sorted({row.key for row in ROWS}) == sorted(DEFAULTS)


def patience(row: Row) -> float:
    """As long as it takes, but never so long that a default of so many seconds would have had its effect."""
    default = DEFAULTS[row.key]
    return min(LONG_SECONDS, 0.8 * default) if row.key.endswith("_seconds") else LONG_SECONDS


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.key)
async def test_a_key_is_applied(
    row: Row, tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker with one value differs from a broker with another."""
    assert row.value != DEFAULTS[row.key] or row.basis is not UNSET
    usual = await look(row, row.basis, tmp_path / "usual", made, SHORT_SECONDS, monkeypatch)
    changed = await look(row, row.value, tmp_path / "changed", made, patience(row), monkeypatch)
    assert changed != usual
