"""pclseg.main that gets a signal at a chosen moment, for the tests of resuming.

python tests/interrupted.py SIGNAL PLACE NUMBER DELAY ARGUMENTS_OF_MAIN...

PLACE is "prepare", "evaluate", "validate" or the name of a stage; the signal comes
DELAY seconds after volume, validation or step NUMBER begins, counted from 0.
"""

import os
import signal
import sys
import threading
from pathlib import Path

from pclseg import cohort, main, runner, scoring


def interrupt_at(name: str, place: str, number: int, delay: float) -> None:
    """Arranges for the signal; see above."""

    def send() -> None:
        number = signal.Signals[f"SIG{name}"]
        threading.Timer(delay, os.kill, (os.getpid(), number)).start()

    def counted(items, first):
        for count, item in enumerate(items, start=first):
            if count == number:
                send()
            yield item

    def train(step, state, batches, *others, **options):
        if options["stage"] == place:
            batches = counted(batches, int(state.step))
        if place == "validate" and options["validate"]:
            numbers = counted(iter(int, 1), 0)
            validate = options["validate"]
            options["validate"] = lambda state: (next(numbers), validate(state))[1]
        return train_as_written(step, state, batches, *others, **options)

    def prepare_dataset(data, dataset, report):
        watch = threading.Thread(target=wait_for, args=(Path(data.store_dir),))
        watch.daemon = True
        watch.start()
        return prepare_as_written(data, dataset, report)

    def wait_for(folder):
        while len(list(folder.glob("*.staging/*.npz"))) < number:
            threading.Event().wait(0.002)
        send()

    def score_cases(predict, *args, **options):
        numbers = counted(iter(int, 1), 0)
        return score_as_written(
            lambda image: (next(numbers), predict(image))[1], *args, **options
        )

    train_as_written = runner.train
    runner.train = train
    if place == "prepare":
        prepare_as_written = cohort.prepare_dataset
        cohort.prepare_dataset = prepare_dataset
    if place == "evaluate":
        score_as_written = scoring.score_cases
        scoring.score_cases = score_cases


if __name__ == "__main__":
    signal_name, where, at, after, *arguments = sys.argv[1:]
    interrupt_at(signal_name, where, int(at), float(after))
    sys.argv = ["main", *arguments]
    sys.exit(main.main(sys.argv))
