/*
 * Forks while other threads are inside the library, and logs by the macros in each child, also at a place that is new to
 * all processes, and in a function of atexit(3).
 *
 *     forks MOUNT DAEMON
 *
 * The last child is forked while a thread waits for the answer to a definition, from a daemon that was stopped.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <relay.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define THREADS 3
#define CHILDREN 40
/* Seconds after which SIGALRM ends a child that hangs. */
#define HANGS 60

static struct rchan *chan;
static atomic_int is_over;
static atomic_int waiting;

static void check(int holds, const char *what)
{
	if (holds)
		return;
	fprintf(stderr, "forks: not so: %s\n", what);
	exit(1);
}

static void *busy(void *unused)
{
	while (!is_over) {
		RELAY_INFO(chan, "busy");
		relay_logf(chan, RELAY_INFO, "busy too");
	}
	return unused;
}

static void *define(void *unused)
{
	waiting = (int)syscall(SYS_gettid);
	RELAY_INFO(chan, "new place of parent");
	return unused;
}

static void at_exit(void)
{
	RELAY_WARN(chan, "at exit");
}

static void succeeds(pid_t child)
{
	int status;

	check(child > 0 && waitpid(child, &status, 0) == child, "a child");
	check(WIFEXITED(status) && WEXITSTATUS(status) == 0, "its end");
}

int main(int argc, char **argv)
{
	pthread_t threads[THREADS], definer;
	pid_t child, daemon;
	int i;

	check(argc == 3, "arguments");
	daemon = (pid_t)atoi(argv[2]);
	chan = relay_open_timed(argv[1], "app/log", NULL, 1 << 20, 8, NULL, NULL);
	check(chan != NULL, "a channel");
	for (i = 0; i < THREADS; i++)
		check(!pthread_create(&threads[i], NULL, busy, NULL), "a thread");
	for (i = 0; i < CHILDREN; i++) {
		child = fork();
		if (child == 0) {
			alarm(HANGS);
			RELAY_INFO(chan, "child %d", i);
			atexit(at_exit);
			exit(relay_flush(chan) ? 1 : 0);
		}
		succeeds(child);
	}
	is_over = 1;
	for (i = 0; i < THREADS; i++)
		check(!pthread_join(threads[i], NULL), "its end");

	check(!kill(daemon, SIGSTOP) && !pthread_create(&definer, NULL, define, NULL), "a thread that waits");
	for (;;) {
		char path[64], call[8] = "";
		FILE *file;

		if (!waiting)
			continue;
		snprintf(path, sizeof(path), "/proc/self/task/%d/syscall", waiting);
		file = fopen(path, "r");
		/* It may be over before this thread looks. */
		if (!file)
			break;
		if (!fgets(call, sizeof(call), file))
			call[0] = 0;
		fclose(file);
		/* poll(2) */
		if (!strncmp(call, "7 ", 2))
			break;
	}
	child = fork();
	if (child == 0) {
		alarm(HANGS);
		RELAY_INFO(chan, "new place of child");
		check(!kill(daemon, SIGCONT) && !relay_flush(chan), "the daemon's answer");
		RELAY_INFO(chan, "later place of child");
		_exit(0);
	}
	succeeds(child);
	check(!pthread_join(definer, NULL), "its end");
	return relay_close(chan) ? 1 : 0;
}
