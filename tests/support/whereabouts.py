"""Says which broker a process finds that finds the tests too."""

import broker

print(broker.__file__)
