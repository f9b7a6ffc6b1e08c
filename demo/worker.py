# Debian's python3-sysv-ipc: nothing here knows of kevre. Started as: worker.py KEYFILE ROUNDS; does what worker.c does.
import struct
import sys

import sysv_ipc

key = sysv_ipc.ftok(sys.argv[1], ord("k"), True)
memory = sysv_ipc.SharedMemory(key)
semaphore = sysv_ipc.Semaphore(key)
semaphore.undo = True
queue = sysv_ipc.MessageQueue(key)


def add(index):
    offset = 8 * index
    (value,) = struct.unpack("q", memory.read(8, offset))
    memory.write(struct.pack("q", value + 1), offset)


for _ in range(int(sys.argv[2])):
    semaphore.acquire()
    add(0)
    add(2)
    semaphore.release()

served = 0
while True:
    number = struct.unpack("q", queue.receive(type=1)[0])[0]
    if number == 0:
        break
    queue.send(struct.pack("q", number * number), type=2)
    served += 1
print("served", served)
