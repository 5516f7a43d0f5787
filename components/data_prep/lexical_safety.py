"""The offline classifier: a deterministic baseline that knows words and no meanings, in English and Chinese.

All lists are ours. A text without any of their words, which is nearly every one, costs one look at its words. Others
lose their harmless look-alikes ("kill a process", "sex education") and are then read for what is asked: somebody who
asks how to do harm is malicious, somebody who writes a crime novel or asks how to prevent it is not.

It is weak where words are: malice in plain words passes, and so does a story that is none. How weak:
`python -m tests.benchmarks.safety`.
"""

import re
from collections.abc import Iterable, Sequence

from components.data_prep.safety import CONCERNS, Exchange, Intent, ResponseType, SafetyLabels


class LexicalSafety:
    """A safety.SafetyClassifier that leaves nothing without labels."""

    def label(self, exchanges: Sequence[Exchange]) -> list[SafetyLabels | None]:
        return [_labels(exchange) for exchange in exchanges]


def looks_harmful(text: str) -> bool:
    """Whether a text of any kind has a word that should not meet a reader unasked."""
    return bool(_groups(text.lower()))


def is_refusal(response: str) -> bool:
    """Whether a response begins by saying no."""
    beginning = response[:_BEGINNING].replace("’", "'").lower()
    return any(hint in beginning for hint in _REFUSAL_HINTS) and bool(_REFUSAL.search(beginning))


def _labels(exchange: Exchange) -> SafetyLabels:
    prompt = exchange.prompt[:_LONGEST].replace("’", "'").lower()
    groups = _groups(prompt)
    intent = _intent(prompt, groups) if groups else "none"
    found = {_CONCERN_OF[group] for group in groups} | (
        {"violence"} if "goods" in groups and "bomb" in prompt else set()
    )
    concerns = tuple(concern for concern in CONCERNS if concern in found)
    return SafetyLabels(concerns, intent, _response(exchange.response, intent))


def _groups(text: str) -> set[str]:
    """The groups of words that a lower-case text has, without their look-alikes."""
    found: set[str] = set()
    if not _GATE.isdisjoint(_words(text)):
        text = _LOOK_ALIKE.sub(" ", text)
        found = {_GROUP_OF[word] for word in _words(text) if word in _GROUP_OF}
        if _PREJUDICE.search(text):
            found.add("hate")
    if not text.isascii() and _HAN.search(text):
        text = _CHINESE_LOOK_ALIKE.sub(" ", text)
        found |= {group for group, pattern in _CHINESE.items() if pattern.search(text)}
    return found


def _words(text: str) -> list[str]:
    """The runs of a to z; a third of a regular expression's time."""
    return text.translate(_NO_LETTER).split()


def _intent(prompt: str, groups: set[str]) -> Intent:
    if "slur" in groups or _PREJUDICE.search(prompt):
        return "malicious"
    if _AGAINST_ONESELF.search(prompt):
        return "benign_sensitive"
    if _ASKS.search(prompt) and groups & {"act", "crime", "goods", "porn", "hate"} and not _HARMLESS.search(prompt):
        return "malicious"
    if groups & {"goods"} and _MAKES.search(prompt) and not _PREVENTS.search(prompt):
        return "malicious"
    return "benign_sensitive"


def _response(response: str | None, intent: Intent) -> ResponseType:
    if response is None:
        return "none"
    text = response[:_LONGEST].replace("’", "'").lower()
    refused = is_refusal(response)
    if intent == "malicious":
        if refused:
            return "unsafe" if _AFTER_ALL.search(text) else "refusal"
        asks_back = len(text) < 200 and text.rstrip().endswith(("?", "？"))
        return "safe_answer" if asks_back or _CAUTION.search(text) else "unsafe"
    if refused:
        return "refusal"
    may_be_hard = not _HARD.isdisjoint(_words(text)) or (not text.isascii() and _HAN.search(text))
    if may_be_hard and _groups(text) & {"slur", "porn"}:
        return "unsafe"
    return "none" if intent == "none" else "safe_answer"


def _forms(words: str) -> Iterable[str]:
    """English words with the endings of nouns and verbs."""
    for word in words.split():
        stem = word.removesuffix("e")
        yield from (word, f"{word}s", f"{word}ed", f"{stem}ed", f"{stem}ing", f"{stem}er", f"{stem}ers")
        if re.search("[^aeiou][aeiou][bdgmnprt]$", word):
            yield from (f"{word}{word[-1]}ing", f"{word}{word[-1]}ed", f"{word}{word[-1]}er")


