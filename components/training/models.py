"""Models as ordinary Hugging Face folders: safetensors, config, tokenizer, chat template."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from components.core.chatml import CHAT_TEMPLATE, END_OF_TEXT, IM_END, ChatTokenizer
from components.core.errors import UserError

# Progress bars of every load and save would drown a step's own lines.
transformers.utils.logging.disable_progress_bar()

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json")


def load_policy(folder: Path, *, dropout: float = 0.0, device: torch.device | None = None) -> PreTrainedModel:
    """A causal language model in fp32 with attention dropout set (PPO needs it off: ratio 1 on the first pass).

    Raises UserError where the folder has no config or no safetensors weights: pickles can run code and are refused.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no config.json; give a Hugging Face model folder")
    if not list(folder.glob("*.safetensors")):
        pickles = list(folder.glob("*.bin")) + list(folder.glob("*.pt")) + list(folder.glob("*.pth"))
        if pickles:
            raise UserError(
                f"{folder}: only pickled weights ({pickles[0].name}), which can run code; save as safetensors"
            )
        raise UserError(f"{folder}: no weights (*.safetensors)")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        config.attention_dropout = dropout
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            attn_implementation="sdpa",
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (ValueError, OSError, RuntimeError) as error:
        raise UserError(f"{folder}: cannot load the model ({_first_line(error)})") from error
    return model.to(device or "cpu").eval()  # type: ignore[arg-type]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def save_policy(model: PreTrainedModel, folder: Path, tokenizer_folder: Path) -> None:
    """Write a folder that `AutoModelForCausalLM` and `AutoTokenizer` load, with the tokenizer it was trained with."""
    config: Any = model.config
    dropout, config.attention_dropout = config.attention_dropout, 0.0
    tokenizer = ChatTokenizer.load(tokenizer_folder)
    config.eos_token_id, config.pad_token_id = tokenizer.im_end, tokenizer.pad
    config.bos_token_id = None
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.im_end, tokenizer.end_of_text], pad_token_id=tokenizer.pad
    )
    model.save_pretrained(folder)
    config.attention_dropout = dropout
    copy_tokenizer(tokenizer_folder, folder)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """The tokenizer's files byte for byte, and the chat template that renders just what `core/chatml.py` encodes."""
    for name in _TOKENIZER_FILES:
        if (source / name).is_file() and source.resolve() != folder.resolve():
            shutil.copyfile(source / name, folder / name)
    path = source / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    settings |= {"eos_token": IM_END, "pad_token": END_OF_TEXT, "add_bos_token": False, "bos_token": None}
    settings.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    settings["chat_template"] = CHAT_TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")


def hidden_states(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Last hidden states (rows, time, hidden) of padded rows, whichever side the padding is on.

    Position ids count a row's own tokens, so that padding shifts nothing.
    """
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    output = model.base_model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
    return output.last_hidden_state


def logits_at(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """fp32 logits (positions, vocabulary) of chosen hidden states (positions, hidden).

    Only ever asked for positions that are scored: the whole [rows, time, vocabulary] tensor is what runs out of memory.
    """
    head: nn.Module = model.get_output_embeddings()
    return head(hidden).float()
