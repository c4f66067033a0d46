"""Text tokenizers: special tokens are found by their strings."""

import pytest

from janus_jax.data import tokenizer
from janus_jax.data.tokenizer import PRO_ROLES, SPECIAL
from tests.conftest import OFFICIAL_DATA

LLM_TOKENIZER = OFFICIAL_DATA / "tokenizer_deepseek_llm/tokenizer.json"


@pytest.mark.skipif(not LLM_TOKENIZER.is_file(), reason="no tokenizer of the language model")
def test_the_tokenizer_of_a_language_model_is_completed(data):
    completed, added = tokenizer.complete(LLM_TOKENIZER)
    missing = [SPECIAL[name] for name in ("pad", "image", "boi", "eoi")]
    assert added == [*missing, *PRO_ROLES] and completed.size <= 102_400
    assert (completed.bos, completed.eos) == (100_000, 100_001)
    ids, spans = completed.encode("Hello, how are you?")
    assert ids == [17464, 11, 946, 418, 340, 30] and spans[0] == (0, 5)
    text = "Ein Fuchs \u72d0\u72f8 \U0001f98a, na\u00efve\n\n  tabs\tand 1234"
    assert completed.decode(completed.encode(text)[0]) == text
    assert completed.encode("<image_placeholder>\n<|User|>: x")[0][0] == completed.image
    assert completed.pad != tokenizer.load(data / "tokenizer.json").pad
