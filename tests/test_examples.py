"""Layouts and targets, token by token."""

import numpy as np
import pytest

from janus_jax.data import tokenizer
from janus_jax.data.chat import IMAGE
from janus_jax.data.examples import Augmentation, ExampleMaker, ImageTokens, Template
from janus_jax.data.images import BadRecord, encode_png

IMAGE_BYTES = encode_png(np.full((32, 32, 3), 200, np.uint8))


@pytest.fixture(scope="module")
def tok(data):
    return tokenizer.load(data / "tokenizer.json")


def make(tok, record, task, *, template="plain", rng=None, prompt_drop=0.0, first_sentence=0.0):
    maker = ExampleMaker(
        tok,
        template=Template(template),
        image_tokens=ImageTokens(4, 4),
        augmentation=Augmentation(prompt_drop, first_sentence),
        max_length=128,
    )
    return maker(record, task=task, rng=rng or np.random.default_rng(0))


def targets(tok, e):
    """The text of the tokens that are targets, EOS as '$'."""
    ids = [t for t, w in zip(e.tokens[1:], e.text_weights[:-1], strict=True) if w]
    return tok.decode([i for i in ids if i != tok.eos]) + "$" * ids.count(tok.eos)


def test_captions_exclude_the_instruction(tok):
    e = make(tok, {"image": IMAGE_BYTES, "caption": "a red star."}, "understanding")
    assert e.tokens[:7].tolist() == [tok.bos, tok.boi, *[tok.image] * 4, tok.eoi]
    assert e.und_starts == (2,)
    assert targets(tok, e) == "a red star.$"


def test_plain_questions_are_targets_and_chat_only_trains_answers(tok):
    record = {"image": IMAGE_BYTES, "question": "What shape?", "answer": "star"}
    assert targets(tok, make(tok, record, "understanding")) == "What shape? star$"
    assert targets(tok, make(tok, record, "understanding", template="chat")) == " star$"


def test_text_is_all_target(tok):
    e = make(tok, {"text": "one red star."}, "text")
    assert e.tokens[0] == tok.bos and e.tokens[-1] == tok.eos
    assert targets(tok, e) == "one red star.$"


def test_generation_ends_with_codes_and_has_no_text_target(tok):
    e = make(tok, {"image": IMAGE_BYTES, "prompt": "a red star"}, "generation")
    assert e.tokens[-5:].tolist() == [tok.boi] + [tok.image] * 4
    assert e.gen_starts == (len(e.tokens) - 4,) and not e.text_weights.any()


def test_prompt_drop_pads_everything_between_bos_and_boi(tok):
    record = {"image": IMAGE_BYTES, "prompt": "a red star"}
    full = make(tok, record, "generation")
    dropped = make(tok, record, "generation", prompt_drop=1.0)
    assert len(full.tokens) == len(dropped.tokens)
    assert dropped.tokens[0] == tok.bos and set(dropped.tokens[1:-5].tolist()) == {tok.pad}
    assert dropped.tokens[-5:].tolist() == full.tokens[-5:].tolist()


def test_several_turns_and_images(tok):
    turns = [
        ("user", "<image_placeholder>\n<image_placeholder>\nSame?"),
        ("assistant", "no"),
        ("user", "Why?"),
        ("assistant", "size"),
    ]
    conversation = [{"role": role, "content": content} for role, content in turns]
    record = {"images": [IMAGE_BYTES, IMAGE_BYTES], "conversation": conversation}
    e = make(tok, record, "understanding", template="chat")
    assert len(e.und_starts) == 2 and targets(tok, e) == " no size$$"


def test_bad_records_say_why(tok):
    ribbon = encode_png(np.zeros((1, 999, 3), np.uint8))
    no_placeholder = [{"role": "user", "content": "hi"}]
    for record, task, reason in (
        ({"image": b"x", "prompt": "a"}, "generation", "undecodable"),
        ({"prompt": "a"}, "generation", "'image'"),
        ({"image": IMAGE_BYTES, "prompt": " "}, "generation", "empty 'prompt'"),
        ({"text": b"\xff\xfe"}, "text", "UTF-8"),
        ({"image": ribbon, "prompt": "a"}, "generation", "long and thin"),
        ({"image": None, "codes": None, "prompt": "a"}, "generation", "'image'"),
        (
            {"images": [IMAGE_BYTES], "conversation": no_placeholder},
            "understanding",
            "placeholders",
        ),
    ):
        with pytest.raises(BadRecord, match=reason):
            make(tok, record, task)


