"""The same work in PyTorch with transformers' Janus, to compare with; only `benchmark --peer=transformers` needs it.

Training does what its users do: rows that are padded, one example each; vocabulary logits at labelled positions only;
the picture head at picture positions only; towers that do not train without gradient; scaled dot-product attention;
fused AdamW. Pictures to draw come as codes.
"""

import math
import os

import numpy as np

from janus_jax.batch import TASKS
from janus_jax.errors import UserError
from janus_jax.recipe import assembly

WAYS = {"longest": False, "full": True}  # how rows are padded: to the longest of their batch, or to the full length


class Peer:
    """transformers' Janus of a config's sizes, freshly initialised, on the GPU where there is one."""

    def __init__(self, config, stage):
        """Builds it.

        Raises:
          UserError: without torch and transformers, and for models that transformers does not have.
        """
        try:
            import torch
            from transformers import JanusConfig, JanusForConditionalGeneration
        except ImportError:
            raise UserError("--peer=transformers needs PyTorch and transformers: pip install torch transformers.") from None
        try:
            sizes = _sizes(config["model"])
        except KeyError:
            raise UserError(
                "--peer=transformers: transformers has no Janus that draws this way; take a config of Janus."
            ) from None
        self._torch = torch
        torch.set_num_threads(os.cpu_count())
        torch.manual_seed(0)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        with torch.device(self._device):
            self.model = JanusForConditionalGeneration(JanusConfig(**sizes))
        frozen = assembly.frozen_patterns(config, stage)
        parts = self.model.model
        self._sees = "understanding/encoder" not in frozen
        parts.vqmodel.requires_grad_(False)
        parts.vision_model.requires_grad_(self._sees)
        parts.language_model.requires_grad_("llm" not in frozen)
        self.model.lm_head.requires_grad_("llm" not in frozen)
        self._optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-4, fused=True)

    def batches(self, examples, *, rows, length):
        """Examples as padded batches of so many rows: to `length`, or without one to the longest of the batch."""
        torch, found = self._torch, []
        put = lambda a: torch.from_numpy(np.ascontiguousarray(a)).to(self._device)
        for first in range(0, len(examples), rows):
            part = examples[first : first + rows]
            sizes = [len(example.tokens) for example, _ in part]
            shape = (len(part), length or max(sizes))
            ids, labelled = np.full(shape, 2, np.int64), np.zeros(shape, bool)
            seen, drawn, pixels, codes = np.zeros(shape, bool), np.zeros(shape, bool), [], []
            for row, (example, picture) in enumerate(part):
                n = sizes[row]
                ids[row, :n], labelled[row, :n] = example.tokens, example.text_weights > 0
                if example.task == TASKS.index("understanding"):
                    pixels.append(picture.transpose(2, 0, 1))
                    seen[row, :n] = (example.tokens == 3) & (np.arange(n) >= example.und_starts[0])
                elif example.gen_images:
                    codes.append(example.gen_images[0])
                    drawn[row, example.gen_starts[0] : n] = True
            found.append({
                "ids": put(ids), "labelled": put(labelled), "seen": put(seen), "drawn": put(drawn),
                "pixels": put(np.stack(pixels)) if pixels else None,
                "codes": put(np.stack(codes).astype(np.int64)) if codes else None,
                "real": sum(sizes), "padded": math.prod(shape),
            })  # fmt: skip
        return found

    def train(self, batches):
        """A step on each of the batches."""
        for batch in batches:
            with self._precision():
                loss = self._loss(batch)
            loss.backward()
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            if not math.isfinite(loss.item()):
                raise FloatingPointError("the loss of the peer is not finite")

    def _precision(self):
        return self._torch.autocast(self._device, dtype=self._torch.bfloat16, enabled=self._device == "cuda")

    def _loss(self, batch):
        torch, parts = self._torch, self.model.model
        entropy = torch.nn.functional.cross_entropy
        x = parts.get_input_embeddings()(batch["ids"])
        if batch["pixels"] is not None:
            pixels = batch["pixels"].to(x.dtype) / 127.5 - 1
            with torch.set_grad_enabled(self._sees):
                features = parts.vision_model(pixels).last_hidden_state
            x = x.masked_scatter(batch["seen"][..., None], parts.aligner(features).to(x.dtype))
        if batch["codes"] is not None:
            codes = parts.generation_aligner(parts.generation_embeddings(batch["codes"]))
            x = x.masked_scatter(batch["drawn"][..., None], codes.to(x.dtype))
        # Without a mask: nothing real looks at padding on its right, and attention takes its fastest way.
        hidden = parts.language_model(inputs_embeds=x, use_cache=False).last_hidden_state
        labelled, before = batch["labelled"], batch["drawn"].roll(-1, dims=1)  # the position before each code predicts it
        targets = batch["ids"].roll(-1, dims=1)[labelled]
        loss = entropy(self.model.lm_head(hidden[labelled]).float(), targets, reduction="sum")
        if batch["codes"] is not None:
            drawn = parts.generation_head(hidden[before]).float()
            loss = loss + entropy(drawn, batch["codes"].flatten(), reduction="sum")
        return loss / (labelled.sum() + before.sum())

    def draw(self, ids):
        """Draws a picture a row: int[B, P] ids -> pixels."""
        torch = self._torch
        ids = torch.from_numpy(ids.astype(np.int64)).to(self._device)
        settings = self.model.generation_config
        settings.guidance_scale, settings.generation_kwargs = 5.0, {"boi_token_id": 4}
        settings.bos_token_id, settings.pad_token_id = 0, 2
        with torch.inference_mode(), self._precision():
            codes = self.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), generation_mode="image", do_sample=True
            )
            return self.model.decode_image_tokens(codes).float().cpu()

    def ask(self, ids, pictures, *, answer):
        """Answers: int[B, P] ids and uint8[B, h, w, 3] -> so many new ids a row."""
        torch = self._torch
        ids = torch.from_numpy(ids.astype(np.int64)).to(self._device)
        pixels = torch.from_numpy(pictures).to(self._device).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.inference_mode(), self._precision():
            ids = self.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, generation_mode="text",
                do_sample=False, max_new_tokens=answer, min_new_tokens=answer, pad_token_id=2,
            )  # fmt: skip
        return ids.cpu()


