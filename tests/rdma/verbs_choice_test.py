"""The transport is chosen per peer, in a guest with a Soft-RoCE device: verbs between those that may, ucx with who was told to,
and a node that has nothing in common with a member is refused before it joins."""

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
BIN = os.path.join(os.environ["KEVRE_BUILD"], "bin")
SKIPPED = 126
WITHIN = 60  # seconds, on an emulated machine


class Daemons:
    """Daemons started by hand on one machine, as on real ones; killed when the block ends."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.key = os.path.join(self.folder.name, "key")
        with open(os.open(self.key, os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
            file.write(secrets.token_hex(32) + "\n")
        self.running = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.running:
            process.kill()
            process.wait()
            process.stderr.close()
        self.folder.cleanup()

    def control(self, name):
        return os.path.join(self.folder.name, name + ".control")

    def start(self, name, transport):
        number = len(self.running)
        command = [os.path.join(BIN, "kevred"), "--name", name, "--listen", f"10.78.0.1:{7800 + number}", "--key-file", self.key,
                   "--control-socket", self.control(name), "--node-socket", self.control(name) + ".node", "--transport", transport]
        if number > 0:
            command += ["--join", "10.78.0.1:7800"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.running.append(process)
        end = time.monotonic() + WITHIN
        while process.poll() is None and not os.path.exists(self.control(name)):
            if time.monotonic() > end:
                raise AssertionError(f"{name} does not start")
            time.sleep(0.05)
        return process

    def peers(self, name):
        done = subprocess.run([os.path.join(BIN, "kevre"), "info", "--json"], capture_output=True, text=True, timeout=WITHIN,
                              env=dict(os.environ, KEVRE_CONTROL=self.control(name)))
        return {p["name"]: p for p in json.loads(done.stdout)["peers"]} if done.returncode == 0 else {}


class Choice(unittest.TestCase):
    def test_verbs_where_both_may_ucx_where_one_was_told_to_and_no_join_without_a_common_one(self):
        with Daemons() as d:
            d.start("a", "auto")
            d.start("b", "auto")
            d.start("c", "ucx")
            end = time.monotonic() + WITHIN
            while any(len(d.peers(name)) < 2 for name in "abc") and time.monotonic() < end:
                time.sleep(0.1)
            peers = {name: d.peers(name) for name in "abc"}
            for one, other in ("ab", "ba"):
                self.assertEqual((peers[one][other]["backend"], peers[one][other]["via"], peers[one][other]["why"]), ("verbs", "rc", ""))
                self.assertTrue(peers[one][other]["one_sided"]["read"])
            for one in "ab":
                self.assertEqual(peers[one]["c"]["backend"], "ucx")
                self.assertEqual(peers[one]["c"]["why"], "--transport ucx at the peer")
                self.assertEqual(peers["c"][one]["why"], "--transport ucx at this node")
                print(f"rdma: {one}: {peers[one]}", flush=True)
            refused = d.start("d", "verbs")
            self.assertEqual(refused.wait(WITHIN), 1)
            said = refused.stderr.read().strip().splitlines()[-1]
            self.assertIn("no transport in common: this node takes verbs only, and --transport ucx at the peer", said)
            self.assertIn("--transport auto", said)

    def test_the_benches_run_over_verbs_and_keep_their_contract(self):
        done = subprocess.run([os.path.join(BIN, "kevre"), "bench", "transport", "--transport", "verbs", "--quick", "--iterations", "10",
                               "--json"], capture_output=True, text=True, timeout=200)
        self.assertEqual(done.returncode, 0, done.stderr)
        answer = json.loads(done.stdout)
        self.assertEqual((answer["bench"], answer["transport"]), ("transport", "verbs"))
        cases = {row["case"]: row for row in answer["rows"]}
        for wanted in ("verbs, sleeping: one-sided read 4 KiB", "verbs, sleeping: round trip 8 B", "verbs, sleeping: fetch-and-add 8 B"):
            self.assertEqual(cases[wanted]["kevre"]["n"], 10)
            self.assertGreater(cases[wanted]["reference"]["median"], 0)


if __name__ == "__main__":
    if "KEVRE_IN_GUEST" not in os.environ:
        os.environ["KEVRE_IN_GUEST"] = "1"
        status = subprocess.run([os.path.join(HERE, "guest.py"), "--network", "dummy", "--time-limit", "280", "--",
                                 sys.executable, os.path.abspath(__file__)], check=False).returncode
        if status == SKIPPED:
            print("kevre: test skipped: no guest here (the reason is above)")
            status = 0
        sys.exit(status)
    unittest.main(verbosity=2)
