"""The layouts of released weights by name, one module each; a new layout is a line here."""

from janus_jax.convert.layouts.deepseek import DeepSeek
from janus_jax.convert.layouts.towers import DiffusersVae, LlamaGenVQ, LlamaTower, SiglipTower
from janus_jax.convert.layouts.transformers import Transformers

LAYOUTS = {layout.name: layout for layout in (DeepSeek(), Transformers())}
TOWERS = {
    tower.name: tower for tower in (LlamaTower(), SiglipTower(), LlamaGenVQ(), DiffusersVae())
}
