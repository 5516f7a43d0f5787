import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from components.core.chatml import ChatTokenizer
from components.core.errors import UserError
from components.training.data import mask_of, pad
from components.training.models import hidden_states, load_policy, logits_at, save_policy
from components.training.sampling import choose, sample
from components.training.scoring import response_log_probs, token_losses

ROWS = [[5, 6, 7, 8, 9, 10, 11], [20, 21, 22], [30, 31, 32, 33, 34]]


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("left", [True, False])
def test_logits_are_the_same_alone_packed_and_padded_on_either_side(
    model_folders: Callable[[str], Path], architecture: str, left: bool
) -> None:
    """Padded as transformers itself does it: a model of another attention implementation, with a mask."""
    model = load_policy(model_folders(architecture))
    theirs = AutoModelForCausalLM.from_pretrained(model_folders(architecture), attn_implementation="eager")
    mask = mask_of(ROWS, left=left)
    with torch.no_grad():
        packed = hidden_states(model, ROWS)
        padded = theirs(
            pad(ROWS, 0, left=left), attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)
        ).logits
        for i, (row, own) in enumerate(zip(ROWS, packed.split([len(row) for row in ROWS]), strict=True)):
            alone = logits_at(model, hidden_states(model, [row]))
            assert torch.allclose(logits_at(model, own), alone, atol=1e-5)
            assert torch.allclose(padded[i, mask[i].bool()], alone, atol=1e-5)


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama"])
def test_saved_policy_loads_with_transformers_and_gives_equal_logits(
    model_folders: Callable[[str], Path], architecture: str, tmp_path: Path
) -> None:
    model = load_policy(model_folders(architecture), dropout=0.1)
    save_policy(model, tmp_path, model_folders(architecture))
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.tensor([ROWS[0]])
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    assert again.config.attention_dropout == 0.0
    assert model.config.attention_dropout == 0.1


def test_saved_chat_template_renders_what_we_encode(model_folders: Callable[[str], Path]) -> None:
    folder = model_folders("qwen2")
    ours = ChatTokenizer.load(folder)
    theirs = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "what colour is the sky?"}]
    assert theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == ours.encode_prompt(
        messages
    )


def test_policy_without_weights_or_with_pickles_alone_is_refused(
    model_folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folders("qwen2"), folder)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(UserError, match="no weights"):
        load_policy(folder)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match="pickled weights"):
        load_policy(folder)


def test_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        load_policy(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nonesuch"}))
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match="cannot load the model"):
        load_policy(tmp_path)


@pytest.mark.parametrize("recompute", [False, True])
def test_states_that_are_asked_for_are_those_of_a_full_pass(
    model_folders: Callable[[str], Path], recompute: bool
) -> None:
    """The last layer's MLP runs for them alone, and every weight still gets its whole gradient."""
    model = load_policy(model_folders("llama"))
    if recompute:
        model.activation_checkpointing_enable()
    model.train()
    wanted = torch.tensor([2, 6, 9, 14])
    seen: list[int] = []
    model.base_model.layers[-1].mlp.down_proj.register_forward_hook(lambda *a: seen.append(a[1][0].shape[1]))
    full = hidden_states(model, ROWS)[wanted]
    full.pow(2).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    some = hidden_states(model, ROWS, wanted)
    some.pow(2).sum().backward()
    assert torch.allclose(some, full, atol=1e-5)
    assert set(seen) == {15, 4}
    for name, parameter in model.named_parameters():
        if name in expected:
            assert torch.allclose(parameter.grad, expected[name], atol=1e-4), name


def test_log_probs_do_not_depend_on_batch_mates_or_order(model_folders: Callable[[str], Path]) -> None:
    model = load_policy(model_folders("qwen2"))
    prompts, responses = [row[:2] for row in ROWS], [row[2:] for row in ROWS]
    alone = [
        response_log_probs(model, [p], [r], temperature=1.0, batch_tokens=1)[0]
        for p, r in zip(prompts, responses, strict=True)
    ]
    together = response_log_probs(model, prompts, responses, temperature=1.0, batch_tokens=10_000)
    for one, other, row in zip(alone, together, responses, strict=True):
        assert len(one) == len(row)
        assert torch.allclose(one, other, atol=1e-5)


