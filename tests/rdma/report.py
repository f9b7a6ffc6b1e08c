"""What the log of a test in the guest must show: the kernel, each RDMA device and what its driver counted."""

import glob
import os
import platform

COUNTERS = ("sent_pkts", "rcvd_pkts", "sent_bytes", "rcvd_bytes", "completer_retry_err", "rcvd_seq_err", "link_downed")


def read(path):
    with open(path) as file:
        return file.read().strip()


def driver():
    """{device: {counter: value}} as the driver counts."""
    found = {}
    for device in sorted(glob.glob("/sys/class/infiniband/*")):
        counters = os.path.join(device, "ports/1/hw_counters")
        try:
            found[os.path.basename(device)] = {name: int(read(os.path.join(counters, name))) for name in COUNTERS}
        except OSError:
            if os.path.exists(device):
                raise
    return found


def show(text):
    print(f"rdma: {text}", flush=True)


def show_kernel():
    show(f"kernel {platform.release()}")


def show_driver(before=None):
    """One line per device; the packets that all of them sent since `before`."""
    total = 0
    for device, counters in driver().items():
        since = {name: value - (before or {}).get(device, {}).get(name, 0) for name, value in counters.items()}
        show(f"device {device}: " + ", ".join(f"{name} {value}" for name, value in since.items()))
        total += since["sent_pkts"]
    return total
