"""Tags by a chat model on this machine, such as InsTag's own tagger. Asked as the one behind an endpoint is, greedily;
an answer that is no list of tags is not asked for again, since it would come again."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from components.core.errors import UserError
from components.data_prep.asking import Answers, answer_key
from components.data_prep.local_models import load
from components.data_prep.taggers import INSTRUCTION, read_tags

Generate = Callable[[list[str]], list[str]]
"""The model's answer to each query."""
_QUERY = "\N{WHITE SQUARE}"


class ModelTagger:
    """A taggers.Tagger that keeps every batch's answers in the file `cache` at once; `counts` are of the queries."""

    def __init__(
        self, generate: Generate, model: str, cache: Path, max_untagged_ratio: float = 0.02, batch: int = 16
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._generate, self._model, self._batch = generate, model, batch
        self._cache, self._max_ratio = cache, max_untagged_ratio
        self._answers = Answers(cache, read_tags)
        self._given = 0

    def tag(self, queries: list[str]) -> list[list[str] | None]:
        """Raises UserError where more than the limit of all queries so far stay untagged; what was answered is kept."""
        self._given += len(queries)
        keys = [answer_key(INSTRUCTION, self._model, query) for query in queries]
        asked = {key: query for key, query in zip(keys, queries, strict=True) if key not in self._answers.read}
        todo = sorted(asked.items(), key=lambda item: (len(item[1]), item[0]))  # so that little is padded
        for begin in range(0, len(todo), self._batch):
            part = todo[begin : begin + self._batch]
            for (key, _), answer in zip(part, self._generate([query for _, query in part]), strict=True):
                tags = read_tags(answer)
                self.counts["untagged_nonsense" if tags is None else "answered"] += 1
                if tags is not None:
                    self._answers.keep(key, answer, tags)
        if (left := self.counts["untagged_nonsense"]) > self._max_ratio * self._given:
            raise UserError(
                f"of {self._given} texts {left} stay untagged: the model answers nonsense", where=self._model,
                fix=f"the answers so far are kept in {self._cache}; take another model or raise max_untagged_ratio",
            )  # fmt: skip
        return [self._answers.read.get(key) for key in keys]


def load_generate(name: str, revision: str, work: Path, longest: int = 2048, new_tokens: int = 512) -> Generate:
    """A causal language model as transformers loads it, on a GPU where there is one. `longest` is of a query, in
    tokens; what is longer is cut at its end."""
    tokenizer, model = load(
        name, revision, work, auto_class="AutoModelForCausalLM", kind="causal language", where="tags.tagger"
    )
    import torch

    if tokenizer.chat_template is None:
        raise UserError("the model has no chat template", where=name, fix="take an instruction-tuned model")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token

    # The query is encoded apart from what stands around it, so that no text of a user's is a control token.
    chat = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": _QUERY}]
    around = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True).partition(_QUERY)
    before, after = (tokenizer(text, add_special_tokens=False).input_ids for text in (around[0], around[2]))

    def generate(queries: list[str]) -> list[str]:
        found = tokenizer(queries, add_special_tokens=False, split_special_tokens=True).input_ids
        ids = [[*before, *query[:longest], *after] for query in found]
        inputs = tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(device)
        with torch.inference_mode():
            answered = model.generate(
                input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, do_sample=False,
                max_new_tokens=new_tokens, pad_token_id=tokenizer.pad_token_id,
            )  # fmt: skip
        answers: list[str] = tokenizer.batch_decode(answered[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
        return answers

    return generate
