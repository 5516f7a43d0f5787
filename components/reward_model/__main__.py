import sys

from components.core.step import main
from components.reward_model.train import work

if __name__ == "__main__":
    sys.exit(main("reward_model", work))
