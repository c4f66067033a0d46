"""How text, pictures and roles are laid out as one string, and which parts of it are targets.

A layout is a list of pieces; the whole string is tokenised at once, so that ids are those of the released processor,
and a token is a target when it overlaps a target piece. Stages 1 and 2 are plain, stage 3 uses the chat template of
the released models: `role: content`, a blank line after the user, end-of-sentence after the assistant.
"""

from typing import NamedTuple

from janus_jax.data.images import BadRecord
from janus_jax.data.tokenizer import SPECIAL

CAPTION = "Describe the image in detail."
IMAGE, EOS = SPECIAL["image"], SPECIAL["eos"]


class Piece(NamedTuple):
    """A stretch of text, and whether its tokens are targets."""

    text: str
    target: bool = False


def plain_caption(caption, *, prompt=CAPTION):
    """Picture, fixed instruction, caption, end: the caption and the end are targets (Janus, section 3.2)."""
    return [Piece(IMAGE + prompt), Piece(caption + EOS, True)]


def plain_conversation(turns):
    """Turns without roles: pictures where they stand, the rest and the end are targets."""
    pieces = []
    for i, turn in enumerate(turns):
        for j, text in enumerate(turn["content"].split(IMAGE)):
            text = text.strip("\n")
            lead = " " if i and text and not j else ""
            pieces += [Piece(IMAGE)] * bool(j) + [Piece(lead + text, True)] * bool(text)
    return [*pieces, Piece(EOS, True)]


def plain_text(text):
    """A text and its end, all of it target."""
    return [Piece(text + EOS, True)]


def document(text):
    """A text with pictures in their places: all of the text and its end are targets."""
    pieces = []
    for i, words in enumerate(text.split(IMAGE)):
        pieces += [Piece(IMAGE)] * bool(i) + [Piece(words, True)] * bool(words)
    return [*pieces, Piece(EOS, True)]


def join(texts, images):
    """Texts and pictures that take turns, None where it is the other's -> one text with placeholders."""
    if len(texts) != len(images) or any((t is None) == (i is None) for t, i in zip(texts, images, strict=True)):
        raise BadRecord("texts and pictures do not take turns")
    return "".join(IMAGE if text is None else text for text in texts)


def conversation(turns, *, roles, system=""):
    """The chat template; assistant text and its end are targets.

    Args:
      turns: [{'role': 'user' | 'assistant', 'content': str}], alternating, the user first; an empty last assistant
        turn leaves the prompt open for an answer.
      roles: strings of user and assistant, ('User', 'Assistant') for Janus, ('<|User|>', '<|Assistant|>') for Pro.
      system: the system prompt, given only where pictures are understood.

    Raises:
      BadRecord: for other roles, or turns out of order: who speaks decides what is learnt.
    """
    pieces = [Piece(f"{system}\n\n")] if system else []
    if [turn["role"] for turn in turns] != [("user", "assistant")[i % 2] for i in range(len(turns))]:
        raise BadRecord("roles are not user, assistant, user, ...")
    for turn in turns:
        content = turn["content"].strip()
        if turn["role"] == "user":
            pieces.append(Piece(f"{roles[0]}: {content}\n\n"))
        elif content:
            pieces += [Piece(f"{roles[1]}:"), Piece(f" {content}{EOS}", True)]  # an open prompt ends at the colon
        else:
            pieces.append(Piece(f"{roles[1]}:"))
    return pieces


def drawing_prompt(prompt, *, roles=None):
    """What stands before a picture to draw: the bare prompt, or the chat template without a system prompt."""
    if roles is None:
        return [Piece(prompt)]
    return conversation([{"role": "user", "content": prompt}, {"role": "assistant", "content": ""}], roles=roles)
