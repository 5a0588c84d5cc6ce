"""Stands in for modelscope, which DiffSynth imports for downloads; nothing that the tests run calls it."""


def __getattr__(name: str) -> object:
    if name.startswith("__"):
        raise AttributeError(name)
    return lambda *args, **kwargs: None
