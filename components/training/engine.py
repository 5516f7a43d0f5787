"""One model and its optimiser: accumulate, all-reduce, clip, step. A trainer need not know how they are spread.

Losses are already divided by the *global* number of what they average over (label tokens, prompts), so gradients simply
add up over micro-batches and ranks: no mean of means anywhere (transformers#34191, verl#6957 are what that avoids).

Stage 0 is plain torch: a whole replica a rank, gradients summed. It starts at once and is what laptops and single GPUs
use. Stages 1 to 3 are DeepSpeed's (`zero.py`) behind the same methods; tests hold both to the same weights.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import nn

from components.core.errors import UserError

if TYPE_CHECKING:  # so that tests/benchmarks/gpu.py runs where there is no pydantic
    from components.core.config import Trainer
    from components.training.runtime import Runtime

Group = TypeVar("Group")
_BUCKET = 1 << 26  # gradient elements in one all-reduce
_MOMENTS = ("exp_avg", "exp_avg_sq")


class Engine:
    """AdamW on fp32 master weights; the model's own weights may be bf16 copies of them."""

    def __init__(self, model: nn.Module, config: "Trainer", runtime: "Runtime") -> None:
        self.model, self.config, self.runtime = model, config, runtime
        self.named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._tokens = 0
        self._set_up()

    def _set_up(self) -> None:
        # The masters are the weights themselves in fp32.
        self.masters = {name: p if p.dtype == torch.float32 else _master(p) for name, p in self.named.items()}
        self.optimiser = make_optimiser(self.masters, self.config)
        self._aside: dict[str, torch.Tensor] = {}

    def __call__(
        self, function: Callable[..., Any], rows: Sequence[Any] | np.ndarray, *arguments: Any, **options: Any
    ) -> Any:
        """function(model, rows, ...), run so that sharded weights are there when it needs them."""
        self._tokens = sum(len(row) for row in rows)
        return function(self.model, rows, *arguments, **options)

    def accumulate(
        self,
        groups: Sequence[Group],
        spare: Group,
        loss: Callable[[Group], tuple[torch.Tensor, list[torch.Tensor]]],
        *,
        figures: int,
        last: bool = True,
    ) -> list[float]:
        """Backward of every micro-batch of this rank; the sums of its figures over micro-batches and ranks.

        `loss(group)` gives the loss and `figures` scalars. A sharded model needs every rank in every pass, so a rank
        with fewer groups than another repeats `spare` with a loss of zero. `last`: nothing else comes before `step`.
        """
        rounds = self._rounds(len(groups))
        total = torch.zeros(figures, dtype=torch.float64, device=self.runtime.device)
        for number in range(rounds):
            own = number < len(groups)
            with self.explained():
                value, found = loss(groups[number] if own else spare)
                self._backward(value if own else value * 0.0, last and number == rounds - 1)
            if own:
                total += torch.stack([figure.detach().double() for figure in found])
        return self.runtime.sum(total).tolist()

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Around a forward or backward pass: running out of GPU memory there says what to lower."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"GPU out of memory in a micro-batch of {self._tokens} tokens; lower micro_batch_tokens "
                f"(now {self.config.micro_batch_tokens}), or set gradient_checkpointing or a higher zero.stage"
            ) from error

    def _rounds(self, groups: int) -> int:
        return groups

    def _backward(self, loss: torch.Tensor, last: bool) -> None:
        loss.backward()
        for name, parameter in self.named.items():
            master = self.masters[name]
            if master is parameter or parameter.grad is None or (last and master.grad is None):
                continue  # one bf16 micro-batch alone needs no fp32 sum
            gradient, parameter.grad = parameter.grad.float(), None
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)

    def _gradients(self) -> dict[str, torch.Tensor]:
        """Every trainable weight's gradient so far; zeros where this rank has none: the others wait for it."""
        found = {}
        for name, parameter in self.named.items():
            gradient = parameter.grad if parameter.grad is not None else self.masters[name].grad
            gradient = torch.zeros_like(parameter) if gradient is None else gradient
            # A rank with one bf16 micro-batch and one with several must add up the same type.
            found[name] = gradient if self.runtime.world == 1 else gradient.float()
        return found

    def set_aside(self) -> float:
        """Sum what was accumulated over ranks, keep it for the next step, and say its norm: one part of several."""
        gradients = self._gradients()
        self._sum(gradients)
        norm = _norm(gradients)
        for name, gradient in gradients.items():
            self._aside[name] = gradient if name not in self._aside else self._aside[name].add_(gradient)
        self._forget()
        return norm

    def step(self, learning_rate: float) -> float:
        """Clip by the global norm and take one optimiser step; returns the norm before clipping.

        A step with a gradient that is not finite is skipped; the caller counts it by the norm.
        """
        gradients, self._aside = self._aside, {}
        if not gradients:
            gradients = self._gradients()
            self._sum(gradients)
        norm = _norm(gradients)
        if math.isfinite(norm):
            scale = self.config.optimiser.clip / (norm + 1e-6) if norm > self.config.optimiser.clip else 1.0
            self._apply(gradients, scale, learning_rate)
        self._forget()
        return norm

    def _apply(self, gradients: dict[str, torch.Tensor], scale: float, learning_rate: float) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        self._forget()
        # In pieces, so that bf16 gradients are never all there in fp32 as well.
        for names in self._pieces():
            for name in names:
                gradient = gradients.pop(name)
                self.masters[name].grad = gradient.float().mul_(scale) if scale != 1.0 else gradient.float()
            self.optimiser.step()
            for name in names:
                self.masters[name].grad = None
                if self.masters[name] is not self.named[name]:
                    with torch.no_grad():
                        self.named[name].copy_(self.masters[name])

    def _pieces(self) -> list[list[str]]:
        """Names of all weights at once where they are fp32, else of about _BUCKET elements at a time."""
        if all(self.masters[name] is parameter for name, parameter in self.named.items()):
            return [list(self.named)]
        pieces: list[list[str]] = [[]]
        size = 0
        for name, parameter in self.named.items():
            if size >= _BUCKET:
                pieces.append([])
                size = 0
            pieces[-1].append(name)
            size += parameter.numel()
        return pieces

    def _forget(self) -> None:
        for name, parameter in self.named.items():
            parameter.grad = self.masters[name].grad = None

    def _sum(self, gradients: dict[str, torch.Tensor]) -> None:
        """Over ranks, in place, a bucket at a time."""
        if self.runtime.world == 1:
            return
        bucket: list[torch.Tensor] = []
        for number, gradient in enumerate(gradients.values(), start=1):
            bucket.append(gradient)
            if sum(part.numel() for part in bucket) >= _BUCKET or number == len(gradients):
                flat = self.runtime.sum(torch.cat([part.reshape(-1) for part in bucket]))
                for part, summed in zip(bucket, flat.split([part.numel() for part in bucket]), strict=True):
                    part.copy_(summed.view_as(part))
                bucket = []

    @contextlib.contextmanager
    def whole(self) -> Iterator[nn.Module]:
        """The model with all its weights on this rank, for sampling: no rank waits for another in there."""
        yield self.model

    def part(self) -> tuple[int, int] | None:
        """(number, count) of this rank's part of a checkpoint, or None where it has none to write."""
        return (0, 1) if self.runtime.is_main else None

    def state(self) -> dict[str, torch.Tensor]:
        """This rank's part of what a checkpoint holds: fp32 weights and moments by name, whole tensors.

        Names and whole tensors do not depend on the number of ranks, so another number can load them.
        """
        tensors = {}
        for name, master in self.masters.items():
            tensors[f"weights.{name}"] = master.detach()
            for key, value in self.optimiser.state.get(master, {}).items():
                tensors[f"optimiser.{name}.{key}"] = value
        return tensors

    @torch.no_grad()
    def load_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """`tensors` holds the parts of all ranks."""
        for name, master in self.masters.items():
            master.copy_(tensors[f"weights.{name}"])
            if master is not self.named[name]:
                self.named[name].copy_(master)
            # Before the first step there is none.
            if (step := tensors.get(f"optimiser.{name}.step")) is not None:
                state = {key: tensors[f"optimiser.{name}.{key}"].clone().to(master.device) for key in _MOMENTS}
                # The step counter stays where fused AdamW keeps it: on the parameter's device.
                self.optimiser.state[master] = state | {"step": step.clone().to(master.device)}


