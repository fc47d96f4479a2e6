"""Generated text for pre-training acorn: records, JSON, lists, tables and short dialogues.

    for text in documents(seed=0, n_characters=1_000_000): ...

Books hold almost no braces, colons at line starts, digits or turn markers. These documents do, and they show
the same facts in two forms (a record, then its JSON), which is what teaches a small model to copy.
Everything is drawn from the word lists below and from invented names: no instruction data, no task rows, and
no sentence of `examples/` or of a public data set (tests/scripts/test_acorn_text.py scans for 13-gram overlap).
"""

import json
import random
from collections.abc import Iterator

BOS, END = "<|begin|>", "<|end|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"

ONSETS = "b br c ch cl d dr f fl g gr h j k kr l m n p pl qu r s sh sk st t th tr v w z".split()
VOWELS = "a e i o u ai ea ee ia io oa ou".split()
CODAS = ["", "", "", "n", "r", "l", "s", "t", "m", "nd", "rk", "st", "x", "ck"]
COLOURS = "red blue green white black yellow brown grey golden silver dark pale crimson".split()
THINGS = (
    "lamp kettle boat clock coat table mirror ladder basket bell drum rope saddle violin compass lantern anvil "
    "barrel wagon bridge garden orchard harbour mill tower market library kitchen stable workshop island valley "
    "river forest meadow candle blanket bottle hammer needle pencil window chimney carpet wheel map feather"
).split()
FOODS = "bread cheese apples pears honey butter soup rice beans onions salt pepper tea coffee milk eggs plums nuts".split()
ANIMALS = "fox owl hare badger crow heron trout otter goose mule pony hound cat sparrow wolf bear deer hen".split()
TRADES = "baker smith miller tailor sailor teacher doctor farmer weaver mason carpenter printer potter cook clerk".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
QUALITIES = "old new small large heavy light broken clean quiet strong cheap rare plain round narrow tall".split()
VERBS = "bought sold found lost carried painted mended washed borrowed counted weighed packed opened hid".split()
FILLERS = (
    "in at on for with by from near under over after before about please and then of to into until as like than without "
    "put move take bring keep show let see me us them it that this those some any every another one two my your his her our"
).split()
PLACES = "north south east west".split()


def invented_word(random_: random.Random) -> str:
    """A pronounceable word that probably stands in no text: forces copying instead of remembering."""
    parts = [random_.choice(ONSETS) + random_.choice(VOWELS) for _ in range(random_.randint(1, 3))]
    return "".join(parts) + random_.choice(CODAS)


def name(random_: random.Random) -> str:
    words = [invented_word(random_).capitalize() for _ in range(random_.choice([1, 1, 2, 2, 3]))]
    return " ".join(words)


def number(random_: random.Random) -> int:
    return random_.randint(0, 10 ** random_.randint(1, 6) - 1)


def code(random_: random.Random) -> str:
    letters = "".join(random_.choice("ABCDEFGHJKLMNPRSTUVWXYZ") for _ in range(random_.randint(1, 3)))
    return f"{letters}{random_.choice(['-', '', '/'])}{number(random_)}"


def phrase(random_: random.Random) -> str:
    form = random_.randrange(5)
    if form == 0:
        return f"{random_.choice(QUALITIES)} {random_.choice(COLOURS)} {random_.choice(THINGS)}"
    if form == 1:
        return f"the {random_.choice(THINGS)} of {name(random_)}"
    if form == 2:
        return f"{random_.choice(COLOURS)} {random_.choice(ANIMALS)}"
    if form == 3:
        return f"{random_.choice(THINGS)} and {random_.choice(THINGS)}"
    return random_.choice(THINGS)


def clock(random_: random.Random) -> str:
    return f"{random_.randint(0, 23)}:{random_.randint(0, 59):02d}"


def date(random_: random.Random) -> str:
    form = random_.randrange(3)
    day, month, year = random_.randint(1, 28), random_.randrange(12), random_.randint(1700, 2099)
    if form == 0:
        return f"{year}-{month + 1:02d}-{day:02d}"
    if form == 1:
        return f"{day} {MONTHS[month]} {year}"
    return f"{MONTHS[month]} {day}"


