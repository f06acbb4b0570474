"""`python -m saetools`: the command line where its script is not on the path."""

import sys

from saetools.cli import main

sys.exit(main())
