"""Metrics of the broker: all are counted and declared here.

`meters` are the counters that actors add to as they work, once per tick, group or client message and never
per delivery; `statistics` has the figures that a scrape reads; `collector` declares every metric and fills it
from them; `tenants` bounds the number of series; `process` has the metrics that belong to no actor.
Names: https://prometheus.io/docs/practices/naming/
"""
