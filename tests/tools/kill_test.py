"""A program killed with SIGKILL at any moment leaves the segment and the semaphore usable by the others."""

import json
import os
import random
import time
import unittest

import cluster
from cluster import Cluster, finish, program

KILLS = int(os.environ.get("KEVRE_KILLS", "200"))


class Kill(unittest.TestCase):
    def test_random_kills_during_the_counter_run_lose_nothing_of_the_others(self):
        seed = int(os.environ.get("KEVRE_SEED", str(random.SystemRandom().randrange(1 << 30))))
        print("seed", seed, flush=True)
        rng = random.Random(seed)
        with Cluster(3) as c:
            c.run("n1", program("count_semaphore"), "0x2002", -1)
            survivors = [c.start(f"n{1 + i % 3}", program("killer_target"), "0x2001", "0x2002", 0) for i in range(3)]
            # One harness program per node forks a victim, kills it at a random moment, and starts the next.
            harness = [c.start(f"n{1 + i}", program("kill_loop"), KILLS // 3 + (1 if i < KILLS % 3 else 0), rng.randrange(1 << 30),
                               program("killer_target"), "0x2001", "0x2002") for i in range(3)]
            outputs = finish(harness, 300)
            killed = sum(int(o.split()[1]) for o in outputs)
            self.assertEqual(killed, KILLS)
            # The survivors are asked to stop, and report what they added: nothing of theirs may be missing.
            c.run("n2", program("killer_target"), "0x2001", "0x2002", -1)
            reports = [json.loads(o) for o in finish(survivors, 60)]
            final = json.loads(c.run("n3", program("killer_target"), "0x2001", "0x2002", -2).stdout)
            for report in reports:
                self.assertGreater(report["atomic"], 0)
                self.assertGreater(report["locked"], 0)
            mine = {key: sum(r[key] for r in reports) for key in ("atomic", "locked")}
            self.assertEqual(final["survivors_atomic"], mine["atomic"])
            self.assertGreaterEqual(final["atomic"], mine["atomic"])
            self.assertGreaterEqual(final["locked"], mine["locked"])
            # A victim counts before and after each increment in its own words: the sums can differ by one per kill.
            self.assertLessEqual(abs(final["atomic"] - mine["atomic"] - final["victims_atomic"]), KILLS)
            self.assertLessEqual(abs(final["locked"] - mine["locked"] - final["victims_locked"]), KILLS)
            self.assertEqual(final["semaphore"], 1)


if __name__ == "__main__":
    cluster.main()
