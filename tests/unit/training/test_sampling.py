import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from components.core.errors import UserError
from components.training import sampling
from components.training.models import load_policy
from components.training.rollout_backend import LocalSampler, RolloutBackend
from components.training.sampling import Response, choose, sample
from components.training.vllm_backend import VLLMSampler

PROMPTS = [
    [5, 6, 7, 8, 9, 10, 11],
    [20, 21, 22],
    [30, 31, 32, 33, 34],
    [20, 21, 22],
    [7],
    list(range(40, 63)),
    [20, 21, 22],
    [30, 31, 32, 33, 35, 36],  # read together with the row of five
]
SEEDS = [11, 12, 13, 14, 15, 16, 17, 18]
STOPS = tuple(range(0, 320, 9))  # common enough to end rows at different steps
SETTINGS: dict[str, Any] = {
    "max_new_tokens": 12,
    "temperature": 1.0,
    "top_p": 0.9,
    "stop_ids": STOPS,
}


@pytest.fixture(params=["qwen2", "qwen3", "llama"])
def policy(request, model_folders: Callable[[str], Path]) -> PreTrainedModel:
    return load_policy(model_folders(request.param))


def reference(model: PreTrainedModel, prompt: list[int], seed: int, settings: dict[str, Any]) -> Response:
    """No cache, no batch, no padding, and the CDF walked in Python."""
    uniforms = np.random.default_rng(seed).random(settings["max_new_tokens"], dtype=np.float32)
    ids: list[int] = []
    for uniform in uniforms:
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0, -1]
        probabilities = torch.softmax(logits / settings["temperature"], dim=-1).double().tolist()
        if settings["top_p"] >= 1:
            nucleus = list(range(len(probabilities)))
        else:
            nucleus, mass = [], 0.0
            for token in sorted(range(len(probabilities)), key=lambda i: (-probabilities[i], i)):
                if mass >= settings["top_p"]:
                    break
                nucleus.append(token)
                mass += probabilities[token]
        left = float(uniform) * sum(probabilities[token] for token in nucleus)
        for token in nucleus:
            left -= probabilities[token]
            if left < 0:
                break
        ids.append(token)
        if token in settings["stop_ids"]:
            return Response(ids, truncated=False)
    return Response(ids, truncated=True)


@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_tokens_equal_those_of_a_sampler_without_cache_batch_or_padding(policy: PreTrainedModel, top_p: float) -> None:
    settings = SETTINGS | {"top_p": top_p}
    found = sample(policy, PROMPTS, seeds=SEEDS, batch_tokens=10_000, **settings)
    assert found == [reference(policy, p, s, settings) for p, s in zip(PROMPTS, SEEDS, strict=True)]
    # The case is worth something only where rows end at different steps, and not all of them.
    assert len({len(response.ids) for response in found}) > 2


def test_an_attention_that_knows_no_segments_is_refused(model_folders: Callable[[str], Path]) -> None:
    """Rows would see each other, and nothing would tell."""
    model = load_policy(model_folders("qwen2"))
    model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="packed rows need"):
        sample(model, PROMPTS, seeds=SEEDS, batch_tokens=10_000, **SETTINGS)


