"""Check the heads of a client's frames ahead of wsproto, which reports a frame's length only with its bytes.

What a head alone shows is judged here: the announced length against the limits, a missing mask, reserved
bits. The rest, from the order of fragments to UTF-8 and close codes, is left to wsproto.
"""

from __future__ import annotations

import attrs

from broker.errors import CloseCode

FIN, RESERVED, OPCODE, CONTROL = 0x80, 0x70, 0x0F, 0x08
MASKED, LENGTH = 0x80, 0x7F
OPCODES = {0x0, 0x1, 0x2, 0x8, 0x9, 0xA}
EXTENDED = {126: 2, 127: 8}  # bytes of the length, unless the second byte has it
MASK_BYTES = 4
LONGEST = 2 + 8 + MASK_BYTES
# A fragment costs as much as a message does; this many suffice for fragments of 64 bytes.
FRAGMENTS, FRAGMENT_BYTES = 1024, 64


@attrs.frozen(kw_only=True)
class Fault:
    """A breach of RFC 6455 section 5 or of a limit, as the Close frame tells it."""

    code: CloseCode
    reason: str


@attrs.define(eq=False)
class Gate:
    """The frames of one client. `limit`: bytes of a message, over all its fragments."""

    limit: int
    head: bytes = b""  # an incomplete frame head, which wsproto does not get yet
    remaining: int = 0  # payload bytes of the frame that have not arrived
    open: bool = False  # a message has begun, its last frame has not
    size: int = 0  # bytes that its frames announced
    fragments: int = 0  # frames that it has had
    begun: int = 0  # messages so far, and control frames between them
    fault: Fault | None = None

    @property
    def at_rest(self) -> bool:
        """Whether no frame and no message is incomplete."""
        return not (self.head or self.remaining or self.open)

    def admit(self, data: bytes) -> bytes:
        """Return what wsproto may have: no part of an incomplete head, nothing from a `fault` on."""
        data, self.head = self.head + data, b""
        at = 0
        while True:
            taken = min(self.remaining, len(data) - at)
            self.remaining -= taken
            at += taken
            if at == len(data):
                return data
            head = data[at : at + LONGEST]
            self.fault = self.judge(head)
            if self.fault is not None:
                return data[:at]
            size = head_size(head)
            if len(head) < size:
                self.head = head
                return data[:at]
            self.enter(head[:size])
            at += size

    def judge(self, head: bytes) -> Fault | None:
        """Return the fault of a frame by as much of its head as there is: the rest may never come."""
        fault = malformed(head)
        length = announced(head)
        if fault is not None or length is None:
            return fault
        if length >> 63:
            return Fault(code=CloseCode.PROTOCOL_ERROR, reason="length with its top bit set")
        if head[0] & CONTROL:
            return None
        if self.size + length > self.limit:
            return Fault(code=CloseCode.TOO_BIG, reason=f"message over {self.limit} bytes")
        most = max(FRAGMENTS, self.limit // FRAGMENT_BYTES)
        if self.fragments == most:
            return Fault(code=CloseCode.TOO_BIG, reason=f"message in over {most} fragments")
        return None

    def enter(self, head: bytes) -> None:
        """Record a new frame by its complete, faultless head."""
        self.remaining = announced(head) or 0
        self.begun += not self.open
        if not head[0] & CONTROL:
            self.open = not head[0] & FIN
            self.size = self.size + self.remaining if self.open else 0
            self.fragments = self.fragments + 1 if self.open else 0


def head_size(head: bytes) -> int:
    """Return the length of a head, as far as it is known."""
    return 2 + MASK_BYTES + (EXTENDED.get(head[1] & LENGTH, 0) if len(head) > 1 else 0)


def announced(head: bytes) -> int | None:
    """Return the length of the payload; None while the head does not have it yet."""
    if len(head) < head_size(head) - MASK_BYTES:
        return None
    short = head[1] & LENGTH
    return int.from_bytes(head[2 : 2 + EXTENDED[short]], "big") if short in EXTENDED else short


def malformed(head: bytes) -> Fault | None:
    """Return the fault that the first two bytes show."""
    if len(head) < 2:
        return None
    opcode = head[0] & OPCODE
    reason = None
    if head[0] & RESERVED or opcode not in OPCODES:
        reason = "reserved bit or opcode"
    elif not head[1] & MASKED:
        reason = "unmasked frame"
    elif opcode & CONTROL and (not head[0] & FIN or head[1] & LENGTH in EXTENDED):
        reason = "control frame that is fragmented or over 125 bytes"
    return Fault(code=CloseCode.PROTOCOL_ERROR, reason=reason) if reason else None
