"""Name tables in both directions, and what is wrong with tables and files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.convert import name_map
from janus_jax.errors import UserError

EMBED = {"llm/embed": jax.ShapeDtypeStruct((4, 2), jnp.float32)}
STACKED = {"llm/layers/mlp/up/kernel": jax.ShapeDtypeStruct((2, 3, 5), jnp.float32)}
UP = name_map.line("blocks.{i}.up.weight", "llm/layers/{i}/mlp/up/kernel", name_map.LINEAR)


def test_every_form_is_inverted_exactly():
    rng = np.random.default_rng(0)
    forms = {  # form -> shape of the parameter, shape of the tensor
        "SAME": ((4, 2), (4, 2)),
        "FLAT": ((3, 8), (24,)),
        "ONE_ROW": ((9, 4), (1, 9, 4)),
        "ONE_CELL": ((6,), (1, 1, 1, 6)),
        "LINEAR": ((4, 3, 8), (24, 4)),
        "FROM_HEADS": ((3, 8, 4), (4, 24)),
        "CONV": ((3, 3, 4, 6), (6, 4, 3, 3)),
        "POINTWISE": ((1, 1, 4, 6), (6, 4)),
        "PATCH": ((2 * 2 * 3, 5), (5, 3, 2, 2)),
    }
    for name, (param_shape, tensor_shape) in forms.items():
        form = getattr(name_map, name)
        param = rng.normal(size=param_shape)
        tensor = form.to_tensor(param)
        assert tensor.shape == tensor_shape, name
        np.testing.assert_array_equal(form.to_param(tensor, param_shape), param, err_msg=name)


def test_a_parameter_must_match_one_line():
    embed = name_map.line("a.weight", "llm/embed")
    with pytest.raises(UserError, match="llm/embed matches 0 lines of the odd"):
        name_map.expand([], EMBED, layout="odd")
    with pytest.raises(UserError, match="llm/embed matches 2 lines"):
        name_map.expand([embed, name_map.line("b.weight", "llm/embed")], EMBED, layout="odd")
    both = EMBED | {"llm/norm/scale": jax.ShapeDtypeStruct((2,), jnp.float32)}
    with pytest.raises(UserError, match="llm/norm/scale and llm/embed"):
        table = [embed, name_map.line("a.weight", "llm/norm/scale")]
        name_map.expand(table, both, layout="odd")
    fused = name_map.line("qkv.weight", ("llm/embed", "llm/other"))
    with pytest.raises(UserError, match="qkv.weight .* llm/other"):
        name_map.expand([fused], EMBED, layout="odd")


def test_every_difference_between_table_and_files_is_named():
    table = [name_map.line(name, f"llm/{name}") for name in "abcd"]
    abstract = {f"llm/{name}": jax.ShapeDtypeStruct((4, 2), jnp.float32) for name in "abcd"}
    tensors = name_map.expand(table, abstract, layout="odd")
    good = {name: ((4, 2), "float16") for name in "abcd"}
    name_map.check(tensors, good, optional={}, layout="odd", source="x")
    name_map.check(
        tensors, good | {"z": ((3,), "I8")}, optional={"z": None}, layout="odd", source="x"
    )
    stored = good | {"b": ((3, 2), "float32"), "c": ((4, 2), "I32"), "surprise": ((1,), "float32")}
    del stored["d"]
    with pytest.raises(UserError) as error:
        name_map.check(tensors, stored, optional={}, layout="odd", source="DIR")
    for part in (
        "DIR",
        "odd",
        "1 tensor (d)",
        "1 tensor (surprise)",
        "b of shape (3, 2)",
        "c of dtype I32",
    ):
        assert part in str(error.value), part


def test_parameters_are_stacked_and_taken_apart():
    tensors = name_map.expand([UP], STACKED, layout="odd")
    param = np.arange(30, dtype=np.float32).reshape(2, 3, 5)
    load = lambda paths: {path: param for path in paths}
    files = dict(name_map.to_tensors(load, tensors))
    assert {name: a.shape for name, a in files.items()} == {
        "blocks.0.up.weight": (5, 3),
        "blocks.1.up.weight": (5, 3),
    }
    ((path, again),) = name_map.to_params(files.get, tensors, STACKED)
    np.testing.assert_array_equal(again, param)
    files["blocks.1.up.weight"] = files["blocks.1.up.weight"].astype(np.float16)
    with pytest.raises(UserError, match=f"blocks.1.up.weight is float16.*{path}"):
        list(name_map.to_params(files.get, tensors, STACKED))
