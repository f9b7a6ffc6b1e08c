"""A node that dies or leaves at a bad moment: whoever waited for it gets an error or goes on, nobody hangs, the others
elect, new objects can be made, and no surviving daemon ends."""

import json
import os
import signal
import subprocess
import time
import unittest

import cluster
from cluster import Cluster, finish, kevre, program, wait_until

WITHIN = 10  # seconds until everybody who waits for a dead node knows
PAGES = 512


class LossCluster(Cluster):
    def socket(self, node):
        return f"/run/kevre/{self.name}/{node}/control.sock"

    def daemons(self):
        return {n["name"]: n["daemon_pid"] for n in self.status()["nodes"] if n["state"] != "down"}

    def signal(self, *nodes, number=signal.SIGKILL):
        pids = self.daemons()
        for node in nodes:
            os.kill(pids[node], number)
        return [pids[node] for node in nodes]

    def members(self):
        done = kevre("nodes", "--json", cluster=self.name, check=False)
        return [n["name"] for n in json.loads(done.stdout)] if done.returncode == 0 else []

    def wait_for_members(self, names, seconds=WITHIN):
        wait_until(lambda: self.members() == names, seconds, f"the view is {names}: {self.members()}")

    def begin(self, node, mode, key, *arguments):
        """A program whose caller speaks to the node itself; returns when the program is ready."""
        environment = dict(os.environ, KEVRE_CONTROL=self.socket(node))
        process = self.start(node, program("node_loss"), mode, key, *arguments, stdin=subprocess.PIPE, env=environment)
        line = process.stdout.readline()
        if line != "ready\n":
            raise AssertionError(f"{mode} on {node}: {line!r} {process.communicate(timeout=30)}")
        return process

    def create(self, node, key, pages=PAGES):
        self.run(node, program("node_loss"), "create", key, pages)

    def check_alive(self, nodes, key):
        """The survivors share a new segment, semaphore and queue."""
        self.create(nodes[0], key)
        filler = self.begin(nodes[0], "fill", key, PAGES, 7)
        for node in nodes:
            checker = self.begin(node, "check", key, PAGES, 7)
            out, err = checker.communicate("", timeout=30)
            if out != f"same {PAGES} other 0 lost 0\n":
                raise AssertionError(f"{node}: {out!r} {err!r}")
        filler.communicate("", timeout=30)


def outcome(process, seconds=WITHIN):
    """How a program that node_loss began has ended; killed when it hangs."""
    try:
        out, err = process.communicate(timeout=seconds)
    except Exception as error:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"{process.args} hangs: {out!r} {err!r}") from error
    return out, err, process.returncode


class NodeLoss(unittest.TestCase):
    def test_when_the_seat_is_killed_sleepers_get_EIDRM_and_the_others_go_on_with_new_objects(self):
        with LossCluster(3) as c:
            c.create("n1", "0x71")
            sleepers = [c.begin(node, mode, "0x71", PAGES) for node in ("n2", "n3") for mode in ("sem", "msg")]
            c.signal("n1")
            for sleeper in sleepers:
                self.assertEqual(outcome(sleeper)[0], "EIDRM\n")
            c.wait_for_members(["n2", "n3"])
            c.check_alive(["n2", "n3"], "0x71")
            self.assertEqual(c.run("n2", "echo", "on").stdout, "on\n")

    def test_programs_in_page_faults_end_with_SIGBUS_or_go_on_when_any_node_is_killed(self):
        for victim in ("n1", "n2", "n3"):
            with self.subTest(victim), LossCluster(3) as c:
                others = [n for n in ("n1", "n2", "n3") if n != victim]
                c.create(others[0], "0x72")
                doomed = c.begin(victim, "churn", "0x72", PAGES)
                churners = [c.begin(node, "churn", "0x72", PAGES) for node in others]
                c.signal(victim)
                out, err, code = outcome(doomed)
                self.assertEqual((err.count("\n"), code), (1, 1), err)
                c.wait_for_members(others)
                for churner in churners:
                    churner.stdin.close()
                    churner.stdin = None
                    self.assertIn(outcome(churner)[0], ("SIGBUS\n", "done\n"))
                c.check_alive(others, "0x73")

    def test_two_daemons_killed_at_once_leave_a_cluster_of_the_rest(self):
        for victims in (("n1", "n2"), ("n2", "n3"), ("n1", "n4")):
            with self.subTest(victims), LossCluster(4) as c:
                others = [n for n in ("n1", "n2", "n3", "n4") if n not in victims]
                c.create("n2", "0x74")
                churners = [c.begin(node, "churn", "0x74", PAGES) for node in others]
                c.signal(*victims)
                c.wait_for_members(others)
                for churner in churners:
                    churner.stdin.close()
                    churner.stdin = None
                    self.assertIn(outcome(churner)[0], ("SIGBUS\n", "done\n"))
                c.check_alive(others, "0x75")

    def test_a_daemon_that_is_told_to_leave_hands_its_pages_to_the_others(self):
        for leaver in ("n2", "n1"):
            with self.subTest(leaver), LossCluster(3) as c:
                others = [n for n in ("n1", "n2", "n3") if n != leaver]
                c.create("n1", "0x76", 4 * PAGES)
                checkers = [c.begin(node, "check", "0x76", 4 * PAGES, 5) for node in others]
                filler = c.begin(leaver, "fill", "0x76", 4 * PAGES, 5)
                (pid,) = c.signal(leaver, number=signal.SIGTERM)
                wait_until(lambda: not os.path.exists(f"/proc/{pid}"), WITHIN, "the daemon ends")
                outcome(filler)
                c.wait_for_members(others)
                for checker in checkers:
                    checker.stdin.close()
                    checker.stdin = None
                    self.assertEqual(outcome(checker)[0], f"same {4 * PAGES} other 0 lost 0\n")
                c.check_alive(others, "0x77")

    def test_a_node_killed_while_another_leaves_costs_pages_at_worst(self):
        for leaver, victim in (("n2", "n3"), ("n1", "n2"), ("n2", "n1")):
            with self.subTest((leaver, victim)), LossCluster(4) as c:
                others = [n for n in ("n1", "n2", "n3", "n4") if n not in (leaver, victim)]
                c.create("n1", "0x78", 4 * PAGES)
                checkers = [c.begin(node, "check", "0x78", 4 * PAGES, 5) for node in others]
                fillers = [c.begin(node, "fill", "0x78", 4 * PAGES, 5) for node in (victim, leaver)]
                pids = c.daemons()
                os.kill(pids[leaver], signal.SIGTERM)
                os.kill(pids[victim], signal.SIGKILL)
                c.wait_for_members(others)
                for process in fillers:
                    outcome(process)
                for checker in checkers:
                    checker.stdin.close()
                    checker.stdin = None
                    out = outcome(checker)[0]
                    self.assertRegex(out, r"^same \d+ other 0 lost \d+\n$")
                c.check_alive(others, "0x79")


if __name__ == "__main__":
    cluster.main()
