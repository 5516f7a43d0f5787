"""Safety labels by a sequence-classification model, such as an open moderation model.

Its labels say what a single text holds: the prompt's are its concerns and intent, a response's make it unsafe. Whether
a response says no is seen by its words (lexical_safety.py), because moderation models do not know refusals.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from components.core.errors import UserError
from components.data_prep.lexical_safety import is_refusal
from components.data_prep.local_models import load
from components.data_prep.safety import CONCERNS, Exchange, Intent, ResponseType, SafetyLabels

Score = Callable[[list[str]], list[dict[str, float]]]
"""The probability of each of the model's labels, text by text; none for an empty text."""


class ModelSafety:
    """A safety.SafetyClassifier. `label_map` says what the model's labels mean: concerns, malicious, benign_sensitive,
    safe. Where none of them means malicious, a concern that is not called benign does."""

    def __init__(self, score: Score, label_map: Mapping[str, str], threshold: float = 0.5) -> None:
        self._score, self._map, self._threshold = score, dict(label_map), threshold
        self._knows_malice = "malicious" in self._map.values()

    def label(self, exchanges: Sequence[Exchange]) -> list[SafetyLabels | None]:
        prompts = self._meanings([exchange.prompt for exchange in exchanges])
        answered = [exchange.response for exchange in exchanges if exchange.response is not None]
        responses = iter(self._meanings(answered))
        return [
            self._labels(prompt, exchange.response, set() if exchange.response is None else next(responses))
            for exchange, prompt in zip(exchanges, prompts, strict=True)
        ]

    def _meanings(self, texts: list[str]) -> list[set[str]]:
        scores = self._score(texts) if texts else []
        return [
            {
                self._map[name]
                for name, probability in found.items()
                if name in self._map and probability >= self._threshold
            }
            for found in scores
        ]

    def _labels(self, prompt: set[str], response: str | None, harm: set[str]) -> SafetyLabels:
        concerns = tuple(concern for concern in CONCERNS if concern in prompt)
        return SafetyLabels(concerns, self._intent(prompt), self._response(prompt, response, harm))

    def _intent(self, found: set[str]) -> Intent:
        if "malicious" in found:
            return "malicious"
        if not found - {"safe"}:
            return "none"
        return "benign_sensitive" if self._knows_malice or "benign_sensitive" in found else "malicious"

    def _response(self, prompt: set[str], response: str | None, harm: set[str]) -> ResponseType:
        if response is None:
            return "none"
        if is_refusal(response):
            return "refusal"
        if harm & {*CONCERNS, "malicious"}:
            return "unsafe"
        return "safe_answer" if prompt - {"safe"} else "none"


def load_score(name: str, revision: str, label_map: Mapping[str, str], work: Path, batch: int = 32) -> Score:
    """The probabilities by a model as local_models.py loads it."""
    tokenizer, model = load(
        name, revision, work, auto_class="AutoModelForSequenceClassification", kind="sequence-classification",
        where="safety.classifier",
    )  # fmt: skip
    import torch

    names = [model.config.id2label[number] for number in range(model.config.num_labels)]
    if unknown := sorted(set(label_map) - set(names)):
        what = f"the model has no label {', '.join(unknown)}"
        raise UserError(what, where="safety.label_map", fix=f"its labels are {', '.join(names)}")
    several = model.config.problem_type == "multi_label_classification"
    longest = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 512), 512)

    def score(texts: list[str]) -> list[dict[str, float]]:
        found: list[dict[str, float]] = [{} for _ in texts]
        said = [place for place, text in enumerate(texts) if text.strip()]
        order = sorted(said, key=lambda place: len(texts[place]))  # so that little is padded
        with torch.inference_mode():
            for begin in range(0, len(order), batch):
                places = order[begin : begin + batch]
                inputs = tokenizer(
                    [texts[place] for place in places], truncation=True, max_length=longest, padding=True,
                    return_tensors="pt",
                )  # fmt: skip
                logits = model(**inputs).logits.float()
                probabilities = logits.sigmoid() if several else logits.softmax(-1)
                for place, row in zip(places, probabilities.tolist(), strict=True):
                    found[place] = dict(zip(names, row, strict=True))
        return found

    return score
