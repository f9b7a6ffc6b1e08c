#!/bin/busybox sh
# First process of the guest, in its initramfs: loads the modules, builds the root (the host's /, read-only, under a
# throw-away overlay) and goes there. Put together by guest.py.
export PATH=/bin
/bin/busybox mkdir -p /proc /sys /dev /host /over /root
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
fail() { echo "guest: $*" >/dev/console; poweroff -f; }
for module in /modules/*; do
  insmod "$module" 2>/insmod || grep -q 'File exists' /insmod || echo "guest: $module: $(cat /insmod)" >/dev/console
done
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro host /host || fail "cannot mount the host's root"
mount -t tmpfs -o size=75% tmpfs /over
mkdir /over/upper /over/work
mount -t overlay -o lowerdir=/host,upperdir=/over/upper,workdir=/over/work overlay /root || fail "cannot mount the overlay"
mount -t tmpfs tmpfs /root/run
mkdir /root/run/guest
cp /guest/* /root/run/guest/
for folder in sys dev proc; do mount --move /$folder /root/$folder; done
exec switch_root /root /bin/bash /run/guest/main.sh
