"""What chooses the changes: a seeded generator, hypothesis, or libFuzzer by the coverage of the loader."""

import os
import sys
from random import Random
from types import FunctionType

from .mutations import mutate
from .session import Session


def run_random(session: Session, inputs: int, random: Random) -> None:
    """Try files with seeded changes."""
    for _ in range(inputs):
        if session.over:
            break
        session.try_file(mutate(session.seeds, random))


def run_hypothesis(session: Session, inputs: int, random: Random) -> None:
    """Try files whose changes hypothesis draws."""
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from hypothesis import strategies as st

    @seed(random.randrange(2**32))
    @settings(
        max_examples=inputs,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=False))
    def try_one(drawn: Random) -> None:
        if not session.over:
            session.try_file(mutate(session.seeds, drawn))

    try_one()


def run_atheris(session: Session, inputs: int, random: Random) -> None:
    """Try files that libFuzzer finds by the coverage of the loader; half of its changes are ours.

    It never returns: libFuzzer ends the process without Python's own end, so that the report is written before.
    """
    import atheris

    from unlearning_adapters.adapter import file as adapter_file
    from unlearning_adapters.adapter import header as adapter_header
    from unlearning_adapters.adapter import record as adapter_record

    for module in (adapter_file, adapter_header, adapter_record):
        for name, item in vars(module).copy().items():
            if isinstance(item, FunctionType) and item.__module__ == module.__name__:
                setattr(module, name, atheris.instrument_func(item))

    def change(data: bytes, max_size: int, number: int) -> bytes:
        drawn = Random(number)
        return mutate(session.seeds, drawn)[:max_size] if drawn.random() < 0.5 else atheris.Mutate(data, max_size)

    def try_one(data: bytes) -> None:
        session.try_file(data)
        if session.count >= inputs or session.over:
            session.report()
            os._exit(0)

    # The process has its own limit of memory, and the report its own count.
    options = ("-runs=-1", f"-seed={random.randrange(1, 2**31)}", "-max_len=65536", "-rss_limit_mb=0", "-verbosity=0")
    atheris.Setup([sys.argv[0], *options], try_one, custom_mutator=change)
    atheris.Fuzz()
