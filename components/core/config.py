"""Settings: one model a step, profiles in YAML, `--set` overrides.

The defaults are the Qwen Technical Report's numbers; each field says its unit and where its default comes from, by the
evidence tags of the recipe: Q the report, C public code, I derived, U not stated, D a default of ours.
"""

import difflib
from pathlib import Path
from typing import Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from components.core.chatml import LossMask
from components.core.errors import UserError

# The pipeline `alignment`, in the order in which one machine runs it.
CHAIN = ("base_model", "data_prep", "sft", "pmp", "reward_model", "ppo", "evaluate")
STEPS = (*CHAIN, "sample_responses", "annotate")


def option(default: Any, text: str, *, source: str, unit: str = "", **limits: Any) -> Any:
    """A field with its description, unit and the evidence for its default."""
    extra: dict[str, Any] = {"source": source} | ({"unit": unit} if unit else {})
    return Field(default, description=text, json_schema_extra=extra, **limits)


class Config(BaseModel):
    """Base of all sections: unknown keys are errors, and numbers must be finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _null(cls, values: Any) -> Any:
        """The text "null" means null where that is allowed: a pipeline parameter cannot hold a null (KFP SDK 2.17)."""
        if not isinstance(values, dict) or "null" not in values.values():
            return values
        nullable = {name for name, field in cls.model_fields.items() if type(None) in get_args(field.annotation)}
        return {name: None if value == "null" and name in nullable else value for name, value in values.items()}


_RESOURCE_NAME = r"^([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"
_QUANTITY = r"^$|^[0-9]+(\.[0-9]+)?([EPTGMk]i?|Ki|m)?$"


class Resources(Config):
    """What one step runs on. All but `processes` and `threads` counts on a cluster alone. No result depends on it."""

    processes: int = option(1, "training processes on each node (one a GPU)", source="D", ge=1, le=64)
    threads: int = option(0, "CPU threads of each process; 0 shares the machine's cores evenly", source="D", ge=0)
    nodes: int = option(
        1, "pods, each on a node of its own where it takes all of one's GPUs", source="D", ge=1, le=1000
    )
    gpus: int = option(0, "GPUs of each node", source="D", ge=0, le=64)
    gpu_resource: str = option(
        "nvidia.com/gpu", "name under which nodes offer their GPUs", source="D", pattern=_RESOURCE_NAME
    )
    cpu: str = option(
        "", "CPU cores to reserve on each node, as Kubernetes writes them (500m, 8)", source="D", pattern=_QUANTITY
    )
    memory: str = option("", "memory of each node, reserved and limited (64Gi)", source="D", pattern=_QUANTITY)
    shared_memory: str = option(
        "", "limit of /dev/shm, part of memory; as large as it when empty", source="D", pattern=_QUANTITY
    )
    disk: str = option("", "limit of the scratch space", source="D", pattern=_QUANTITY)
    image: str = option("", "the step's image; empty: the launcher's KUBEALIGN_IMAGES", source="D")
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = option(
        "IfNotPresent", "when to pull it", source="D"
    )
    image_pull_secrets: list[str] = option([], "names of registry secrets", source="D")
    node_selector: dict[str, str] = option({}, "labels that a node must have", source="D")
    tolerations: list[dict[str, Any]] = option([], "taints to tolerate, beside the GPU's own", source="D")
    affinity: dict[str, Any] = option({}, "node and pod affinity, as in a pod", source="D")
    priority_class: str = option("", "PriorityClass of the pods", source="D")
    queue: str = option("", "Kueue LocalQueue to wait in", source="D")
    service_account: str = option("", "service account of the pods, for their access to S3", source="D")
    env_from_secrets: list[str] = option([], "secrets whose keys become environment variables", source="D")
    env_from_config_maps: list[str] = option([], "config maps whose keys become environment variables", source="D")
    spot: bool = option(
        False, "run on Karpenter's spot nodes; interrupted, a step goes on from its checkpoint", source="D"
    )
    max_attempts: int = option(
        3,
        "starts of the job; again only after what is nobody's fault (preempted, node lost, store down)",
        source="D",
        ge=1,
    )
    pending_timeout_seconds: int = option(
        3600, "longest wait for all pods to run; a queue's time does not count", source="D", unit="seconds", ge=1
    )
    collective_timeout_seconds: int = option(
        1800, "longest wait of one rank for the others", source="D", unit="seconds", ge=1
    )
    running_timeout_seconds: int = option(
        0, "longest run of one attempt; 0 for no limit", source="D", unit="seconds", ge=0
    )


class Source(Config):
    """One file, folder or glob of raw rows."""

    path: str = option("", "file, folder or glob under the data root, or a whole URI", source="D")
    adapter: Literal[
        "chat", "instruction", "question_answer", "transcript", "comparison", "scored_responses", "votes", "net_votes",
        "text", "demo_world",
    ] = option(..., "how rows are read; see components/data_prep/README.md", source="D")  # fmt: skip
    name: str = option("", "name in reports; the path's stem when empty", source="D")
    licence: str = option("unknown", "licence of the data, kept with every row", source="D")
    columns: dict[str, str] = option({}, "this adapter's column name: the file's column name", source="D")
    max_rows: int | None = option(None, "take at most so many rows", source="D", unit="rows", ge=1)
    heldout_only: bool = option(False, "use the rows for evaluation alone", source="D")
    weight: float | None = option(
        None, "share of the role's training rows, relative to its other sources; rows above it are left out",
        source="U, D", gt=0,
    )  # fmt: skip

    @model_validator(mode="after")
    def _weight_is_of_training_rows(self) -> Self:
        if self.heldout_only and self.weight is not None:
            raise ValueError("weight is a share of training rows, and heldout_only leaves none")
        return self


class Sources(Config):
    """Raw data by role. No role may be empty for the steps that need it."""

    sft: list[Source] = option([], "conversations to imitate", source="Q §3.1.1")
    pmp: list[Source] = option([], "broad, weakly labelled comparisons", source="Q §3.2.1")
    reward_model: list[Source] = option([], "carefully labelled comparisons", source="Q §3.2.1")
    ppo: list[Source] = option([], "prompts; responses are dropped where there are any", source="Q §3.2.2")
    pretrain: list[Source] = option(
        [], "plain text, for the ptx gradient and for a base model made here", source="Q §3.2.2"
    )

    @model_validator(mode="after")
    def _all_or_no_weights(self) -> Self:
        for role in type(self).model_fields:
            weights = [source.weight for source in getattr(self, role) if not source.heldout_only]
            if None in weights and any(weights):
                raise ValueError(f"give all sources of {role} a weight, or none of them")
        return self


class Init(Config):
    """A small base model made from the run's own text, for machines with no network."""

    architecture: Literal["qwen2", "qwen3", "llama"] = option("qwen2", "model family", source="D")
    vocabulary: int = option(1024, "byte-level BPE tokens, control tokens included", source="D", unit="tokens", ge=300)
    hidden: int = option(128, "hidden size", source="D", ge=8)
    layers: int = option(3, "transformer layers", source="D", ge=1)
    heads: int = option(4, "attention heads", source="D", ge=1)
    key_value_heads: int = option(4, "key and value heads", source="D", ge=1)
    intermediate: int = option(320, "width of the MLP", source="D", ge=8)
    max_positions: int = option(1024, "longest sequence", source="D", unit="tokens", ge=16)
    init_std: float = option(0.05, "standard deviation of the initial weights", source="D", gt=0)
    steps: int = option(1000, "pretraining steps", source="D", unit="optimiser steps", ge=0)
    batch_size: int = option(32, "sequences a step", source="D", unit="sequences", ge=1)
    length: int = option(64, "length of a pretraining sequence", source="D", unit="tokens", ge=8)
    learning_rate: float = option(2e-3, "peak learning rate, cosine to a tenth", source="D", gt=0)
    warmup_steps: int = option(50, "linear warm-up", source="D", unit="optimiser steps", ge=0)
    shuffle: bool = option(
        False, "shuffle the text; else its order is kept, so that a source can be a curriculum", source="D"
    )

    @model_validator(mode="after")
    def _shapes(self) -> Self:
        if self.hidden % self.heads or self.heads % self.key_value_heads:
            raise ValueError("hidden must be a multiple of heads, and heads of key_value_heads")
        return self


