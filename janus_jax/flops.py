"""Useful FLOPs of a step, from the model's sizes and the statistics of a batch.

Counted are every network on real tokens and images, causal attention within each example, and the
heads on their targets; not counted are padding, empty image slots and recomputation. A product
[m, k] x [k, n] is 2 m k n FLOPs. The backward pass of a network costs twice its forward pass if it
trains, once if gradients only flow through it, and nothing if no gradient reaches it.
"""

# FLOPs of a step in units of the forward pass.
TRAINED = 3
CROSSED = 2  # frozen, but gradients flow through
FORWARD = 1  # no gradient


def transformer(
    *, tokens, attended, num_layers, embed_dim, mlp_dim, num_heads, num_kv_heads, gates
):
    """Forward FLOPs of a stack of blocks.

    Args:
      tokens: number of positions.
      attended: number of pairs of query and key.
      num_layers, embed_dim, mlp_dim, num_heads, num_kv_heads: the stack's sizes.
      gates: matrices of the MLP, 3 for SwiGLU and 2 for a plain one.
    """
    kv = embed_dim * num_kv_heads // num_heads
    weights = 2 * embed_dim * (embed_dim + kv) + gates * embed_dim * mlp_dim
    return num_layers * (2 * tokens * weights + 4 * attended * embed_dim)


def autoencoder(*, size, stem, widths, num_res_blocks, features, codes, attend, decoded=None):
    """Forward FLOPs of the encoder and decoder of `tokenizers.autoencoder`, for one image.

    Args:
      size: height and width in pixels.
      stem, widths, num_res_blocks, attend: as in `tokenizers.autoencoder.Encoder`.
      features: channels of the encoder's output.
      codes: channels after the 1x1 convolution that follows it.
      decoded: channels of the decoder's input; by default `features`.
    """
    lowest = size // 2 ** (len(widths) - 1)  # height and width at the coarsest level
    decoded = decoded or features

    def conv(side, i, o, window=3):
        return 2 * side * side * window * window * i * o

    def block(side, i, o):
        return conv(side, i, o) + conv(side, o, o) + (conv(side, i, o, 1) if i != o else 0)

    def middle(side, c):
        return 4 * conv(side, c, c, 1) + 4 * side**4 * c

    center = 2 * block(lowest, widths[-1], widths[-1]) + middle(lowest, widths[-1])
    encoder = conv(size, 3, stem) + center
    encoder += conv(lowest, widths[-1], features) + conv(lowest, features, codes, 1)
    decoder = conv(lowest, codes, decoded, 1) + conv(lowest, decoded, widths[-1])
    decoder += center + conv(size, widths[0], 3)
    for level, width in enumerate(widths):
        side = size // 2**level
        last = level == len(widths) - 1
        finer = widths[level - 1] if level else stem
        coarser = width if last else widths[level + 1]
        encoder += block(side, finer, width) + (num_res_blocks - 1) * block(side, width, width)
        decoder += block(side, coarser, width) + num_res_blocks * block(side, width, width)
        if last and attend:
            encoder += num_res_blocks * middle(side, width)
            decoder += (num_res_blocks + 1) * middle(side, width)
        if not last:
            encoder += conv(side // 2, width, width)
        if level:
            decoder += conv(side * 2, width, width)
    return encoder, decoder


def step(stats, *, llm, understanding, und_tokens, image, trains):
    """Useful FLOPs of one training step, by part.

    Args:
      stats: statistics of a batch, `data.pipeline.Packed.stats`.
      llm, understanding: the model's sizes, as in config.
      und_tokens: tokens of an image to understand.
      image: {part: FLOPs} of one image to generate, from the generation path.
      trains: path prefix -> whether any of its parameters trains.

    Returns:
      dict: llm, attention, encoder, adaptors, heads, tokenizer; their sum is the total.
    """
    und = stats["und_pictures"]
    images = {
        part: stats["gen_pictures"] * flops
        for part, flops in image.items()
        if part != "tokenizer" or not stats["cached"]
    }
    d = llm["embed_dim"]
    vit = understanding["encoder"]
    sizes = ("num_layers", "embed_dim", "mlp_dim", "num_heads", "num_kv_heads")
    dims = {name: llm[name] for name in sizes}
    body = TRAINED if trains("llm") else CROSSED
    encoder_passes = TRAINED if trains("understanding/encoder") else FORWARD
    adaptor_width = (
        vit["embed_dim"] if understanding["adaptor"] == "linear" else vit["embed_dim"] + d
    )
    parts = {
        "llm": body * transformer(tokens=stats["tokens"], attended=0, gates=3, **dims),
        "attention": body * transformer(tokens=0, attended=stats["attended"], gates=3, **dims),
        "encoder": encoder_passes * und * encoder(vit, tokens=und_tokens),
        "adaptors": TRAINED * und * und_tokens * 2 * d * adaptor_width,
        "heads": body * stats["text_targets"] * 2 * d * llm["vocab_size"],
    }
    return {part: parts.get(part, 0) + images.get(part, 0) for part in parts | images}


def encoder(vit, *, tokens):
    """Forward FLOPs of the understanding encoder for one image of `tokens` patches."""
    width = vit["embed_dim"]
    blocks = transformer(
        tokens=tokens,
        attended=tokens**2,
        num_layers=vit["num_layers"],
        embed_dim=width,
        mlp_dim=vit["mlp_dim"],
        num_heads=1,
        num_kv_heads=1,
        gates=2,
    )
    return blocks + 2 * tokens * 3 * vit["patch_size"] ** 2 * width
