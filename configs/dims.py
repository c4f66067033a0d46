"""A model and one stage from a dimensions file, for benchmarks: `get_config("small.json")`."""

import json

from ml_collections import ConfigDict

from configs import common

KINDS = ("und", "text", "gen")
DEFAULT = ["und"] * 2 + ["text"] * 3 + ["gen"] * 5  # for files without `train.kind_cycle`


def get_config(path):
    """Stage 2 of the model in a dimensions file; the benchmark sets the sources.

    Raises:
      ValueError: for sizes that do not fit together.
    """
    with open(path) as file:
        d = json.load(file)
    image, vit, llm, vq = d["image"], d["vision"], d["llm"], d["vq"]
    _check(image, vit, llm, vq, d["lengths"], d["train"])
    mixture = tuple(d["train"].get("kind_cycle", DEFAULT).count(kind) for kind in KINDS)
    c = common.get_config()
    c.model = ConfigDict(
        dict(
            llm=dict(
                vocab_size=llm["vocab"],
                num_layers=llm["layers"],
                embed_dim=llm["width"],
                num_heads=llm["heads"],
                num_kv_heads=llm["kv_heads"],
                mlp_dim=llm["mlp"],
                rope_theta=llm["rope_theta"],
                norm_eps=llm["rms_eps"],
                remat="none",
            ),
            understanding=dict(
                encoder=dict(
                    image_size=image["size"],
                    patch_size=image["patch"],
                    num_layers=vit["layers"],
                    embed_dim=vit["width"],
                    num_heads=vit["heads"],
                    mlp_dim=int(vit["width"] * vit["mlp_ratio"]),
                    norm_eps=1e-6,
                    remat="none",
                ),
                adaptor="mlp",
                begin=False,
            ),
            generation=dict(
                kind="vq",
                image_size=image["size"],
                tokenizer=dict(
                    base_channels=vq["base_channels"],
                    channel_mult=tuple(vq["channel_mult"]),
                    num_res_blocks=vq["res_blocks"],
                    z_channels=vq["z_channels"],
                    codebook_size=vq["codebook_size"],
                    codebook_dim=vq["codebook_dim"],
                    num_groups=32,
                ),
            ),
        )
    )
    c.stages = ConfigDict(
        dict(
            stage_2=common.stage(
                mixture=mixture, sources={}, lr=1e-4, warmup=0, steps=1_000,
                batch=d["train"]["rows"], rows=d["train"]["rows"], length=d["train"]["length"],
            )
        )
    )  # fmt: skip
    return c


def _check(image, vit, llm, vq, lengths, train):
    """Raises ValueError for sizes that do not fit together."""
    downsampling = 2 ** (len(vq["channel_mult"]) - 1)
    sizes = (llm["layers"], llm["width"], train["rows"], train["length"])
    for numbers in (sizes, *(lengths[kind] for kind in KINDS)):
        if not all(isinstance(n, int) and n > 0 for n in numbers):
            raise ValueError(
                f"llm, train and lengths must hold integers above 0, not {list(numbers)}"
            )
    image_tokens = dict(und=image["tokens"] + 2, text=0, gen=image["tokens"] + 1)
    longest = {kind: max(lengths[kind], default=0) + image_tokens[kind] for kind in KINDS}
    cycle = train.get("kind_cycle", DEFAULT)
    mistakes = (
        (
            llm["width"] % llm["heads"],
            "llm.width is not a multiple of llm.heads",
        ),
        (
            llm["heads"] % llm["kv_heads"],
            "llm.heads is not a multiple of llm.kv_heads",
        ),
        (
            llm["width"] // llm["heads"] % 2,
            "llm.width / llm.heads is odd; rotary positions need an even head size",
        ),
        (
            vit["width"] % vit["heads"],
            "vision.width is not a multiple of vision.heads",
        ),
        (
            vit["width"] * vit["mlp_ratio"] % 1,
            "vision.width * vision.mlp_ratio is not an integer",
        ),
        (
            image["tokens"] * image["patch"] ** 2 != image["size"] ** 2,
            "image.tokens is not (image.size / image.patch)^2",
        ),
        (
            image["tokens"] * downsampling**2 != image["size"] ** 2,
            f"vq.channel_mult means {downsampling}x downsampling, which does not turn image.size "
            "into image.tokens",
        ),
        (
            any(vq["base_channels"] * mult % 32 for mult in vq["channel_mult"]),
            "vq.base_channels * vq.channel_mult is not a multiple of 32 at every level",
        ),
        (
            not all(lengths[kind] for kind in KINDS),
            "lengths.und, lengths.text or lengths.gen is empty",
        ),
        (
            max(longest.values()) > train["length"],
            f"the longest examples, images included, take {longest} tokens, more than "
            f"train.length, {train['length']}",
        ),
        (
            not cycle or not set(cycle) <= set(KINDS),
            f"train.kind_cycle is {cycle}; it must hold some of {list(KINDS)}",
        ),
    )
    for wrong, message in mistakes:
        if wrong:
            raise ValueError(message)
