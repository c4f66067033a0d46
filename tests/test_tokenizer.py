"""The text tokenizer of a language model gets the special tokens that it lacks."""

from pathlib import Path

import pytest

from janus_jax.data import tokenizer as text_tokenizer
from janus_jax.data.tokenizer import PRO_ROLES, SPECIAL

LLM_TOKENIZER = (
    Path(__file__).parent.parent.parent / "shared/data/tokenizer_deepseek_llm/tokenizer.json"
)


@pytest.mark.skipif(not LLM_TOKENIZER.is_file(), reason="no tokenizer of DeepSeek-LLM")
def test_missing_special_tokens_are_added(data):
    tokenizer, added = text_tokenizer.complete(LLM_TOKENIZER)
    missing = [SPECIAL[name] for name in ("pad", "image", "boi", "eoi")]
    assert added == [*missing, *PRO_ROLES]
    assert tokenizer.size <= 102_400
    assert (tokenizer.bos, tokenizer.eos) == (100_000, 100_001)
    ids, spans = tokenizer.encode("Hello, how are you?")
    assert ids == [17464, 11, 946, 418, 340, 30]
    assert spans[0] == (0, 5)
    text = "Ein Fuchs \u72d0\u72f8 \U0001f98a, na\u00efve\n\n  tabs\tand 1234"
    assert tokenizer.decode(tokenizer.encode(text)[0]) == text
    assert tokenizer.encode("<image_placeholder>\n<|User|>: x")[0][0] == tokenizer.image
    other = text_tokenizer.load(data / "tokenizer.json")
    assert tokenizer.pad != other.pad  # ids are looked up by string
