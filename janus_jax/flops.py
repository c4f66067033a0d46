"""Useful FLOPs of a step, counted from the model's sizes and a batch's own statistics.

What training needs is counted: every net on its real tokens and images, causal attention within each example, the
heads on their targets. Padding, empty image slots and recomputation are not counted. A product [m, k] x [k, n] is 2 m k n.
A net's backward pass costs twice its forward pass when it trains, once when gradient only flows through it, and
nothing when it is a frozen tower that no gradient reaches.
"""

TRAINED, CROSSED, FORWARD = 3, 2, 1


def transformer(*, tokens, attended, num_layers, embed_dim, mlp_dim, num_heads, num_kv_heads, gates):
    """Forward FLOPs of a stack of blocks.

    Args:
      tokens: positions.
      attended: pairs of query and key.
      num_layers, embed_dim, mlp_dim, num_heads, num_kv_heads: the stack's sizes.
      gates: matrices of the feed-forward block, 3 for SwiGLU and 2 for a plain one.
    """
    kv = embed_dim * num_kv_heads // num_heads
    weights = 2 * embed_dim * (embed_dim + kv) + gates * embed_dim * mlp_dim
    return num_layers * (2 * tokens * weights + 4 * attended * embed_dim)


def vq_tokenizer(*, size, base_channels, channel_mult, num_res_blocks, z_channels, codebook_size, codebook_dim, **_):
    """Forward FLOPs of the VQ tokenizer's encoder and of its decoder for one image, convolutions only."""
    widths = [base_channels * m for m in channel_mult]
    net = dict(widths=widths, stem=base_channels, num_res_blocks=num_res_blocks, attend=True)
    encoder, decoder = autoencoder(size=size, features=z_channels, codes=codebook_dim, **net)
    cells = (size // 2 ** (len(widths) - 1)) ** 2
    return encoder + 2 * cells * codebook_size * codebook_dim, decoder


def autoencoder(*, size, stem, widths, num_res_blocks, features, codes, attend, decoded=None):
    """Forward FLOPs of the convolutional encoder and decoder of `tokenizers.autoencoder` for one image.

    Args:
      size: pixels per side.
      stem, widths, num_res_blocks, attend: of the nets.
      features: channels of the encoder's output.
      codes: channels after the 1x1 convolution that follows it.
      decoded: channels that the decoder starts from; by default the encoder's features.
    """
    lowest, decoded = size // 2 ** (len(widths) - 1), decoded or features
    conv = lambda side, i, o, window=3: 2 * side * side * window * window * i * o

    def block(side, i, o):
        return conv(side, i, o) + conv(side, o, o) + (conv(side, i, o, 1) if i != o else 0)

    def middle(side, c):
        return 4 * conv(side, c, c, 1) + 4 * side**4 * c

    center = 2 * block(lowest, widths[-1], widths[-1]) + middle(lowest, widths[-1])
    encoder = conv(size, 3, stem) + center + conv(lowest, widths[-1], features) + conv(lowest, features, codes, 1)
    decoder = conv(lowest, codes, decoded, 1) + conv(lowest, decoded, widths[-1]) + center + conv(size, widths[0], 3)
    for level, width in enumerate(widths):
        side, last = size // 2**level, level == len(widths) - 1
        below, above = widths[max(level - 1, 0)] if level else stem, widths[min(level + 1, len(widths) - 1)]
        encoder += block(side, below, width) + (num_res_blocks - 1) * block(side, width, width)
        decoder += block(side, above, width) + num_res_blocks * block(side, width, width)
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
      stats: statistics of a batch (`data.pipeline.Packed`).
      llm, understanding: the model's sizes, as in config.
      und_tokens: tokens of an image to understand.
      image: {part: FLOPs} of one image to generate, as the generation path counts them.
      trains: path prefix -> whether parameters there train in this step.

    Returns:
      dict: llm, attention, encoder, adaptors, heads, tokenizer; its sum is the step's.
    """
    und = stats["und_pictures"]
    images = {part: stats["gen_pictures"] * n for part, n in image.items() if part != "tokenizer" or not stats["cached"]}
    if trains("generation/tokenizer"):  # a stage of its own
        return images
    d, vit = llm["embed_dim"], understanding["encoder"]
    dims = {k: llm[k] for k in ("num_layers", "embed_dim", "mlp_dim", "num_heads", "num_kv_heads")}
    body = TRAINED if trains("llm") else CROSSED
    widths = vit["embed_dim"] if understanding["adaptor"] == "linear" else vit["embed_dim"] + d
    parts = {
        "llm": body * transformer(tokens=stats["tokens"], attended=0, gates=3, **dims),
        "attention": body * transformer(tokens=0, attended=stats["attended"], gates=3, **dims),
        "encoder": und * encoder(vit, tokens=und_tokens) * (TRAINED if trains("understanding/encoder") else FORWARD),
        "adaptors": TRAINED * und * und_tokens * 2 * d * widths,
        "heads": body * stats["text_targets"] * 2 * d * llm["vocab_size"],
    }
    return {part: parts.get(part, 0) + images.get(part, 0) for part in parts | images}


def encoder(vit, *, tokens):
    """Forward FLOPs of the understanding encoder for one image of `tokens` patches."""
    width = vit["embed_dim"]
    blocks = dict(num_layers=vit["num_layers"], embed_dim=width, mlp_dim=vit["mlp_dim"], num_heads=1, num_kv_heads=1)
    tower = transformer(tokens=tokens, attended=tokens**2, gates=2, **blocks)
    return tower + 2 * tokens * 3 * vit["patch_size"] ** 2 * width
