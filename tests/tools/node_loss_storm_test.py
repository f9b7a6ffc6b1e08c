"""A hundred times: a cluster under load loses one or two nodes at a random moment, also while its nodes are still wiring
up; no surviving daemon may end. Bounded by time (KEVRE_LOSS_SECONDS). A failure prints the seed and the log."""

import glob
import os
import random
import signal
import time
import unittest

import cluster
from cluster import program, wait_until
from node_loss_test import WITHIN, LossCluster, outcome

SECONDS = float(os.environ.get("KEVRE_LOSS_SECONDS", "60"))
ROUNDS = int(os.environ.get("KEVRE_LOSS_ROUNDS", "100"))


class Storm(unittest.TestCase):
    def one_round(self, rng, number):
        with LossCluster(4, name=f"test-{os.getpid()}-{number}") as c:
            names = ["n1", "n2", "n3", "n4"]
            pids = c.daemons()
            victims = rng.sample(names, rng.choice((1, 2)))
            survivors = [n for n in names if n not in victims]
            churners = []
            if rng.random() < 0.7:  # else: at once, while the nodes wire up
                c.create(rng.choice(names), "0x81", 64)
                churners = [c.begin(n, "churn", "0x81", 64) for n in names]
            time.sleep(rng.random() * 0.03)  # the moment is what is varied
            for victim in victims:
                os.kill(pids[victim], signal.SIGKILL)
            try:
                c.wait_for_members(survivors)
                for node, churner in zip(names, churners):
                    churner.stdin.close()
                    churner.stdin = None
                    out = outcome(churner)[0]
                    if node in survivors:
                        self.assertIn(out, ("SIGBUS\n", "done\n"))
                self.assertEqual(set(c.daemons()), set(survivors))
            except AssertionError as error:
                logs = ""
                for path in sorted(glob.glob(f"/run/kevre/{c.name}/n*/log")):
                    with open(path, errors="replace") as log:
                        logs += f"--- {path}\n" + log.read()[-3000:]
                raise AssertionError(f"round {number}, killed {victims}: {error}\n{logs}") from error
            return len(victims)

    def test_no_surviving_daemon_ends_when_nodes_are_killed_under_load(self):
        seed = int(os.environ.get("KEVRE_SEED", str(random.SystemRandom().randrange(1 << 30))))
        print("seed", seed, flush=True)
        rng = random.Random(seed)
        end = time.monotonic() + SECONDS
        kills = rounds = 0
        while rounds < ROUNDS and time.monotonic() < end:
            kills += self.one_round(rng, rounds)
            rounds += 1
        print(f"{kills} kills in {rounds} rounds", flush=True)
        self.assertGreater(kills, 0)


if __name__ == "__main__":
    cluster.main()
