"""What operators see of the broker as numbers: counted here, declared here, nowhere else.

`meters` are what actors add to as they work, once a tick, a group or a message of a client and never once
a delivery; `statistics` is the snapshot that a scrape takes; `collector` declares every metric and turns the
snapshot into it; `tenants` keeps the number of series bounded; `process` has what is no actor's.
Names: https://prometheus.io/docs/practices/naming/
"""
