"""janus_jax: trains models that understand and generate images.

Reading order, from records on disk to a checkpoint:

    configs/tiny.py                the numbers of a run
    janus_jax/recipe/stage.py      Stage: the typed record of one training stage
    janus_jax/data/pipeline.py     records to packed batches; imports sources, examples, packing
    janus_jax/batch.py             Example and Batch, the contract between data and model
    janus_jax/train/loop.py        sets a stage up, restores its state, trains, saves
    janus_jax/train_step.py        objective, gradients of the trainable part, update
    janus_jax/objectives/joint.py  the loss of the papers: text and images
    janus_jax/models/janus.py      the model, on top of generation/, llama.py and siglip.py
    janus_jax/checkpoint.py        saves state and data position together

Axis letters of docstrings; einsum and rearrange use the same letters in lower case:

    B  rows                           S  pack groups of a batch
    R  rows per group                 L  row length; query positions
    P  positions of a prompt, of keys, or of text targets
    J  cache positions after the prompt
    D  embedding width of the LLM     F  feature width of the understanding encoder
    N  query heads                    K  key and value heads
    H  head dim                       V  vocabulary or codebook size
    M  images                         T  tokens per image
    U  understanding image slots      G  generation image slots, both per group
    C  channels of feature maps       c  channels of latents
    h, w  height and width, in pixels or grid cells; h', w' at a lower resolution

In attention, lower-case g is the N / K query heads that share a key head, and l and p may be the
sizes of a block of query and key positions. Any other lower-case letter or word is explained where
it is used.
"""