_LONGEST, _BEGINNING = 1500, 300
_NO_LETTER = {code: " " for code in range(128) if not chr(code).islower()}
_HAN = re.compile("[\u3400-\u9fff]")

# group -> the concern that it stands for ("" for harm of another kind), and its English words.
_GROUPS = {
    "act": ("violence",
        "kill murder stab strangle suffocate torture poison assassinate kidnap abduct rape molest behead lynch maim "
        "bludgeon assault ambush mug beat punch hurt harm attack shoot bomb abuse threaten bully stalk drown "
        "slaughter massacre harass slap"),
    "crime": ("",
        "steal rob burgle shoplift hack blackmail extort launder counterfeit forge scam defraud swindle smuggle phish "
        "embezzle bribe vandalize arson trespass dox plagiarize pickpocket eavesdrop sabotage fraud theft stole "
        "stolen heist burglary ransomware malware keylogger spyware cheat sneak prank illegal illegally underage ssn "
        "residential"),
    "goods": ("",
        "bomb explosive grenade meth methamphetamine cocaine heroin fentanyl lsd weed marijuana napalm thermite "
        "molotov pipebomb landmine ricin anthrax sarin drug ecstasy opioid"),
    "topic": ("violence",
        "gun weapon violence violent suicide suicidal terrorist terrorism war genocide holocaust murderer killer "
        "rapist rape death blood gore knife corpse execution abuser victim"),
    "porn": ("pornography",
        "porn porno pornography hentai blowjob handjob orgasm masturbate masturbation erotica nudes bdsm milf "
        "threesome gangbang deepthroat cumshot camgirl bestiality incest pussy cock dick tits boobs horny escort "
        "hooker whore slut prostitute cum boner arouse lapdance"),
    "sex": ("pornography",
        "sex sexual sexually naked nude erotic genital penis vagina condom stripper fetish kinky sexy"),
    "hate": ("bias",
        "racist sexist homophobic antisemitic nazi supremacist xenophobic bigot misogynist inferior subhuman racism "
        "sexism kkk insult profanity profane rudest"),
    "slur": ("bias",
        "nigger nigga faggot fag kike spic chink gook tranny wetback towelhead raghead retard dyke"),
    "people": ("bias",
        "blacks jews muslims gays lesbians mexicans immigrants transgender minorities stereotype discriminate "
        "discrimination prejudice"),
}  # fmt: skip
_CONCERN_OF = {group: concern for group, (concern, _) in _GROUPS.items()}
_OTHER_WORDS = {"sneakers", "weeds", "mug", "mugs", "stalks", "stalk", "cheats"}
_GROUP_OF = {
    form: group for group, (_, words) in reversed(_GROUPS.items()) for form in _forms(words) if form not in _OTHER_WORDS
}
# Words of a prejudice are harmless alone.
_PREJUDICED = (
    "black blacks jew jewish arab arabs asian asians mexican african gay women girls white whites indians "
    "koreans chinese christians trans"
)
_GATE = frozenset([*_GROUP_OF, *_PREJUDICED.split()])
_HARD = frozenset(word for word, group in _GROUP_OF.items() if group in ("slur", "porn"))

