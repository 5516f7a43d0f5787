"""ZeRO stages 1 to 3 by DeepSpeed behind the engine's methods.

DeepSpeed averages gradients over ranks; our losses are already divided by global counts, so they are multiplied by the
number of ranks first. Clipping, by the true global norm, and skipping a step that is not finite are DeepSpeed's own.
"""

import contextlib
import copy
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from components.core.errors import UserError
from components.training.engine import _MOMENTS, Engine, make_optimiser
from components.training.runtime import limit_waiting

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)

# A shared-memory collective that DeepSpeed would compile at start-up on a CPU, for minutes; gloo does without.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


class _Root(nn.Module):
    """DeepSpeed gathers sharded weights from hooks on modules, so all work goes through this one's forward."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        return function(self.model, *arguments, **options)


class ZeroEngine(Engine):
    """Everything by name as in `Engine`; tensors are whole when they come in or go out."""

    def _set_up(self) -> None:
        self.stage = self.config.zero.stage
        if not torch.distributed.is_initialized():
            raise UserError("zero.stage above 0 needs a process group; start the step under torchrun")
        if self.stage == 3:
            self._copy = _without_weights(self.model)
        self.deepspeed, self.sharded, *_ = deepspeed.initialize(
            model=_Root(self.model),
            optimizer=make_optimiser(self.named, self.config),
            config=self._settings(),
            dist_init_required=False,
        )
        limit_waiting(self.config.resources.collective_timeout_seconds)
        self._stepped = False

    def _settings(self) -> dict[str, Any]:
        zero: dict[str, Any] = {"stage": self.stage, "overlap_comm": self.runtime.device.type == "cuda"}
        if self.config.zero.offload_optimiser:
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": self.runtime.device.type == "cuda"}
        if self.config.zero.offload_parameters:
            zero["offload_param"] = {"device": "cpu", "pin_memory": self.runtime.device.type == "cuda"}
        bf16 = self.config.precision == "bf16"
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": self.config.optimiser.clip,
            "zero_optimization": zero,
            # torch's own fused AdamW, on a GPU and, with offload, on the CPU: no op to compile in a pod.
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "bf16": {"enabled": bf16, "check_grad_overflow": True},
            "data_types": {"grad_accum_dtype": "fp32"},
            "steps_per_print": 1 << 30,
        }

    def __call__(
        self, function: Callable[..., Any], rows: Sequence[Any] | np.ndarray, *arguments: Any, **options: Any
    ) -> Any:
        self._tokens = sum(len(row) for row in rows)
        return self.deepspeed(function, rows, *arguments, **options)

    def _rounds(self, groups: int) -> int:
        return self.runtime.max(groups)

    def _backward(self, loss: torch.Tensor, last: bool) -> None:
        self.deepspeed.set_gradient_accumulation_boundary(last)
        self.deepspeed.backward(loss * self.runtime.world)

    def set_aside(self) -> float:
        """Parts add up in DeepSpeed's own buffers; their norms are not known apart."""
        return float("nan")

    def step(self, learning_rate: float) -> float:
        for group in self.sharded.param_groups:
            group["lr"] = learning_rate
        self.deepspeed.step()
        if self.sharded.overflow:
            return float("inf")
        if not self._stepped and self.stage < 3:
            self._link_moments()
        self._stepped = True
        return float(self.deepspeed.get_global_grad_norm())

    @contextlib.contextmanager
    def whole(self) -> Iterator[nn.Module]:
        """Under stage 3 a copy without DeepSpeed's hooks, which holds weights only for the while."""
        if self.stage < 3:
            yield self.model
            return
        weights: dict[str, torch.Tensor] = {}
        seen: dict[int, torch.Tensor] = {}
        # Tied weights have two names, and the copy needs both.
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            if id(parameter) not in seen:
                with deepspeed.zero.GatheredParameters([parameter]):
                    seen[id(parameter)] = parameter.detach().clone()
            weights[name] = seen[id(parameter)]
        empty = {name: p.detach() for name, p in self._copy.named_parameters(remove_duplicate=False)}
        self._copy.load_state_dict(weights, strict=False, assign=True)
        self._copy.train(self.model.training)
        try:
            yield self._copy
        finally:
            self._copy.load_state_dict(empty, strict=False, assign=True)

    def part(self) -> tuple[int, int]:
        return self.runtime.rank, self.runtime.world

    def state(self) -> dict[str, torch.Tensor]:
        """Weights are dealt over ranks, so that each writes its share; every rank takes part in gathering each."""
        tensors: dict[str, torch.Tensor] = {}
        for number, (name, parameter) in enumerate(self.named.items()):
            found = {f"weights.{name}": safe_get_full_fp32_param(parameter)}
            if self._stepped:
                for key in _MOMENTS:
                    found[f"optimiser.{name}.{key}"] = safe_get_full_optimizer_state(parameter, key)
                found[f"optimiser.{name}.step"] = self._step_count()
            if number % self.runtime.world == self.runtime.rank:
                tensors |= {key: value.detach().cpu() for key, value in found.items()}
        return tensors

    def _step_count(self) -> torch.Tensor:
        counts = [state["step"] for state in self.sharded.optimizer.state.values() if "step" in state]
        return counts[0].detach().clone()

    @torch.no_grad()
    def load_state(self, tensors: dict[str, torch.Tensor]) -> None:
        step = next((value for key, value in tensors.items() if key.endswith(".step")), None)
        if step is not None:
            self._make_moments(step)
        for name, parameter in self.named.items():
            self._set(parameter, tensors[f"weights.{name}"].to(self.runtime.device), None)
            if step is not None:
                for key in _MOMENTS:
                    self._set(parameter, tensors[f"optimiser.{name}.{key}"].to(self.runtime.device), key)
        self._stepped = step is not None

    def _make_moments(self, step: torch.Tensor) -> None:
        """AdamW makes its state at the first step; a resumed one has to have it before."""
        flats = self.sharded.fp32_partitioned_groups_flat if self.stage == 3 else self._flat_groups()
        for flat in flats:
            state = {key: torch.zeros_like(flat) for key in _MOMENTS}
            self.sharded.optimizer.state[flat] = state | {"step": step.clone().to(flat.device)}
        if self.stage < 3:
            self._link_moments()

    def _link_moments(self) -> None:
        """DeepSpeed links moments to weights when its first parameter group has stepped and others have none."""
        self.sharded._hp_optimizer_states_linked = False
        self.sharded._lazy_init_hp_params_optimizer_state()

    def _flat_groups(self) -> list[torch.Tensor]:
        return list(self.sharded.single_partition_of_fp32_groups)

    def _set(self, parameter: Any, value: torch.Tensor, key: str | None) -> None:
        """A whole tensor into this rank's shard, and a weight into the model as well."""
        if self.stage == 3:
            size = parameter.ds_tensor.numel()
            padded = F.pad(value.flatten(), (0, size * self.runtime.world - value.numel()))
            own = padded[self.runtime.rank * size : (self.runtime.rank + 1) * size]
            if key is None:
                safe_set_local_fp32_param(parameter, own)
                parameter.ds_tensor.copy_(own)
            else:
                safe_set_local_optimizer_state(parameter, own, key)
        elif key is None:
            safe_set_full_fp32_param(parameter, value)
            parameter.copy_(value)
        else:
            safe_set_full_optimizer_state(parameter, value, key)


def _without_weights(model: nn.Module) -> nn.Module:
    """The same modules with parameters that take no memory."""
    empty: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False) for p in model.parameters()
    }
    return copy.deepcopy(model, empty)
