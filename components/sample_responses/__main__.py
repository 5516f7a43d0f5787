import sys

from components.core.step import main
from components.sample_responses.step import work

if __name__ == "__main__":
    sys.exit(main("sample_responses", work))
