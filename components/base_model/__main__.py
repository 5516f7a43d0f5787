import sys

from components.base_model.make import work
from components.core.step import main

if __name__ == "__main__":
    sys.exit(main("base_model", work))