FIELDS = {
    "name": name, "owner": name, "town": name, "street": name, "captain": name, "title": phrase, "item": phrase,
    "colour": lambda r: r.choice(COLOURS), "animal": lambda r: r.choice(ANIMALS), "trade": lambda r: r.choice(TRADES),
    "food": lambda r: r.choice(FOODS), "day": lambda r: r.choice(DAYS), "month": lambda r: r.choice(MONTHS),
    "date": date, "time": clock, "price": number, "count": number, "weight": number, "page": number, "year": number,
    "code": code, "shelf": code, "open": lambda r: r.choice([True, False]), "note": phrase, "ship": name,
    "from": name, "to": name, "direction": lambda r: r.choice(PLACES), "state": lambda r: r.choice(QUALITIES),
}  # fmt: skip


def record(random_: random.Random, most: int = 6) -> dict[str, object]:
    keys = random_.sample(sorted(FIELDS), random_.randint(1, most))
    return {key: FIELDS[key](random_) for key in keys}


def as_json(value: object, random_: random.Random) -> str:
    if random_.random() < 0.25:
        return json.dumps(value, indent=2)
    return json.dumps(value)


def as_lines(row: dict[str, object]) -> str:
    return "\n".join(f"{key}: {value}" for key, value in row.items())


def as_words(row: dict[str, object], random_: random.Random) -> str:
    """The record as running text, in an order of its own; every value appears as it stands."""
    parts = [random_.choice(["{k} {v}", "the {k} is {v}", "{v} for the {k}", "{k}: {v}", "with {k} {v}", "{v}"])
             .format(k=key, v=value) for key, value in row.items()]  # fmt: skip
    random_.shuffle(parts)
    joined = random_.choice([", ", "; ", " and ", " "]).join(parts)
    return joined[0].upper() + joined[1:] + random_.choice([".", "", ".", " ..."])


def record_twice(random_: random.Random) -> str:
    """One record in two forms; a reader who has seen the first can write the second."""
    row = record(random_)
    forms = [as_lines(row), as_json(row, random_), as_words(row, random_), as_json(row, random_)]
    random_.shuffle(forms)
    kept = forms[: random_.choice([2, 2, 3])]
    return random_.choice(["\n", "\n\n", "\n---\n"]).join(kept)


def words_then_json(random_: random.Random) -> str:
    """A run of sentences, each followed by its record; the kind is constant within a document."""
    keys = random_.sample(sorted(FIELDS), random_.randint(2, 5))
    kind = invented_word(random_)
    lines = []
    for _ in range(random_.randint(1, 4)):
        kept = [key for key in keys if random_.random() < 0.8] or keys[:1]
        row = {key: FIELDS[key](random_) for key in kept}
        lines.append(as_words(row, random_))
        lines.append(json.dumps({"kind": kind, "fields": row} if random_.random() < 0.5 else row))
    return "\n".join(lines)


def framed(random_: random.Random) -> str:
    """Sentences of one make with other values, each followed by its record: which word stands before a value decides its key."""
    keys = random_.sample(sorted(FIELDS), random_.randint(1, 4))
    fillers = [" ".join(random_.choice(FILLERS) for _ in range(random_.randint(1, 3))) for _ in range(len(keys) + 1)]
    outer = random_.choice([None, None, (random_.choice(THINGS), invented_word(random_))])
    lower, named = random_.random() < 0.4, random_.random() < 0.5
    lines = []
    for _ in range(random_.randint(2, 6)):
        kept = [n for n in range(len(keys)) if random_.random() < 0.85] or [0]
        row = {keys[n]: FIELDS[keys[n]](random_) for n in kept}
        if lower:
            row = {key: value.lower() if isinstance(value, str) else value for key, value in row.items()}
        parts = [fillers[0]] + [f"{keys[n] + ' ' if named else ''}{row[keys[n]]} {fillers[n + 1]}" for n in kept]
        sentence = " ".join(parts) + random_.choice(["", ".", "?"])
        record_ = {outer[0]: outer[1], "fields": row} if outer else row
        lines.append((sentence if lower else sentence[0].upper() + sentence[1:]) + "\n" + json.dumps(record_))
    return random_.choice(["\n", "\n\n"]).join(lines)


def json_list(random_: random.Random) -> str:
    keys = random_.sample(sorted(FIELDS), random_.randint(1, 4))
    rows = [{key: FIELDS[key](random_) for key in keys} for _ in range(random_.randint(2, 6))]
    if random_.random() < 0.5:
        return "\n".join(json.dumps(row) for row in rows)
    return as_json({random_.choice(THINGS) + "s": rows}, random_)


