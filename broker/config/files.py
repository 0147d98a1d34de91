"""What is said about a file that a key names and that cannot be used: why, and what to do."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def unreadable(path: Path, error: OSError) -> str:
    """Return why a file cannot be read, with the way to give it to our user where that is all it lacks."""
    reason = f"{path} cannot be read: {error.strerror}"
    if error.errno != errno.EACCES:
        return reason
    user, group = str(os.geteuid()), str(os.getegid())
    with suppress(KeyError):  # a user that only a number names
        user, group = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name
    return (
        f"{reason} for user {user}: `chgrp {group} {path}; chmod g+r {path}`, and it must enter the directory"
    )


def exposed(path: Path, mode: int) -> str | None:
    """Return what is wrong with the mode of a secret that every user of the machine may access, or None."""
    if not mode & stat.S_IRWXO:
        return None
    return f"{path} is open to every user of this machine (mode {stat.S_IMODE(mode):03o}): `chmod o= {path}`"
