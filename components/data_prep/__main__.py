"""`python -m components.data_prep --spec URI`."""

import sys

from components.core.step import main
from components.data_prep.prepare import prepare

if __name__ == "__main__":
    sys.exit(main("data_prep", prepare))
