"""The errors of the method package: one sentence each, naming the bag or the epoch."""


class BagError(ValueError):
    """A bag that cannot be used; the message names it and says what was found."""


class TrainingError(RuntimeError):
    """Training that left the finite numbers.

    Loss and gradient are looked at before a step, which then changes nothing; what the anchor follows, after it.
    """