def table(random_: random.Random) -> str:
    keys = random_.sample(sorted(FIELDS), random_.randint(2, 4))
    separator = random_.choice([",", "\t", " | ", ";"])
    rows = [[str(FIELDS[key](random_)) for key in keys] for _ in range(random_.randint(2, 8))]
    return "\n".join(separator.join(row) for row in [keys, *rows])


def bullet_list(random_: random.Random) -> str:
    bullet = random_.choice(["- ", "* ", "", "{n}. ", "{n}) "])
    items = [phrase(random_) for _ in range(random_.randint(3, 9))]
    lines = [bullet.format(n=n + 1) + item for n, item in enumerate(items)]
    if random_.random() < 0.4:  # the same list once more, sorted: copying again
        lines += ["", *(bullet.format(n=n + 1) + item for n, item in enumerate(sorted(items)))]
    return "\n".join([phrase(random_).capitalize() + ":", *lines])


def repeated(random_: random.Random) -> str:
    """A line of odd words, later quoted whole or in part."""
    words = [random_.choice([invented_word, name, code, phrase])(random_) for _ in range(random_.randint(3, 10))]
    line = " ".join(words)
    start = random_.randrange(len(words))
    part = " ".join(words[start : start + random_.randint(1, 4)])
    return random_.choice(['{l}\n"{l}"', '"{p}" stands in "{l}"', "{l}\n{p}\n{l}", '{l}\n{{"text": "{l}"}}']).format(l=line, p=part)


def small_talk(random_: random.Random) -> list[str]:
    who, thing, place, when = name(random_), phrase(random_), name(random_), random_.choice(DAYS)
    opening = random_.choice([
        f"Good morning, {who}. Have you seen the {thing}?", f"Where is the {thing}?", f"I {random_.choice(VERBS)} a {thing} on {when}.",
        f"Do you know {who}?", f"Tell me about {place}.", f"How many {random_.choice(FOODS)} are left?", f"My name is {who}.",
        f"What do you sell on {when}?", f"{who} is a {random_.choice(TRADES)} in {place}.", f"Is {place} far from here?",
    ])  # fmt: skip
    answer = random_.choice([
        f"Yes, {who} {random_.choice(VERBS)} it on {when}.", f"It is in {place}, behind the {random_.choice(THINGS)}.",
        f"The {thing}? No, I have not seen it.", f"{place} is a town to the {random_.choice(PLACES)}, known for its {random_.choice(FOODS)}.",
        f"{number(random_)} or so.", f"Good to meet you, {who}.", f"{random_.choice(FOODS).capitalize()} and {random_.choice(FOODS)}.",
        f"About {number(random_)} miles.", f"I think {who} is the {random_.choice(TRADES)}.", "I do not know.", f"{who}.", f"On {when}, at {clock(random_)}.",
    ])  # fmt: skip
    return [opening, answer]


def dialogue(random_: random.Random) -> str:
    """Two voices, in the marks of a chat or as in a play."""
    turns = [turn for _ in range(random_.randint(1, 3)) for turn in small_talk(random_)]
    if random_.random() < 0.25:
        one, two = name(random_), name(random_)
        return "\n".join(f"{one if n % 2 == 0 else two}: {turn}" for n, turn in enumerate(turns))
    marked = "".join((USER if n % 2 == 0 else ASSISTANT) + turn + END for n, turn in enumerate(turns))
    head = f"{SYSTEM}The place is {name(random_)}. It is {random_.choice(DAYS)}.{END}" if random_.random() < 0.3 else ""
    return head + marked


def marked_record(random_: random.Random) -> str:
    """A record between the marks of a chat, so that they have been seen beside braces."""
    row = record(random_, most=5)
    first, second = as_words(row, random_), json.dumps(row)
    if random_.random() < 0.3:
        first, second = second, first
    return f"{USER}{first}{END}{ASSISTANT}{second}{END}"


KINDS = [
    (record_twice, 4), (words_then_json, 4), (framed, 5), (json_list, 2), (table, 1), (bullet_list, 1),
    (repeated, 2), (dialogue, 3), (marked_record, 3),
]  # fmt: skip


def documents(seed: int, n_characters: int) -> Iterator[str]:
    """Documents whose lengths add up to at least `n_characters`; the same seed gives the same text."""
    random_ = random.Random(seed)
    makers, weights = zip(*KINDS, strict=True)
    made = 0
    while made < n_characters:
        text = random_.choices(makers, weights)[0](random_)
        made += len(text)
        yield text