class Splits(Config):
    """Prompts are split by a hash of their user turns, so that all rows of a prompt fall in one part."""

    heldout: float = option(0.05, "share of prompts kept for evaluation", source="D", unit="ratio", ge=0, lt=1)
    ppo: float = option(
        0.0, "share of prompts used by PPO alone; 0 lets PPO use the training prompts of its own sources", source="D",
        unit="ratio", ge=0, lt=1,
    )  # fmt: skip

    @model_validator(mode="after")
    def _leaves_training(self) -> Self:
        if self.heldout + self.ppo >= 1:
            raise ValueError("heldout and ppo together must leave a share for training (below 1)")
        return self


class BaseModelConfig(Config):
    """Bring or make the base model."""

    model: str = option("init", "a hub id, an s3:// or file:// folder, or 'init' to make a small one", source="D")
    revision: str = option("main", "revision of a hub model; pin a commit for a real run", source="D")
    add_control_tokens: bool = option(
        True, "add the ChatML control tokens, trainable, where the tokenizer lacks them", source="C QwenLM/Qwen README"
    )
    init: Init = option(Init(), "used when model is 'init'", source="D")
    sources: Sources = option(Sources(), "raw text for 'init'; a profile repeats data_prep's here", source="D")
    splits: Splits = option(Splits(), "held-out prompts are kept out of that text; as data_prep's", source="D")
    resources: Resources = option(Resources(), "what the step runs on", source="D")


class Filters(Config):
    """What policy keeps out of training. Sources that are for evaluation alone are cleaned but not filtered."""

    templates: list[Literal["sft", "pmp", "reward_model", "ppo"]] = option(
        ["sft"], "roles whose rows must not be formatted in prompt templates; tool use is exempt", source="Q §3.1.1"
    )
    mined_templates: int | None = option(
        50, "a source's prompts with words around them that more of its prompts share count as templates, too",
        source="D", unit="prompts", ge=2,
    )  # fmt: skip
    personal_data: Literal["keep", "mask", "drop"] = option(
        "mask", "e-mail addresses, telephone and card numbers, secret keys", source="D, InstructGPT"
    )
    benchmarks: list[str] = option(
        [], "files, folders or globs of evaluation sets; rows that share n words in a row with them go", source="Q §2.1"
    )
    benchmark_ngram: int = option(13, "the n of it; a Chinese character is a word", source="Q §2.1", unit="words", ge=4)
    near_duplicates: float | None = option(
        0.8, "rows of which this share of word triples is the same as an earlier row's, or a held-out prompt's, go",
        source="Q §2.1 (text), D", unit="Jaccard", gt=0, le=1,
    )  # fmt: skip


