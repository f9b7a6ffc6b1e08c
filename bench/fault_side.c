/* fault_side KEY PAGES STRIDE: one side of `kevre bench fault`. A plain program on System V shared memory: what it measures is
 * what any unmodified program sees. Reads commands from stdin, answers each with one JSON line on stdout:
 *   own          writes every page                      {"pages": n, "ns": total}
 *   read SEED    loads from each page, in random order  {"n", "min", "median", "p99"}  ns for each load
 *   write SEED   stores to each page, in random order   the same for each store
 *   stream       loads one word from each page, in order {"pages": n, "ns": total}
 * It uses each STRIDE-th page of the segment: few pages side by side would be taken for a sequential reader's.
 * Pages are checked to hold what "own" or "write" put there: {"error": ...} otherwise. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/shm.h>
#include <time.h>

enum { kWordsOfPage = 512 };

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int ascending(const void *a, const void *b) {
  uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return x < y ? -1 : x > y;
}

static void shuffle(uint32_t *order, size_t pages, unsigned seed) {
  for (size_t i = 0; i < pages; i++) order[i] = (uint32_t)i;
  for (size_t i = pages - 1; i > 0; i--) {
    size_t j = (size_t)rand_r(&seed) % (i + 1);
    uint32_t kept = order[i];
    order[i] = order[j];
    order[j] = kept;
  }
}

static int touch(volatile uint64_t *base, size_t pages, size_t stride, int writing, unsigned seed) {
  uint32_t *order = malloc(pages * sizeof *order);
  uint64_t *took = malloc(pages * sizeof *took);
  size_t wrong = 0;
  shuffle(order, pages, seed);
  for (size_t i = 0; i < pages; i++) {
    volatile uint64_t *word = base + (size_t)order[i] * stride * kWordsOfPage;
    uint64_t start = now_ns(), seen = order[i];
    if (writing) *word = order[i];
    else seen = *word;
    took[i] = now_ns() - start;
    wrong += seen != order[i];
  }
  qsort(took, pages, sizeof *took, ascending);
  if (wrong > 0) printf("{\"error\": \"%zu of %zu pages hold something else\"}\n", wrong, pages);
  else printf("{\"n\": %zu, \"min\": %lu, \"median\": %lu, \"p99\": %lu}\n", pages, (unsigned long)took[0], (unsigned long)took[pages / 2],
              (unsigned long)took[pages * 99 / 100]);
  free(order);
  free(took);
  return wrong > 0;
}

int main(int argc, char **argv) {
  if (argc != 4) return 2;
  size_t pages = strtoul(argv[2], NULL, 0), stride = strtoul(argv[3], NULL, 0);
  int id = shmget((key_t)strtol(argv[1], NULL, 0), pages * stride * 4096, IPC_CREAT | 0600);
  volatile uint64_t *base = id < 0 ? (void *)-1 : shmat(id, NULL, 0);
  if (base == (void *)-1) { perror("shmget or shmat"); return 1; }
  char command[16];
  unsigned seed = 0;
  setvbuf(stdout, NULL, _IOLBF, 0);
  for (char line[64]; fgets(line, sizeof line, stdin) != NULL;) {
    if (sscanf(line, "%15s %u", command, &seed) < 1) continue;
    if (strcmp(command, "read") == 0 || strcmp(command, "write") == 0) {
      touch(base, pages, stride, command[0] == 'w', seed);
      continue;
    }
    uint64_t start = now_ns(), wrong = 0;
    for (size_t i = 0; i < pages; i++) {
      if (strcmp(command, "own") == 0) base[i * stride * kWordsOfPage] = i;
      else wrong += base[i * stride * kWordsOfPage] != i;
    }
    if (wrong > 0) printf("{\"error\": \"%lu of %zu pages hold something else\"}\n", (unsigned long)wrong, pages);
    else printf("{\"pages\": %zu, \"ns\": %lu}\n", pages, (unsigned long)(now_ns() - start));
  }
  return 0;
}
