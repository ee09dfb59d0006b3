#!/usr/bin/env python3
"""`python tools/convert_checkpoints.py COMMAND ...`: see toolrm_jax/convert.py, which it is."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from toolrm_jax.convert import main

if __name__ == "__main__":
    sys.exit(main())