class Tags(Config):
    """What prompts ask for, as tags of an open set, normalised in four stages."""

    tagger: Literal["none", "lexical", "endpoint", "model"] = option(
        "lexical", "word lists offline, a chat model behind an OpenAI-compatible endpoint, or one on this machine",
        source="Q §3.2.2, D",
    )  # fmt: skip
    roles: list[Literal["sft", "pmp", "reward_model", "ppo"]] = option(
        ["sft", "reward_model", "ppo"], "roles whose rows get tags", source="D"
    )
    endpoint: str = option("", "base URL of the tagger, up to and with /v1", source="D")
    model: str = option("", "endpoint: the model's name; model: a hub id, an s3:// or file:// folder", source="D")
    revision: str = option("main", "model: revision of a hub model; pin a commit for a real run", source="D")
    key_variable: str = option("KUBEALIGN_TAGGER_KEY", "environment variable with its key", source="D")
    concurrency: int = option(8, "requests at a time", source="D", ge=1, le=256)
    max_untagged_ratio: float = option(
        0.02, "more rows without an answer than this stop the step; what was answered is kept", source="D", ge=0, le=1
    )
    min_count: int = option(20, "rows that a raw tag needs", source="C InsTag", unit="rows", ge=1)
    max_distance: float = option(0.05, "tags this near in meaning are one", source="C InsTag", unit="cosine", ge=0)
    min_support: int = option(40, "rows that the tags of an association share", source="C InsTag", unit="rows", ge=1)
    min_confidence: float = option(0.99, "share of one tag's rows with the other", source="C InsTag", gt=0, le=1)

    @model_validator(mode="after")
    def _tagger_is_given(self) -> Self:
        if self.tagger == "endpoint" and not (self.endpoint and self.model):
            raise ValueError("tagger endpoint needs endpoint and model")
        if self.tagger == "model" and not self.model:
            raise ValueError("tagger model needs model")
        return self


class Sampling(Config):
    """Balanced, complexity-first choice of a role's training rows by their tags."""

    size: int = option(..., "rows to choose", source="U", unit="rows", ge=1)
    max_per_tag: int | None = option(None, "most rows with the same tag", source="D", unit="rows", ge=1)
    max_per_category: int | None = option(None, "most rows with the same meta.category", source="D", ge=1)
    max_per_source: int | None = option(None, "most rows of a source", source="D", unit="rows", ge=1)
    max_per_language: int | None = option(None, "most rows in a language", source="D", unit="rows", ge=1)
    fill: bool = option(False, "fill up with rows that add no tag", source="C InsTag")


class TextRepair(Config):
    """How texts are made whole before anything looks at them."""

    encoding: Literal["keep", "repair", "reject"] = option(
        "repair", "text that was decoded wrongly; what ftfy cannot tell from meant text stays", source="D"
    )
    max_replacement_ratio: float = option(
        0.01, "a text with a larger share of U+FFFD is refused", source="D", unit="ratio", ge=0, le=1
    )
    invisible: Literal["keep", "remove"] = option(
        "remove", "control and invisible characters, but for joiners where letters or emoji need them", source="D"
    )
    unicode: Literal["keep", "nfc", "nfkc"] = option("nfc", "normal form; Qwen2's tokenizer has nfc", source="D")


class Safety(Config):
    """Who labels rows for violence, bias and pornography, and what becomes of them."""

    classifier: Literal["none", "lexical", "endpoint", "model"] = option(
        "lexical", "word lists offline, a chat model behind an endpoint, or a sequence-classification model", source="D"
    )
    unsafe_responses: Literal["reannotate", "keep"] = option(
        "reannotate", "a reply that does harm is kept out of training and listed for new annotation", source="Q §3.1.1"
    )
    max_share: float = option(
        1.0, "largest share of rows about safety in a role; which ones stay is drawn by id", source="D, Q gives none",
        unit="ratio", ge=0, le=1,
    )  # fmt: skip
    url: str = option("", "endpoint: up to /chat/completions, such as http://localhost:8000/v1", source="D")
    model: str = option("", "endpoint: the model's name; model: a hub id, an s3:// or file:// folder", source="D")
    revision: str = option("main", "model: revision of a hub model; pin a commit for a real run", source="D")
    key_variable: str = option("KUBEALIGN_SAFETY_KEY", "endpoint: environment variable with the key", source="D")
    max_unlabelled_ratio: float = option(
        0.02, "endpoint: a larger share of rows without a label stops the step", source="D", unit="ratio", ge=0, le=1
    )
    label_map: dict[str, Literal["violence", "bias", "pornography", "malicious", "benign_sensitive", "safe"]] = option(
        {}, "model: what each of its labels means here", source="D"
    )
    threshold: float = option(
        0.5, "model: a label holds from this probability on", source="D", unit="probability", gt=0, lt=1
    )

    @model_validator(mode="after")
    def _classifier_is_given(self) -> Self:
        if self.classifier == "endpoint" and not (self.url and self.model):
            raise ValueError("classifier endpoint needs url and model")
        if self.classifier == "model" and not (self.model and self.label_map):
            raise ValueError("classifier model needs model and label_map")
        return self