def _master(parameter: nn.Parameter) -> torch.Tensor:
    return parameter.detach().float().clone()


def make_optimiser(weights: dict[str, Any], config: "Trainer") -> torch.optim.AdamW:
    """Decay on matrices, none on vectors (biases, norms); the learning rate is set at every step."""
    settings = config.optimiser
    matrices = [weight for weight in weights.values() if weight.ndim >= 2]
    vectors = [weight for weight in weights.values() if weight.ndim < 2]
    groups = [(matrices, settings.weight_decay), (vectors, 0.0)]
    return torch.optim.AdamW(
        [{"params": part, "weight_decay": decay} for part, decay in groups if part],
        lr=0.0,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        fused=True,
    )


def _norm(gradients: dict[str, torch.Tensor]) -> float:
    """Global L2 norm, summed in fp32 whatever the gradients' own precision."""
    norms = torch._foreach_norm(list(gradients.values()), 2, dtype=torch.float32)
    return float(torch.linalg.vector_norm(torch.stack(norms)))


def make_engine(model: nn.Module, config: "Trainer", runtime: "Runtime") -> Engine:
    """The engine for zero.stage. DeepSpeed is imported only where it is used: that takes two seconds."""
    if config.zero.stage == 0:
        return Engine(model, config, runtime)
    from components.training.zero import ZeroEngine

    return ZeroEngine(model, config, runtime)
