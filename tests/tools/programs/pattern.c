/* pattern KEY BYTES write SEED | check SEED: fills the segment with pseudo-random words, or compares every word with
 * them and prints how many differ and a checksum. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/shm.h>

static uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

int main(int argc, char **argv) {
  if (argc != 5) return 2;
  size_t words = strtoul(argv[2], NULL, 0) / 8;
  int writing = strcmp(argv[3], "write") == 0;
  int id = shmget((key_t)strtol(argv[1], NULL, 0), words * 8, writing ? IPC_CREAT | 0600 : 0600);
  uint64_t *word = id < 0 ? (void *)-1 : shmat(id, NULL, writing ? 0 : SHM_RDONLY);
  if (word == (void *)-1) { perror("shmget or shmat"); return 1; }
  uint64_t seed = strtoul(argv[4], NULL, 0), differ = 0, sum = 0;
  for (size_t i = 0; i < words; i++) {
    uint64_t expected = mix(seed + i * 0x9e3779b97f4a7c15u);
    if (writing) word[i] = expected;
    else differ += word[i] != expected;
    sum += expected * (i + 1);
  }
  printf("%s words %zu differ %lu sum %016lx\n", argv[3], words, (unsigned long)differ, (unsigned long)sum);
  return differ != 0;
}
