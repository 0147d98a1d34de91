"""What is spoken with one client: which messages it may send, and what follows from each. No I/O.

`session` is the protocol as a state machine over a table of requests, one line for each kind of message. Who
carries out a request, a feature, puts the line into the table.
"""