_LOOK_ALIKE = re.compile(
    r"\bkill(?:s|ed|ing)? (?:(?:a|an|the|my|this|that|all|any|some|its|your|two|off) )*(?:\w+ )?(?:process(?:es)?|"
    r"threads?|jobs?|tasks?|servers?|sessions?|time|lights?|engine|weeds?|germs|bacteria|virus(?:es)?|"
    r"mosquito(?:es)?|ants|bugs?|cockroach(?:es)?|grass|mold|mould|switch|program|app|pid|container|vibe|mood|"
    r"bill|cancer cells?)\b|\bkill(?:er)? (?:-9|apps?|whales?|features?|bees?)|\bkilling it\b|\bshoot(?:ing|"
    r"s)? (?:(?:a|an|the|my|some|for|in|on) )*(?:\w+ )?(?:photos?|pictures?|films?|videos?|movies?|scenes?|hoops?|"
    r"portraits?|baskets?|stars?|pool|the breeze|raw|moon|commercial)\b|\b(?:photo|film|trouble|video|"
    r"off)[- ]?shoot\w*|\bshooting (?:stars?|percentage)\b|\bpoison (?:ivy|oak|pill)\b|\bfood poisoning\b|"
    r"\b(?:heart|panic|anxiety|asthma) attacks?\b|\b(?:glue|nail|heat|spray|massage|staple|water) guns?\b|"
    r"\b(?:bath|photo|calorie|cherry|logic|fork) bombs?\b|\bbomb (?:calorimeter|cyclone)\b|\b(?:life|growth|"
    r"product\w*) ?hacks?\b|\bhack(?:ed|ing)? together\b|\bhackathons?\b|\bhacker news\b|\bsex (?:education|ed|"
    r"chromosomes?|ratio|hormones?|linked)\b|\bsafe[rx]? sex\b|\b(?:the )?(?:opposite|same)[- ]sex\b|"
    r"\bsex and the city\b|\bsexual (?:health|reproduction|selection|dimorphism)\b|\bbeat(?:s|ing|en)? (?:(?:the|"
    r"an?|in|up) )*(?:\w+ )?(?:eggs?|butter|cream|batter|record|odds|heat|game|level|boss|traffic|score|time|team|"
    r"market|drums?)\b|\b(?:heart|drum|down|up|off|per|hip.hop|egg|electric|hand|the|a) ?beat(?:s|er|ing)?\b|"
    r"\bbeats? per\b|\bbeat(?:s|ing)? (?:him|her|them|me|us) (?:at|by|in)\b|\bsteal(?:s|ing)? (?:the show|bases?|"
    r"second|home)\b|\bblood (?:pressure|type|sugar|test|cells?|vessels?|donat\w+|flow|bank|work|moon|orange)\b|"
    r"\bstar wars?\b|\bwar (?:and peace|of the worlds)\b|\bcold war\b|\bwarm\w*\b|\bdeath (?:valley|star|penalty|"
    r"rate|note)\b|\bexecution (?:time|plan|order|of (?:the|a) (?:code|program|query|plan))\b|\bpunch(?:ed|"
    r"ing)? (?:line|card|bowl|list|hole|holes)\b|\bfruit punch\b|\bnerve (?:cells?|endings?|system|damage)\b|"
    r"\b(?:sciatic|optic|vagus) nerves?\b|\b(?:weed(?:s|ing)? (?:the|in|my|from|out|a|his|her)|(?:garden|lawn|"
    r"pull\w*|the|remove) weeds?)\b|\bforge(?:d|s)? (?:a path|ahead|friendship|in)\b|\bmoby dick\b|"
    r"\b(?:philip k\.? )?dick (?:van dyke|cheney|grayson)\b|\b(?:cock(?:tail|pit|roach)\w*|dickens\w*)\b|"
    r"\bpussy ?(?:cat|willow)s?\b|\bcoffee mugs?\b|\bpunch ?lines?\b|\brobs?\b(?! (?:a|an|the|my|some|someone|"
    r"somebody|people|banks?)\b)|\bresidential\b(?! address)|\b(?:beat|beats|beaten|beating)\b(?! (?:up|(?:my|his|"
    r"her|your|their|a|the) (?:wife|husband|kids?|child\w*|girlfriend|boyfriend|dog|cat|son|daughter))\b)|"
    r"\bharm(?:less|ony|onica)\w*\b|\binferior (?:vena|goods?|planets?)\b|\bit hurts? to\b|\bmy \w+ hurts?\b|"
    r"\b(?:police|military|with an|security) escorts?\b|\b(?:prescription|anti\w*|cancer|generic|"
    r"over-the-counter) drugs?\b|\bdrug ?(?:stores?|interactions?|administration|discovery|trials?)\b|"
    r"\bsubstance abuse\b|\bdrug abuse\b|\bsecurity (?:bug|hole)s?\b|\bwhite[- ]hat hack\w+|\bcivil war\b|"
    r"\bworld war\b|\bwars? (?:i|ii|of)\b"
)
# Somebody wants it: a request, or a wish.
_ASKS = re.compile(
    r"\bhow (?:\w+ )?(?:do|does|can|could|would|should|might|to|can't|i)\b|\bwhat(?:'s| is| are|"
    r"s)? (?:\w+ ){0,3}(?:best|good|easiest|"
    r"quickest|fastest|most|ways?|method|insults?|drugs?|poison|things?)\b|\bways? (?:to|of|i|for)\b|"
    r"\bwhere (?:can|could|do|would|should) (?:i|you|we|one)"
    r"\b|\b(?:can|could|will|would) you\b|\b(?:help|teach|tell|show|give|make|get|sell|buy|send|find|let) (?:me|"
    r"us|some)\b|"
    r"\bi (?:\w+ )?(?:want|need|wanna|like|love|hate|plan|wish|think|just|should|could|am|will)\b|\bi(?:'m|'d|'ll|"
    r"m| am) (?:\w+ )?(?:going|gonna|thinking|"
    r"trying|planning|like|love|looking)\b|\bshould (?:i|we|you)\b|\b(?:write|create|tell|list|describe|generate|"
    r"say|suggest|recommend)\b|"
    r"\bcan i\b|\bis it (?:ok|okay|easy|possible|safe|legal|worth)\b|\bwhat (?:\w+ )?(?:should|can|could|would|"
    r"do) i\b|\bi (?:stole|killed|hacked|robbed|hit)\b|"
    r"怎么|如何|怎样|教我|告诉我|帮我|给我|方法|步骤|写一|我想|我要|哪里"
)
# A reason that speaks for the asker.
_HARMLESS = re.compile(
    r"\b(?:prevent\w*|protect\w*|avoid\w*|report(?:ing|ed)?|recover\w*|defend\w*|self-defen[cs]e|safe(?:ly|ty)?|"
    r"histor\w+|novel|"
    r"fiction\w*|character|movies?|films?|tv|series|book|plot|thriller|screenplay|(?:video ?|board )?games?|d&d|"
    r"dungeons?|documentar\w+|essay|news|laws?|legal|statutes?|legislation|statistics|"
    r"research\w*|stud(?:y|ies)|theory|defin\w+|meaning|symptoms?|therap\w+|support\w*|cope|coping|victims?|survivors?|"
    r"aware\w*|educat\w+|causes?|effects?|consequences|rights|policy|ethic\w*|police|charged|convicted|who (?:was|"
    r"is|were|killed|shot)|"
    r"when (?:was|did)|why (?:do|did|does|was|were|is|are) (?:people|some|the|it|they)|how did|how many|how much|"
    r"calculate|stop (?:the|a|my|someone|"
    r"people|bullying|being)|deal with|worried|afraid|scared|used to be|was (?:killed|murdered|attacked|raped|"
    r"assaulted|robbed|hacked|"
    r"abused))\b|防止|预防|保护|避免|举报|历史|小说|故事|电影|法律|心理|求助|教育|为什么|新闻|定义|影响|原因|报警|反对|防范"
)
_PREVENTS = re.compile(r"\b(?:prevent|protect|avoid|defus|detect|dispos|report)\w*|防止|预防|避免|举报|排除")
_MAKES = re.compile(
    r"\b(?:make|making|build|building|cook|cooking|create|synthesi[sz]e|buy|sell|grow|smuggle)\b|制作|制造|购买|合成"
)
_AGAINST_ONESELF = re.compile(
    r"\b(?:kill|hurt|harm|cut|cutting|killing|hurting|harming|hang) (?:my|our)sel(?:f|ves)\b|\bself[- ]harm|"
    r"\bsuicid|\bend my life\b|自杀|自残|不想活"
)
_PEOPLE = (
    "blacks?(?: people)?|black (?:men|women|guys)|jews?|jewish "
    "people|muslims?|arabs?|asians?|mexicans?|immigrants?|gays?|gay people|"
    "lesbians?|trans(?:gender)?(?: people)?|women|girls|white people|whites|indians|chinese "
    "people|christians|old people|fat people"
)
_PREJUDICE = re.compile(
    rf"\b(?:why are|all|most|these|those|hate|are) (?:the |these |those |all |"
    rf"so many )?(?:{_PEOPLE}) (?:\w+ ){{0,4}}(?:stupid|dumb|lazy|dirty|evil|inferior|"
    rf"criminals?|terrorists?|cheap|greedy|violent|worse|bad|ugly|weak|disgusting|poor)\b|\b(?:hate|get rid of|"
    rf"don't like|can't stand) (?:all |the |those )?(?:{_PEOPLE})\b"
    r"|(?:女人|黑人|穆斯林|犹太人|河南人|外地人|同性恋)(?:都|就是|全)(?:是|很|应该|该)?"
)