def test_packed_weights_give_the_same_tokens_and_are_put_away(model_folders, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_policy(model_folders("qwen2"))
    plain = sample(model, PROMPTS, seeds=SEEDS, batch_tokens=10_000, **SETTINGS)
    packed: list[torch.Tensor] = []
    inner = sampling._packed_linear
    monkeypatch.setattr(sampling, "_packed_linear", lambda *a: packed.append(a[0]) or inner(*a))
    monkeypatch.setattr(sampling, "_WORTH", 1)
    assert sample(model, PROMPTS, seeds=SEEDS, batch_tokens=10_000, **SETTINGS) == plain
    assert packed
    packed.clear()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(-1.0)
    assert sample(model, PROMPTS, seeds=SEEDS, batch_tokens=10_000, **SETTINGS) != plain, "weights of the last rollout"
    packed.clear()
    model(torch.tensor([PROMPTS[0]]))
    assert not packed


@pytest.mark.parametrize("batch_tokens", [1, 40, 80, 200, 10_000])
def test_tokens_do_not_depend_on_the_batch(policy: PreTrainedModel, batch_tokens: int) -> None:
    alone = [sample(policy, [p], seeds=[s], batch_tokens=1, **SETTINGS)[0] for p, s in zip(PROMPTS, SEEDS, strict=True)]
    assert sample(policy, PROMPTS, seeds=SEEDS, batch_tokens=batch_tokens, **SETTINGS) == alone
    backwards = sample(policy, PROMPTS[::-1], seeds=SEEDS[::-1], batch_tokens=batch_tokens, **SETTINGS)
    assert backwards[::-1] == alone


def test_equal_prompts_are_read_once_and_answered_apart(policy: PreTrainedModel) -> None:
    read: list[int] = []
    handle = policy.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    found = sample(policy, [PROMPTS[0]] * 3, seeds=[1, 2, 1], batch_tokens=10_000, **SETTINGS)
    handle.remove()
    assert read[0] == len(PROMPTS[0])
    assert found[0] == found[2] != found[1]


def test_ended_rows_leave_the_batch(policy: PreTrainedModel) -> None:
    rows: list[int] = []
    handle = policy.get_output_embeddings().register_forward_pre_hook(
        lambda module, args: rows.append(args[0].shape[0])
    )
    found = sample(policy, PROMPTS, seeds=SEEDS, batch_tokens=10_000, **SETTINGS)
    handle.remove()
    assert rows == [sum(len(r.ids) > step for r in found) for step in range(max(len(r.ids) for r in found))]


def test_a_response_ends_at_its_first_stop_id_or_is_truncated(policy: PreTrainedModel) -> None:
    found = sample(policy, PROMPTS, seeds=SEEDS, batch_tokens=10_000, **SETTINGS)
    for response in found:
        assert not set(response.ids[:-1]) & set(STOPS)
        assert response.truncated == (response.ids[-1] not in STOPS)
        assert len(response.ids) == 12 or not response.truncated
    free = sample(policy, PROMPTS, seeds=SEEDS, batch_tokens=10_000, **SETTINGS | {"stop_ids": ()})
    assert all(response.truncated and len(response.ids) == 12 for response in free)
    for short, long in zip(found, free, strict=True):
        assert long.ids[: len(short.ids)] == short.ids


def test_a_stop_id_at_the_last_step_is_not_truncated(policy: PreTrainedModel) -> None:
    free = sample(policy, PROMPTS[:1], seeds=SEEDS[:1], batch_tokens=999, **SETTINGS | {"stop_ids": ()})[0]
    limit = next(t for t in range(1, 12) if free.ids[t] not in free.ids[:t])
    settings = SETTINGS | {"stop_ids": (free.ids[limit],), "max_new_tokens": limit + 1}
    assert sample(policy, PROMPTS[:1], seeds=SEEDS[:1], batch_tokens=999, **settings) == [
        Response(free.ids[: limit + 1], truncated=False)
    ]


def test_a_rank_without_prompts_gets_no_responses(policy: PreTrainedModel) -> None:
    assert sample(policy, [], seeds=[], batch_tokens=100, **SETTINGS) == []


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return made


def test_logits_are_made_for_one_position_a_row(model_folders: Callable[[str], Path]) -> None:
    model, prompts = load_policy(model_folders("qwen2")), [list(range(3, 103))] * 2 + [list(range(9, 109))] * 2
    vocabulary = model.config.vocab_size
    with Largest() as largest:
        sample(model, prompts, seeds=[1, 2, 3, 4], batch_tokens=10_000, **SETTINGS | {"max_new_tokens": 4})
    # The largest is a buffer of the cache or a table of weights; logits of two prompts would be 64,000 elements.
    assert largest.elements < 2 * 100 * vocabulary / 3


def test_top_p_of_one_follows_the_distribution_in_the_order_of_ids() -> None:
    probabilities = torch.tensor([0.0, 0.1, 0.0, 0.5, 0.25, 0.15, 0.0])
    logits = torch.log(probabilities)  # -inf for the impossible ones
    # Limits by id: 0.1, 0.6, 0.85, 1.
    uniform = torch.tensor([0.0, 0.099, 0.101, 0.599, 0.601, 0.849, 0.851, 1 - 2**-24])
    chosen = choose(logits.expand(len(uniform), -1), uniform, 1.0, 1.0)
    assert chosen.tolist() == [1, 1, 3, 3, 4, 4, 5, 5]


@pytest.mark.parametrize("vocabulary", [7, 1000])
def test_top_p_just_below_one_chooses_from_the_same_distribution(vocabulary: int) -> None:
    probabilities = torch.softmax(torch.randn(vocabulary, generator=torch.Generator().manual_seed(0)) * 3, dim=-1)
    draws = 20_000
    uniform = (torch.arange(draws) + 0.5) / draws
    counts = [
        torch.bincount(choose(probabilities.log().expand(draws, -1), uniform, 1.0, top_p), minlength=vocabulary)
        for top_p in (1.0, 0.999999)
    ]
    # Evenly spaced uniforms hit a step of the CDF within one draw at either end.
    for count in counts:
        assert (count - probabilities * draws).abs().max() <= 1.01


@pytest.mark.parametrize("top_p", [0.1, 0.4, 0.8])
def test_a_part_of_the_vocabulary_and_all_of_it_give_the_same_nucleus(
    monkeypatch: pytest.MonkeyPatch, top_p: float
) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = (torch.randn(200, 500, generator=generator) * 2).round()  # whole numbers, so that many are equal
    uniform = torch.rand(200, generator=generator)
    found = {}
    for part in (8, 64, 256, 500):
        monkeypatch.setattr(sampling, "_SMALL_NUCLEUS", part)
        found[part] = choose(logits, uniform, 1.0, top_p).tolist()
        row_by_row = [choose(logits[i : i + 1], uniform[i : i + 1], 1.0, top_p).item() for i in range(200)]
        assert row_by_row == found[part]
    assert found[8] == found[64] == found[256] == found[500]


def test_a_sliding_window_shorter_than_the_rows_is_refused(model_folders: Callable[[str], Path]) -> None:
    model = load_policy(model_folders("qwen2"))
    model.config.sliding_window = 30
    with pytest.raises(UserError, match="attention window of 30"):
        sample(model, PROMPTS, seeds=SEEDS, batch_tokens=10_000, **SETTINGS)


def test_local_sampler_is_a_backend_that_samples_with_the_policys_own_weights(policy: PreTrainedModel) -> None:
    backend: RolloutBackend = LocalSampler(policy, batch_tokens=10_000)
    expected = sample(policy, PROMPTS, seeds=SEEDS, batch_tokens=10_000, **SETTINGS)
    backend.load_weights(policy.named_parameters())
    assert backend.generate(PROMPTS, seeds=SEEDS, **SETTINGS) == expected


class FakeLLM:
    """Not vLLM: it records calls and answers with scripted ids. What the real engine does is not tested here."""

    def __init__(self, **settings: Any) -> None:
        self.settings, self.calls, self.weights = settings, [], {}

    def generate(self, prompts, sampling_params, use_tqdm=True):
        self.calls.append((prompts, sampling_params, use_tqdm))
        script = [[4, 2], [4, 4, 4]]
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(ids))]) for ids in script[: len(prompts)]]

    def apply_model(self, function):
        self.calls.append("apply_model")
        return [function(SimpleNamespace(load_weights=self.weights.update))]

    def reset_prefix_cache(self):
        self.calls.append("reset_prefix_cache")
        return True