def test_roles_must_alternate_and_be_known(tok):
    for roles in (("human", "gpt"), ("assistant", "user"), ("user", "user")):
        conversation = [{"role": role, "content": "hello"} for role in roles]
        with pytest.raises(BadRecord, match="user, assistant"):
            make(tok, {"conversation": conversation}, "text", template="chat")


def test_one_of_several_captions_is_chosen(tok):
    texts = ["one", "two", "three"]
    record = {"image": IMAGE_BYTES, "caption": texts, "prompt": texts}
    for task in ("understanding", "generation"):
        examples = [make(tok, record, task, rng=np.random.default_rng(k)) for k in range(40)]
        assert len({tok.decode(e.tokens) for e in examples}) == 3


def test_the_images_of_a_document_are_at_their_placeholders(tok):
    text = f"First {IMAGE} then {IMAGE}{IMAGE} the end."
    one = make(tok, {"images": [IMAGE_BYTES] * 3, "text": text}, "understanding")
    interleaved = {
        "images": [None, IMAGE_BYTES, None, IMAGE_BYTES, IMAGE_BYTES, None],
        "texts": ["First ", None, " then ", None, None, " the end."],
    }
    other = make(tok, interleaved, "understanding")
    np.testing.assert_array_equal(one.tokens, other.tokens)
    assert len(one.und_images) == len(one.und_starts) == 3 and one.tokens[-1] == tok.eos
    target_ids = one.tokens[1:][one.text_weights[:-1] > 0]
    assert not {tok.boi, tok.image, tok.eoi} & set(target_ids.tolist())
    assert targets(tok, one) == "First  then  the end.$"
    with pytest.raises(BadRecord):
        make(tok, {"images": [IMAGE_BYTES, None], "texts": ["a", None]}, "understanding")


def test_ids_alone_are_those_with_spans(tok):
    for text in ("a red star", "  two\n\nlines ", "狐狸 naïve 🦊", f"before{IMAGE}after", ""):
        assert tok.ids(text) == tok.encode(text)[0]


@pytest.mark.parametrize("template", ["plain", "chat"])
@pytest.mark.parametrize("as_bytes", [False, True])
def test_texts_may_be_bytes_and_lose_only_their_last_newline(tok, template, as_bytes):
    """Text files may begin with a byte order mark and end in a newline; TFDS and tar give bytes."""
    text = lambda t: t.encode("utf-8-sig") + b"\n" if as_bytes else f"{t}\n"
    plain = make(
        tok, {"image": IMAGE_BYTES, "prompt": "a red star"}, "generation", template=template
    )
    record = {
        "image": IMAGE_BYTES,
        "prompt": text("a red star. It shines."),
        "prompt_short": text("a red star"),
    }
    short = make(tok, record, "generation", template=template, first_sentence=1.0)
    np.testing.assert_array_equal(short.tokens, plain.tokens)
    turns = lambda f: [
        {"role": f("user").strip(), "content": f("Hello")},
        {"role": f("assistant").strip(), "content": f("Hi")},
    ]
    make_text = lambda f: make(tok, {"conversation": turns(f)}, "text", template="chat")
    np.testing.assert_array_equal(make_text(text).tokens, make_text(str).tokens)
    caption = lambda f: {"image": IMAGE_BYTES, "caption": f("红色的星")}
    make_caption = lambda f: make(tok, caption(f), "understanding")
    np.testing.assert_array_equal(make_caption(text).tokens, make_caption(str).tokens)
    with pytest.raises(BadRecord, match="UTF-8"):
        make(tok, {"image": IMAGE_BYTES, "prompt": "half a \ud83d"}, "generation")
