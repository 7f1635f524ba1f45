"""One thread a process, and a cache of its own: what a test measures is not what the machine happens to hold."""
from __future__ import annotations

import atexit
import os
import shutil
import tempfile

for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
if "EDGECL_CACHE" not in os.environ:
    os.environ["EDGECL_CACHE"] = tempfile.mkdtemp(prefix="edgecl-cache-")
    atexit.register(shutil.rmtree, os.environ["EDGECL_CACHE"], ignore_errors=True)
