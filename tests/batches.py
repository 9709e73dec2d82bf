"""Batches of data modules, for tests that compare them."""


def loaded(data, epoch=0):
    """The training batches of an epoch."""
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def same(batches, others):
    """Whether batches have the same names and numbers."""
    return all(
        one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)
        for one, other in zip(batches, others, strict=True)
    )
