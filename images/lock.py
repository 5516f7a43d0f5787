"""Writes the lock file of each image: `requirements.lock` narrowed to what the image needs, by hash.

torch and what only torch needs lie apart, so that another flavour of torch can take their place.
"""

import re
import subprocess
import sys
from pathlib import Path

HOUSE = Path(__file__).resolve().parent.parent
_TORCH = re.compile(r"^(torch|triton|cuda-.*|nvidia-.*)==")


def main() -> None:
    launcher = _compile("--extra", "pipelines")
    training = _compile("--extra", "training")
    _write("launcher/requirements.lock", launcher)
    _write("training/torch.lock", [block for block in training if _TORCH.match(block)])
    _write("training/requirements.lock", [block for block in training if not _TORCH.match(block)])


def _compile(*extras: str) -> list[str]:
    """The blocks of a lock file: a requirement with its hashes each."""
    command = [str(Path(sys.executable).parent / "uv"), "pip", "compile", "-q", "pyproject.toml", *extras]
    options = ["--constraint", "requirements.lock", "--python-version", "3.11", "--generate-hashes"]
    plain = ["--no-emit-index-url", "--no-header", "--no-annotate"]
    text = subprocess.run([*command, *options, *plain], cwd=HOUSE, check=True, capture_output=True, text=True).stdout
    return re.split(r"\n(?=\S)", text.strip())


def _write(name: str, blocks: list[str]) -> None:
    (HOUSE / "images" / name).write_text("\n".join(blocks) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
