/* killer_target SEGMENT_KEY SEMAPHORE_KEY [MODE]: counts in a segment with locked instructions and under a semaphore.
 *   no MODE  a victim: counts for ever, also in the victims' words
 *   0        a survivor: counts until the stop word is set, then prints what it added
 *   -1       sets the stop word      -2  prints everything
 * Words live on pages of their own: 0 atomic, 1 victims' atomic, 2 locked, 3 victims' locked, 4 survivors' atomic, 5 stop. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/sem.h>
#include <sys/shm.h>

enum { kAtomic, kVictimsAtomic, kLocked, kVictimsLocked, kSurvivorsAtomic, kStop, kWords };

static long *base;
static long *word(int i) { return base + i * 512; }
static void add(int i, long by) { __atomic_fetch_add(word(i), by, __ATOMIC_SEQ_CST); }
static long get(int i) { return __atomic_load_n(word(i), __ATOMIC_SEQ_CST); }

static void change(int set, short by) {
  struct sembuf op = {0, by, SEM_UNDO};
  if (semop(set, &op, 1) != 0) { perror("semop"); exit(1); }
}

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  int id = shmget((key_t)strtol(argv[1], NULL, 0), kWords * 4096, IPC_CREAT | 0600);
  int set = semget((key_t)strtol(argv[2], NULL, 0), 1, 0600);
  base = id < 0 || set < 0 ? (void *)-1 : shmat(id, NULL, 0);
  if (base == (void *)-1) { perror("shmget, semget or shmat"); return 1; }
  int mode = argc > 3 ? atoi(argv[3]) : 1;
  if (mode == -1) { add(kStop, 1); return 0; }
  if (mode == -2) {
    printf("{\"atomic\": %ld, \"victims_atomic\": %ld, \"locked\": %ld, \"victims_locked\": %ld, \"survivors_atomic\": %ld, "
           "\"semaphore\": %d}\n", get(kAtomic), get(kVictimsAtomic), get(kLocked), get(kVictimsLocked), get(kSurvivorsAtomic),
           semctl(set, 0, GETVAL));
    return 0;
  }
  long atomic = 0, locked = 0;
  while (mode == 1 || get(kStop) == 0) {
    add(kAtomic, 1);
    atomic++;
    if (mode == 1) add(kVictimsAtomic, 1);
    if (atomic % 16 == 0) {
      change(set, -1);
      *(volatile long *)word(kLocked) += 1;
      if (mode == 1) *(volatile long *)word(kVictimsLocked) += 1;
      change(set, +1);
      locked++;
    }
  }
  add(kSurvivorsAtomic, atomic);
  printf("{\"atomic\": %ld, \"locked\": %ld}\n", atomic, locked);
  return 0;
}
