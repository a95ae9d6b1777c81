"""What every test gets: property tests that do not time anything, and a silent Ray."""

from __future__ import annotations

import os

from hypothesis import settings

# How fast the machine is belongs in bench/.
settings.register_profile("suite", deadline=None, print_blob=True)
settings.load_profile("suite")

# Read by Ray in this process and inherited by those it starts: nothing leaves the machine.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
