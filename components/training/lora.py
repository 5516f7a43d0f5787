"""Low-rank adapters (Hu et al. 2021) by peft, put into a model in place.

With adapters the frozen weights are shared: the reference is the policy with its adapters off, and the reward model
the value model with its adapters off and its own head.
"""

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from components.core.config import Lora
from components.core.errors import UserError

_NAME = "default"  # peft's own name of a model's only adapter


def peft_config(settings: Lora) -> LoraConfig:
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # a float works, as in peft's own tests
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
        task_type="CAUSAL_LM",
    )


def add_adapters(model: PreTrainedModel, settings: Lora, seed: int) -> None:
    """Freeze the model and put adapters into it; they start as no change (B = 0). A on every rank from `seed`."""
    torch.manual_seed(seed)
    model.requires_grad_(False)
    try:
        inject_adapter_in_model(peft_config(settings), model)
    except ValueError as error:
        raise UserError(f"lora.targets: {error}", fix="name linear layers of this model") from error
    # In the model's own precision, like full fine-tuning; master weights are fp32 either way.
    for module in adapters(model):
        module.to(dtype=model.dtype, device=model.device)


def adapters(model: nn.Module) -> list[Any]:
    """The layers that hold one; peft's class is a mixin, which type checkers do not see as a module."""
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


@contextlib.contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """The model as it was before training."""
    layers = adapters(model)
    trained = [[p for p in layer.parameters() if p.requires_grad] for layer in layers]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer, parameters in zip(layers, trained, strict=True):
            layer.enable_adapters(True)
            for parameter in parameters:  # peft freezes them while they are off
                parameter.requires_grad_(True)


def merged(model: nn.Module) -> nn.Module:
    """A copy with each adapter added into the weights it belongs to: an ordinary model again."""
    made = copy.deepcopy(model)
    for name, layer in list(made.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            made.set_submodule(name, layer.get_base_layer())
    return made


def save_adapter(model: PreTrainedModel, settings: Lora, folder: Path) -> None:
    """The adapter alone, as `peft.PeftModel.from_pretrained` reads it."""
    peft_config(settings).save_pretrained(str(folder))
    tensors = get_peft_model_state_dict(model, adapter_name=_NAME)
    named = {f"base_model.model.{name}": value.detach().cpu().contiguous() for name, value in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors")
