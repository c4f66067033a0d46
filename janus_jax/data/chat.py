"""How text, images and roles are joined into one string, and which parts of it are targets.

A layout is a list of pieces. The whole string is tokenised at once, so that ids equal those of the
released processor, and a token is a target if it overlaps a target piece. Stages 1 and 2 are plain;
stage 3 uses the chat template of the released models: `role: content`, a blank line after the user,
end-of-sentence after the assistant.
"""

from typing import NamedTuple

from janus_jax.data.images import BadRecord
from janus_jax.data.tokenizer import SPECIAL

CAPTION = "Describe the image in detail."
IMAGE, EOS = SPECIAL["image"], SPECIAL["eos"]


class Piece(NamedTuple):
    """A part of the text, and whether its tokens are targets."""

    text: str
    target: bool = False


def plain_caption(caption, *, prompt=CAPTION):
    """Image, fixed instruction, caption, EOS: caption and EOS are targets (Janus, section 3.2)."""
    return [Piece(IMAGE + prompt), Piece(caption + EOS, True)]


def plain_conversation(turns):
    """Turns without roles: everything except images is target, with an EOS at the end."""
    pieces = []
    for i, turn in enumerate(turns):
        for j, text in enumerate(turn["content"].split(IMAGE)):
            text = text.strip("\n")
            if j:
                pieces.append(Piece(IMAGE))
            if text:
                separator = " " if i and not j else ""
                pieces.append(Piece(separator + text, True))
    return [*pieces, Piece(EOS, True)]


def plain_text(text):
    """A text and EOS, all of it target."""
    return [Piece(text + EOS, True)]


def document(text):
    """A text with image placeholders: all of the text and EOS are targets."""
    pieces = []
    for i, words in enumerate(text.split(IMAGE)):
        if i:
            pieces.append(Piece(IMAGE))
        if words:
            pieces.append(Piece(words, True))
    return [*pieces, Piece(EOS, True)]


def join(texts, images):
    """Interleaved lists -> one text with placeholders.

    Args:
      texts: list of str or None.
      images: list of the same length, None exactly where there is a text.

    Raises:
      BadRecord: for lists that are not interleaved like this.
    """
    if len(texts) != len(images) or any(
        (text is None) == (image is None) for text, image in zip(texts, images, strict=True)
    ):
        raise BadRecord("texts and images do not alternate")
    return "".join(IMAGE if text is None else text for text in texts)


def conversation(turns, *, roles, system=""):
    """The chat template; assistant text and its EOS are targets.

    Args:
      turns: [{'role': 'user' | 'assistant', 'content': str}], alternating, the user first. An empty
        last assistant turn ends the prompt where the answer begins.
      roles: names of user and assistant: ('User', 'Assistant') for Janus, ('<|User|>',
        '<|Assistant|>') for Pro.
      system: the system prompt, used only for conversations about images.

    Raises:
      BadRecord: for other roles or another order; roles decide what is trained.
    """
    pieces = [Piece(f"{system}\n\n")] if system else []
    if [turn["role"] for turn in turns] != [
        ("user", "assistant")[i % 2] for i in range(len(turns))
    ]:
        raise BadRecord("roles are not user, assistant, user, ...")
    for turn in turns:
        content = turn["content"].strip()
        if turn["role"] == "user":
            pieces.append(Piece(f"{roles[0]}: {content}\n\n"))
            continue
        pieces.append(Piece(f"{roles[1]}:"))
        if content:
            pieces.append(Piece(f" {content}{EOS}", True))
    return pieces


def generation_prompt(prompt, *, roles=None):
    """The prompt of an image to generate: bare, or in the chat template without a system prompt."""
    if roles is None:
        return [Piece(prompt)]
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": ""}]
    return conversation(turns, roles=roles)
