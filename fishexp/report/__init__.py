"""Tables and plots made of records; they need neither torch nor the runs themselves."""

import os
from importlib.util import find_spec

# what a notebook sets for matplotlib reaches programs whose environment may not have it; pictures are files anyway
_BACKEND = os.environ.get("MPLBACKEND", "").removeprefix("module://").partition(".")[0]
if os.environ.get("MPLBACKEND", "").startswith("module://") and find_spec(_BACKEND) is None:
    del os.environ["MPLBACKEND"]
