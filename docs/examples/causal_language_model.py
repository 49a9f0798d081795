"""Loss and weights of a causal language model: the mean over all tokens of a batch, as transformers has it."""

from torch.nn import functional


def token_cross_entropy(logits, labels):
    """Mean over the tokens of each sample, (B,), of logits (B, T, words) and labels (B, T)."""
    next_labels = labels[:, 1:]
    losses = functional.cross_entropy(logits[:, :-1].flatten(0, 1), next_labels.flatten(), reduction="none")
    return losses.view_as(next_labels).sum(1) / token_count(labels).clamp(min=1)  # the label -100 has the loss 0


def token_count(labels):
    """Tokens of each sample that count, (B,): its weight in the mean over the batch."""
    return (labels[:, 1:] != -100).sum(1)
