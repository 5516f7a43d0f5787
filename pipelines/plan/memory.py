"""Peak memory of one process, by arithmetic on shapes; tests hold it against what torch allocates.

A step has its moments: of training, the backward pass (weights, optimiser, gradients where an earlier micro-batch has
left some, the activations of one micro-batch, the logits of the positions that are scored) and the optimiser's step
(weights, optimiser, all gradients). The peak is that of the moment that needs most. The bytes of each part follow from
what the trainers keep (`components/training/engine.py`, `scoring.py`), those of activations from what autograd saves of
the layers of Qwen2 and its like: of each token and layer, with h the hidden size, q and k the widths of queries and
keys, and I the intermediate size,

    twice the residual stream in fp32, twice normed and twice weighted: 2h x 4 + 4h bytes x b
    query, key, value and what attention gives: (2q + 2k) x b, and the latter once more where it has to be laid out anew
    gate, its SiLU, up, and their product: 4I x b

with b the bytes of a number (4 in fp32, where the first is not another tensor but the stream itself; 2 in bf16).
"""

from dataclasses import dataclass, fields, replace

from components.core.config import PPOConfig, Trainer
from pipelines.plan.shapes import Shape

LOGITS = 1 << 27  # elements of one piece of fp32 logits; components/training/scoring.py
LIVE_PARAMETERS = 10**9  # DeepSpeed's stage3_max_live_parameters
BUCKET = 5 * 10**8  # elements that DeepSpeed reduces or gathers at a time, by default
PIECE = 1 << 26  # elements of gradients that become fp32 at a time; components/training/engine.py
MASTER, MOMENTS = 4, 8  # bytes a parameter


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one process."""

    weights: float = 0
    gradients: float = 0
    optimiser: float = 0
    activations: float = 0
    logits: float = 0
    other_models: float = 0
    cache: float = 0
    buffers: float = 0

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))


Moments = dict[str, Memory]
"""What happens, and what it needs."""


def peak(moments: Moments) -> tuple[str, Memory]:
    """The moment that needs most."""
    return max(moments.items(), key=lambda item: item[1].total)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One micro-batch: its tokens, and the share of them whose loss is taken or whose last state is read (`wanted`)."""

    tokens: int
    wanted: float
    several: bool
    """Whether an optimiser step takes more than one of them."""


def width(config: Trainer) -> int:
    """Bytes of a weight."""
    return 4 if config.precision == "fp32" else 2


def activations(shape: Shape, batch: Batch, config: Trainer, *, copies: int = 0) -> float:
    """What a micro-batch's forward pass keeps. `copies` of attention's output: 1 where it is not flash attention's."""
    b, norm = width(config), norm_bytes(shape, config)
    attention = ((2 + copies) * shape.query_width + 2 * shape.key_width) * b + 4 * shape.heads
    mlp = 4 * shape.intermediate * b
    layer = 2 * norm + attention + mlp
    # The last layer's MLP sees the wanted positions only, and so do both norms after its attention.
    last = norm + attention + batch.wanted * (norm + mlp)
    return batch.tokens * ((shape.layers - 1) * layer + last + batch.wanted * norm)


def norm_bytes(shape: Shape, config: Trainer) -> float:
    """Of a token in a norm: what comes in as fp32 (in fp32 that is the stream itself), normed, and weighted."""
    return (4 + 2 * width(config)) * shape.hidden


def logits(shape: Shape, batch: Batch) -> float:
    """Of the loss: log-probabilities that stay, and two gradients of their size in the backward pass; all in fp32."""
    elements = batch.tokens * batch.wanted * shape.vocabulary
    return 12.0 * min(elements, LOGITS)


def training(shape: Shape, batch: Batch, config: Trainer, world: int, *, copies: int = 0, head: bool = True) -> Moments:
    """Of a model that is trained. Without `head` it has no language-model loss, and its output layer is not trained."""
    trained = shape.parameters - (0 if head or shape.tied else shape.embedding_parameters)
    state = model_state(shape, trained, config, world, several=batch.several)
    left = replace(state, gradients=state.gradients if batch.several else 0)
    of_loss = logits(shape, batch) if head else 0
    kept = activations(shape, batch, config, copies=copies)
    # Gradients of three tensors of an MLP, and of what comes in and goes out, are there at a time.
    under_way = batch.tokens * (3 * shape.intermediate + 2 * shape.hidden) * width(config)
    if not config.gradient_checkpointing:
        loss = replace(left, activations=kept, logits=of_loss)
        return {"loss": loss, "backward": replace(left, activations=kept + under_way), "step": state}
    one_layer = activations(replace(shape, layers=2), batch, config, copies=copies) - activations(
        replace(shape, layers=1), batch, config, copies=copies
    )
    # Of every layer only what comes in; one layer at a time is computed again, after the loss has been.
    inputs = batch.tokens * shape.layers * shape.hidden * width(config)
    return {
        "loss": replace(
            left, activations=inputs + batch.tokens * batch.wanted * norm_bytes(shape, config), logits=of_loss
        ),
        "backward": replace(left, activations=inputs + one_layer + under_way),
        "step": state,
    }


