"""Rollouts by vLLM inside the trainer's process, on the trainer's GPU. An optional extra: vllm is imported when asked.

Never run by this project's tests, whose machines have no GPU: they check the calls against a small fake. Written from
vLLM's documentation and sources of 2026 (V1 engine).
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from components.core.errors import UserError
from components.training.sampling import Response


class VLLMSampler:
    """A `RolloutBackend`; every rank has an engine of its own.

    A request's seed makes its draws, but vLLM's arithmetic depends on who shares a batch: a resumed run is as exact as
    the engine is batch-invariant (VLLM_BATCH_INVARIANT=1), where `LocalSampler` needs no such care.
    """

    def __init__(self, folder: Path, *, longest: int, gpu_memory_share: float, dtype: str = "bfloat16") -> None:
        """`longest` is a prompt's and its response's tokens together; `gpu_memory_share` is the engine's, in (0, 1)."""
        # In this process weights are handed over by reference; a worker process would need them pickled.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        self._vllm = _vllm()
        self._engine: Any = self._vllm.LLM(
            model=str(folder),
            dtype=dtype,
            max_model_len=longest,
            gpu_memory_utilization=gpu_memory_share,
            enable_prefix_caching=True,
            # Under torchrun the process group exists already, and vLLM must join it instead of making another.
            distributed_executor_backend="external_launcher" if dist.is_initialized() else None,
        )

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        seeds: Sequence[int],
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        stop_ids: Sequence[int],
    ) -> list[Response]:
        if not prompts:
            return []
        # ignore_eos: the ids given here stop a response, and nothing that the folder's own settings name.
        parameters = [
            self._vllm.SamplingParams(
                seed=seed,
                max_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                stop_token_ids=list(stop_ids),
                ignore_eos=True,
                detokenize=False,
            )
            for seed in seeds
        ]
        requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self._engine.generate(requests, parameters, use_tqdm=False)
        found = [list(output.outputs[0].token_ids) for output in outputs]
        return [Response(ids, truncated=not (ids and ids[-1] in stop_ids)) for ids in found]

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Copy into the engine's own tensors, and forget the cached prefixes: their keys are of the old weights."""
        self._engine.apply_model(lambda model: model.load_weights(weights))
        if self._engine.reset_prefix_cache() is False:
            raise RuntimeError("vLLM kept its prefix cache: the next rollout would mix old and new weights")


def _vllm() -> Any:
    try:
        import vllm
    except ImportError as error:
        raise UserError("rollouts by vLLM need the package vllm", fix="pip install 'kubealign[vllm]'") from error
    return vllm
