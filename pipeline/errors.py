"""The errors that users see: one sentence each, saying what, where, and what to do."""


class PipelineError(Exception):
    """Anything wrong with the input or the configuration; the message is meant for the user."""


class ConfigError(PipelineError):
    """A setting, labels file or set of weights that no run can start with."""


class ArtefactError(PipelineError):
    """A file of an earlier stage that is damaged, or was made with another schema."""


class SlideError(PipelineError):
    """A slide that cannot be used; it is quarantined and the cohort goes on.

    Parameters
    ----------
    reason
        What is wrong with the slide, in a clause without its name ("no mpp in its properties").
    remedy
        What the user can do about it ("add its mpp to data/overrides.csv").
    """

    def __init__(self, reason: str, *, remedy: str) -> None:
        super().__init__(f"{reason}; {remedy}")
        self.reason = reason
        self.remedy = remedy