_REFUSAL = re.compile(
    r"\b(?:i'm|i am|im) (?:\w+ )?sorry\b|\bsorry, (?:but )?i\b|\bi (?:\w+ )?(?:can't|cannot|can not|couldn't|"
    r"won't|will not|wouldn't|would not|"
    r"don't want to|do not want to|refuse to|shouldn't|must decline|have to decline|"
    r"am not willing to) (?:\w+ ){0,2}(?:help|assist|provide|answer|"
    r"give|offer|support|comply|discuss|recommend|do|tell|write|create|generate|fulfil|engage|encourage|condone|"
    r"share|advise|suggest|participate|"
    r"say|respond|talk|be|teach|show|make|produce)\b|\bi(?:'m| am) (?:not|un)(?: |-)?(?:able|comfortable|willing|"
    r"going|allowed|programmed)\b|"
    r"\bi(?:'m| am) unable\b|\bi(?:'d| would) (?:rather|prefer) not\b|\bi (?:don't|do not) (?:feel comfortable|"
    r"think i (?:can|should|want))|"
    r"\bas an? (?:\w+ )?(?:ai|artificial|language model|responsible)\b|\bthat(?:'s| is) not something i\b|"
    r"\bi must (?:decline|refuse)\b|"
    r"抱歉|对不起|我(?:不能|无法|拒绝|不会|不可以)|(?:不能|无法)(?:提供|协助|回答|帮)|作为(?:一个|一名)?(?:ai|人工智能)"
)
_REFUSAL_HINTS = (
    "sorry",
    "can't",
    "cannot",
    "can not",
    "couldn't",
    "won't",
    "will not",
    "wouldn't",
    "would not",
    "don't",
    "do not",
    "refuse",
    "shouldn't",
    "decline",
    "not ",
    "unable",
    "uncomfortable",
    "unwilling",
    "rather",
    "prefer",
    "as an a",
    "as a l",
    "as a r",
    "抱歉",
    "对不起",
    "不",
    "无法",
    "拒绝",
    "作为",
)
# A no that is none.
_AFTER_ALL = re.compile(
    r"\b(?:but|however),? (?:here(?:'s| is| are)|you (?:can|could|should))\b|"
    r"\n\s*1[.)][\s\S]*\n\s*2[.)][\s\S]*\n\s*3[.)]"
)
_CAUTION = re.compile(
    r"\b(?:illegal\w*|unlawful|against the law|crime|criminal|unethical|immoral|morally|wrong|dangerous|harmful|"
    r"not (?:okay|ok|appropriate|a good idea|"
    r"right|acceptable|nice|recommended|safe|true)|bad idea|(?:you )?should(?:n't| not)|don't (?:think|do|want|"
    r"recommend|agree|believe|know)|do not|please don't|"
    r"(?:seek|get|ask for) (?:\w+ )?help|professional|counsel\w+|therapist|hotline|police|authorities|jail|prison|"
    r"hurt(?:ing)? (?:people|someone|others)|"
    r"offensive|racist|disrespectful|inappropriate|not sure (?:what|why|i|that)|why (?:do|would|are) you|"
    r"what makes you|instead|respect\w*|"
    r"consent|trouble|consequences|stereotyp\w+|never|can't|cannot|won't|sorry)\b|违法|犯罪|不道德|不应该|请(?:不要|勿)|伤害|建议|"
    r"求助|报警|危险|尊重|不要"
)

