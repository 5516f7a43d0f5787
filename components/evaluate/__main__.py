import sys

from components.core.step import main
from components.evaluate.run import work

if __name__ == "__main__":
    sys.exit(main("evaluate", work))