def _sizes(model):
    """Keyword arguments of JanusConfig for a config's model."""
    llm, vit, vq = model["llm"], model["understanding"]["encoder"], model["generation"]["tokenizer"]
    width, count = llm["embed_dim"], (vit["image_size"] // vit["patch_size"]) ** 2
    return dict(
        text_config=dict(
            model_type="llama", hidden_size=width, intermediate_size=llm["mlp_dim"], num_hidden_layers=llm["num_layers"],
            num_attention_heads=llm["num_heads"], num_key_value_heads=llm["num_kv_heads"], vocab_size=llm["vocab_size"],
            max_position_embeddings=4096, rms_norm_eps=llm["norm_eps"], rope_theta=llm["rope_theta"],
            bos_token_id=0, eos_token_id=1, pad_token_id=2,
        ),
        vision_config=dict(
            hidden_size=vit["embed_dim"], num_hidden_layers=vit["num_layers"], num_attention_heads=vit["num_heads"],
            mlp_ratio=vit["mlp_dim"] / vit["embed_dim"], image_size=vit["image_size"], patch_size=vit["patch_size"],
            projection_dim=width, depth=2, num_image_tokens=count,
        ),
        vq_config=dict(
            embed_dim=vq["codebook_dim"], num_embeddings=vq["codebook_size"], latent_channels=vq["z_channels"],
            base_channels=vq["base_channels"], channel_multiplier=list(vq["channel_mult"]),
            num_res_blocks=vq["num_res_blocks"], projection_dim=width, image_token_embed_dim=width, num_hidden_layers=2,
        ),
        image_token_id=3, tie_word_embeddings=False,
    )  # fmt: skip
