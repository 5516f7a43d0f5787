"""A profile's training steps with what they need: memory a GPU, time, cost, storage. Assumptions are shown."""

from collections.abc import Iterator
from dataclasses import dataclass

from components.core.config import Profile, Trainer, overridden
from pipelines.plan import memory
from pipelines.plan.memory import Batch, Memory, Moments
from pipelines.plan.shapes import Shape, base_shape

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """Memory in bytes; dense bf16 FLOP/s and bytes/s of the vendor's data sheet; dollars an hour, where known."""

    memory: float
    flops: float
    bandwidth: float
    price: float | None


# Prices: AWS EC2 Capacity Blocks for ML, US East and West, rates shown until January 2025, a GPU. Yours: --price.
GPUS = {
    "h100": Gpu(79.6 * GIB, 989e12, 3.35e12, 4.916),
    "h200": Gpu(139.8 * GIB, 989e12, 4.8e12, 5.408),
    "a100-40": Gpu(39.4 * GIB, 312e12, 1.56e12, 1.844),
    "a100-80": Gpu(79.1 * GIB, 312e12, 2.04e12, None),
    "l40s": Gpu(44.5 * GIB, 362e12, 0.864e12, None),
}
_CONTEXT = 2.0 * GIB  # CUDA's own, kernels, NCCL's buffers: a default of ours
_FRAGMENTS = 0.05  # of what torch allocates, lost between blocks: a default of ours
_STEP_OVERHEAD = 0.5e-3  # seconds a layer of launching kernels when one token is sampled: a default of ours
_READ = 0.5  # share of the memory's bandwidth that sampling reaches: a default of ours
_SAVED = 12  # bytes a parameter of a checkpoint: fp32 weights and both moments


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What neither the profile nor the model says."""

    gpu: str = "h100"
    mfu: float = 0.4
    """Share of the GPU's arithmetic that training reaches."""
    row_tokens: int = 700
    """Mean tokens of a conversation, and of a prompt with its response."""
    scored_share: float = 0.5
    """Share of tokens whose loss is taken."""
    pmp_pairs: int = 500_000
    reward_model_pairs: int = 50_000
    price: float | None = None
    """Dollars a GPU-hour."""


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """One training step. Memory is of one GPU, in bytes; `margin` is what is left of it, below 0 where it does not
    fit."""

    step: str
    after: tuple[str, ...]
    nodes: int
    gpus: int
    moment: str
    memory: Memory
    margin: float
    tokens: float
    hours: float
    cost: float | None
    storage: float
    suggestion: str = ""

    @property
    def gpu_hours(self) -> float:
        return self.hours * self.gpus


AFTER: dict[str, tuple[str, ...]] = {"sft": (), "pmp": (), "reward_model": ("pmp",), "ppo": ("sft", "reward_model")}


def plan(profile: Profile, given: Assumptions) -> list[StepPlan]:
    """Raises UserError where the base model's sizes cannot be told."""
    shape = base_shape(profile.base_model)
    return [_step(profile, step, shape, given) for step in AFTER]


def _step(profile: Profile, step: str, shape: Shape, given: Assumptions) -> StepPlan:
    config: Trainer = getattr(profile, step)
    gpu, gpus = GPUS[given.gpu], world(config)
    moment, needed = memory.peak(moments(profile, step, shape, given))
    tokens, flops, seconds = _work(profile, step, shape, given)
    hours = (flops / (gpus * gpu.flops * given.mfu) + seconds) / 3600
    price = given.price if given.price is not None else gpu.price
    left = margin(needed, gpu)
    models = 2 if step == "ppo" else 1
    return StepPlan(
        step=step, after=AFTER[step], nodes=config.resources.nodes, gpus=gpus, moment=moment, memory=needed,
        margin=left, tokens=tokens, hours=hours, cost=None if price is None else hours * gpus * price,
        storage=models * shape.parameters * (_SAVED * config.keep_checkpoints + memory.width(config)),
        suggestion=suggestion(profile, step, shape, given) if left < 0 else "",
    )  # fmt: skip


def world(config: Trainer) -> int:
    return config.resources.nodes * config.resources.processes


def margin(needed: Memory, gpu: Gpu) -> float:
    """Bytes of a GPU that are left."""
    return gpu.memory - _CONTEXT - needed.total * (1 + _FRAGMENTS)


