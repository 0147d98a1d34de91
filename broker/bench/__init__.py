"""`broker bench`: a load generator with a report.

One run puts the same load on several *subjects* (the broker, and what it is compared with) in turn, a few
rounds each, so that a noisy machine is noisy for all of them. `scenarios` say what a load is (`catalogue`
lists them, `phases` has what they share), `contenders` start who is measured, `load` and `publisher` are
processes of their own that make it and take it in, `results` is what comes out, and `report` shows it.
"""
