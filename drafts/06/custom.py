# ruff: noqa
# fmt: off
def half_adjusted(class_counts, weight):
    """KPS with one half of GA: its weight of the loss, or its scale."""
    loss = kps.KPSLoss(class_counts)
    share = loss.scale / loss.base_scale  # m' of Eq. 3.28

    def per_sample(logits, targets, features):
        own = share[targets]
        score = loss.radius * logits
        score = score - loss.margin * is_target(logits, targets)
        scale = 15.0 if weight else 15.0 * own[:, None]
        cost = F.cross_entropy(scale * score, targets, reduction="none")
        return (own * cost if weight else cost / own).to(logits.dtype)

    loss.per_sample = per_sample
    return loss


def list_on_permuted(class_counts, draw):
    """KPS with the list read backwards, classes stored in another order."""
    generator = torch.Generator().manual_seed(draw)
    stored = torch.randperm(len(class_counts), generator=generator)
    loss = kps.KPSLoss(
        [class_counts[c] for c in stored],
        reversal="list",
        gradient_adjustment=True,
        adjust_from=0.6,
    )
    for buffer in (loss.radius, loss.margin, loss.scale):
        buffer.copy_(buffer[stored.argsort()])
    return loss
