def random_direction(
    model, data, class_counts, augment, predict, tail, confusion_from
):
    """BLT, but every ascent is replaced by a random one of its length."""
    own = {"tail": tail, "confusion_from": confusion_from}
    made = blt.BLT(model, data, class_counts, augment, predict, **own)
    ascent = made.climb

    def climb(model, images, classes, confidence):
        change = ascent(model, images, classes, confidence) - images
        noise = torch.randn_like(change)
        ratio = change.flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1)
        return images + ratio[:, None, None, None] * noise

    made.climb = climb
    return made