class DataPrepConfig(Config):
    """Raw data in; checked, split, tokenised rows out."""

    sources: Sources = option(Sources(), "raw data by role", source="Q §3.1.1, §3.2")
    max_length: int = option(
        2048, "longest conversation; see the step's README for what is cut", source="Q §3.1.2", unit="tokens", ge=16
    )
    max_prompt_length: int = option(
        1536, "longest PPO prompt; longer ones are dropped, never cut", source="D", unit="tokens", ge=8
    )
    document_length: int = option(
        2048, "pretraining text is cut into sequences of this length", source="Q §2.4", unit="tokens", ge=8
    )
    loss_mask: LossMask = option("assistant_only", "which tokens SFT trains", source="Q §3.1.2 and D")
    min_gap: float = option(0.0, "a pair needs a score difference above this", source="D", ge=0)
    max_pairs_per_prompt: int | None = option(
        None, "keep at most so many pairs of a reward_model prompt", source="D", unit="pairs", ge=1
    )
    pmp_pairs_per_prompt: int | None = option(
        1, "and of a pmp prompt: many posts teach more than many pairs of one", source="C WorldPM, D", unit="pairs",
        ge=1,
    )  # fmt: skip
    react_rows: int | None = option(
        None, "keep at most so many sft rows of ReAct tool use; the report mixes about 2000 in", source="Q §3.4, D",
        unit="rows", ge=0,
    )  # fmt: skip
    splits: Splits = option(Splits(), "train, PPO and held-out parts", source="D")
    text: TextRepair = option(TextRepair(), "texts are made whole before anything looks at them", source="D")
    languages: bool = option(True, "tell every row's language", source="D")
    filters: Filters = option(Filters(), "what policy keeps out", source="Q §3.1.1 and D")
    safety: Safety = option(Safety(), "labels for safety, and what becomes of rows by them", source="Q §3.1.1")
    tags: Tags = option(Tags(), "what prompts ask for", source="Q §3.2.2")
    sampling: dict[Literal["sft", "reward_model", "ppo"], Sampling] = option(
        {}, "roles whose training rows are chosen by their tags", source="Q §3.2.2"
    )
    max_rejected_ratio: float = option(
        0.5, "more rejected rows than this in one source stop the step", source="D", unit="ratio", ge=0, le=1
    )
    shard: str | None = option(
        None, "2/4: map only the second of four shards of the raw data; another data_prep reduces them", source="D",
        pattern=r"^[1-9][0-9]*/[1-9][0-9]*$",
    )  # fmt: skip
    resources: Resources = option(Resources(), "what the step runs on", source="D")

    @field_validator("shard")
    @classmethod
    def _shard_is_one_of_them(cls, shard: str | None) -> str | None:
        if shard is not None and int(shard.partition("/")[0]) > int(shard.partition("/")[2]):
            raise ValueError("the first number is at most the second, as in 2/4")
        return shard


class Optimiser(Config):
    """AdamW on fp32 weights, decay on matrices only, gradients clipped by their global norm."""

    beta1: float = option(0.9, "AdamW beta 1", source="Q §3.1.2", ge=0, lt=1)
    beta2: float = option(0.95, "AdamW beta 2", source="Q §3.1.2", ge=0, lt=1)
    epsilon: float = option(1e-8, "AdamW epsilon", source="Q §3.1.2", gt=0)
    weight_decay: float = option(0.1, "weight decay on matrices", source="Q §3.1.2", ge=0)
    clip: float = option(1.0, "largest global gradient norm", source="Q §3.1.2", gt=0)


class Zero(Config):
    """How a model's state is spread over ranks. Stages as in ZeRO (Rajbhandari et al. 2020), by DeepSpeed."""

    stage: Literal[0, 1, 2, 3] = option(
        0, "0: a whole replica a rank; 1: optimiser sharded; 2: gradients too; 3: weights too", source="D"
    )
    offload_optimiser: bool = option(False, "optimiser state and step on the CPU; needs stage 1 or more", source="D")
    offload_parameters: bool = option(False, "weights on the CPU between uses; needs stage 3", source="D")

    @model_validator(mode="after")
    def _offload_needs_a_stage(self) -> Self:
        if self.offload_optimiser and self.stage == 0:
            raise ValueError("offload_optimiser needs stage 1, 2 or 3")
        if self.offload_parameters and self.stage != 3:
            raise ValueError("offload_parameters needs stage 3")
        return self


class Lora(Config):
    """Low-rank adapters in place of full fine-tuning, by peft. Saved as an adapter and merged."""

    rank: int = option(0, "rank of the adapters; 0 trains all weights", source="D", ge=0)
    alpha: float = option(16.0, "scale: the adapter's output counts alpha / rank", source="D", gt=0)
    dropout: float = option(0.0, "dropout before the adapter; PPO needs 0", source="D", ge=0, lt=1)
    targets: list[str] = option(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "names of the linear layers that get one", source="D, Dettmers et al. 2023",
    )  # fmt: skip


