"""The toy's modules by name: test packages here have no __init__.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
