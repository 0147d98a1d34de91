"""The configuration: one frozen section per component, and the loader that reads them.

`sections` has the sections with their defaults, `values` validates each kind of value, `load` reads TOML
and `BROKER_SECTION__KEY`, `checks` compares keys with each other and checks the files that they name. A
component is given its own section, never the whole configuration.
"""

from broker.config.load import build, default_data_dir, effective, examine, load, shown, unusable
from broker.config.sections import (
    Allowance,
    Audit,
    Auth,
    Config,
    Documents,
    Drain,
    Key,
    Level,
    Limits,
    Log,
    Metrics,
    Nats,
    Permissions,
    Presence,
    Ring,
    Server,
    State,
    Stream,
    Subjects,
    TenantAllowance,
    Tracing,
)
from broker.config.values import host_port, seconds

__all__ = [
    "Allowance",
    "Audit",
    "Auth",
    "Config",
    "Documents",
    "Drain",
    "Key",
    "Level",
    "Limits",
    "Log",
    "Metrics",
    "Nats",
    "Permissions",
    "Presence",
    "Ring",
    "Server",
    "State",
    "Stream",
    "Subjects",
    "TenantAllowance",
    "Tracing",
    "build",
    "default_data_dir",
    "effective",
    "examine",
    "host_port",
    "load",
    "seconds",
    "shown",
    "unusable",
]
