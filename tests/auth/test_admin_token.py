"""The admin token: made once, kept for its owner alone, and refused with its key where it cannot be used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from broker.auth import admin
from broker.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def test_made_once(tmp_path: Path) -> None:
    """The first call makes it, readable by its owner alone, and leaves nothing else; the next finds it."""
    token = admin.load(None, tmp_path)
    assert admin.TOKEN.match(token)
    [path] = tmp_path.iterdir()
    assert (path.name, path.stat().st_mode & 0o777) == ("admin.token", 0o600)
    assert admin.load(None, tmp_path) == token


def test_configured(tmp_path: Path) -> None:
    """A configured one is taken as it stands, but for blanks around it; none is made beside it."""
    file = tmp_path / "token"
    file.write_text("  0123456789abcdef\n")
    assert admin.load(file, tmp_path) == "0123456789abcdef"
    assert [path.name for path in tmp_path.iterdir()] == ["token"]


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"short", b"two words of a token", b"x" * 257, b"t\xf6ken" * 4]
)
def test_unusable(tmp_path: Path, content: bytes) -> None:
    """What is no token is refused by key and file, and never shown."""
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"^server\.admin_token_file: .*/token ") as refused:
        admin.load(file, tmp_path)
    assert "two words" not in refused.value.message
    file.unlink()
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        admin.load(file, tmp_path)
