"""Reads the heads of a client's frames ahead of wsproto, which tells a length only with the bytes.

What a head alone gives away is judged here: limits by the announced length, a missing mask, reserved
bits. The rest, from the order of fragments to UTF-8 and close codes, is wsproto's.
"""

from __future__ import annotations

import attrs

from broker.errors import CloseCode

FIN, RESERVED, OPCODE, CONTROL = 0x80, 0x70, 0x0F, 0x08
MASKED, LENGTH = 0x80, 0x7F
OPCODES = {0x0, 0x1, 0x2, 0x8, 0x9, 0xA}
EXTENDED = {126: 2, 127: 8}  # bytes that hold the length where it is not in the second byte itself
MASK_BYTES = 4
LONGEST = 2 + 8 + MASK_BYTES
# A fragment costs us as much as a message does; so many suffice for whoever fills them with 64 bytes.
FRAGMENTS, FRAGMENT_BYTES = 1024, 64


@attrs.frozen(kw_only=True)
class Fault:
    """What the client did against RFC 6455 section 5 or a limit, as the Close frame says it."""

    code: CloseCode
    reason: str


@attrs.define(eq=False)
class Gate:
    """Follows the frames of one client. `limit`: bytes of a message, over all its fragments."""

    limit: int
    head: bytes = b""  # the beginning of a frame head: kept from wsproto until it is whole
    remaining: int = 0  # payload bytes of the frame that are still to come
    open: bool = False  # a message has begun and its last frame has not
    size: int = 0  # bytes that its frames have announced
    fragments: int = 0  # and how many there were
    begun: int = 0  # counts messages, and control frames that stand alone
    fault: Fault | None = None

    @property
    def at_rest(self) -> bool:
        """Nothing has begun that is not complete."""
        return not (self.head or self.remaining or self.open)

    def admit(self, data: bytes) -> bytes:
        """What wsproto may have of the bytes so far, whole frame heads only. Ends for good at a `fault`."""
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
        """A frame by as much of its head as is there: what comes after that may never come."""
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
        """A new frame, by its whole head, against which there is nothing."""
        self.remaining = announced(head) or 0
        self.begun += not self.open
        if not head[0] & CONTROL:
            self.open = not head[0] & FIN
            self.size = self.size + self.remaining if self.open else 0
            self.fragments = self.fragments + 1 if self.open else 0


def head_size(head: bytes) -> int:
    """How long the head is, as far as it can be told."""
    return 2 + MASK_BYTES + (EXTENDED.get(head[1] & LENGTH, 0) if len(head) > 1 else 0)


def announced(head: bytes) -> int | None:
    """The length of the payload, when the head has come that far."""
    if len(head) < head_size(head) - MASK_BYTES:
        return None
    short = head[1] & LENGTH
    return int.from_bytes(head[2 : 2 + EXTENDED[short]], "big") if short in EXTENDED else short


def malformed(head: bytes) -> Fault | None:
    """What the first two bytes give away."""
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
