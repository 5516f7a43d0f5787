import sys

from components.core.step import main
from components.sft.train import work

if __name__ == "__main__":
    sys.exit(main("sft", work))