class Trainer(Config):
    """What the four trainers share."""

    optimiser: Optimiser = option(Optimiser(), "AdamW", source="Q §3.1.2")
    micro_batch_tokens: int = option(
        16384, "tokens in one forward pass, packed; does not change the result", source="D", unit="tokens", ge=16
    )
    precision: Literal["fp32", "bf16"] = option(
        "bf16", "bf16: weights and arithmetic, with fp32 master weights and moments", source="Q §2.4 (pretraining)"
    )
    zero: Zero = option(Zero(), "sharding of model state over ranks", source="D")
    lora: Lora = option(Lora(), "low-rank adapters", source="D")
    gradient_checkpointing: bool = option(False, "recompute activations in the backward pass", source="D")
    compile: bool = option(False, "compile every transformer layer with torch.compile", source="D")
    max_nonfinite_steps: int = option(
        3, "so many skipped steps in a row stop the run", source="D", unit="optimiser steps", ge=1
    )
    checkpoint_every: int = option(
        500, "steps (iterations for PPO) between checkpoints; 0 for none", source="D", unit="steps", ge=0
    )
    keep_checkpoints: int = option(2, "complete checkpoints to keep", source="D", unit="checkpoints", ge=1)
    metrics_port: int = option(9464, "Prometheus port of rank 0; 0 serves none", source="D", ge=0, le=65535)
    resources: Resources = option(Resources(), "what the step runs on", source="D")


class SFTConfig(Trainer):
    """Supervised fine-tuning: next-token loss on assistant tokens."""

    steps: int | None = option(
        4000, "optimiser steps; null takes `epochs` instead", source="Q §3.1.2", unit="optimiser steps", ge=1
    )
    epochs: float = option(1.0, "passes over the data when steps is null", source="D", unit="epochs", gt=0)
    batch_size: int = option(128, "conversations an optimiser step", source="Q §3.1.2 (unit I)", unit="sequences", ge=1)
    learning_rate: float = option(2e-6, "peak learning rate", source="Q §3.1.2", gt=0)
    warmup_steps: int = option(1430, "linear warm-up", source="Q §3.1.2 (shape D)", unit="optimiser steps", ge=0)
    schedule: Literal["constant", "cosine_to_10pct"] = option(
        "constant", "learning rate after the warm-up", source="U, D"
    )
    dropout: float = option(
        0.1, "attention dropout, where Hugging Face models have it", source="Q §3.1.2 (place U, D)", ge=0, lt=1
    )


class RewardConfig(Trainer):
    """Bradley-Terry on all strict pairs of a prompt; PMP and reward model alike."""

    epochs: float = option(1.0, "passes over the data", source="Q §3.2.1 (PMP: I)", unit="epochs", gt=0)
    batch_size: int = option(
        64, "pairs an optimiser step; a prompt's pairs stay together", source="Q §3.2.1 (unit D)", unit="pairs", ge=1
    )
    learning_rate: float = option(3e-6, "learning rate", source="Q §3.2.1", gt=0)
    warmup_steps: int = option(0, "linear warm-up, then constant", source="U, D", unit="optimiser steps", ge=0)
    head: Literal["mlp", "linear"] = option(
        "mlp", "Linear-ReLU-Linear, or one Linear, on the final <|im_end|>", source="I, ChatLearn and WorldPM"
    )
    margin: bool = option(False, "subtract the pair's score gap inside the sigmoid", source="D, Llama 2")
    centring: float = option(
        0.0, "weight of (r_chosen + r_rejected)^2, which keeps scores around 0", source="D, TRL", ge=0
    )


class KLController(Config):
    """A fixed KL coefficient, or one that follows a target (Ziegler et al. 2019)."""

    kind: Literal["fixed", "adaptive"] = option("fixed", "how the coefficient moves", source="Q §3.2.2 (fixed: D)")
    target: float = option(6.0, "KL that the adaptive controller aims at", source="D", unit="nats a response", gt=0)
    horizon: int = option(10000, "how slowly it moves", source="D", unit="responses", ge=1)


class Ptx(Config):
    """The pretraining gradient against the alignment tax."""

    coefficient: float = option(
        0.0, "weight beside the PPO loss, both token means; 0 turns it off", source="U, D", ge=0
    )
    sequences_per_response: float = option(8.0, "pretraining sequences for each response", source="S InstructGPT", gt=0)


class VLLM(Config):
    """The engine that samples when ppo.rollout is vllm."""

    longest: int = option(2048, "prompt and response together", source="D", unit="tokens", ge=16)
    gpu_memory_share: float = option(0.3, "share of the GPU's memory for the engine", source="D", gt=0, lt=1)


