"""Layouts and targets, token by token."""

import numpy as np
import pytest

from janus_jax.data import tokenizer
from janus_jax.data.chat import IMAGE
from janus_jax.data.examples import ExampleMaker
from janus_jax.data.images import BadRecord
from janus_jax.shapes.world import encode_png

PICTURE = encode_png(np.full((32, 32, 3), 200, np.uint8))


@pytest.fixture(scope="module")
def tok(data):
    return tokenizer.load(data / "tokenizer.json")


def make(tok, record, task, *, template="plain", rng=None, **kw):
    settings = dict(und_tokens=4, gen_tokens=4, max_length=128, prompt_drop=0.0) | kw
    maker = ExampleMaker(tok, template=template, **settings)
    return maker(record, task=task, rng=rng or np.random.default_rng(0))


def targets(tok, e):
    """The text of the tokens that are targets, EOS as '$'."""
    ids = [t for t, w in zip(e.tokens[1:], e.text_weights[:-1], strict=True) if w]
    return tok.decode([i for i in ids if i != tok.eos]) + "$" * ids.count(tok.eos)


def test_captions_exclude_the_instruction(tok):
    e = make(tok, {"image": PICTURE, "caption": "a red star."}, "understanding")
    assert e.tokens[:7].tolist() == [tok.bos, tok.boi, *[tok.image] * 4, tok.eoi] and e.und_starts == (2,)
    assert targets(tok, e) == "a red star.$"


def test_plain_questions_are_targets_and_chat_only_trains_answers(tok):
    record = {"image": PICTURE, "question": "What shape?", "answer": "star"}
    assert targets(tok, make(tok, record, "understanding")) == "What shape? star$"
    assert targets(tok, make(tok, record, "understanding", template="chat")) == " star$"


def test_text_is_all_target(tok):
    e = make(tok, {"text": "one red star."}, "text")
    assert e.tokens[0] == tok.bos and e.tokens[-1] == tok.eos and targets(tok, e) == "one red star.$"


def test_drawing_ends_with_codes_and_has_no_text_target(tok):
    e = make(tok, {"image": PICTURE, "prompt": "a red star"}, "generation")
    assert e.tokens[-5:].tolist() == [tok.boi] + [tok.image] * 4
    assert e.gen_starts == (len(e.tokens) - 4,) and not e.text_weights.any()


def test_prompt_drop_pads_what_stands_between_bos_and_boi(tok):
    record = {"image": PICTURE, "prompt": "a red star"}
    kept, dropped = make(tok, record, "generation"), make(tok, record, "generation", prompt_drop=1.0)
    assert len(kept.tokens) == len(dropped.tokens)
    assert dropped.tokens[0] == tok.bos and set(dropped.tokens[1:-5].tolist()) == {tok.pad}
    assert dropped.tokens[-5:].tolist() == kept.tokens[-5:].tolist()


def test_several_turns_and_pictures(tok):
    turns = [
        ("user", "<image_placeholder>\n<image_placeholder>\nSame?"),
        ("assistant", "no"),
        ("user", "Why?"),
        ("assistant", "size"),
    ]
    record = {"images": [PICTURE, PICTURE], "conversation": [{"role": r, "content": c} for r, c in turns]}
    e = make(tok, record, "understanding", template="chat")
    assert len(e.und_starts) == 2 and targets(tok, e) == " no size$$"


@pytest.mark.parametrize(
    ("record", "task", "reason"),
    [
        ({"image": b"x", "prompt": "a"}, "generation", "undecodable picture"),
        ({"prompt": "a"}, "generation", "no field 'image'"),
        ({"image": PICTURE, "prompt": " "}, "generation", "empty 'prompt'"),
        ({"text": b"\xff\xfe"}, "text", "text is not UTF-8"),
        ({"image": encode_png(np.zeros((1, 999, 3), np.uint8)), "prompt": "a"}, "generation", "long and thin"),
        ({"image": None, "codes": None, "prompt": "a"}, "generation", "no field 'image'"),
        ({"images": [PICTURE], "conversation": [{"role": "user", "content": "hi"}]}, "understanding", "differ in number"),
    ],
)
def test_bad_records_say_why(tok, record, task, reason):
    with pytest.raises(BadRecord, match=reason):
        make(tok, record, task)


@pytest.mark.parametrize("roles", [("human", "gpt"), ("assistant", "user"), ("user", "user")])
def test_who_speaks_must_be_known(tok, roles):
    conversation = [{"role": role, "content": "hello"} for role in roles]
    with pytest.raises(BadRecord, match="roles are not user, assistant"):
        make(tok, {"conversation": conversation}, "text", template="chat")


def test_one_of_several_captions_is_drawn(tok):
    record = {"image": PICTURE, "caption": ["one", "two", "three"], "prompt": ["one", "two", "three"]}
    for task in ("understanding", "generation"):
        draws = [make(tok, record, task, rng=np.random.default_rng(k)) for k in range(40)]
        assert len({tok.decode(e.tokens) for e in draws}) == 3


def test_a_document_keeps_its_pictures_in_their_places(tok):
    one = make(tok, {"images": [PICTURE] * 3, "text": f"First {IMAGE} then {IMAGE}{IMAGE} the end."}, "understanding")
    turns = {
        "images": [None, PICTURE, None, PICTURE, PICTURE, None],
        "texts": ["First ", None, " then ", None, None, " the end."],
    }
    other = make(tok, turns, "understanding")
    np.testing.assert_array_equal(one.tokens, other.tokens)
    assert len(one.und_images) == len(one.und_starts) == 3 and one.tokens[-1] == tok.eos
    wanted = one.tokens[1:][one.text_weights[:-1] > 0]
    assert not {tok.boi, tok.image, tok.eoi} & set(wanted.tolist())
    assert targets(tok, one) == "First  then  the end.$"
    with pytest.raises(BadRecord, match="do not take turns"):
        make(tok, {"images": [PICTURE, None], "texts": ["a", None]}, "understanding")


def test_ids_alone_are_those_with_spans(tok):
    for text in ("a red star", "  two\n\nlines ", "狐狸 naïve 🦊", f"before{IMAGE}after", ""):
        assert tok.ids(text) == tok.encode(text)[0]


@pytest.mark.parametrize("template", ["plain", "chat"])
@pytest.mark.parametrize("as_bytes", [False, True])
def test_texts_come_as_they_may_and_lose_nothing_but_their_ends(tok, template, as_bytes):
    """Text files begin with a mark of their bytes and end in a newline; TFDS and tar files give bytes."""
    text = lambda t: t.encode("utf-8-sig") + b"\n" if as_bytes else f"{t}\n"
    plain = make(tok, {"image": PICTURE, "prompt": "a red star"}, "generation", template=template)
    record = {"image": PICTURE, "prompt": text("a red star. It shines."), "prompt_short": text("a red star")}
    short = make(tok, record, "generation", template=template, first_sentence=1.0)
    np.testing.assert_array_equal(short.tokens, plain.tokens)
    turns = lambda f: [
        {"role": f("user").strip(), "content": f("Hello")},
        {"role": f("assistant").strip(), "content": f("Hi")},
    ]
    one, other = (make(tok, {"conversation": turns(f)}, "text", template="chat") for f in (text, str))
    np.testing.assert_array_equal(one.tokens, other.tokens)
    one, other = (make(tok, {"image": PICTURE, "caption": f("红色的星")}, "understanding") for f in (text, str))
    np.testing.assert_array_equal(one.tokens, other.tokens)
    with pytest.raises(BadRecord, match="text is not UTF-8"):
        make(tok, {"image": PICTURE, "prompt": "half a \ud83d"}, "generation")
