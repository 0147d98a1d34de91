"""The protocol with one client: which messages it may send, and the effects of each. No I/O.

`session` is a state machine over a table of requests, one line per type of message. The features that carry
out requests contribute these lines.
"""