def test_log_probs_are_of_the_logits_divided_by_the_temperature(model_folders: Callable[[str], Path]) -> None:
    model = load_policy(model_folders("qwen2"))
    found = response_log_probs(model, [ROWS[0][:3]], [ROWS[0][3:]], temperature=0.5, batch_tokens=100)[0]
    with torch.no_grad():
        logits = model(torch.tensor([ROWS[0]])).logits[0, 2:-1] / 0.5
    expected = torch.log_softmax(logits, dim=-1)[range(4), ROWS[0][3:]]
    assert torch.allclose(found, expected, atol=1e-5)


def test_token_losses_sum_over_labels_alone(model_folders: Callable[[str], Path]) -> None:
    model = load_policy(model_folders("qwen2"))
    labels = [[-100, -100, 7, -100, 9, -100, 11], [20, -100, 22], [-100] * 5]
    total, count = token_losses(model, list(zip(ROWS, labels, strict=True)), 10_000)
    expected = 0.0
    with torch.no_grad():
        for row, label in zip(ROWS, labels, strict=True):
            log_probs = torch.log_softmax(model(torch.tensor([row])).logits[0], dim=-1)
            expected -= sum(float(log_probs[t - 1, label[t]]) for t in range(1, len(row)) if label[t] != -100)
    assert count == 4
    assert total == pytest.approx(expected, abs=1e-4)


def test_choose_takes_from_the_nucleus_by_inverse_cdf() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.5, 0.15, 0.25]])).expand(6, 4)
    uniform = torch.tensor([0.0, 0.54, 0.56, 0.82, 0.84, 0.999999])
    # top_p 0.8 keeps 0.5, 0.25 and 0.15 (the smallest set reaching 0.8), of mass 0.9: limits 0.5556 and 0.8333.
    assert choose(logits, uniform, 1.0, 0.8).tolist() == [1, 1, 3, 3, 2, 2]
    assert choose(logits, uniform, 1.0, 0.5).tolist() == [1] * 6
    assert choose(logits, uniform, 0.0, 1.0).tolist() == [1] * 6


def test_choose_follows_the_distribution() -> None:
    probabilities = torch.tensor([0.1, 0.6, 0.3])
    uniform = (torch.arange(10_000) + 0.5) / 10_000
    tokens = choose(torch.log(probabilities).expand(10_000, 3), uniform, 1.0, 1.0)
    assert torch.bincount(tokens, minlength=3).tolist() == pytest.approx([1000, 6000, 3000], abs=2)


def test_samples_depend_on_their_own_seed_alone(model_folders: Callable[[str], Path]) -> None:
    model = load_policy(model_folders("qwen2"))
    settings = {"max_new_tokens": 8, "temperature": 1.0, "top_p": 0.9, "stop_ids": (319,)}
    together = sample(model, ROWS, seeds=[1, 2, 3], batch_tokens=10_000, **settings)
    apart = [sample(model, [r], seeds=[s], batch_tokens=1, **settings)[0] for r, s in zip(ROWS, [1, 2, 3], strict=True)]
    assert together == apart
    assert sample(model, ROWS, seeds=[4, 5, 6], batch_tokens=10_000, **settings) != together


def test_greedy_sampling_equals_transformers_generate(model_folders: Callable[[str], Path]) -> None:
    model = load_policy(model_folders("qwen2"))
    ours = sample(
        model, ROWS, seeds=[0, 0, 0], max_new_tokens=6, temperature=0.0, top_p=1.0, stop_ids=(),
        batch_tokens=999,
    )  # fmt: skip
    for row, response in zip(ROWS, ours, strict=True):
        theirs = model.generate(
            torch.tensor([row]), max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=317
        )
        assert response.ids == theirs[0, len(row) :].tolist()
        assert response.truncated


def test_sampling_stops_at_a_stop_id_and_keeps_it(model_folders: Callable[[str], Path]) -> None:
    model = load_policy(model_folders("qwen2"))
    settings = {"max_new_tokens": 6, "temperature": 0.0, "top_p": 1.0, "batch_tokens": 999}
    free = sample(model, ROWS, seeds=[0, 0, 0], stop_ids=(), **settings)
    stop = free[0].ids[2]
    stopped = sample(model, ROWS, seeds=[0, 0, 0], stop_ids=(stop,), **settings)
    for before, after in zip(free, stopped, strict=True):
        expected = before.ids[: before.ids.index(stop) + 1] if stop in before.ids else before.ids
        assert after.ids == expected
        assert after.truncated == (stop not in before.ids)
