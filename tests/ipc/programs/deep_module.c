// A module as PHP loads its extensions: with RTLD_DEEPBIND.
#include <sys/sem.h>

int make_set(key_t key, int count, int flags);
int make_set(key_t key, int count, int flags) {
  return semget(key, count, flags);
}
