"""Trains the miniature's text encoder from nothing: `python -m simplewan.mini.train_text FOLDER`.

Imports `draw` and `model`, torch and transformers. Two tasks at once. Masked words: guess a hidden word from its
neighbours. Reading: a small attention with one learned query per question ("the colour of the second object?") answers
from the encoder's output. The second makes each token carry whose attribute it is; without it, a transformer that
looks at the tokens cannot tell which of two objects the red one is. The heads of both tasks are thrown away.

Shapes: B batch, L tokens, D width, Q questions.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simplewan.data.atomic import atomic_folder
from simplewan.mini.draw import HELD_BACK, Scene, caption, random_scene
from simplewan.mini.model import TEXT_WIDTH, make_text_encoder, make_tokenizer

STEPS, BATCH, LEARNING_RATE = 2500, 192, 3e-3
MASKED = 0.15
OBJECTS = 2
HELD_OUT_SEED = 1_000_003


def questions(scene: Scene) -> list[str]:
    """The words that answer: the ground; shape, colour, size, motion, speed of each object; "" where there is none."""
    answers = [scene.ground]
    for index in range(OBJECTS):
        item = scene.objects[index] if index < len(scene.objects) else None
        if item is None:
            answers += [""] * 5
        else:
            motion = "gimbles" if item.gimbles else item.direction or "still"
            answers += [item.shape, item.colour, item.size, motion, item.speed or ""]
    return answers


class Heads(nn.Module):
    """What the encoder's output is asked during training."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        count = 1 + 5 * OBJECTS
        self.queries = nn.Parameter(torch.randn(count, TEXT_WIDTH))
        self.keys = nn.Linear(TEXT_WIDTH, TEXT_WIDTH)
        self.answers = nn.Linear(TEXT_WIDTH, vocabulary)
        self.words = nn.Linear(TEXT_WIDTH, vocabulary)

    def forward(self, hidden_BLD: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the answers (B, Q, vocabulary) and of the masked words (B, L, vocabulary)."""
        scores = self.queries @ self.keys(hidden_BLD).transpose(1, 2) / TEXT_WIDTH**0.5
        attention = scores.masked_fill(mask_BL[:, None] == 0, -torch.inf).softmax(dim=-1)
        return self.answers(attention @ hidden_BLD), self.words(hidden_BLD)


def train(seed: int, *, steps: int = STEPS) -> tuple[Any, Any, float]:
    """The tokenizer, the trained encoder, and the share of a held-out caption's questions that are answered right."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer: Any = make_tokenizer()
        encoder: Any = make_text_encoder(len(tokenizer)).train()
        heads = Heads(len(tokenizer))
        parameters = [*encoder.parameters(), *heads.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
        for step in range(steps):
            scenes = _scenes((seed, step))
            ids, mask = _tokens(tokenizer, scenes)
            hidden_words = (torch.rand(ids.shape) < MASKED) & (mask == 1)
            hidden = encoder(input_ids=ids.masked_fill(hidden_words, tokenizer.unk_token_id), attention_mask=mask)
            _, words = heads(hidden.last_hidden_state, mask)
            whole = encoder(input_ids=ids, attention_mask=mask)
            answers, _ = heads(whole.last_hidden_state, mask)
            loss = F.cross_entropy(words[hidden_words], ids[hidden_words])
            loss = loss + F.cross_entropy(answers.flatten(0, 1), _answers(tokenizer, scenes).flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    encoder.eval()
    return tokenizer, encoder, accuracy(tokenizer, encoder, heads)


@torch.no_grad()
def accuracy(tokenizer: Any, encoder: Any, heads: Heads) -> float:
    """The share of right answers on captions from another seed; many of the simpler ones come up in training too."""
    scenes = _scenes((HELD_OUT_SEED, 0))
    ids, mask = _tokens(tokenizer, scenes)
    answers, _ = heads(encoder(input_ids=ids, attention_mask=mask).last_hidden_state, mask)
    return float((answers.argmax(dim=-1) == _answers(tokenizer, scenes)).float().mean())


def _scenes(key: tuple[int, int]) -> list[Scene]:
    generator = np.random.default_rng(key)
    return [
        random_scene(generator, width=64, height=64, num_frames=9, concept=_concept(generator), anywhere=True)
        for _ in range(BATCH)
    ]


def _concept(generator: np.random.Generator) -> str | None:
    """The encoder knows the made-up words, as a large one knows rare words; the transformer never sees them."""
    return HELD_BACK[int(generator.integers(len(HELD_BACK)))] if generator.random() < 0.3 else None


def _tokens(tokenizer: Any, scenes: list[Scene]) -> tuple[Tensor, Tensor]:
    """Token ids and mask, (B, L) each."""
    encoded = tokenizer([caption(scene) for scene in scenes], padding="longest", return_tensors="pt")
    return encoded.input_ids, encoded.attention_mask


def _answers(tokenizer: Any, scenes: list[Scene]) -> Tensor:
    """The answers as token ids (B, Q); padding stands for "there is none"."""
    words = [["▁" + word if word else tokenizer.pad_token for word in questions(scene)] for scene in scenes]
    return torch.tensor([tokenizer.convert_tokens_to_ids(row) for row in words])


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the miniature's text encoder.")
    parser.add_argument("folder", type=Path, help="gets text_encoder/ and tokenizer/")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    started = time.monotonic()
    tokenizer, encoder, right = train(arguments.seed, steps=arguments.steps)
    with atomic_folder(arguments.folder) as folder:
        encoder.to(torch.bfloat16).save_pretrained(folder / "text_encoder")
        tokenizer.save_pretrained(folder / "tokenizer")
    print(f"{100 * right:.2f}% of the questions answered after {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
