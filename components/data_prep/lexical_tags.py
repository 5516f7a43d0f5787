"""The offline tagger: a deterministic baseline that knows words and no meanings. All of it is ours.

A query's tags are the tasks whose words it has, under English names, and what its first keyphrases are about, in its
own language. A keyphrase is a run of words that are neither function words nor a task's; tags.py merges their forms.
"""

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from components.data_prep.tags import stem


class LexicalTagger:
    """A taggers.Tagger that leaves nothing untagged; a query that says nothing has no tags."""

    def __init__(self, most_phrases: int = 12) -> None:
        self._most_phrases = most_phrases

    def tag(self, queries: list[str]) -> list[list[str] | None]:
        return [self._tags(unicodedata.normalize("NFKC", query).casefold()) for query in queries]

    def _tags(self, text: str) -> list[str]:
        text = _AMOUNT.sub(" calculate ", text)
        tasks: set[str] = set()
        topics: dict[str, None] = {}
        for part in _BREAK.split(text if text.isascii() else _HAN.sub(",", text)):
            before = ""
            for word in part.split():
                found, is_topic = _in_word(word)
                if found:
                    tasks |= found
                if is_topic:
                    before = word
                elif before:  # of a keyphrase the last word, which is mostly its head
                    topics[before] = None
                    before = ""
            if before:
                topics[before] = None
        if not text.isascii():
            tasks.update(task for task, pattern in _CHINESE.items() if pattern.search(text))
            topics |= dict.fromkeys(_chinese_topics(text))
        in_order = [task for task in _TASK_WORDS if task in tasks]
        return list(dict.fromkeys([*in_order, *list(topics)[: self._most_phrases]]))


def _chinese_topics(text: str) -> Iterator[str]:
    """Keyphrases; of a long one, the last four letters."""
    for part in _HAN.findall(text):
        yield from (run if len(run) <= 6 else run[-4:] for run in _HAN_BREAK.split(part) if len(run) >= 2)


class _Found(NamedTuple):
    tasks: frozenset[str]
    is_topic: bool


@lru_cache(maxsize=1 << 16)
def _in_word(word: str) -> _Found:
    """What a word says; most words of a language come again and again."""
    tasks = frozenset(task for part in _WORD.findall(word) for task in _TASKS_OF.get(stem(part), ()))
    is_topic = bool(_WORD.fullmatch(word)) and re.split("['’]", word)[0] not in _STOP and stem(word) not in _TASKS_OF
    return _Found(tasks, is_topic)


_BREAK = re.compile(r"[^\w\s'’+#-]|\n")
_HAN = re.compile(r"[\u3400-\u9fff]+")
_WORD = re.compile(r"[^\W\d_\u3400-\u9fff][\w'’+#-]*")
_AMOUNT = re.compile(r"\bhow (?:many|much)\b")

# A task's words, English and Chinese.
_TASK_WORDS = {
    "analysis": "analyze analyse evaluate assess examine 分析 评估 评价",
    "brainstorming": "brainstorm 头脑风暴 点子 想出",
    "calculation": "calculate compute solve 计算 求解 多少 求出",
    "classification": "classify categorize categorise 分类 归类",
    "coding": "code program script function algorithm debug implement python javascript sql 代码 编程 程序 函数 算法",
    "comparison": "compare contrast versus vs 比较 对比 区别",
    "description": "describe 描述 描写 介绍",
    "explanation": "explain clarify elaborate why 解释 说明 为什么 为何",
    "extraction": "extract identify detect 提取 找出 识别",
    "generation": "generate create design invent 生成 设计 制作",
    "how-to": "how instructions steps guide recipe 如何 怎么 怎样 步骤 教程",
    "listing": "list enumerate 列出 列举",
    "planning": "plan schedule organize organise itinerary 计划 规划 安排",
    "recommendation": "recommend suggest advise advice tips 推荐 建议",
    "rewriting": "rewrite rephrase paraphrase edit improve correct proofread shorten 改写 润色 修改 纠正",
    "role play": "pretend roleplay imagine 扮演 假装 假如你是",
    "summarisation": "summarize summarise summary tldr 总结 概括 摘要 概述",
    "translation": "translate translation 翻译 译成",
    "writing": "write compose draft essay poem story letter email 撰写 写作 写一 写个 写出 写篇 作文 诗 故事",
}
_CHINESE = {
    task: re.compile("|".join(word for word in words.split() if not word.isascii()))
    for task, words in _TASK_WORDS.items()
}
# The tasks of an English word's stem.
_TASKS_OF: dict[str, set[str]] = {}
for _task, _words in _TASK_WORDS.items():
    for _word in filter(str.isascii, _words.split()):
        _TASKS_OF.setdefault(stem(_word), set()).add(_task)
_STOP_WORDS = (
    "a about above after again against all also am an and another any anyone anything are aren around as at away back "
    "based be became because become been before being below best better between both but by came can cannot come "
    "could couldn did didn do does doesn doing don done down during each either else enough etc even ever every "
    "everyone everything few find finds for found from further get gets getting give given gives go goes going good "
    "got had hadn has hasn have haven having he hello help her here hers hey hi him his i if in into is isn it its "
    "itself just keep know least less let like likely long lot made make makes making many may maybe me mean might "
    "mine more most much must my need needs never new next no nor not nothing now of off often ok on once one only or "
    "other others our ours out over own per please provide provided provides put quite rather really said same say "
    "says see seem she should shouldn since so some someone something still such sure take tell than thank thanks "
    "that the their theirs them then there these they thing things think this those though through thus to together "
    "too took toward tried try trying two under until up upon us use used using very want wants was wasn way we well "
    "went were weren what when where whether which while who whole whom whose will with within without won would "
    "wouldn yes yet you your yours yourself"
)
_STOP = frozenset(_STOP_WORDS.split())
_HAN_STOP = (
    "请问 请 帮我 帮忙 给我 一下 一个 一篇 一首 一些 一种 一段 一共 这个 那个 这些 那些 我们 你们 他们 什么 "
    "哪些 哪个 是否 可以 能够 能否 需要 应该 以及 或者 并且 关于 对于 因为 所以 如果 但是 然后 以下 下面 进行 使用 "
    "实现 的 了 和 与 或 在 是 有 我 你 他 她 它 们 吗 呢 吧 啊 把 被 将 为 从 让 就 又 也 都 还 很 并 个"
)
_HAN_BREAK = re.compile("|".join([*(pattern.pattern for pattern in _CHINESE.values()), *_HAN_STOP.split()]))
