"""janus_jax: trains models that understand and generate images.

Reading order, from records on disk to a checkpoint:

    data/pipeline.py        records to packed batches; imports sources, examples, packing
    batch.py                Example and Batch, the contract between data and model
    train/loop.py           sets a stage up, restores its state, trains, saves
    train_step.py           objective, gradients of the trainable part, update
    objectives/joint.py     the loss of the papers: text and images
    models/janus.py         the model, on top of llama.py and siglip.py
    generation/vq.py        how images are generated: code by code, or by flow.py
    train/at_checkpoint.py  what happens at every checkpoint
    checkpoint.py           saves state and data position together

configs/tiny.py has the numbers of a run, recipe/stage.py is the typed record of one training stage.

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
