"""What each stage freezes, and why; and the path patterns that freezing and learning rates are
written in.

    tokenizer   nothing: the stage's network is the generation tokenizer alone (small recipes that
      have none yet)
    stage_1     the LLM, the understanding encoder and the tokenizer: adaptors and heads learn to
      connect them
    stage_2     the understanding encoder and the tokenizer: unified pretraining of everything else
    stage_3     the tokenizer: supervised fine-tuning, the understanding encoder included
    stage_4...  as stage_3, unless the config says otherwise

The pretrained understanding net is always `encoder` and the frozen generation net always
`tokenizer`, so this table serves every family (Janus, section 3.2; Janus-Pro, table 2).
"""

import re

from janus_jax.errors import UserError

TOKENIZER = "tokenizer"
# The stage of checkpoints that `convert import` writes: any stage may start from them
IMPORTED = "imported"
FROZEN = {
    TOKENIZER: (),
    "stage_1": ("llm", "understanding/encoder", "generation/tokenizer"),
    "stage_2": ("understanding/encoder", "generation/tokenizer"),
    "stage_3": ("generation/tokenizer",),
}


def stage_number(name):
    """Position of a stage in a recipe: 0 for `tokenizer`, N for `stage_N`, -1 for an imported
    checkpoint.

    Raises:
      UserError: for any other name.
    """
    if name == IMPORTED:
        return -1
    if name == TOKENIZER:
        return 0
    if not (match := re.fullmatch(r"stage_([1-9]\d*)", name)):
        raise UserError(
            f"config.stages has {name!r}; a stage is named 'tokenizer' or 'stage_1', 'stage_2', ..."
        )
    return int(match[1])


def default_frozen(name):
    """Freeze patterns of a stage whose config has none of its own."""
    return FROZEN.get(name, FROZEN["stage_3"])


def matching(patterns, paths, *, what=None):
    """Paths at or below any of the patterns, which are regular expressions of whole path parts.

    Args:
      patterns: 'llm', 'generation/(head|adaptor)', ...
      paths: parameter paths.
      what: names the table in errors, such as 'Freeze pattern'; None allows a pattern that matches
        nothing.

    Returns:
      set of paths.

    Raises:
      UserError: for a pattern that matches nothing.
    """
    matches = set()
    for pattern in patterns:
        hits = {p for p in paths if re.fullmatch(rf"(?:{pattern})(?:/.*)?", p)}
        if what and not hits:
            parts = sorted({"/".join(p.split("/")[:2]) for p in paths})
            raise UserError(
                f"{what} {pattern!r} matches no parameter. Parameters live under: {parts}."
            )
        matches |= hits
    return matches


def split(params, patterns):
    """Splits a flat dict of parameters by freeze patterns: (trainable, frozen)."""
    frozen = matching(patterns, params, what="Freeze pattern")
    trainable = {path: value for path, value in params.items() if path not in frozen}
    return trainable, {path: params[path] for path in sorted(frozen)}
