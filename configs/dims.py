"""A model and one stage out of a shape file, for comparisons: `get_config("small.json")`."""

import json

from ml_collections import ConfigDict

from configs import common

KINDS = ("und", "text", "gen")
DEFAULT = ["und"] * 2 + ["text"] * 3 + ["gen"] * 5  # of files that name no `train.kind_cycle`


def get_config(path):
    """The stage with unified data (2) of the model in a shape file; its sources are the benchmark's own."""
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
                mixture=mixture, sources={}, lr=1e-4, warmup=0, steps=1_000, batch=d["train"]["rows"],
                rows=d["train"]["rows"], length=d["train"]["length"],
            )
        )
    )  # fmt: skip
    return c


def _check(image, vit, llm, vq, lengths, train):
    """Raises ValueError for sizes that do not go together."""
    reduction = 2 ** (len(vq["channel_mult"]) - 1)
    sizes = dict(layers=llm["layers"], width=llm["width"], rows=train["rows"], length=train["length"])
    whole = lambda numbers: all(isinstance(n, int) and n > 0 for n in numbers)
    if not whole(sizes.values()) or not all(whole(lengths[kind]) for kind in KINDS):
        raise ValueError(f"lengths, llm and train want whole numbers above 0: {sizes}, {lengths}")
    beside = dict(und=image["tokens"] + 2, text=0, gen=image["tokens"] + 1)
    longest = {kind: max(lengths[kind], default=0) + beside[kind] for kind in KINDS}
    cycle = train.get("kind_cycle", DEFAULT)
    wrong = {
        "llm.width is no multiple of llm.heads": llm["width"] % llm["heads"],
        "llm.heads is no multiple of llm.kv_heads": llm["heads"] % llm["kv_heads"],
        "llm.width / llm.heads, of which positions rotate pairs, is odd": llm["width"] // llm["heads"] % 2,
        "vision.width is no multiple of vision.heads": vit["width"] % vit["heads"],
        "vision.width * vision.mlp_ratio is no whole number": vit["width"] * vit["mlp_ratio"] % 1,
        "image.tokens is not (image.size / image.patch)^2": image["tokens"] * image["patch"] ** 2 != image["size"] ** 2,
        f"vq.channel_mult has levels for pictures {reduction} times the side of their tokens, image.size and image.tokens "
        "another": image["tokens"] * reduction**2 != image["size"] ** 2,
        "a width of vq is no multiple of 32": any(vq["base_channels"] * mult % 32 for mult in vq["channel_mult"]),
        "lengths.und, .text or .gen is empty": not all(lengths[kind] for kind in KINDS),
        f"the longest examples, with their pictures, take {longest} tokens and a row has train.length, "
        f"{train['length']}": max(longest.values()) > train["length"],
        f"train.kind_cycle is {cycle}; it holds some of {list(KINDS)}": not cycle or not set(cycle) <= set(KINDS),
    }
    if found := [what for what, is_so in wrong.items() if is_so]:
        raise ValueError(found[0])
