"""Texts: batches that are padded to their longest, models whose outputs are mappings, masks made from values."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from headstart.deferred import Reuse

transformers = pytest.importorskip("transformers")

# Stored values were computed in other batches, padded to other lengths: float32 sums in another order.
TOLERANCE = 2e-5


def texts(count=24):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 12, (count,), generator=generator).tolist()
    return [
        (
            torch.randint(5, 90, (length,), generator=generator),
            int(torch.randint(3, (1,), generator=generator)),
        )
        for length in lengths
    ]


def pad(samples):
    ids = nn.utils.rnn.pad_sequence([tokens for tokens, _ in samples], batch_first=True)
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long(), "token_type_ids": torch.zeros_like(ids)}
    return inputs, torch.tensor([label for _, label in samples])


def bert(**settings):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=90, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=20,
        max_position_embeddings=32, **settings,
    )  # fmt: skip
    return transformers.BertModel(config).requires_grad_(False).eval()


class Classifier(nn.Module):
    def __init__(self, network, pool):
        super().__init__()
        self.bert = network
        self.pool = pool
        self.head = nn.Linear(16, 3)

    def forward(self, inputs):
        return self.head(self.pool(self.bert(**inputs), inputs["attention_mask"]))


def train(make, *, setting=None, shuffle=False, epochs=3):
    model = make()
    loader = DataLoader(texts(), batch_size=6, shuffle=shuffle, collate_fn=pad)
    reuse = None if setting is None else Reuse(model, setting, min_gain=0, say=lambda line: None)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    torch.manual_seed(7)
    losses = []
    for _ in range(epochs):
        for inputs, y in loader if reuse is None else reuse.batches(loader):
            loss = functional.cross_entropy(model(inputs), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses, torch.rand(3), reuse


def first_token(output, mask):
    return output.last_hidden_state[:, 0]


def masked_mean(output, mask):
    weights = mask.unsqueeze(-1).to(output.last_hidden_state.dtype)
    return (output.last_hidden_state * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


POOLS = {"first token": first_token, "masked mean": masked_mean, "pooler": lambda output, mask: output[1]}


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("pool", POOLS)
def test_a_frozen_bert_with_padding_to_the_longest_is_stored_after_its_pooling(pool, shuffle):
    def make():
        return Classifier(bert(), POOLS[pool])

    plain, state, _ = train(make, shuffle=shuffle)
    for setting in ("exact", "auto"):
        found, state_found, reuse = train(make, setting=setting, shuffle=shuffle)
        if setting == "exact" and not shuffle:
            assert found == plain
        torch.testing.assert_close(torch.tensor(found), torch.tensor(plain), rtol=TOLERANCE, atol=TOLERANCE)
        assert torch.equal(state, state_found)
        assert reuse.report().num_computed == 24
        assert reuse.report().num_looked_up >= 2 * 24


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_bert_of_which_the_last_block_trains(shuffle, attention):
    def make():
        network = bert(
            attn_implementation=attention, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
        )
        network.encoder.layer[2].requires_grad_(True).train()
        return Classifier(network, first_token)

    plain, state, _ = train(make, shuffle=shuffle)
    for setting in ("exact", "auto"):
        found, state_found, reuse = train(make, setting=setting, shuffle=shuffle)
        if setting == "exact" and not shuffle:
            assert found == plain
        torch.testing.assert_close(torch.tensor(found), torch.tensor(plain), rtol=TOLERANCE, atol=TOLERANCE)
        assert torch.equal(state, state_found)
        if not shuffle:  # in the same batches, every sample is padded as it was
            assert reuse.report().num_computed == 24, reuse.report().remarks
            assert reuse.report().num_looked_up == 2 * 24


def test_attention_maps_that_nobody_reads_are_not_stored():
    def make():
        network = bert(attn_implementation="eager", output_attentions=True)
        return Classifier(network, lambda output, mask: output["last_hidden_state"][:, 0])

    plain, _, _ = train(make)
    found, _, reuse = train(make, setting="exact")
    assert found == plain
    (stored,) = reuse.report().stored
    assert "getitem" in stored
