"""Find a profile by the name of a shipped one or by path."""

import difflib
from pathlib import Path

from components.core.config import Profile, load_profile
from components.core.errors import UserError

_FOLDER = Path(__file__).resolve().parent / "profiles"


def shipped() -> dict[str, Path]:
    """The profiles that come with kubealign, by name."""
    return {path.stem: path for path in sorted(_FOLDER.glob("*.yaml"))}


def load(name_or_path: str, overrides: list[str] | None = None) -> Profile:
    """A checked profile with `--set` overrides applied."""
    return load_profile(_find(name_or_path), overrides, _FOLDER)


def _find(name_or_path: str) -> Path:
    if (found := shipped().get(name_or_path)) is not None:
        return found
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    if "/" in name_or_path or path.suffix in (".yaml", ".yml"):
        raise UserError("no such profile file", where=name_or_path, fix=f"shipped profiles: {', '.join(shipped())}")
    near = difflib.get_close_matches(name_or_path, shipped(), n=1)
    fix = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(shipped())}, or give the path of a file"
    raise UserError(f"no profile {name_or_path}", fix=fix)
