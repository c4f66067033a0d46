"""What is read from compiled programs: bytes that devices exchange, and large arrays."""

import jax
import jax.numpy as jnp

from janus_jax import hlo, sharding

TPU_PROGRAM = """HloModule step
%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %s = f32[] add(%a, %b)
}
%more (p: (s32[], bf16[4,8])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(24)
  ROOT %lt = pred[] compare(%g, %constant.1), direction=LT
}
%body (p: (s32[], /*index=1*/bf16[4,8])) -> (s32[], bf16[4,8]) {
  %all-gather.1 = bf16[4,8]{1,0:T(8,128)(2,1)} all-gather(%x), channel_id=1, dimensions={0}
  ROOT %t = (s32[], bf16[4,8]) tuple(%i, %all-gather.1)
}
%all-reduce-scatter.1 (p: bf16[8,8]) -> bf16[2,8] {
  %all-reduce.9 = bf16[8,8]{1,0} all-reduce(%p), channel_id=4, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %slice = bf16[2,8]{1,0} dynamic-slice(%all-reduce.9, %i, %zero)
}
%begun (p: bf16[1,6]) -> bf16[2,6] {
  ROOT %all-gather.2 = bf16[2,6]{1,0} all-gather(%p), channel_id=7, dimensions={0}
}
%ended (p: bf16[1,6]) -> bf16[2,6] {
  ROOT %all-gather.3 = bf16[2,6]{1,0} all-gather(%p), channel_id=7, dimensions={0}
}
ENTRY %main (x: bf16[1,8]) -> bf16[4,8] {
  %while.1 = (s32[]{:T(128)}, /*index=1*/bf16[4,8]{1,0:T(8,128)(2,1)}) while(%tuple.1), condition=%more, body=%body
  %all-reduce.2 = (f32[3], f32[5]) all-reduce(%a, %b), to_apply=%add
  %fusion.1 = bf16[2,8]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
  %scatter = f32[3]{0} reduce-scatter(%h), channel_id=5, replica_groups=mesh['a'=4,'b'=2] {'a','b'}, to_apply=%add
  %gather = (bf16[2,4], bf16[8,4], u32[]) all-gather-start(%k), channel_id=6, replica_groups=[2,4]<=[8], dimensions={0}
  %sent = ((f32[8], f32[4]), (f32[2], f32[1])) reduce-scatter-start(%a, %b), channel_id=8, replica_groups=[2,4]<=[8]
  %fusion.8 = bf16[2,6]{1,0} fusion(%k), kind=kCustom, calls=%begun
  %fusion.9 = bf16[2,6]{1,0} fusion(%fusion.8), kind=kCustom, calls=%ended
  ROOT %fusion.3 = bf16[4,8]{1,0} fusion(%w), kind=kLoop, calls=%add, metadata={op_name="jit(step)/out" id=1}
}
"""  # noqa: E501


def test_collectives_in_a_loop_count_once_per_iteration():
    mesh = sharding.make_mesh()
    place = lambda *axes: jax.NamedSharding(mesh, jax.P(*axes))
    x = jax.ShapeDtypeStruct((8, 128), jnp.float32, sharding=place("fsdp"))
    stack = jax.ShapeDtypeStruct((5, 128, 128), jnp.float32, sharding=place(None, "fsdp"))

    def run(x, stack):
        def body(x, kernel):
            return x @ jax.lax.with_sharding_constraint(
                kernel, place()
            ), None  # gathered in every iteration

        x, _ = jax.lax.scan(body, x, stack)
        return x, jax.lax.with_sharding_constraint(x.sum(0), place())

    text = jax.jit(run).lower(x, stack).compile().as_text()
    assert hlo.collectives(text) == {"all-gather": 5 * 128 * 128 * 4, "all-reduce": 2 * 128 * 4}
    assert hlo.largest(text, count=1)[0][:2] == (128 * 128 * 4, "f32[1,128,128]")


def test_a_tpu_program_is_read():
    assert hlo.collectives(TPU_PROGRAM) == {
        "all-gather": 24 * 4 * 8 * 2
        + 8 * 4 * 2
        + 2 * 6 * 2,  # in a loop, of two arrays, and in two steps
        "all-reduce": 2 * (3 + 5) * 4,
        "reduce-scatter": 8 * 8 * 2 + 8 * 3 * 4 + 4 * (2 + 1) * 4,
    }
    assert (4 * 8 * 2, "bf16[4,8]", "jit(step)/out") in hlo.largest(TPU_PROGRAM)