class PPOConfig(Trainer):
    """PPO with a value model, a KL penalty, and a value-only warm-up."""

    optimiser: Optimiser = option(
        Optimiser(weight_decay=0.0), "AdamW, of policy and value model", source="D, InstructGPT"
    )
    iterations: int = option(500, "rollout iterations, warm-up included", source="U, D", unit="iterations", ge=1)
    value_warmup_iterations: int = option(
        50, "iterations that train the value model alone", source="Q §3.2.2 (unit U)", unit="iterations", ge=0
    )
    prompts_per_iteration: int = option(
        256, "prompts of one rollout, over all ranks", source="U, ChatLearn", unit="prompts", ge=1
    )
    responses_per_prompt: int = option(2, "responses sampled for each prompt", source="Q §3.2.2", ge=1)
    mini_batch_size: int = option(
        64, "responses an optimiser step, over all ranks", source="U, InstructGPT", unit="responses", ge=1
    )
    epochs: int = option(1, "passes over each rollout", source="U, InstructGPT", ge=1)
    policy_learning_rate: float = option(1e-6, "learning rate of the policy", source="Q §3.2.2", gt=0)
    value_learning_rate: float = option(5e-6, "learning rate of the value model", source="Q §3.2.2", gt=0)
    max_new_tokens: int = option(512, "longest response", source="U, ChatLearn", unit="tokens", ge=1)
    temperature: float = option(1.0, "sampling temperature; log-probabilities use it too", source="U, ChatLearn", gt=0)
    top_p: float = option(
        0.9, "nucleus of the sampling; log-probabilities are of the whole distribution", source="Q §3.2.2", gt=0, le=1
    )
    clip: float = option(0.2, "policy ratio clip", source="U, InstructGPT", gt=0)
    value_clip: float = option(0.15, "value clip around the rollout's value", source="Q §3.2.2", gt=0)
    gamma: float = option(1.0, "discount", source="U, InstructGPT", ge=0, le=1)
    gae_lambda: float = option(0.95, "GAE lambda", source="U, ChatLearn", ge=0, le=1)
    whiten_advantages: bool = option(True, "mean 0, deviation 1 over all response tokens of a rollout", source="U, D")
    kl_coefficient: float = option(0.04, "KL penalty a token", source="Q §3.2.2", ge=0)
    kl_reduction: Literal["sum", "mean"] = option(
        "sum", "sum: as is for each token; mean: divided by the response length", source="U, InstructGPT"
    )
    kl_controller: KLController = option(KLController(), "how the KL coefficient moves", source="D")
    reward_normalisation: Literal["mean", "mean_std", "none"] = option(
        "mean", "by running moments of the raw scores", source="Q §3.2.2 (std: U)"
    )
    reward_clip: float = option(10.0, "largest absolute score after normalisation", source="U, D", gt=0)
    truncation: Literal["replace", "subtract", "none"] = option(
        "replace", "what a response without an end gets", source="U, D"
    )
    truncation_score: float = option(-1.0, "that score, or what is added to the score", source="U, N+ details")
    entropy_coefficient: float = option(0.0, "entropy bonus", source="U, Secrets of RLHF I advises none", ge=0)
    ptx: Ptx = option(Ptx(), "pretraining gradient", source="Q §3.2.2 (coefficient U)")
    rollout: Literal["local", "vllm"] = option(
        "local", "who samples: the trainer's own policy, or vLLM on the same GPU", source="D"
    )
    vllm: VLLM = option(VLLM(), "settings of that engine", source="D")
    frozen_on_cpu: bool = option(
        False, "reference and reward model wait on the CPU while policy and value model train", source="D"
    )

    @model_validator(mode="after")
    def _no_dropout(self) -> Self:
        if self.lora.dropout:
            raise ValueError("lora.dropout must be 0 for PPO: the first ratio must be 1")
        return self


class EvaluateConfig(Config):
    """Scores, calibration and the report."""

    ground_truth: Literal["none", "demo_world"] = option("none", "a scorer that knows the right answer", source="D")
    prompts: int = option(512, "held-out prompts that each policy answers", source="D", unit="prompts", ge=1)
    samples_per_prompt: int = option(1, "responses a policy gives to each prompt", source="D", ge=1)
    max_new_tokens: int = option(512, "longest response", source="D", unit="tokens", ge=1)
    temperature: float = option(1.0, "sampling temperature", source="U, D", gt=0)
    top_p: float = option(0.9, "nucleus of the sampling", source="Q §3.2.2", gt=0, le=1)
    batch_tokens: int = option(16384, "padded tokens in one forward pass", source="D", unit="tokens", ge=16)
    bootstrap: int = option(2000, "resamples behind each interval", source="D", ge=100)
    calibration_bins: int = option(10, "bins of the reliability plot and the ECE", source="D", ge=2)
    conversations: int = option(12, "sample conversations in the report", source="D", ge=0)
    comparison: Source = option(
        Source(adapter="comparison"), "how raw files given as --input comparisons are read", source="D"
    )
    resources: Resources = option(Resources(), "what the step runs on", source="D")


class Strategy(Config):
    """One way to sample. Its name tells it from the others in the manifest of who produced what."""

    name: str = option(..., "name in the manifest", source="D", pattern=r"^[A-Za-z0-9._-]+$")
    temperature: float = option(1.0, "sampling temperature; 0 takes the likeliest token", source="U, D", ge=0)
    top_p: float = option(0.9, "nucleus of the sampling", source="Q §3.2.2 (of PPO)", gt=0, le=1)
    max_new_tokens: int = option(512, "longest response", source="U, D", unit="tokens", ge=1)
    samples: int = option(1, "responses of each model to each prompt", source="U, D", unit="responses", ge=1)

    @model_validator(mode="after")
    def _greedy_once(self) -> Self:
        if self.temperature == 0 and self.samples > 1:
            raise ValueError("samples must be 1 at temperature 0, which gives the same response every time")
        return self


