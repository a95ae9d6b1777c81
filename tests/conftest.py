"""What every test gets: untimed property tests, a silent Ray, and a ctrl-C that works."""

from __future__ import annotations

import os
import signal

from hypothesis import settings

# How fast the machine is belongs in bench/.
settings.register_profile("suite", deadline=None, print_blob=True)
settings.load_profile("suite")

# Read by Ray in this process and inherited by those it starts: nothing leaves the machine.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

# A shell that puts the tests into the background has them ignore ctrl-C, and what they start
# would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
