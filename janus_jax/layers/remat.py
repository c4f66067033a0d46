"""Rematerialisation policies: what a scanned stack of blocks stores for its backward pass.

none      everything; the fastest, if memory suffices
dots      the products with weights; the rest is recomputed
block     only the input of every block
offload   as block, with the inputs in host memory
"""

import jax

from janus_jax.errors import UserError

BLOCK_INPUT = "block_input"  # `checkpoint_name` of a block's input
POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "block": jax.checkpoint_policies.nothing_saveable,
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[BLOCK_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def check_policy(policy):
    """Returns the name of a policy.

    Raises:
      UserError: for an unknown name.
    """
    if policy not in ("none", *POLICIES):
        raise UserError(f"A model's `remat` is {policy!r}; known: {['none', *POLICIES]}.")
    return policy


def rematerialise(body, policy):
    """The body of a scan over blocks, rematerialised under a policy of this module."""
    if policy == "none":
        return body
    return jax.checkpoint(body, prevent_cse=False, policy=POLICIES[policy])
