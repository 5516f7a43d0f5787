"""`python -m pipelines`, where the console script is not installed."""

import sys

from pipelines.cli import main

sys.exit(main())
