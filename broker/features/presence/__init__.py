"""Presence: who is here, in which state, without ghosts and without flicker.

Each member is a message of a stream in memory, written by the broker that has its connection (`entries`), and
read by those that show its channel (`rooms`, `watching`). A broker says with a lease that it is alive; of
one that has died the others clear up (`lives`).
"""
