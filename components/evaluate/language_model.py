"""Held-out loss and perplexity on conversations that no policy was trained on."""

import math
from typing import TYPE_CHECKING, Any

from components.core.chatml import IGNORE, ChatTokenizer, label_turns
from components.core.records import Chat

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def held_out_loss(
    model: "PreTrainedModel", tokenizer: ChatTokenizer, chats: list[Chat], longest: int, batch_tokens: int
) -> dict[str, Any]:
    """Mean loss over assistant tokens (content, `<|im_end|>`, newline), nats a token of the model's own tokenizer."""
    from components.training.scoring import token_losses

    rows = [label_turns(tokenizer.turns(chat.messages), "assistant_only") for chat in chats]
    fitting = [row for row in rows if len(row[0]) <= longest and any(label != IGNORE for label in row[1])]
    total, tokens = token_losses(model, fitting, batch_tokens) if fitting else (math.nan, 0)
    return {
        **perplexity(total, tokens),
        "tokens": tokens,
        "conversations": len(fitting),
        "skipped": len(rows) - len(fitting),
    }


def perplexity(total: float, tokens: int) -> dict[str, float]:
    """Loss and its exponential from a summed negative log-likelihood; an exponential out of range is infinite."""
    loss = total / tokens if tokens else math.nan
    return {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else (math.nan if math.isnan(loss) else math.inf)}
