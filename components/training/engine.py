"""One model and its optimiser: accumulate, all-reduce, clip, step. A trainer need not know how many ranks there are."""

import math

import torch
from torch import nn

from components.core.config import Optimiser
from components.training.runtime import Runtime


class Engine:
    """AdamW on fp32 weights. Losses given to `backward` must already be divided by the *global* number of what they
    average over (label tokens, prompts), so that gradients simply add up over micro-batches and ranks."""

    def __init__(self, model: nn.Module, settings: Optimiser, runtime: Runtime) -> None:
        self.model = model
        self.runtime = runtime
        self.clip = settings.clip
        self.named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        matrices = [p for p in self.named.values() if p.ndim >= 2]
        vectors = [p for p in self.named.values() if p.ndim < 2]
        self.optimiser = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=0.0,
            betas=(settings.beta1, settings.beta2),
            eps=settings.epsilon,
            fused=True,
        )

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def reduce_gradients(self) -> None:
        """Sum gradients over ranks. Once a step: a second sum would count twice."""
        gradients = []
        for parameter in self.named.values():
            # A rank without rows takes part with zeros, or the others would wait for ever.
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        if self.runtime.world > 1:
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            self.runtime.sum(flat)
            for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def gradient_norm(self) -> float:
        """Global norm of the gradients as they stand."""
        return float(torch.nn.utils.get_total_norm([p.grad for p in self.named.values() if p.grad is not None]))

    def take_gradients(self) -> dict[str, torch.Tensor]:
        """The gradients, which are then forgotten here; for adding them to another loss's later."""
        taken = {name: p.grad.clone() for name, p in self.named.items() if p.grad is not None}
        self.optimiser.zero_grad(set_to_none=True)
        return taken

    def add_gradients(self, gradients: dict[str, torch.Tensor]) -> None:
        for name, gradient in gradients.items():
            parameter = self.named[name]
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def step(self, learning_rate: float) -> float:
        """Clip by the global norm and take one optimiser step; returns the norm before clipping.

        A step with a gradient that is not finite is skipped; the caller counts it by the norm.
        """
        self.reduce_gradients()
        return self.apply(learning_rate, self.gradient_norm())

    def apply(self, learning_rate: float, norm: float) -> float:
        """The second half of `step`, for gradients that are already summed over ranks."""
        if math.isfinite(norm):
            # Clipping after the norm is known, not a second pass to find it.
            if norm > self.clip:
                for parameter in self.named.values():
                    if parameter.grad is not None:
                        parameter.grad.mul_(self.clip / (norm + 1e-6))
            for group in self.optimiser.param_groups:
                group["lr"] = learning_rate
            self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return norm

    def state(self) -> dict[str, torch.Tensor]:
        """Weights and moments by name: all that a checkpoint needs of this model."""
        tensors = {f"weights.{name}": p.detach() for name, p in self.model.named_parameters()}
        for name, parameter in self.named.items():
            for key, value in self.optimiser.state.get(parameter, {}).items():
                tensors[f"optimiser.{name}.{key}"] = value
        return tensors

    @torch.no_grad()
    def load_state(self, tensors: dict[str, torch.Tensor]) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.copy_(tensors[f"weights.{name}"])
        for name, parameter in self.named.items():
            prefix = f"optimiser.{name}."
            found = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            if found:
                # The step counter stays where fused AdamW keeps it: on the parameter's device.
                self.optimiser.state[parameter] = {
                    key: value.clone().to(parameter.device) for key, value in found.items()
                }