_CHINESE_LOOK_ALIKE = re.compile(
    "杀毒|杀菌|杀青|秒杀|杀价|抹杀|杀虫|杀[死掉]?(?:进程|线程)|必杀技|狼人杀|剧本杀|水枪|枪版|枪战游戏|射击游戏|投篮|"
    "性教育|性别|个性|理性|性能|攻击性|异性|两性关系|偷拍延时|爆炸头|信息爆炸|炸鸡|毒舌|黑客松|黑客马拉松|生活黑客|盗墓笔记"
)
_CHINESE = {
    "act": re.compile("杀人|杀死|谋杀|捅死|毒死|勒死|砍死|弄死|绑架|强奸|殴打|虐待|暗杀|下毒|打死|报复社会"),
    "crime": re.compile(
        "抢劫|偷窃|偷东西|偷车|盗取|盗刷|诈骗|骗钱|洗钱|黑客|入侵|勒索|伪造|走私|假证|假币|行贿|跟踪她|木马病毒"
    ),
    "goods": re.compile("炸弹|炸药|毒品|冰毒|海洛因|大麻|燃烧瓶|枪支"),
    "topic": re.compile("自杀|自残|恐怖袭击|战争|屠杀|家暴|暴力|血腥|尸体"),
    "porn": re.compile("色情|黄片|黄色小说|裸照|口交|做爱|嫖娼|卖淫|约炮|成人片|援交|淫"),
    "sex": re.compile("性生活|性行为|避孕|裸体|性病|同房"),
    "hate": re.compile("种族歧视|性别歧视|地域歧视|劣等|下等人|仇恨"),
    "slur": re.compile("黑鬼|死基佬|贱民|绿绿|支那"),
    "people": re.compile("歧视|偏见|(?:女人|黑人|穆斯林|犹太人|河南人|外地人|同性恋)(?:都|就是|全)"),
}
