"""The token of the admin API: from the configured file, or generated once in the data directory."""

from __future__ import annotations

import os
import re
import secrets
from typing import TYPE_CHECKING

from broker.config import unusable
from broker.config.files import unreadable
from broker.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

TOKEN_FILE = "admin.token"
TOKEN_BYTES = 32
TOKEN = re.compile(r"[!-~]{16,256}\Z")


def load(configured: Path | None, data_dir: Path) -> str:
    """Return the token in the configured file, else the one in the data directory, generated if missing.

    Raises `ConfigError`.
    """
    if configured is not None:
        return read(configured, "server.admin_token_file")
    path = data_dir / TOKEN_FILE
    try:
        if not path.exists():
            make(path)
    except OSError as error:
        raise unusable(path, error) from None
    return read(path, "server.data_dir")


def make(path: Path) -> None:
    """Write a new token, atomically, readable by its owner alone."""
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_urlsafe(TOKEN_BYTES) + "\n")
    partial.replace(path)


def read(path: Path, key: str) -> str:
    """Return the token in the file that `key` names. Raises `ConfigError`."""
    try:
        token = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise ConfigError([f"{key}: {unreadable(path, error)}"]) from None
    except UnicodeDecodeError:
        raise ConfigError([f"{key}: {path} cannot be read: it is not ASCII"]) from None
    if not TOKEN.match(token):
        raise ConfigError([f"{key}: {path} is not a token: 16 to 256 printable characters without blanks"])
    return token
