/* A library whose constructor makes and removes a segment, as some communication libraries do to see what works. */
#include <sys/shm.h>

int early_result = -1;

__attribute__((constructor)) static void probe(void) {
  int id = shmget(IPC_PRIVATE, 4096, IPC_CREAT | 0600);
  early_result = id < 0 ? 1 : shmctl(id, IPC_RMID, 0) != 0 ? 2 : 0;
}
