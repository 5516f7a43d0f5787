"""A model from a hub, a store or a folder, checked and made ready for ChatML."""

import logging
import shutil
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer

from components.core import store
from components.core.chatml import CONTROL_TOKENS
from components.core.config import BaseModelConfig
from components.core.errors import RetryableError, UserError
from components.training.models import load_policy, save_policy

log = logging.getLogger(__name__)
_PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model"]


def bring(config: BaseModelConfig, folder: Path, download: Path) -> None:
    """Write a complete model folder to `folder`, control tokens added and trainable where the tokenizer lacks them."""
    source = _find(config, download)
    model = load_policy(source)
    if not (source / "tokenizer.json").is_file():
        raise UserError(f"{config.model}: no tokenizer.json; save the model with a fast tokenizer")
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    missing = [token for token in CONTROL_TOKENS if tokenizer.token_to_id(token) is None]
    if missing and not config.add_control_tokens:
        raise UserError(
            f"{config.model}: no control token {', '.join(missing)}; set base_model.add_control_tokens=true"
        )
    ready = folder.with_name(folder.name + "-tokenizer")
    shutil.copytree(source, ready, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    if missing:
        log.info("adding control tokens %s", ", ".join(missing))
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in missing])
        tokenizer.save(str(ready / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    if size > model.config.vocab_size:
        # New rows start at the mean of the old ones: an ordinary token, which training then moves.
        torch.manual_seed(0)
        model.resize_token_embeddings(size, mean_resizing=True)
    save_policy(model, folder, ready)
    shutil.rmtree(ready)


def _find(config: BaseModelConfig, download: Path) -> Path:
    """A local folder with the model: where it is, fetched from a store, or downloaded from the hub."""
    name = config.model
    if "://" in name or Path(name).exists() or name.startswith((".", "/")):
        if store.manifest_digest(name) is not None:
            return store.fetch(name, download)
        path = store.local_path(name)
        if path is None:
            raise UserError(f"{name}: no MANIFEST.json there; publish the model with kubealign's store first")
        if not path.is_dir():
            raise UserError(f"{name}: no such model folder")
        # A person's own folder has no manifest; the loader checks what it needs.
        return path
    # Imported here: it reads its environment when imported, and most runs never ask a hub.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(name, revision=config.revision, local_dir=download, allow_patterns=_PATTERNS))
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(f"{name}: no such model on the hub, nor a folder; check base_model.model") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise RetryableError(f"{name}: cannot reach the model hub; try again, or give a folder or 'init'") from error
