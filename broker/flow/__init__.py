"""A connection's way through the events of its tenant.

A `Flow` that is up to date has no reader: it is a member of its selections, and the fan-out writes its
share of each tick straight to the link. When the link does not take all of it, the rest is kept, and the
flow is *behind*: it has a `Reader`, and a task (`Sending`) that writes the rest and then reads on from the
log at the client's pace, one page at a time, and only while nothing is unsent. Back at the end of the log
it has no reader again. A resume is a flow that is behind from the start. A catch-up or a snapshot is a
further reader beside it, whose events are marked; it ends where the flow is, and its selections join the
flow.

What a slow client is spared is decided by the lag policy of each subscription (`lag`, `overflow`), and said
in a `gap`.

P, the position that clients are told, is the place of the stored flow. A place moves when its bytes are
written to the pipe; what the link has not taken yet belongs to the place already reached. So a frame with P
is true wherever it is made, provided that the share of the running tick has been written before: every
entry begins with `Flow.settle`.
"""
