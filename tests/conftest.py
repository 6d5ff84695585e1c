"""What all tests share: one BLAS thread, as in every command, and helpers that lie beside this file."""

import os
import sys
from pathlib import Path

for library in ("OPENBLAS", "OMP", "MKL"):
    os.environ[f"{library}_NUM_THREADS"] = "1"

sys.path.insert(0, str(Path(__file__).parent))