def model_state(shape: Shape, trained: int, config: Trainer, world: int, *, several: bool) -> Memory:
    """Weights, gradients and optimiser of a model under ZeRO's stages (Rajbhandari et al. 2020), a process's part."""
    b, stage, whole = width(config), config.zero.stage, shape.parameters
    if config.lora.rank:
        adapters = lora_parameters(shape, config)
        return Memory(weights=whole * b, gradients=4 * adapters, optimiser=(MASTER + MOMENTS) * adapters)
    masters = 0 if b == 4 and stage == 0 else MASTER * trained
    optimiser: float = masters + MOMENTS * trained
    if stage == 0:
        # One bf16 micro-batch leaves its gradients as they are; several are summed in fp32.
        gradients = trained * (4 if several or b == 4 else b)
        # A piece of bf16 gradients at a time gives way to its fp32 copy, twice its size.
        buffers = 0 if several or b == 4 else min(2 * PIECE, 2 * trained)
        return Memory(weights=whole * b, gradients=gradients, optimiser=optimiser, buffers=buffers)
    shared = 4 * trained / world if stage >= 2 else 4 * trained
    optimiser = 0 if config.zero.offload_optimiser else optimiser / world
    if stage < 3:
        return Memory(weights=whole * b, gradients=shared, optimiser=optimiser, buffers=2 * min(BUCKET, trained) * b)
    gathered = min(LIVE_PARAMETERS, whole) * b
    kept = 0 if config.zero.offload_parameters else whole * b / world
    return Memory(weights=kept, gradients=shared, optimiser=optimiser, buffers=gathered + min(BUCKET, trained) * b)


def lora_parameters(shape: Shape, config: Trainer) -> int:
    """Of adapters on the projections that `lora.targets` names; on all where it names none."""
    sizes = {
        "q_proj": shape.hidden + shape.query_width, "k_proj": shape.hidden + shape.key_width,
        "v_proj": shape.hidden + shape.key_width, "o_proj": shape.hidden + shape.query_width,
        "gate_proj": shape.hidden + shape.intermediate, "up_proj": shape.hidden + shape.intermediate,
        "down_proj": shape.hidden + shape.intermediate,
    }  # fmt: skip
    chosen = [size for name, size in sizes.items() if not config.lora.targets or name in config.lora.targets]
    return config.lora.rank * shape.layers * sum(chosen)


def sampling(shape: Shape, rows: int, length: int, config: Trainer) -> Memory:
    """Key-value cache of a batch of rows, and the logits of its next tokens: as such, as probabilities and sorted."""
    b = width(config)
    cache = rows * length * 2 * shape.layers * shape.key_width * b
    return Memory(cache=cache, logits=16.0 * rows * shape.vocabulary)


def forward(shape: Shape, tokens: int, wanted: float, config: Trainer) -> Memory:
    """A pass without gradients: one layer's tensors at a time."""
    b = width(config)
    layer = tokens * (6 * shape.hidden + 3 * shape.intermediate) * b
    return Memory(activations=layer, logits=8.0 * min(tokens * wanted * shape.vocabulary, LOGITS))


def together(*parts: Memory) -> Memory:
    """What several models need at once."""
    return Memory(**{field.name: sum(getattr(part, field.name) for part in parts) for field in fields(Memory)})


def ppo(shape: Shape, batch: Batch, config: PPOConfig, world: int, rows: int, length: int) -> Moments:
    """Of policy, value model, reference and reward model, all of one size. `rows` of `length` tokens are sampled at a
    time."""
    policy = training(shape, batch, config, world)
    value = training(shape, replace(batch, several=True), config, world, head=False)
    state = together(resting(policy["step"]), resting(value["step"]))
    whole = shape.parameters * width(config)
    copy = Memory(other_models=whole if config.zero.stage == 3 else 0)
    frozen = Memory(other_models=0 if config.frozen_on_cpu or config.lora.rank else 2 * whole)
    one_back = Memory(other_models=whole if config.frozen_on_cpu and not config.lora.rank else 0)
    pass_ = forward(shape, batch.tokens, batch.wanted, config)
    moments = {
        "sampling": together(state, copy, frozen, sampling(shape, rows, length, config)),
        "scoring": together(state, copy, frozen, one_back, pass_),
    }
    for name, found, other in (("policy", policy, value), ("value model", value, policy)):
        moments |= {
            f"{name}: {what}": together(memory, resting(other["step"]), frozen) for what, memory in found.items()
        }
    return moments


def resting(step: Memory) -> Memory:
    """A trained model between its own steps."""
    return Memory(weights=step.weights, optimiser=step.optimiser)
