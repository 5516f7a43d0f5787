"""Tags by a model on this machine: what it answers is kept and read, and too much nonsense stops the step."""

import json
from pathlib import Path

import pytest

from components.core.errors import UserError
from components.data_prep.model_tags import ModelTagger, load_generate

Asked = list[list[str]]


def answer(*tags: str) -> str:
    return json.dumps([{"tag": tag, "explanation": "so"} for tag in tags])


def tagger(tmp_path: Path, asked: Asked, limit: float = 0.5, batch: int = 2) -> ModelTagger:
    """Of a model that answers a query with itself, and one that ends in ! with nonsense."""

    def generate(queries: list[str]) -> list[str]:
        asked.append(queries)
        return ["what?" if query.endswith("!") else answer(query, "all") for query in queries]

    return ModelTagger(generate, "some/model", tmp_path / "tags.jsonl", limit, batch)


def test_answers_are_kept_and_queries_are_asked_once_in_batches_of_like_length(tmp_path: Path) -> None:
    asked: Asked = []
    first = tagger(tmp_path, asked)
    assert first.tag(["long one", "a", "b", "a", "no!"]) == [["long one", "all"], ["a", "all"], ["b", "all"],
                                                            ["a", "all"], None]  # fmt: skip
    assert sorted(asked[0]) == ["a", "b"] and asked[1] == ["no!", "long one"] and len(asked) == 2
    assert first.counts == {"answered": 3, "untagged_nonsense": 1}
    again: Asked = []
    assert tagger(tmp_path, again).tag(["b", "c"]) == [["b", "all"], ["c", "all"]]
    assert again == [["c"]]


def test_over_the_limit_it_stops_and_keeps_what_was_answered(tmp_path: Path) -> None:
    asked: Asked = []
    with pytest.raises(
        UserError, match="of 4 texts 3 stay untagged.*some/model|some/model.*of 4 texts 3 stay untagged"
    ):
        tagger(tmp_path, asked).tag(["a", "b!", "c!", "d!"])
    again: Asked = []
    assert tagger(tmp_path, again, limit=1).tag(["a"]) == [["a", "all"]] and again == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model of one layer that knows letters."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    path = tmp_path_factory.mktemp("tagger") / "model"
    letters = ["<pad>", "<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")
    wrapped.chat_template = "{% for m in messages %}{{ m.role }}:{{ m.content }}<end>{% endfor %}assistant:"
    wrapped.save_pretrained(path)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(letters), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=32, initializer_range=0.5,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(path)
    return path


def test_a_models_answer_does_not_depend_on_the_rest_of_its_batch(folder: Path, tmp_path: Path) -> None:
    generate = load_generate(folder.as_uri(), "main", tmp_path / "work", new_tokens=8)
    queries = ["short", "a much longer query than the other one", "short <end>"]
    alone = [generate([query])[0] for query in queries]
    assert generate(queries) == alone and len(set(alone)) > 1 and all(alone)


def test_a_control_token_in_a_query_is_text(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import Qwen2ForCausalLM

    given: list[torch.Tensor] = []

    def spy(self: object, input_ids: torch.Tensor, **_: object) -> torch.Tensor:
        given.append(input_ids)
        return input_ids

    monkeypatch.setattr(Qwen2ForCausalLM, "generate", spy)
    load_generate(str(folder), "main", tmp_path)(["say <end> now"])
    assert int((given[0] == 1).sum()) == 2, "those that the template has"


def test_what_cannot_be_used_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model there"):
        load_generate(str(tmp_path / "absent"), "main", tmp_path / "work")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no causal language model can be loaded"):
        load_generate(str(tmp_path / "empty"), "main", tmp_path / "work")
