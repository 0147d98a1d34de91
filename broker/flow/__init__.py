"""A connection's way through the events of its tenant.

A `Flow` that is up to date has no reader: it is a member of its selections, and the fan-out writes its share
of each tick straight to the link. If the link does not accept all of it, the rest is kept and the flow is
*behind*: it gets a `Reader`, and a task (`Sending`) that writes the rest and then reads on from the log at
the client's pace, one page at a time, and only while nothing is unsent. At the end of the log it has no
reader again. A resume is a flow that is behind from the start. A catch-up or a snapshot is a further reader
beside it, whose events are marked; it ends at the flow's place, where its selections join the flow.

The lag policy of each subscription decides what is left out for a slow client (`lag`, `overflow`); a `gap`
reports it.

P, the position that clients are told, is the place of the stored flow. A place advances when the bytes up to
it are written to the pipe; bytes that the link has not accepted yet belong to the place already reached. So a
frame with P is true wherever it is written, provided that the share of the running tick has been written
before it: every entry point begins with `Flow.settle`.
"""
