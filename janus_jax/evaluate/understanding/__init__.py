"""The benchmarks of understanding, by name."""

from janus_jax.evaluate.understanding.choice import MMBench, SeedBench
from janus_jax.evaluate.understanding.mmmu import Mmmu
from janus_jax.evaluate.understanding.open_answers import ChartQa, Gqa, MMVet, TextVqa, VqaV2
from janus_jax.evaluate.understanding.yes_no import Mme, Pope

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Pope(), Mme(), MMBench(), SeedBench(), VqaV2(), Gqa(), Mmmu(), MMVet(), ChartQa(), TextVqa(),
    )
}  # fmt: skip
