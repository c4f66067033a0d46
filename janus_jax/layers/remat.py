"""What a scanned stack of blocks keeps for its backward pass, by name.

none      everything: the fastest, where memory is plenty
dots      the products with weights; the rest is computed again
block     the input of every block alone
offload   as block, and the inputs wait in the host's memory
"""

import jax

from janus_jax.errors import UserError

BLOCK_INPUT = "block_input"  # what a block calls its input by `checkpoint_name`
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


def known(policy):
    """The name of a policy, or a UserError for one that the table lacks."""
    if policy not in ("none", *POLICIES):
        raise UserError(f"A model's `remat` is {policy!r}; known: {['none', *POLICIES]}.")
    return policy


def rematerialise(body, policy):
    """A scan's body under a policy of the table."""
    return body if policy == "none" else jax.checkpoint(body, prevent_cse=False, policy=POLICIES[policy])
