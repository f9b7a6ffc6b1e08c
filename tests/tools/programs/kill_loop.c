/* kill_loop COUNT SEED PROGRAM ARGUMENTS...: COUNT times: starts the program, kills it with SIGKILL at a random moment
 * (also while it starts), waits for it. Prints "killed COUNT"; fails when a program ended in another way. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv) {
  if (argc < 4) return 2;
  int count = atoi(argv[1]);
  unsigned seed = (unsigned)atol(argv[2]);
  for (int i = 0; i < count; i++) {
    pid_t pid = fork();
    if (pid == 0) { execv(argv[3], argv + 3); _exit(127); }
    usleep((useconds_t)(rand_r(&seed) % 60000));
    int status = 0;
    if (kill(pid, SIGKILL) != 0 || waitpid(pid, &status, 0) != pid) { perror("kill or waitpid"); return 1; }
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL) { fprintf(stderr, "victim ended by itself: %x\n", status); return 1; }
  }
  printf("killed %d\n", count);
  return 0;
}
