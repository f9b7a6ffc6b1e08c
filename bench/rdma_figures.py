#!/usr/bin/python3
"""perftest's ib_read_lat, ib_send_lat and ib_read_bw beside `kevre bench transport` and `kevre bench fault` over verbs, all in
one run of the guest with Soft-RoCE (tests/rdma/guest.py): one table, and as JSON with --json.

  bench/rdma_figures.py [--iterations N] [--build FOLDER] [--json]

The machine is emulated: the ratios mean something, the microseconds do not. perftest runs twice: on one device (where `bench
transport` runs) and between two network namespaces (where the nodes of `bench fault` are). A ratio is kevre / reference, or
reference / kevre for a bandwidth: smaller is better.
"""

import argparse
import json
import os
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "tests", "rdma"))

import guest  # noqa: E402
import report  # noqa: E402

ONE_DEVICE = {"name": "one device", "server": ["-d", "rxe0"], "client": ["-d", "rxe0", "10.78.0.1"], "at": ([], [])}
NAMESPACES = {"name": "two namespaces", "server": ["-d", "rxe1"], "client": ["-d", "rxe2", "10.77.0.1"],
              "at": (["ip", "netns", "exec", "n1"], ["ip", "netns", "exec", "n2"])}


def perftest(tool, place, *options):
    """One run of a server and a client; the fields of the last line of figures."""
    words = [tool, "-x", "1", "-F", *map(str, options)]
    server = subprocess.Popen([*place["at"][0], *words, *place["server"]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        for _ in range(100):  # the client gives up at once where nobody listens
            client = subprocess.run([*place["at"][1], *words, *place["client"]], capture_output=True, text=True, timeout=120)
            lines = [line.split() for line in client.stdout.splitlines() if line.strip()[:1].isdigit()]
            if client.returncode == 0 and lines:
                return [float(field) for field in lines[-1]]
            time.sleep(0.2)
        raise SystemExit(f"{tool}: {client.stdout}{client.stderr}")
    finally:
        server.kill()
        server.wait()


def latency(tool, place, iterations, *options):
    fields = perftest(tool, place, "-s", 4096, "-n", iterations, *options)  # bytes, n, min, max, typical, mean, deviation, 99 %
    waiting = "sleeping" if "-e" in options else "spinning"
    return {"case": f"{tool} 4 KiB, {place['name']}, {waiting}", "unit": "us", "n": int(fields[1]), "median": fields[4], "p99": fields[7]}


def bandwidth(tool, place, iterations):
    fields = perftest(tool, place, "-s", 65536, "-n", iterations)  # bytes, n, peak, average MiB/s
    return {"case": f"{tool} 64 KiB, {place['name']}", "unit": "MB/s", "n": int(fields[1]), "median": fields[3] * 1.048576}


def bare(iterations):
    rows = []
    for place in (ONE_DEVICE, NAMESPACES):
        rows += [latency("ib_read_lat", place, iterations), latency("ib_read_lat", place, iterations, "-e")]
        rows.append(latency("ib_send_lat", place, iterations))  # with -e it waits for ever on rxe
        rows.append(bandwidth("ib_read_bw", place, iterations))
    return rows


def kevre(build, bench, iterations):
    command = [os.path.join(build, "bin", "kevre"), "bench", bench, "--transport", "verbs", "--json", "--iterations", str(iterations)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        return [{"case": f"bench {bench}", "failed": done.returncode}]
    return [dict(row, case=f"bench {bench}: {row['case']}") for row in json.loads(done.stdout)["rows"]]


def show(rows):
    print(f"{'case':<66}{'unit':>6}{'n':>7}{'median':>10}{'p99':>10}  {'reference':<52}{'median':>10}{'ratio':>7}")
    for row in rows:
        if "failed" in row:
            print(f"{row['case']:<66}failed with {row['failed']}")
            continue
        own = row.get("kevre", row)
        text = f"{row['case']:<66}{row['unit']:>6}{own['n']:>7}{own['median']:>10.1f}{own.get('p99', 0):>10.1f}"
        if "reference" in row:
            text += f"  {row['reference']['name']:<52}{row['reference']['median']:>10.1f}{row['ratio']:>7.2f}  {row.get('note', '')}"
        print(text.rstrip())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--build", default=os.path.join(HERE, "..", "build", "release"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    guest.be_in_guest(network="dummy,netns2", memory=2048, time_limit=1500)
    rows = bare(options.iterations)
    for bench in ("transport", "fault"):
        rows += kevre(options.build, bench, options.iterations)
    if options.json:
        print(json.dumps(rows, indent=2))
        return 0
    report.show_kernel()
    show(rows)
    return 1 if any("failed" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
