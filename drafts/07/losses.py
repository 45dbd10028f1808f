# ruff: noqa: F821


def within(class_counts, loss, start, stop):
    """A loss whose clock goes from start to stop in its stage."""
    made = loss.build(class_counts=class_counts)
    tell = made.set_progress
    made.set_progress = lambda t: tell(start + (stop - start) * t)
    return made


def variant(class_counts, own, moves):
    """FBL on each image's own or the batch's norm, with or without
    the gradient through it."""
    made = fbl.FeatureBalancedLoss(class_counts, 60.0, normalized=True)
    balanced = made.per_sample

    def per_sample(logits, targets, features):
        norm = features.norm(dim=1, keepdim=True)
        if not own:
            norm = (1 / norm).mean().reciprocal().expand_as(norm)
        return balanced(logits, targets, norm if moves else norm.detach())

    made.per_sample = per_sample
    return made


def penalty(class_counts):
    """Cross-entropy plus a cost for short features, Eq. 4.3."""
    made = fbl.FeatureBalancedLoss(class_counts, 60.0, normalized=True)

    def per_sample(logits, targets, features):
        cost = made.alpha * made.stimulus[targets] / features.norm(dim=1)
        plain = F.cross_entropy(logits, targets, reduction="none")
        return plain + cost.to(plain.dtype)

    made.per_sample = per_sample
    return made
