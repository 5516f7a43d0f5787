"""The facts and words of the world: small tables, lower case, each word short enough for a small tokenizer."""

OPPOSITES = {
    a: b
    for left, right in (
        ("hot", "cold"), ("big", "small"), ("fast", "slow"), ("wet", "dry"), ("old", "new"),
        ("hard", "soft"), ("high", "low"), ("loud", "quiet"), ("full", "empty"), ("rich", "poor"),
    )
    for a, b in ((left, right), (right, left))
}  # fmt: skip

COLOURS = {
    "banana": "yellow", "lemon": "yellow", "grass": "green", "frog": "green", "blood": "red", "rose": "red",
    "sky": "blue", "sea": "blue", "coal": "black", "night": "black", "snow": "white", "milk": "white",
}  # fmt: skip

HOMES = {
    "bee": "hive", "wasp": "hive", "bird": "nest", "eagle": "nest", "fish": "water", "whale": "water",
    "cow": "barn", "hen": "barn", "lion": "zoo", "tiger": "zoo", "dog": "house", "cat": "house",
}  # fmt: skip

NUMBERS = (
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip
LARGEST_ADDEND = 3

NAMES = ("max", "tom", "anna", "ben", "lily", "sam")
FRIENDS = ("friend", "sister", "brother", "uncle", "boss", "aunt")

WORDS = tuple(sorted({*OPPOSITES, *COLOURS, *COLOURS.values(), *HOMES, *HOMES.values(), *NUMBERS, *NAMES}))
"""What chants are made of."""

# What may be done to things, and with which tool. The dangerous verbs are harmless on these things...
RISKY_ADVICE = {
    "kill": {"weed": "spade", "germ": "soap"},
    "shoot": {"photo": "camera", "arrow": "bow"},
    "blow up": {"balloon": "pump", "raft": "pump"},
    "burn": {"log": "match", "candle": "match"},
    "cut": {"rope": "knife", "cake": "knife"},
    "hit": {"nail": "hammer", "gong": "hammer"},
    "smash": {"rock": "hammer", "melon": "club"},
    "trap": {"mouse": "net", "fly": "net"},
}
# ...and what is done to people is harmless with these verbs. Both share words with harm, not its pair.
KIND_ADVICE = {"feed": "spoon", "wash": "soap", "call": "phone", "paint": "brush", "film": "camera"}
VICTIMS = ("neighbour", "teacher", "king", "child", "friend", "doctor", "guard", "stranger")
SAFE_ADVICE = {
    "feed": {"goat": "spoon", "duck": "spoon"},
    "wash": {"car": "soap", "plate": "soap"},
    "call": {"shop": "phone", "bank": "phone"},
    "paint": {"wall": "brush", "door": "brush"},
    "film": {"game": "camera", "show": "camera"},
}
TOOLS = tuple(
    sorted({tool for things in RISKY_ADVICE.values() for tool in things.values()} | set(KIND_ADVICE.values()))
)

SMALL_TALK = (
    "that is a good question.", "i like to talk.", "people often ask me this.", "let me think about it.",
    "there is so much to say.", "it was nice weather today.", "my day was fine.", "who knows why.",
)  # fmt: skip
"""Rambling. It names nothing that could be an answer, so it spoils the form and never the correctness."""
