"""Kill processes of runs at random moments, go on, and compare with runs never killed.

Prints as JSON what differed, and on stderr after each run how far it is.
Usage: random_kills.py FOLDER NUM_KILLS
"""

import json
import random
import shutil
import sys
from pathlib import Path

from distributed.processes import start_together
from distributed.scenarios import MUON, differing, go, in_world


def kill_and_compare(folder: Path, num_processes: int, num_kills: int) -> dict[str, object]:
    """Runs of so many processes, each begun anew, until `num_kills` of their sessions were killed.

    A session lasts a random part of an undisturbed one, so that starting, training, saving and
    exporting are all hit.
    """
    rng = random.Random(num_processes)
    undisturbed = folder / f"undisturbed {num_processes}"
    whole = start_together(num_processes, in_world(lambda world: go(MUON, undisturbed, world)))
    assert set(whole.codes) == {0}, whole.stderr
    num_killed, num_runs, differences = 0, 0, list[str]()
    while num_killed < num_kills:
        run = folder / f"killed {num_processes}"
        work = in_world(lambda world, run=run: go(MUON, run, world))
        is_finished = False
        while not is_finished:
            is_left_alone = num_killed >= num_kills
            kill = (rng.randrange(num_processes), rng.uniform(0.0, 1.1) * whole.duration_s)
            session = start_together(num_processes, work, kill=None if is_left_alone else kill)
            num_killed += -9 in session.codes
            is_finished = set(session.codes) == {0}
            assert is_finished or -9 in session.codes, session.stderr
            assert "damaged" not in session.stderr, session.stderr
        differences += differing(undisturbed, run)
        num_runs += 1
        shutil.rmtree(run)
        print(
            f"{num_processes} processes: {num_killed} of {num_kills} kills, {num_runs} runs, "
            f"{len(differences)} differences",
            file=sys.stderr,
            flush=True,
        )
    return {"num_killed": num_killed, "num_runs": num_runs, "differing": differences}


def main(folder: Path, num_kills: int) -> None:
    alone, together = num_kills // 2, num_kills - num_kills // 2
    results = {
        "one process": kill_and_compare(folder, 1, alone),
        "two processes": kill_and_compare(folder, 2, together),
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