def moments(profile: Profile, step: str, shape: Shape, given: Assumptions) -> Moments:
    config: Trainer = getattr(profile, step)
    ranks = world(config)
    rows = {
        "sft": profile.sft.batch_size,
        "pmp": 2 * profile.pmp.batch_size,
        "reward_model": 2 * profile.reward_model.batch_size,
        "ppo": profile.ppo.mini_batch_size,
    }[step]
    tokens = min(config.micro_batch_tokens, max(1, rows // ranks) * given.row_tokens)
    several = rows * given.row_tokens > ranks * config.micro_batch_tokens
    if step == "sft":
        # Dropout takes another attention, whose output is laid out anew.
        batch = Batch(tokens=tokens, wanted=given.scored_share, several=several)
        return memory.training(shape, batch, config, ranks, copies=1 if profile.sft.dropout else 0)
    if step == "ppo":
        batch = Batch(tokens=tokens, wanted=given.scored_share, several=several)
        length = max(given.row_tokens, profile.ppo.max_new_tokens)
        sampled = profile.ppo.prompts_per_iteration * profile.ppo.responses_per_prompt // ranks
        return memory.ppo(
            shape, batch, profile.ppo, ranks, max(1, min(sampled, config.micro_batch_tokens // length)), length
        )
    batch = Batch(tokens=tokens, wanted=1 / given.row_tokens, several=several)
    return memory.training(shape, batch, config, ranks, head=False)


def _work(profile: Profile, step: str, shape: Shape, given: Assumptions) -> tuple[float, float, float]:
    """(tokens trained on, FLOPs of all ranks, further seconds)."""
    config: Trainer = getattr(profile, step)
    forward = 2 * shape.trunk_parameters + 2 * shape.layers * shape.query_width * given.row_tokens
    trained = forward * (4 if config.gradient_checkpointing else 3)
    if step == "ppo":
        ppo = profile.ppo
        responses = ppo.iterations * ppo.prompts_per_iteration * ppo.responses_per_prompt
        tokens = float(responses * given.row_tokens)
        own = ppo.prompts_per_iteration * ppo.responses_per_prompt / world(config)
        length = max(given.row_tokens, ppo.max_new_tokens)
        batches = max(1.0, own * length / config.micro_batch_tokens)
        read = shape.parameters * memory.width(config) / (GPUS[given.gpu].bandwidth * _READ)
        sampling = batches * ppo.max_new_tokens * (read + shape.layers * _STEP_OVERHEAD)
        # Four models score each response once; policy and value model learn from it in every epoch.
        return tokens, tokens * (4 * forward + 2 * ppo.epochs * trained), ppo.iterations * sampling
    if step == "sft":
        sft = profile.sft
        rows = sft.batch_size * (sft.steps or 0)
        tokens = float(rows * given.row_tokens)
    else:
        pairs = given.pmp_pairs if step == "pmp" else given.reward_model_pairs
        tokens = 2 * pairs * getattr(profile, step).epochs * given.row_tokens
    return tokens, tokens * trained, 0.0


def suggestion(profile: Profile, step: str, shape: Shape, given: Assumptions) -> str:
    """The first settings, from the cheapest on, with which the step fits; "" where none of them helps."""
    for changes in _cheapest_first(getattr(profile, step)):
        settings = [f"{step}.{path}={str(value).lower()}" for path, value in changes.items()]
        other = overridden(profile, settings)
        if margin(memory.peak(moments(other, step, shape, given))[1], GPUS[given.gpu]) >= 0:
            return " ".join(f"--set {setting}" for setting in settings)
    return ""


def _cheapest_first(config: Trainer) -> Iterator[dict[str, object]]:
    """Each with all that the ones before it change."""
    changes: dict[str, object] = {}
    candidates: list[tuple[str, object, bool]] = [
        ("gradient_checkpointing", True, config.gradient_checkpointing),
        *((("frozen_on_cpu", True, config.frozen_on_cpu),) if hasattr(config, "frozen_on_cpu") else ()),
        ("micro_batch_tokens", config.micro_batch_tokens // 4, config.micro_batch_tokens < 4096),
        *(("zero.stage", stage, config.zero.stage >= stage or world(config) == 1) for stage in (1, 2, 3)),
        ("zero.offload_optimiser", True, config.zero.offload_optimiser or world(config) == 1),
        *(
            ("resources.nodes", config.resources.nodes * factor, world(config) == 1 and config.zero.stage == 0)
            for factor in (2, 4, 8)
        ),
    ]
    for path, value, is_so in candidates:
        if not is_so:
            changes[path] = value
            yield dict(changes)
