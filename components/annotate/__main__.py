import sys

from components.annotate.step import work
from components.core.step import main

if __name__ == "__main__":
    sys.exit(main("annotate", work))
