"""What each stage freezes, and why. How long and how fast a stage trains is choice and stands in its config.

    tokenizer   nothing: the stage's network is the generation tokenizer alone (small recipes that have none yet)
    1           the LLM, the understanding encoder and the tokenizer: adaptors and heads learn to speak to them
    2           the understanding encoder and the tokenizer: unified pretraining of everything else
    3           the tokenizer: supervised fine-tuning, the understanding encoder included

The pretrained understanding net is always `encoder` and the frozen generation net always `tokenizer`, so this table
serves every family (Janus, section 3.2; Janus-Pro, table 2).
"""

import re

from janus_jax.errors import UserError

TOKENIZER = "tokenizer"
IMPORTED = "imported"  # what `convert import` calls its checkpoints: no stage, but every stage may start from one
ORDER = (TOKENIZER, "stage_1", "stage_2", "stage_3")
FROZEN = {
    TOKENIZER: (),
    "stage_1": ("llm", "understanding/encoder", "generation/tokenizer"),
    "stage_2": ("understanding/encoder", "generation/tokenizer"),
    "stage_3": ("generation/tokenizer",),
}


def matching(patterns, paths, *, what=None):
    """Paths at or below any of the patterns, which are regular expressions of whole path parts.

    Args:
      patterns: 'llm', 'generation/(head|adaptor)', ...
      paths: parameter paths.
      what: names the table in errors, 'Freeze pattern' say; without it a pattern may match nothing.

    Returns:
      set of paths.

    Raises:
      UserError: for a pattern that matches nothing.
    """
    found = set()
    for pattern in patterns:
        hits = {p for p in paths if re.fullmatch(rf"(?:{pattern})(?:/.*)?", p)}
        if what and not hits:
            parts = sorted({"/".join(p.split("/")[:2]) for p in paths})
            raise UserError(f"{what} {pattern!r} matches no parameter. Parameters live under: {parts}.")
        found |= hits
    return found


def split(params, patterns):
    """Cuts a flat dict of parameters in two by freeze patterns: (trainable, frozen)."""
    frozen = matching(patterns, params, what="Freeze pattern")
    return {p: v for p, v in params.items() if p not in frozen}, {p: params[p] for p in sorted(frozen)}
