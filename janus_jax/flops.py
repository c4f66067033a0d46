"""Useful FLOPs of a step, counted from the model's numbers and a batch's own statistics.

Counted is what training needs: every net on its real tokens and pictures, causal attention within each example, the
heads on their targets. Not counted: padding, empty picture slots, recomputation. A product [m, k] x [k, n] is 2 m k n.
A net's backward pass costs twice its forward pass when it trains, once when gradient only flows through it, and
nothing when it is a frozen tower that no gradient reaches.
"""

TRAINED, CROSSED, FORWARD = 3, 2, 1


def transformer(*, tokens, attended, num_layers, embed_dim, mlp_dim, num_heads, num_kv_heads, gates):
    """Forward FLOPs of a stack of blocks.

    Args:
      tokens: positions.
      attended: pairs of query and key.
      num_layers, embed_dim, mlp_dim, num_heads, num_kv_heads: the stack's numbers.
      gates: matrices of the feed-forward block, 3 for SwiGLU and 2 for a plain one.
    """
    kv = embed_dim * num_kv_heads // num_heads
    weights = 2 * embed_dim * (embed_dim + kv) + gates * embed_dim * mlp_dim
    return num_layers * (2 * tokens * weights + 4 * attended * embed_dim)


def conv_tokenizer(*, size, base_channels, channel_mult, num_res_blocks, z_channels, codebook_size, codebook_dim, **_):
    """Forward FLOPs of the VQ tokenizer's encoder and of its decoder for one picture, convolutions only."""
    widths = [base_channels * m for m in channel_mult]
    lowest = size // 2 ** (len(widths) - 1)
    conv = lambda side, i, o, window=3: 2 * side * side * window * window * i * o

    def block(side, i, o):
        return conv(side, i, o) + conv(side, o, o) + (conv(side, i, o, 1) if i != o else 0)

    def attend(side, c):
        return 4 * conv(side, c, c, 1) + 4 * side**4 * c

    middle = 2 * block(lowest, widths[-1], widths[-1]) + attend(lowest, widths[-1])
    encoder = conv(size, 3, base_channels) + middle + conv(lowest, widths[-1], z_channels)
    encoder += conv(lowest, z_channels, codebook_dim, 1) + 2 * lowest**2 * codebook_size * codebook_dim
    decoder = conv(lowest, codebook_dim, z_channels, 1) + conv(lowest, z_channels, widths[-1]) + middle
    decoder += conv(size, widths[0], 3)
    for level, width in enumerate(widths):
        side, last = size // 2**level, level == len(widths) - 1
        below, above = widths[max(level - 1, 0)] if level else base_channels, widths[min(level + 1, len(widths) - 1)]
        encoder += block(side, below, width) + (num_res_blocks - 1) * block(side, width, width)
        decoder += block(side, above, width) + num_res_blocks * block(side, width, width)
        if last:
            encoder += num_res_blocks * attend(side, width)
            decoder += (num_res_blocks + 1) * attend(side, width)
        else:
            encoder += conv(side // 2, width, width)
        if level:
            decoder += conv(side * 2, width, width)
    return encoder, decoder


def step(stats, *, llm, understanding, generation, trainable):
    """Useful FLOPs of one training step, by part.

    Args:
      stats: figures of a batch (`data.pipeline.statistics`).
      llm, understanding, generation: the model's numbers, as in config.
      trainable: paths that train.

    Returns:
      dict: llm, attention, encoder, tokenizer, adaptors, heads; its sum is the step's.
    """
    trains = lambda prefix: any(p.startswith(prefix) for p in trainable)
    d, vit, vq = llm["embed_dim"], understanding["encoder"], generation["tokenizer"]
    codes = (generation["image_size"] // 2 ** (len(vq["channel_mult"]) - 1)) ** 2
    patches = (vit["image_size"] // vit["patch_size"]) ** 2
    und, gen = stats["und_pictures"], stats["gen_pictures"]
    encode, decode = conv_tokenizer(size=generation["image_size"], **vq)
    if trains("generation/tokenizer"):  # the tokenizer's own stage trains it on crops where asked
        side = (generation.get("tokenizer_training") or {}).get("crop") or generation["image_size"]
        share = (side / generation["image_size"]) ** 2
        return {"tokenizer": gen * TRAINED * share * (encode + decode)}
    dims = {k: llm[k] for k in ("num_layers", "embed_dim", "mlp_dim", "num_heads", "num_kv_heads")}
    body = TRAINED if trains("llm") else CROSSED
    eyes = dict(
        num_layers=vit["num_layers"], embed_dim=vit["embed_dim"], mlp_dim=vit["mlp_dim"], num_heads=1, num_kv_heads=1
    )
    tower = transformer(tokens=patches, attended=patches**2, gates=2, **eyes)
    tower += 2 * patches * 3 * vit["patch_size"] ** 2 * vit["embed_dim"]
    adaptors = und * patches * 2 * d * (vit["embed_dim"] + d) + gen * codes * 2 * d * (vq["codebook_dim"] + d)
    heads = TRAINED * gen * codes * 2 * d * (d + vq["codebook_size"])
    return {
        "llm": body * transformer(tokens=stats["tokens"], attended=0, gates=3, **dims),
        "attention": body * transformer(tokens=0, attended=stats["attended"], gates=3, **dims),
        "encoder": und * tower * (TRAINED if trains("understanding/encoder") else FORWARD),
        "tokenizer": gen * encode * FORWARD,
        "adaptors": TRAINED * adaptors,
        "heads": heads + body * stats["text_targets"] * 2 * d * llm["vocab_size"],
    }
