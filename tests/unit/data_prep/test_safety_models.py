"""Safety labels by a chat model and by a classifier: what they say is read, and nonsense is not."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from components.core.endpoint import ChatClient, Endpoint, Unanswered
from components.core.errors import RetryableError, UserError
from components.data_prep.endpoint_safety import EndpointSafety, read_labels
from components.data_prep.model_safety import ModelSafety, load_score
from components.data_prep.safety import Exchange, SafetyLabels
from tests.chat_server import ChatServer, Reply, says

GOOD = {"concerns": ["pornography", "violence"], "intent": "malicious", "response": "unsafe"}
LABELS = SafetyLabels(("violence", "pornography"), "malicious", "unsafe")


def asked(prompt: str, response: str | None = None) -> Exchange:
    return Exchange([{"role": "user", "content": prompt}], response)


@pytest.mark.parametrize(
    ("answer", "labels"),
    [
        (json.dumps(GOOD), LABELS),
        (f"<think>hm</think>\n```json\n{json.dumps(GOOD)}\n```", LABELS),
        (json.dumps({"concerns": [], "intent": "none", "response": "none", "why": "x"}), SafetyLabels()),
        (json.dumps({**GOOD, "concerns": ["theft"]}), None),
        (json.dumps({**GOOD, "concerns": "violence"}), None),
        (json.dumps({**GOOD, "concerns": [["violence"]]}), None),
        (json.dumps({**GOOD, "intent": "evil"}), None),
        (json.dumps({**GOOD, "intent": ["malicious"]}), None),
        (json.dumps({"concerns": [], "intent": "none"}), None),
        (json.dumps([GOOD]), None),
        ("malicious", None),
        ("", None),
    ],
)
def test_only_an_object_of_known_labels_counts(answer: str, labels: SafetyLabels | None) -> None:
    assert read_labels(answer) == labels


def test_a_server_that_is_busy_or_says_nonsense_is_asked_again_and_what_it_says_is_kept(tmp_path: Path) -> None:
    def reply(given: dict[str, Any], times: int) -> Reply:
        prompt = given["conversation"][-1]["content"]
        if prompt == "busy" and not times:
            return 503, {}, b""
        return says("no" if prompt == "mad" else json.dumps(GOOD))

    server = ChatServer(reply, json.loads)
    endpoint = Endpoint(url=server.url, model="m", key_variable="KUBEALIGN_SAFETY_KEY", concurrency=2)
    try:
        client = ChatClient(endpoint, pause=lambda _: False)
        first = EndpointSafety(client, tmp_path / "cache.jsonl", max_unlabelled_ratio=1)
        assert first.label([asked("busy", "x"), asked("well", "y"), asked("mad")]) == [LABELS, LABELS, None]
        assert first.counts == {"answered": 2, "asked_again": 1, "unlabelled_nonsense": 1}
        assert Counter(request["asked"]["conversation"][-1]["content"] for request in server.requests) == {
            "busy": 2, "well": 1, "mad": 2,
        }  # fmt: skip
        again = EndpointSafety(client, tmp_path / "cache.jsonl", max_unlabelled_ratio=1)
        assert again.label([asked("well", "y")]) == [LABELS] and len(server.requests) == 5
    finally:
        server.close()


class Model(ChatClient):
    """Answers by the prompt, without a server."""

    def __init__(self, answers: dict[str, Any]) -> None:
        super().__init__(Endpoint(url="http://localhost/v1", model="m", key_variable="KUBEALIGN_SAFETY_KEY"))
        self.answers, self.asked = answers, list[str]()

    def ask(self, system: str, user: str) -> str:
        given = json.loads(user)
        self.asked.append(given["conversation"][-1]["content"])
        answer = self.answers[self.asked[-1]]
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, str) else json.dumps(answer)


def test_an_endpoint_labels_what_it_answers_and_is_not_asked_twice(tmp_path: Path) -> None:
    model = Model({"a": GOOD, "b": "nonsense", "c": Unanswered("refused", "HTTP 400")})
    first = EndpointSafety(model, tmp_path / "cache.jsonl", max_unlabelled_ratio=1)
    exchanges = [asked("a", "text"), asked("a"), asked("b"), asked("c")]
    assert first.label(exchanges) == [LABELS, SafetyLabels(LABELS.concerns, "malicious", "none"), None, None]
    assert first.counts == {"answered": 2, "asked_again": 1, "unlabelled_nonsense": 1, "unlabelled_refused": 1}

    again = Model({"b": {**GOOD, "response": "none"}, "c": "no"})
    second = EndpointSafety(again, tmp_path / "cache.jsonl", max_unlabelled_ratio=1)
    assert second.label(exchanges[::-1])[1:] == [
        SafetyLabels(LABELS.concerns, "malicious"),
        *first.label(exchanges)[1::-1],
    ]
    assert sorted(again.asked) == ["b", "c", "c"]


@pytest.mark.parametrize(
    ("answer", "error"), [("no", UserError), (Unanswered("unreachable", "HTTP 503"), RetryableError)]
)
def test_over_the_limit_the_step_stops_with_what_it_has(tmp_path: Path, answer: Any, error: type[Exception]) -> None:
    cache = tmp_path / "cache.jsonl"
    with pytest.raises(error, match="of 2 texts these stay unlabelled") as caught:
        EndpointSafety(Model({"a": GOOD, "b": answer}), cache).label([asked("a"), asked("b")])
    assert str(cache) in str(caught.value)
    assert EndpointSafety(Model({"b": GOOD}), cache).label([asked("a"), asked("b")])[1] is not None


def scores(texts: list[str]) -> list[dict[str, float]]:
    """A model that sees a label where the text has its name."""
    return [{name: 0.9 if name in text else 0.1 for name in ("OK", "HATE", "SEX", "BAD")} for text in texts]


@pytest.mark.parametrize(
    ("exchange", "labels"),
    [
        (asked("OK", "OK"), SafetyLabels()),
        (asked("HATE SEX"), SafetyLabels(("bias", "pornography"), "malicious")),
        (asked("HATE", "OK"), SafetyLabels(("bias",), "malicious", "safe_answer")),
        (asked("HATE", "SEX"), SafetyLabels(("bias",), "malicious", "unsafe")),
        (asked("HATE", "I'm sorry, I can't help with SEX."), SafetyLabels(("bias",), "malicious", "refusal")),
        (asked("hello", "HATE"), SafetyLabels((), "none", "unsafe")),
    ],
)
def test_a_models_labels_mean_what_the_map_says(exchange: Exchange, labels: SafetyLabels) -> None:
    model = ModelSafety(scores, {"OK": "safe", "HATE": "bias", "SEX": "pornography"})
    assert model.label([exchange]) == [labels]
    assert model.label([asked("SEX", "x"), exchange, asked("OK")])[1] == labels


def test_a_model_that_knows_malice_is_believed_and_the_threshold_counts() -> None:
    knows = ModelSafety(scores, {"HATE": "bias", "BAD": "malicious"})
    assert knows.label([asked("HATE"), asked("HATE BAD"), asked("SEX")]) == [
        SafetyLabels(("bias",), "benign_sensitive"),
        SafetyLabels(("bias",), "malicious"),
        SafetyLabels(),
    ]
    assert ModelSafety(scores, {"HATE": "bias"}, threshold=0.95).label([asked("HATE")]) == [SafetyLabels()]
    assert knows.label([]) == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A classifier of one layer with two labels."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "kind", "cruel"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    wrapped.save_pretrained(tmp_path / "model")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32, id2label={0: "fine", 1: "cruel"}, label2id={"fine": 0, "cruel": 1},
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_model_in_a_folder_scores_long_and_short_texts_each_alone(folder: Path, tmp_path: Path) -> None:
    score = load_score(folder.as_uri(), "main", {"cruel": "violence"}, tmp_path / "work", batch=2)
    texts = ["cruel " * 100, "kind", "kind cruel kind", "", "kind cruel"]
    found = score(texts)
    assert found.pop(3) == {} and texts.pop(3) == ""
    for text, row in zip(texts, found, strict=True):
        assert set(row) == {"fine", "cruel"} and sum(row.values()) == pytest.approx(1)
        assert score([text])[0] == pytest.approx(row, abs=1e-5)
    assert found[0]["cruel"] != pytest.approx(found[1]["cruel"], abs=1e-4)


def test_what_cannot_be_used_is_said(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no label hate; its labels are fine, cruel"):
        load_score(str(folder), "main", {"hate": "bias"}, tmp_path / "work")
    with pytest.raises(UserError, match="no model there"):
        load_score(str(tmp_path / "absent"), "main", {}, tmp_path / "work")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no sequence-classification model"):
        load_score(str(tmp_path / "empty"), "main", {}, tmp_path / "work")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="needs torch and transformers"):
        load_score(str(folder), "main", {"cruel": "violence"}, tmp_path / "work")
