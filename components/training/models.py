"""Models as ordinary Hugging Face folders: safetensors, config, tokenizer, chat template."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from components.core.chatml import CHAT_TEMPLATE, END_OF_TEXT, IM_END, ChatTokenizer
from components.core.errors import UserError
from components.training.attention import IMPLEMENTATION, Segments, run_packed, trim_last_layer
from components.training.engine import Engine

if TYPE_CHECKING:  # so that tests/benchmarks/gpu.py runs where there is no pydantic
    from components.core.config import Lora, Trainer
    from components.core.step import Step

# Progress bars of every load and save would drown a step's own lines.
transformers.utils.logging.disable_progress_bar()

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json")


def load_policy(
    folder: Path, *, dropout: float = 0.0, device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """A causal language model with attention dropout set (PPO needs it off: ratio 1 on the first pass).

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
        if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
            raise UserError(f"{folder}: sliding-window attention is not supported; use a model with full attention")
        config.attention_dropout = dropout
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation=IMPLEMENTATION,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (ValueError, OSError, RuntimeError) as error:
        raise UserError(f"{folder}: cannot load the model ({_first_line(error)})") from error
    trim_last_layer(model)
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


def save_trained(engine: Engine, step: "Step", tokenizer_folder: Path) -> dict[str, Path]:
    """Write a trained policy, on the main rank: {"model": folder}, and with LoRA {"adapter": folder} beside it.

    Every rank must call it: sharded weights are gathered.
    """
    with engine.whole() as model:
        if not engine.runtime.is_main:
            return {}
        assert isinstance(model, PreTrainedModel)
        folder = step.scratch("output")
        return save_with_adapter(
            model, engine.config.lora, folder, lambda whole, to: save_policy(whole, to, tokenizer_folder)
        )


def save_with_adapter(
    model: Any, lora: "Lora", folder: Path, save: Callable[[Any, Path], None], trunk: str = ""
) -> dict[str, Path]:
    """Write by `save` under folder/model, merged where there are adapters, which then go to folder/adapter as well."""
    (folder / "model").mkdir()
    if not lora.rank:
        save(model, folder / "model")
        return {"model": folder / "model"}
    from components.training.lora import merged, save_adapter

    (folder / "adapter").mkdir()
    save_adapter(getattr(model, trunk) if trunk else model, lora, folder / "adapter")
    save(merged(model), folder / "model")
    return {"model": folder / "model", "adapter": folder / "adapter"}


def prepare(model: PreTrainedModel, config: "Trainer", seed: int) -> None:
    """Adapters from `seed`, recomputed activations, compiled layers: as the trainer's settings ask for."""
    if config.lora.rank:
        # peft takes seconds to import, and most runs do without.
        from components.training.lora import add_adapters

        add_adapters(model, config.lora, seed)
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable()
    if config.compile:
        compile_layers(model)


def compile_layers(model: PreTrainedModel) -> None:
    """Compile each transformer layer in place: all are alike, so there is one compilation, and no name changes.

    Not the last one, whose hooks take another number of positions each time.
    """
    layers: Any = model.base_model.layers
    for layer in layers[:-1]:
        layer.compile(dynamic=True)


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


def hidden_states(
    model: PreTrainedModel, rows: Sequence[Sequence[int] | np.ndarray], wanted: torch.Tensor | None = None
) -> torch.Tensor:
    """(tokens, hidden) last hidden states of rows laid end to end, or (wanted, hidden) of the positions asked for.

    No padding: every token costs once. Each row has positions of its own and sees only itself, so its states are those
    it has alone.
    """
    segments = Segments.of([len(row) for row in rows], model.device, wanted)
    ids = torch.from_numpy(np.concatenate([np.asarray(row, dtype=np.int64) for row in rows]))
    states = run_packed(model, ids, segments, use_cache=False)
    return states if segments.wanted is None else states.index_select(0, segments.wanted)


def logits_at(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """fp32 logits (positions, vocabulary) of chosen hidden states (positions, hidden).

    Only ever asked for positions that are scored, in pieces (`scoring.by_chunk`): all of them at once is what runs out
    of memory.
    """
    head: nn.Module = model.get_output_embeddings()
    return head(hidden).float()
