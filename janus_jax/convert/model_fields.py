"""Compares and merges descriptions of a model: nested dicts with fields of `config.model`."""

from janus_jax.errors import UserError


def flatten(tree, prefix=""):
    """Nested dicts as one dict with dotted names, {'llm.num_layers': 24}."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat = {}
    for name, subtree in tree.items():
        flat |= flatten(subtree, f"{prefix}.{name}".lstrip("."))
    return flat


def merge(model, other):
    """`model` with the fields of `other`, which take precedence."""
    if not isinstance(other, dict):
        return other
    return {**model, **{name: merge(model.get(name, {}), value) for name, value in other.items()}}


def differences(read, model, *, source):
    """One phrase for each field that differs.

    Args:
      read: the fields that a folder of weights describes.
      model: `config.model`.
      source: where `read` is from, 'in DIR'.

    Returns:
      list of strings.
    """
    fields = flatten(model)
    return [
        f"{name} is {value} {source} and {fields.get(name)} in the config"
        for name, value in flatten(read).items()
        if _comparable(value) != _comparable(fields.get(name))
    ]


def _comparable(value):
    return list(value) if isinstance(value, tuple) else value


def check_equal(read, model, *, source):
    """Raises UserError with every field in which a folder of weights differs from a config."""
    different = differences(read, model, source=source)
    if different:
        raise UserError(
            f"{'; '.join(different)}. Use the config of these weights, or change the fields with "
            "--config.model.FIELD=VALUE."
        )
