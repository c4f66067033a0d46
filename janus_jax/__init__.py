"""janus_jax: a trainer for models that understand pictures and draw them.

Reading order, one batch's way through the house:

    configs/tiny.py             the numbers of a run
    janus_jax/batch.py          Example and Batch, the contract between data and model
    janus_jax/data/             records on disk -> examples -> packed rows
    janus_jax/models/janus.py   the model: one page, the papers' figure
    janus_jax/generation/       what differs between ways of drawing
    janus_jax/train_step.py     loss -> gradients of the trainable part -> update
    janus_jax/train.py          set up, restore, loop, save

Axis letters, the same in docstrings and einsums:

    B rows            S pack groups          R rows per group     L row length
    D embed           N heads                K kv heads           H head dim
    F MLP             V vocab or codes       C channels           E layers of a stack
    M pictures        T tokens per picture   U, G understanding and generation pictures per group
    h, w pixels or grid cells
"""
