"""VQA accuracy: normalisation of answers, and their agreement with those of people."""

import re

# Contractions as the benchmark spells them; it maps spellings with one apostrophe missing to these.
CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've
mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't
shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's
something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've
they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've he'd
""".split()
SPELLINGS = {w[:i] + w[i + 1 :]: w for w in CONTRACTIONS for i, c in enumerate(w) if c == "'"}
SPELLINGS["somebody'd"] = "somebodyd"  # the benchmark's table has it in this direction
NUMBERS = {
    w: str(i) for i, w in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}
ARTICLES = ("a", "an", "the")
MARKS = ';/[]"{}()=+\\_-><@`,?!'


def normalise(text):
    """One spelling for answers that differ in punctuation, articles, number words or case.

    A punctuation mark is removed if the text has it next to a space, or has digits grouped by
    commas; otherwise it becomes a space.
    """
    has_grouped_digits = re.search(r"\d,\d", text)
    out = text
    for mark in MARKS:
        remove = has_grouped_digits or f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if remove else " ")
    out = re.sub(r"\.(?!\d)", "", out, count=32)  # the benchmark's own script stops after 32
    words = (NUMBERS.get(word, word) for word in out.lower().split())
    return " ".join(SPELLINGS.get(word, word) for word in words if word not in ARTICLES)


def agreement(answer, references):
    """Mean, over references left out in turn, of min(1, other references with this answer / 3)."""
    same = sum(r == answer for r in references)
    return sum(min(1, (same - (r == answer)) / 3) for r in references) / len(references)


def one_line(text):
    """A text without line breaks and tabs."""
    return re.sub(r"[\n\t]", " ", text).strip()


def vqa_accuracy(answer, references):
    """Soft accuracy of VQA's own script, which normalises answers only if references differ."""
    answer, *references = map(one_line, (answer, *references))
    if len(set(references)) > 1:
        answer, *references = map(normalise, (answer, *references))
    return agreement(answer, references)
