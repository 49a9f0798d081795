"""A run of the example's Trainer on a tiny network with random weights; under torchrun with the name of a file."""

import sys
import tempfile

import torch
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel, TrainingArguments

from tests.adapters.examples import load

WORDS, LENGTH, ROWS, BATCH = 50, 8, 32, 8


def classifier():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(vocab_size=WORDS, max_position_embeddings=LENGTH, num_labels=3, **sizes, **still)
    return BertForSequenceClassification(config)


def language_model():
    torch.manual_seed(0)
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    sizes = {"n_positions": LENGTH, "n_embd": 16, "n_layer": 1, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, bos_token_id=0, eos_token_id=0, **sizes, **still))


def rows(causal=False):
    generator = torch.Generator().manual_seed(1)
    found = []
    for row in range(ROWS):
        words = torch.randint(WORDS, (LENGTH,), generator=generator)
        attended = (torch.arange(LENGTH) < 3 + row % 6).long()
        labels = words.where(attended.bool(), -100) if causal else row % 3
        found.append({"input_ids": words, "attention_mask": attended, "labels": labels})
    return found


def trainer(folder, model, data, loss="cross_entropy", given=None, **settings):
    quiet = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
    arguments = TrainingArguments(str(folder), **{"per_device_train_batch_size": BATCH, **quiet, **settings})
    return load("transformers_trainer").MethodTrainer(model, arguments, train_dataset=data, loss=loss, **(given or {}))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        run = trainer(folder, classifier(), rows(), max_steps=4, per_device_train_batch_size=BATCH // 2)
        run.train()
    if run.is_world_process_zero():
        torch.save(run.model.state_dict(), sys.argv[1])
