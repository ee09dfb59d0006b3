"""Read by Python when it starts: there is no torch."""

import sys

sys.modules["torch"] = None
