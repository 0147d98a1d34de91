"""What an operator is shown: the values of the admin API. Their fields are its schema."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class Readiness:
    """Whether an event can travel from a publisher through the stream to this broker, and why not."""

    ready: bool
    reasons: list[str]
    connected: bool  # NATS is reached
    draining: bool
