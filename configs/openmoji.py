r"""The tiny Janus on real images: names, groups and drawings of emoji.

    python -m janus_jax.prepare openmoji --out=data/openmoji
    python -m janus_jax.train --config=configs/openmoji.py --workdir=runs/openmoji

OpenMoji's drawings are CC BY-SA 4.0 (https://openmoji.org), and so are images from a
model trained on them.
"""

from configs import common

QUESTION = "=Which group of emoji is this?"
PROMPTS = (  # from the training split
    "sunflower", "tiger", "panda", "black cat", "owl", "cherries", "avocado", "sushi",
    "pink heart", "smiling face", "jack-o-lantern", "crown", "purple circle", "red square",
    "Colombia", "alarm clock",
)  # fmt: skip


def get_config(stage="all"):
    """The text after the colon is the stage; by default the whole recipe runs."""
    c = common.get_config()
    c.init_fresh = (
        "llm",
        "understanding",
        "generation/(embed|adaptor|head)",
    )  # no pretrained weights at this size
    c.save_every = 500
    c.mesh = dict(data=-1, fsdp=1, tensor=1)
    c.optimizer.kind = "muon"  # from scratch, half the steps of AdamW
    c.samples.update(
        prompts=PROMPTS, guidance=1.0
    )  # guidance moves samples away from memorised images
    c.model = common.tiny_model(vocab_size=1024, image_size=64)
    depth = dict(num_layers=4, mlp_dim=384)  # half an hour trains more layers than ten minutes
    c.model.llm.update(depth, num_heads=2, num_kv_heads=2)
    c.model.understanding.encoder.update(depth)
    c.model.generation.tokenizer_training.crop = 32
    c.data.tokenizer = "data/openmoji/tokenizer.json"
    emoji = lambda split, **fields: common.source(
        "data/openmoji/openmoji/1.0.0", kind="tfds", split=split, fields=fields
    )
    subset = "train[:10%]"  # what the recipe memorises on 2 cores; with hours, use "train"
    c.data.sources = dict(
        pictures=emoji("train", image="image", prompt="name"),
        generation=emoji(subset, image="image", prompt="name"),
        understanding=emoji(subset, image="image", question=QUESTION, answer="group"),
        text=emoji(subset, text="sentence"),
    )
    c.data.shards = 2
    c.data.roles = ("<|User|>", "<|Assistant|>")
    sources = {task: {task: 1} for task in ("understanding", "text", "generation")}
    # As in configs/tiny.py: the tokenizer trains first and is then frozen; nothing is pretrained.
    shape = dict(batch=4, length=256, frozen=("generation/tokenizer",))
    c.stages = common.pick_stages(
        stage,
        {
            "tokenizer": common.stage(
                objective="tokenizer", mixture=(0, 0, 1), sources={"generation": {"pictures": 1}},
                lr=4e-3, decay="cosine", warmup=50, steps=1_200, batch=16, rows=4, length=320,
                und_slots=0, gen_slots=4,
            ),
            "1": common.stage(
                mixture=(1, 0, 3), sources=sources, lr=3e-3, warmup=50, steps=100,
                und_slots=3, gen_slots=6, **shape,
            ),
            "2": common.stage(
                mixture=(1, 1, 6), sources=sources, lr=3e-3, warmup=50, steps=700,
                und_slots=2, gen_slots=7, **shape,
            ),
            "3": common.stage(
                mixture=(1, 1, 6), sources=sources, lr=3e-3, decay="cosine", warmup=50, steps=800,
                und_slots=2, gen_slots=6, template="chat", **shape,
            ),
        },
    )  # fmt: skip
    return c