class SampleResponsesConfig(Config):
    """Responses of several models by several strategies: diversity eases annotation and helps the reward model."""

    strategies: list[Strategy] = option(
        [Strategy(name="narrow", temperature=0.7), Strategy(name="wide", top_p=1.0)],
        "every model samples by each of them",
        source="Q §3.2.1 (which: U)",
        min_length=1,
    )
    max_prompts: int | None = option(
        None, "take so many prompts, in the order of a seeded hash of their ids", source="D", unit="prompts", ge=1
    )
    heldout: bool = option(False, "held-out prompts as well, for comparisons to be judged by", source="D")
    keep_truncated: bool = option(False, "keep responses that the length limit cut off", source="D")
    near_duplicate: float = option(
        0.8, "a response this similar to another one of its prompt goes; 1 removes equal ones alone", source="D",
        unit="Jaccard similarity", gt=0, le=1,
    )  # fmt: skip
    responses_per_prompt: int | None = option(
        4, "keep at most so many, the models in turn; null for all", source="U, InstructGPT 4 to 9", ge=2
    )
    batch_tokens: int = option(
        16384, "rows x (longest prompt + max_new_tokens) of one batch", source="D", unit="tokens", ge=16
    )
    precision: Literal["fp32", "bf16"] = option("bf16", "weights and arithmetic", source="D")
    part_prompts: int = option(
        256, "prompts of one part; finished parts survive a kill, and ranks share parts", source="D", unit="prompts",
        ge=1,
    )  # fmt: skip
    metrics_port: int = option(9464, "Prometheus port of rank 0; 0 serves none", source="D", ge=0, le=65535)
    resources: Resources = option(Resources(), "what the step runs on", source="D")

    @model_validator(mode="after")
    def _distinct_names(self) -> Self:
        names = [strategy.name for strategy in self.strategies]
        if len(set(names)) < len(names):
            raise ValueError("strategies must have different names")
        return self


class JudgeEndpoint(Config):
    """An AI judge behind OpenAI's chat completions. Its key is named here, never given."""

    url: str = option("", "up to /chat/completions, such as http://localhost:8000/v1", source="D")
    model: str = option("", "the model's name there", source="D")
    key_variable: str = option(
        "KUBEALIGN_JUDGE_KEY", "environment variable that holds the key; none is sent while it is empty", source="D",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
    )  # fmt: skip
    concurrency: int = option(8, "questions asked at a time", source="D", ge=1, le=256)
    timeout_seconds: float = option(60.0, "longest wait for an answer", source="D", unit="seconds", gt=0)
    attempts: int = option(6, "attempts at a question that a busy or broken server does not answer", source="D", ge=1)
    longest_wait_seconds: float = option(120.0, "longest wait between two of them", source="D", unit="seconds", ge=0)
    max_failed_share: float = option(
        0.05, "more tasks without a verdict than this stop the step, which goes on from its journal", source="D",
        unit="ratio", ge=0, le=1,
    )  # fmt: skip


class AnnotateConfig(Config):
    """Sampled responses out to annotators, their scores back in."""

    mode: Literal["export", "import", "judge", "demo"] = option(
        "export", "tasks out; people's answers in; an AI judge; the demo world's annotators", source="Q §3.2.1"
    )
    tool: Literal["label_studio", "argilla"] = option("label_studio", "whose files are written and read", source="D")
    annotators: int = option(3, "slots to fill with annotators", source="U, D", ge=1, le=1000)
    overlap: int = option(3, "annotators of a prompt that is scored several times", source="U, D", ge=1)
    overlap_share: float = option(
        0.2, "share of prompts that are; one annotator for each of the others", source="U, D", unit="ratio", ge=0, le=1
    )
    highest: int = option(7, "scores are 1 to this", source="U, InstructGPT", ge=2, le=10)
    guideline: str = option("", "what annotators are told; empty: ours", source="Q §3.2.1 (text: D)")
    excluded: list[str] = option([], "annotators whose answers do not count, by the tool's name for them", source="D")
    exclude_flagged: bool = option(False, "leave out whoever a spam check has flagged", source="D")
    judge: JudgeEndpoint = option(JudgeEndpoint(), "the judge of mode judge", source="D")
    resources: Resources = option(Resources(), "what the step runs on", source="D")

    @model_validator(mode="after")
    def _overlap_fits(self) -> Self:
        if self.overlap > self.annotators:
            raise ValueError("overlap cannot be more than annotators")
        return self


class PreferenceDataConfig(Config):
    """What the pipeline `preference_data` starts from; `kubealign run --from RUN` fills it in."""

    models: dict[str, str] = option({}, "URI of every model that answers, by a name of yours", source="Q §3.2.1")
    single: str = option("sft", "the one of them that they are held against", source="D")
    prompts: str = option("", "URI of the prompts: data_prep's output ppo", source="D")
    start: str = option("", "URI of the model that both reward models start from: PMP's", source="Q §3.2.1")
    demonstrations: str = option("", "URI of the sft rows, whose scores set the reward offset", source="D, OpenAI")
    heldout: str = option("", "URI of comparisons whose held-out part judges both: data_prep's", source="D")


