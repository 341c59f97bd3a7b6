"""MobileVLM V2 written out with plain torch, PIL and sentencepiece: what the package's model and formats are compared with.

One row at a time, no cache, no batch, no transformers. Architecture and rules as published (Meituan-AutoML/MobileVLM); ids of
images are -200 there and here.
"""

import json
import re
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from PIL import Image
from torch.nn import functional

IMAGE_ID = -200
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite"
    " answers to the user's questions."
)


class Reference:
    """The published checkpoint in ``folder``, computed step by step in float32."""

    def __init__(self, folder):
        self.config = json.loads((folder / "config.json").read_text())
        tower = json.loads((folder / self.config["mm_vision_tower"] / "config.json").read_text())
        self.vision = tower["vision_config"]
        files = sorted(folder.glob("pytorch_model*.bin"))
        self.weights = {name: value for file in files for name, value in torch.load(file, weights_only=True).items()}

    def clip(self, pixels):
        """[3, H, W] -> [patches, C] after the layer before the last."""
        at = "model.vision_tower.vision_tower.vision_model."
        w = {name.removeprefix(at): value for name, value in self.weights.items() if name.startswith(at)}
        heads, eps = self.vision["num_attention_heads"], 1e-5
        patches = functional.conv2d(pixels[None], w["embeddings.patch_embedding.weight"], stride=self.vision["patch_size"])
        x = torch.cat([w["embeddings.class_embedding"][None], patches[0].flatten(1).T])
        x = x + w["embeddings.position_embedding.weight"]
        width = x.shape[-1]
        x = functional.layer_norm(x, (width,), w["pre_layrnorm.weight"], w["pre_layrnorm.bias"], eps)
        for layer in range(self.vision["num_hidden_layers"] - 1):
            own = {
                n.removeprefix(f"encoder.layers.{layer}."): v for n, v in w.items() if n.startswith(f"encoder.layers.{layer}.")
            }
            y = functional.layer_norm(x, (width,), own["layer_norm1.weight"], own["layer_norm1.bias"], eps)
            q, k, v = (
                functional.linear(y, own[f"self_attn.{p}_proj.weight"], own[f"self_attn.{p}_proj.bias"]).view(len(y), heads, -1)
                for p in "qkv"
            )
            scores = torch.einsum("qhc,khc->hqk", q, k) / (width // heads) ** 0.5
            mixed = torch.einsum("hqk,khc->qhc", scores.softmax(-1), v).reshape(len(y), width)
            x = x + functional.linear(mixed, own["self_attn.out_proj.weight"], own["self_attn.out_proj.bias"])
            y = functional.layer_norm(x, (width,), own["layer_norm2.weight"], own["layer_norm2.bias"], eps)
            y = functional.linear(y, own["mlp.fc1.weight"], own["mlp.fc1.bias"])
            y = y * torch.sigmoid(1.702 * y)
            x = x + functional.linear(y, own["mlp.fc2.weight"], own["mlp.fc2.bias"])
        return x[1:]

    def project(self, features):
        """[patches, C] -> [144, H]: two linear layers, a mean over a 12 x 12 grid, neighbours added."""
        w = {n.removeprefix("model.mm_projector."): v for n, v in self.weights.items() if n.startswith("model.mm_projector.")}
        x = functional.linear(features, w["mlp.mlp.0.weight"], w["mlp.mlp.0.bias"])
        x = x * 0.5 * (1 + torch.erf(x / 2**0.5))
        x = functional.linear(x, w["mlp.mlp.2.weight"], w["mlp.mlp.2.bias"])
        side = round(len(x) ** 0.5)
        grid = functional.adaptive_avg_pool2d(x.T.reshape(1, -1, side, side), (12, 12))[0]
        padded = functional.pad(grid, (1, 1, 1, 1))
        kernel, near = w["peg.peg.0.weight"][:, 0], torch.zeros_like(grid)
        for row in range(3):
            for column in range(3):
                near += kernel[:, row, column, None, None] * padded[:, row : row + 12, column : column + 12]
        return (near + w["peg.peg.0.bias"][:, None, None] + grid).flatten(1).T

    def embeds(self, ids, pixels):
        """Ids with -200 for images and a list of [3, H, W] -> [L, H], images expanded."""
        table, shown = self.weights["model.embed_tokens.weight"], iter(pixels)
        parts = [self.project(self.clip(next(shown))) if i == IMAGE_ID else table[i][None] for i in ids]
        assert next(shown, None) is None
        return torch.cat(parts)

    def llama(self, x):
        """[L, H] -> (logits [L, V], attention probabilities of the first layer [heads, L, L])."""
        heads, eps, first = self.config["num_attention_heads"], self.config["rms_norm_eps"], None
        size, width = x.shape
        channels = width // heads
        angles = torch.arange(size)[:, None] / self.config["rope_theta"] ** (torch.arange(0, channels, 2) / channels)
        cosine, sine = torch.cat([angles.cos()] * 2, -1)[:, None], torch.cat([angles.sin()] * 2, -1)[:, None]

        def norm(y, name):
            return y / (y.pow(2).mean(-1, keepdim=True) + eps).sqrt() * self.weights[name]

        def turn(y):
            return y * cosine + torch.cat([-y[..., channels // 2 :], y[..., : channels // 2]], -1) * sine

        for layer in range(self.config["num_hidden_layers"]):
            at = f"model.layers.{layer}."
            y = norm(x, f"{at}input_layernorm.weight")
            q, k, v = ((y @ self.weights[f"{at}self_attn.{p}_proj.weight"].T).view(size, heads, channels) for p in "qkv")
            scores = torch.einsum("qhc,khc->hqk", turn(q), turn(k)) / channels**0.5
            probabilities = scores.masked_fill(torch.ones(size, size).triu(1).bool(), -torch.inf).softmax(-1)
            first = probabilities if first is None else first
            mixed = torch.einsum("hqk,khc->qhc", probabilities, v).reshape(size, width)
            x = x + mixed @ self.weights[f"{at}self_attn.o_proj.weight"].T
            y = norm(x, f"{at}post_attention_layernorm.weight")
            gate = y @ self.weights[f"{at}mlp.gate_proj.weight"].T
            up = y @ self.weights[f"{at}mlp.up_proj.weight"].T
            x = x + (gate * torch.sigmoid(gate) * up) @ self.weights[f"{at}mlp.down_proj.weight"].T
        return norm(x, "model.norm.weight") @ self.weights["lm_head.weight"].T, first

    def logits(self, ids, pixels=()):
        """[L, V] of one row."""
        return self.llama(self.embeds(ids, pixels))[0]


def pixels(picture, side, mean, std):
    """uint8 [H, W, 3] -> float32 [3, side, side]: on a square of the mean colour, resized, normalised."""
    height, width, _ = picture.shape
    edge = max(height, width)
    square = np.empty((edge, edge, 3), np.uint8)
    square[:] = [int(255 * m) for m in mean]
    top, left = (edge - height) // 2, (edge - width) // 2
    square[top : top + height, left : left + width] = picture
    small = np.asarray(Image.fromarray(square).resize((side, side), Image.Resampling.BICUBIC), np.float64)
    return torch.tensor(((small / 255 - mean) / std).transpose(2, 0, 1), dtype=torch.float32)


class Words:
    """The slow LLaMA tokenizer of transformers 4.3x (``legacy``), with the start token that it puts first."""

    def __init__(self, model):
        self.pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.special = {"<unk>": 0, "<s>": 1, "</s>": 2}

    def __call__(self, text):
        ids = [1]
        for part in re.split("(<unk>|<s>|</s>)", text):
            ids += [self.special[part]] if part in self.special else self.pieces.encode(part)
        return ids

    def with_images(self, text):
        """Tokenise what is between images alone, and join it with -200."""
        first, *rest = [self(piece) for piece in text.split("<image>")]
        return first + [i for ids in rest for i in (IMAGE_ID, *ids[1:])]


def published_v1(words, turns, has_image):
    """Ids and mask of supervised tokens of (question, reply) pairs, by counting the tokens of each round as published."""
    asked = []
    for question, reply in turns:
        if has_image and "<image>" in question:
            question = ("<image>\n" + question.replace("<image>", "").strip()).strip()
        asked.append((question, reply))
    text = SYSTEM + " " + "".join(f"USER: {q} ASSISTANT: {r}</s>" for q, r in asked)
    ids = words.with_images(text)
    learnt, position = [False] * len(ids), 1
    for part in text.split("</s>")[:-1]:
        head = part[: part.index(" ASSISTANT: ") + len(" ASSISTANT: ")]
        start, size = position + len(words.with_images(head)) - 2, len(words.with_images(part))
        position += size
        learnt[start:position] = [True] * (position - start)
    assert position == len(ids), "the published code ignores such a row"
    return ids, learnt


def published_plain(words, reply):
    """Ids and mask of a caption."""
    ids = words.with_images(f"<image>{reply}\n")
    return ids, [False, False] + [True] * (len(ids) - 2)


def read_tower(folder: Path):
    """(side, mean, std) of the images that a tower's folder asks for."""
    made = json.loads((folder / "preprocessor_config.json").read_text())
    return made["crop_size"]["height"], np.array(made["image_mean"]), np.array(made["image_std"])
