"""How often the language of a text is found, and in what time.

    python -m tests.benchmarks.languages [--data ../shared/data] [--locales /usr/share/locale]

English: the real prompts. Others: the messages of programs of this machine, as their translators wrote them, of 25 to
120 characters; placeholders and options are taken out. No text is printed.
"""

import argparse
import gettext
import re
import time
from collections import Counter, defaultdict
from pathlib import Path

from components.data_prep.language import language_of
from tests.benchmarks.templates import prompts

SAME = {"nb": "no", "nn": "no", "bs": "hr"}
PROGRAMS = ("coreutils", "dpkg", "sed", "grep", "tar", "findutils", "git", "bash", "apt")
# Languages with millions of readers; the programs know a few that the model does not.
SCORED = (
    "ar bg bn ca cs da de el en es et fa fi fr he hi hr hu id it ja ko "
    "lt lv mr ms nl no pl pt ro ru sk sl sr sv ta th tr uk vi zh"
)


def messages(locales: Path) -> dict[str, list[str]]:
    """Language -> translated messages, at most 300."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for path in sorted(locales.glob("*/LC_MESSAGES/*.mo")):
        locale = path.parts[-3]
        code = re.split("[_@]", locale)[0]
        code = SAME.get(code, code)
        if path.stem not in PROGRAMS or "latin" in locale or code not in SCORED.split():
            continue
        with path.open("rb") as file:
            catalogue = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
        for source, translated in catalogue.items():
            text = re.sub(r"%[-\d$]*[a-z]+|[^\w\s',.?!;:()-]|--?[a-z-]+|[A-Z_]{4,}", "", str(translated))
            text = " ".join(text.split())
            if source and source != translated and 25 <= len(text) <= 120:
                found[code].append(text)
    return {code: texts[:: max(1, len(texts) // 300)][:300] for code, texts in found.items() if len(texts) >= 60}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[3] / "shared" / "data")
    parser.add_argument("--locales", type=Path, default=Path("/usr/share/locale"))
    arguments = parser.parse_args()
    language_of("Das Modell wird beim ersten Text geladen")
    english = {name: [prompt for prompt, _ in rows] for name, rows in prompts(arguments.data).items()}
    for name, texts in english.items():
        begin = time.perf_counter()
        counts = Counter(map(language_of, texts))
        took = (time.perf_counter() - begin) / len(texts) * 1e6
        print(f"{name}: en {counts['en']}, unsure {counts['']} of {len(texts)}; {took:.0f} µs a text")
    right = unsure = total = 0
    begin = time.perf_counter()
    for code, texts in messages(arguments.locales).items():
        counts = Counter(map(language_of, texts))
        right, unsure, total = right + counts[code], unsure + counts[""], total + len(texts)
        if counts[code] < 0.9 * len(texts):
            wrong = [(other, number) for other, number in counts.most_common(4) if other != code]
            print(f"  {code}: {counts[code]} of {len(texts)}, else {wrong}")
    took = (time.perf_counter() - begin) / max(1, total) * 1e6
    print(f"messages: {right} right, {unsure} unsure, {total - right - unsure} wrong of {total}; {took:.0f} µs a text")


if __name__ == "__main__":
    main()
