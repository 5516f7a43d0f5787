"""`python -m components.data_prep --spec URI`."""

import sys

from components.core.step import main
from components.data_prep.prepare import prepare
from components.data_prep.workers import seldom_collect

if __name__ == "__main__":
    seldom_collect()
    sys.exit(main("data_prep", prepare))
