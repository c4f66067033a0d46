"""The registry of benchmarks."""

from janus_jax.evaluate.drawing.dpg import DPG
from janus_jax.evaluate.drawing.geneval import GenEval
from janus_jax.evaluate.drawing.photos import MJHQ, Coco
from janus_jax.evaluate.shapes import Shapes
from janus_jax.evaluate.understanding.choice import MMBench, SeedBench
from janus_jax.evaluate.understanding.mmmu import Mmmu
from janus_jax.evaluate.understanding.open_answers import ChartQa, Gqa, MMVet, TextVqa, VqaV2
from janus_jax.evaluate.understanding.yes_no import Mme, Pope

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Shapes(),
        GenEval(),
        DPG(),
        MJHQ(),
        Coco(),
        Pope(),
        Mme(),
        MMBench(),
        SeedBench(),
        VqaV2(),
        Gqa(),
        Mmmu(),
        MMVet(),
        ChartQa(),
        TextVqa(),
    )
}
