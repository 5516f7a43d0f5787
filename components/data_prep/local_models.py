"""Labelling models on this machine, by hub id, s3:// or file:// folder. Safetensors only, and no code of their own.

They need torch and transformers, which data_prep's own image has not.
"""

from pathlib import Path
from typing import Any

from components.core import store
from components.core.errors import UserError


def load(name: str, revision: str, work: Path, *, auto_class: str, kind: str, where: str) -> tuple[Any, Any]:
    """(tokenizer, model in evaluation) by transformers' class `auto_class`. Raises UserError, which calls the model
    `kind` and names the option `where`."""
    try:
        import torch  # noqa: F401 (transformers goes without it, to models that are none)
        import transformers
    except ImportError as error:
        fix = "run the step in an image with the training extra, or take lexical or endpoint"
        raise UserError("a model on this machine needs torch and transformers", where=where, fix=fix) from error
    folder = _found(name, work)
    given = str(folder) if folder.is_dir() else name
    options: dict[str, Any] = {} if folder.is_dir() else {"revision": revision}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(given, **options)
        loaded = getattr(transformers, auto_class).from_pretrained(given, use_safetensors=True, **options)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no {kind} model can be loaded ({type(error).__name__})",
            where=name, fix="give a folder with config.json, tokenizer and safetensors, or a hub id that is in reach",
        ) from error  # fmt: skip
    return tokenizer, loaded.eval()


def _found(name: str, work: Path) -> Path:
    """The folder of a model; for a hub id a path that is none."""
    if "://" not in name and not name.startswith((".", "/")):
        return Path(name)
    if store.manifest_digest(name) is not None:
        return store.fetch(name, work)
    path = store.local_path(name)
    if path is None or not path.is_dir():
        raise UserError("no model there", where=name, fix="publish it with kubealign's store, or give its folder")
    return path
