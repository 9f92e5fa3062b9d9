"""Settings for the whole suite."""

import os

from hypothesis import settings

# Ranks run with one thread each, on machines that others share; the oracle must too.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A slow machine is not a wrong result: no test fails by the clock.
settings.register_profile("chorale", deadline=None, derandomize=os.environ.get("CI") == "true")
settings.load_profile("chorale")