STEP_CONFIGS: dict[str, type[Config]] = {
    "base_model": BaseModelConfig,
    "data_prep": DataPrepConfig,
    "sft": SFTConfig,
    "pmp": RewardConfig,
    "reward_model": RewardConfig,
    "ppo": PPOConfig,
    "evaluate": EvaluateConfig,
    "sample_responses": SampleResponsesConfig,
    "annotate": AnnotateConfig,
}


class Profile(Config):
    """A whole run."""

    name: str = option("custom", "name of the profile", source="D")
    description: str = option("", "one line for people", source="D")
    pipeline: Literal["alignment", "preference_data"] = option("alignment", "which pipeline it is for", source="D")
    seed: int = option(0, "seed of the run; every random choice follows from it", source="D", ge=0, lt=2**31)
    data_shards: int = option(
        1, "tasks (pods on a cluster) that map the raw data side by side; changes no byte of the data", source="D",
        ge=1, le=1000,
    )  # fmt: skip
    base_model: BaseModelConfig = option(BaseModelConfig(), "the base model", source="Q §3")
    data_prep: DataPrepConfig = option(DataPrepConfig(), "the data", source="Q §3.1.1")
    sft: SFTConfig = option(SFTConfig(), "supervised fine-tuning", source="Q §3.1")
    pmp: RewardConfig = option(RewardConfig(), "preference-model pretraining", source="Q §3.2.1")
    reward_model: RewardConfig = option(RewardConfig(), "reward-model fine-tuning", source="Q §3.2.1")
    ppo: PPOConfig = option(PPOConfig(), "PPO", source="Q §3.2.2")
    evaluate: EvaluateConfig = option(EvaluateConfig(), "evaluation", source="Q §3.3")
    sample_responses: SampleResponsesConfig = option(
        SampleResponsesConfig(), "responses to be annotated", source="Q §3.2.1"
    )
    annotate: AnnotateConfig = option(AnnotateConfig(), "annotation", source="Q §3.2.1")
    preference_data: PreferenceDataConfig = option(
        PreferenceDataConfig(), "what the pipeline preference_data starts from", source="D"
    )


def step_config(step: str, values: dict[str, Any], where: str = "spec.json") -> Any:
    """Check one step's section. Raises UserError naming `where`, the dotted path and the allowed values."""
    return _validate(STEP_CONFIGS[step], values, f"{where}: {step}")


def load_profile(path: Path, overrides: list[str] | None = None, shipped: Path | None = None) -> Profile:
    """Read a profile, follow its `extends`, apply `key.path=value` overrides and check it all.

    `extends` names a profile beside the file or, else, in the folder `shipped`.
    """
    values = _read_profile(path, shipped or path.parent, seen=())
    for override in overrides or []:
        _apply_override(values, override)
    values.setdefault("name", path.stem)
    return _validate(Profile, values, str(path.name))


def overridden(profile: Profile, overrides: list[str]) -> Profile:
    """The profile with `key.path=value` overrides, checked again."""
    values = profile.model_dump()
    for override in overrides:
        _apply_override(values, override)
    return _validate(Profile, values, profile.name)


def _read_profile(path: Path, shipped: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path in seen:
        raise UserError(f"{path.name}: profiles extend each other in a circle")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no profile {path}; `kubealign validate --help` lists the shipped ones") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path.name}: not a YAML file ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise UserError(f"{path.name}: a profile is a mapping of sections")
    parent = values.pop("extends", None)
    if parent is None:
        return values
    beside = path.with_name(f"{parent}.yaml")
    # A profile of one's own may have the name of the shipped one that it extends.
    found = beside if beside.is_file() and beside != path else shipped / f"{parent}.yaml"
    return merge(_read_profile(found, shipped, (*seen, path)), values)


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`changes` over `base`, mapping by mapping; lists are replaced whole."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _apply_override(values: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path.strip():
        raise UserError(f"--set {override}: write it as section.key=value, such as ppo.kl_coefficient=0.02")
    *parents, last = path.strip().split(".")
    for parent in parents:
        child = values.get(parent, {})
        if not isinstance(child, dict):
            raise UserError(f"--set {override}: {parent} is a value, not a section")
        values[parent] = values = dict(child)  # a YAML alias makes one mapping of several sections
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override}: the value is not YAML") from error
    # YAML 1.1 reads 1e-6 (no dot) as text.
    values[last] = _number(value) if isinstance(value, str) else value


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _validate(model: type[Config], values: dict[str, Any], where: str) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError("; ".join(_explain(model, item, where) for item in error.errors())) from None


def _explain(model: type[Config], item: Any, where: str) -> str:
    dotted = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        known = _fields_at(model, item["loc"][:-1])
        near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
        return f"{where}: unknown key {dotted}; {hint}"
    message = item["msg"].removeprefix("Value error, ")
    return f"{where}: {dotted or 'settings'} = {item['input']!r:.80}: {message[0].lower() + message[1:]}"


def _fields_at(model: type[Config], path: tuple[Any, ...]) -> list[str]:
    """Names of the fields of the section at `path`; list indices lead into the list's element type."""
    annotation: Any = model
    for part in path:
        if isinstance(part, str) and isinstance(annotation, type) and issubclass(annotation, BaseModel):
            annotation = annotation.model_fields[part].annotation
        for argument in getattr(annotation, "__args__", ()):
            if isinstance(argument, type) and issubclass(argument, BaseModel):
                annotation = argument
    return list(annotation.model_fields) if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []
