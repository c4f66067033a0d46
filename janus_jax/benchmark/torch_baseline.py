"""The baseline of `benchmark --peer=transformers`: the same work by transformers' Janus.

Training does what its users do: padded rows of one example each; vocabulary logits at labelled
positions only; the image head at image positions only; towers that do not train without gradient;
scaled dot-product attention; fused AdamW. Images to generate come as codes.
"""

import math
import os

import numpy as np

from janus_jax.batch import TASKS
from janus_jax.errors import UserError

# How rows are padded: to the longest of their batch, or to the full length
PADDING = ("longest", "full")


class TorchJanus:
    """transformers' Janus of a stage's sizes, freshly initialised, on the GPU if there is one."""

    def __init__(self, stage):
        """Builds the model of a Stage.

        Raises:
          UserError: without torch and transformers, and for models that transformers does not have.
        """
        try:
            import torch
            from transformers import JanusConfig, JanusForConditionalGeneration
        except ImportError:
            raise UserError(
                "--peer=transformers needs PyTorch and transformers: pip install torch "
                "transformers."
            ) from None
        try:
            sizes = _sizes(stage.model, und_tokens=stage.und_tokens)
        except KeyError:
            raise UserError(
                "--peer=transformers: transformers has no Janus with this generation path; take a "
                "config of Janus."
            ) from None
        self._torch = torch
        torch.set_num_threads(os.cpu_count())
        torch.manual_seed(0)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        with torch.device(self._device):
            self.model = JanusForConditionalGeneration(JanusConfig(**sizes))
        parts = self.model.model
        self._trains_encoder = stage.trains("understanding/encoder")
        parts.vqmodel.requires_grad_(False)
        parts.vision_model.requires_grad_(self._trains_encoder)
        parts.language_model.requires_grad_(stage.trains("llm"))
        self.model.lm_head.requires_grad_(stage.trains("llm"))
        self._optimizer = torch.optim.AdamW(
            [p for p in self.model.parameters() if p.requires_grad], lr=1e-4, fused=True
        )

    def batches(self, examples, *, rows, length):
        """Examples as padded batches on the device, one example per row.

        Args:
          examples: list of (Example, uint8[h, w, 3] image to understand, or None).
          rows: B, rows per batch; the last batch may have fewer.
          length: L, positions per row, or None for the longest example of the batch.

        Returns:
          list of dicts: `ids` int64[B, L]; `labelled`, `und_slots` and `gen_slots` bool[B, L];
          `pixels` [M, 3, h, w] and `codes` int64[M, T], or None; `real`, the number of tokens, and
          `padded`, the number of positions.
        """
        torch, batches = self._torch, []
        put = lambda a: torch.from_numpy(np.ascontiguousarray(a)).to(self._device)
        for first in range(0, len(examples), rows):
            part = examples[first : first + rows]
            sizes = [len(example.tokens) for example, _ in part]
            shape = (len(part), length or max(sizes))
            ids, labelled = np.full(shape, 2, np.int64), np.zeros(shape, bool)
            und_slots, gen_slots = np.zeros(shape, bool), np.zeros(shape, bool)
            pixels, codes = [], []
            for row, (example, image) in enumerate(part):
                n = sizes[row]
                ids[row, :n], labelled[row, :n] = example.tokens, example.text_weights > 0
                if example.task == TASKS.index("understanding"):
                    pixels.append(image.transpose(2, 0, 1))
                    und_slots[row, :n] = (example.tokens == 3) & (
                        np.arange(n) >= example.und_starts[0]
                    )
                elif example.gen_images:
                    codes.append(example.gen_images[0])
                    gen_slots[row, example.gen_starts[0] : n] = True
            batches.append(
                {
                    "ids": put(ids),
                    "labelled": put(labelled),
                    "und_slots": put(und_slots),
                    "gen_slots": put(gen_slots),
                    "pixels": put(np.stack(pixels)) if pixels else None,
                    "codes": put(np.stack(codes).astype(np.int64)) if codes else None,
                    "real": sum(sizes),
                    "padded": math.prod(shape),
                }
            )
        return batches

    def train(self, batches):
        """One step on each of the batches."""
        for batch in batches:
            with self._precision():
                loss = self._loss(batch)
            loss.backward()
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            if not math.isfinite(loss.item()):
                raise FloatingPointError("the loss of the baseline is not finite")

    def _precision(self):
        return self._torch.autocast(
            self._device, dtype=self._torch.bfloat16, enabled=self._device == "cuda"
        )

    def _loss(self, batch):
        torch, parts = self._torch, self.model.model
        entropy = torch.nn.functional.cross_entropy
        x = parts.get_input_embeddings()(batch["ids"])
        if batch["pixels"] is not None:
            pixels = batch["pixels"].to(x.dtype) / 127.5 - 1
            with torch.set_grad_enabled(self._trains_encoder):
                features = parts.vision_model(pixels).last_hidden_state
            x = x.masked_scatter(batch["und_slots"][..., None], parts.aligner(features).to(x.dtype))
        if batch["codes"] is not None:
            codes = parts.generation_aligner(parts.generation_embeddings(batch["codes"]))
            x = x.masked_scatter(batch["gen_slots"][..., None], codes.to(x.dtype))
        # No mask: real tokens never attend to the padding on their right, and attention takes its
        # fastest path.
        hidden = parts.language_model(inputs_embeds=x, use_cache=False).last_hidden_state
        # The position before each code predicts it
        labelled, before = batch["labelled"], batch["gen_slots"].roll(-1, dims=1)
        targets = batch["ids"].roll(-1, dims=1)[labelled]
        loss = entropy(self.model.lm_head(hidden[labelled]).float(), targets, reduction="sum")
        if batch["codes"] is not None:
            logits = parts.generation_head(hidden[before]).float()
            loss = loss + entropy(logits, batch["codes"].flatten(), reduction="sum")
        return loss / (labelled.sum() + before.sum())

    def draw(self, ids):
        """Generates one image per row: int[B, P] ids -> pixels."""
        torch = self._torch
        ids = torch.from_numpy(ids.astype(np.int64)).to(self._device)
        settings = self.model.generation_config
        settings.guidance_scale, settings.generation_kwargs = 5.0, {"boi_token_id": 4}
        settings.bos_token_id, settings.pad_token_id = 0, 2
        with torch.inference_mode(), self._precision():
            codes = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_mode="image",
                do_sample=True,
            )
            return self.model.decode_image_tokens(codes).float().cpu()

    def ask(self, ids, images, *, answer):
        """Answers: int[B, P] ids and uint8[B, h, w, 3] -> `answer` new ids per row."""
        torch = self._torch
        ids = torch.from_numpy(ids.astype(np.int64)).to(self._device)
        pixels = torch.from_numpy(images).to(self._device).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.inference_mode(), self._precision():
            ids = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=pixels,
                generation_mode="text",
                do_sample=False,
                max_new_tokens=answer,
                min_new_tokens=answer,
                pad_token_id=2,
            )
        return ids.cpu()


def _sizes(model, *, und_tokens):
    """Keyword arguments of JanusConfig for a config's model."""
    llm, vit, vq = model["llm"], model["understanding"]["encoder"], model["generation"]["tokenizer"]
    width = llm["embed_dim"]
    return dict(
        text_config=dict(
            model_type="llama",
            hidden_size=width,
            intermediate_size=llm["mlp_dim"],
            num_hidden_layers=llm["num_layers"],
            num_attention_heads=llm["num_heads"],
            num_key_value_heads=llm["num_kv_heads"],
            vocab_size=llm["vocab_size"],
            max_position_embeddings=4096,
            rms_norm_eps=llm["norm_eps"],
            rope_theta=llm["rope_theta"],
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        ),
        vision_config=dict(
            hidden_size=vit["embed_dim"],
            num_hidden_layers=vit["num_layers"],
            num_attention_heads=vit["num_heads"],
            mlp_ratio=vit["mlp_dim"] / vit["embed_dim"],
            image_size=vit["image_size"],
            patch_size=vit["patch_size"],
            projection_dim=width,
            depth=2,
            num_image_tokens=und_tokens,
        ),
        vq_config=dict(
            embed_dim=vq["codebook_dim"],
            num_embeddings=vq["codebook_size"],
            latent_channels=vq["z_channels"],
            base_channels=vq["base_channels"],
            channel_multiplier=list(vq["channel_mult"]),
            num_res_blocks=vq["num_res_blocks"],
            projection_dim=width,
            image_token_embed_dim=width,
            num_hidden_layers=2,
        ),
        image_token_id=3,
        tie_word_embeddings=False,
    )
