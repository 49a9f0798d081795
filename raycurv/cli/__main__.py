"""``python -m raycurv.cli``: the command where it is not on the path."""

import sys

from raycurv.cli.main import main

sys.exit(main())