@pytest.fixture
def fake_vllm(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module: Any = ModuleType("vllm")
    module.LLM, module.SamplingParams = FakeLLM, lambda **settings: settings
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")  # so that what the sampler sets is undone
    return module


def test_vllm_is_asked_for_ids_alone_with_a_seed_a_request(fake_vllm: ModuleType, tmp_path: Path) -> None:
    backend = VLLMSampler(tmp_path, longest=64, gpu_memory_share=0.3)
    settings: dict[str, Any] = {"max_new_tokens": 3, "temperature": 0.7, "top_p": 0.9, "stop_ids": (2, 3)}
    found = backend.generate([[5, 6], [7]], seeds=[2**62, 9], **settings)
    assert found == [Response([4, 2], truncated=False), Response([4, 4, 4], truncated=True)]
    engine = backend._engine
    assert engine.settings["model"] == str(tmp_path) and engine.settings["max_model_len"] == 64
    [(requests, parameters, use_tqdm)] = engine.calls
    assert requests == [{"prompt_token_ids": [5, 6]}, {"prompt_token_ids": [7]}] and use_tqdm is False
    assert [each["seed"] for each in parameters] == [2**62, 9]
    common = {"max_tokens": 3, "temperature": 0.7, "top_p": 0.9, "stop_token_ids": [2, 3]}
    for each in parameters:
        # No `logprobs`: the trainer recomputes them.
        assert {k: v for k, v in each.items() if k != "seed"} == common | {"ignore_eos": True, "detokenize": False}
    assert backend.generate([], seeds=[], **settings) == [] and len(engine.calls) == 1


def test_vllm_gets_new_weights_in_place_and_forgets_its_prefixes(fake_vllm: ModuleType, tmp_path: Path) -> None:
    backend = VLLMSampler(tmp_path, longest=64, gpu_memory_share=0.3)
    tensor = torch.ones(2)
    backend.load_weights(iter([("lm_head.weight", tensor)]))
    assert backend._engine.weights["lm_head.weight"] is tensor
    assert backend._engine.calls == ["apply_model", "reset_prefix_cache"]
    backend._engine.reset_prefix_cache = lambda: False
    with pytest.raises(RuntimeError, match="prefix cache"):
        backend.load_weights(iter([]))


def test_missing_vllm_is_a_users_error_that_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    with pytest.raises(UserError, match=r"pip install 'kubealign\[vllm\]'"):
        VLLMSampler(tmp_path, longest=64, gpu_memory_share=0.3)
