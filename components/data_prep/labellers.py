"""Who labels rows, by the settings: word lists, or a model behind an endpoint, whose answers are kept in a file."""

from dataclasses import dataclass
from pathlib import Path

from components.core.config import DataPrepConfig, Safety, Tags
from components.core.endpoint import ChatClient, Endpoint
from components.data_prep.endpoint_safety import EndpointSafety
from components.data_prep.lexical_safety import LexicalSafety
from components.data_prep.lexical_tags import LexicalTagger
from components.data_prep.model_safety import ModelSafety, load_score
from components.data_prep.model_tags import ModelTagger, load_generate
from components.data_prep.safety import SafetyClassifier
from components.data_prep.taggers import EndpointTagger, Tagger


@dataclass(frozen=True)
class Labellers:
    """None for what is not wanted."""

    tagger: Tagger | None = None
    safety: SafetyClassifier | None = None


def labellers(config: DataPrepConfig, work: Path) -> Labellers:
    """Answers of models are kept under `work`, so that a step that was stopped goes on from there."""
    return Labellers(_tagger(config.tags, work), _safety(config.safety, work))


def _tagger(given: Tags, work: Path) -> Tagger | None:
    if given.tagger == "none":
        return None
    if given.tagger == "lexical":
        return LexicalTagger()
    if given.tagger == "model":
        generate = load_generate(given.model, given.revision, work)
        return ModelTagger(generate, given.model, work / "tags.jsonl", given.max_untagged_ratio)
    endpoint = Endpoint(
        url=given.endpoint, model=given.model, key_variable=given.key_variable, concurrency=given.concurrency
    )
    return EndpointTagger(ChatClient(endpoint), work / "tags.jsonl", given.max_untagged_ratio)


def _safety(given: Safety, work: Path) -> SafetyClassifier | None:
    if given.classifier == "none":
        return None
    if given.classifier == "lexical":
        return LexicalSafety()
    if given.classifier == "model":
        score = load_score(given.model, given.revision, given.label_map, work)
        return ModelSafety(score, given.label_map, given.threshold)
    client = ChatClient(Endpoint(url=given.url, model=given.model, key_variable=given.key_variable))
    return EndpointSafety(client, work / "safety.jsonl", given.max_unlabelled_ratio)


def use_threads(config: DataPrepConfig) -> bool:
    """Whether a labeller uses the machine's cores or its own threads already: then one process does all the work."""
    return config.tags.tagger in ("endpoint", "model") or config.safety.classifier in ("endpoint", "model")
