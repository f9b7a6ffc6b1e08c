/* Says what early_library.c found. */
#include <stdio.h>

extern int early_result;

int main(void) {
  puts(early_result == 0 ? "made and removed" : "refused");
  return early_result;
}
