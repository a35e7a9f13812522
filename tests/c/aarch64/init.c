/*
 * The first process of the machine that `tests/aarch64.sh` starts. Runs the commands in /commands, a line each: words without
 * quotes, of which the first ones may be variables, NAME=VALUE. Prints what became of each, and in the end "all passed" or
 * "failed". Then it switches the machine off.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void mount_at(const char *type, const char *place)
{
	mkdir(place, 0755);
	if (mount(type, place, type, 0, NULL))
		perror(place);
}

static int run(char *line)
{
	char *words[32], *rest;
	int n = 0, status, first = 0;
	pid_t pid;

	for (char *word = strtok_r(line, " ", &rest); word && n < 31; word = strtok_r(NULL, " ", &rest))
		words[n++] = word;
	words[n] = NULL;
	pid = fork();
	if (pid == 0) {
		for (; words[first] && strchr(words[first], '='); first++)
			putenv(words[first]);
		execv(words[first], words + first);
		perror(words[first]);
		_exit(127);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return 1;
	return status;
}

int main(void)
{
	char line[1024];
	int failed = 0, n = 0;
	FILE *commands = fopen("/commands", "r");

	mount_at("proc", "/proc");
	mount_at("sysfs", "/sys");
	mount_at("devtmpfs", "/dev");
	mount_at("tmpfs", "/dev/shm");
	mount_at("tmpfs", "/tmp");
	setvbuf(stdout, NULL, _IONBF, 0);
	while (commands && fgets(line, sizeof line, commands)) {
		struct timespec begun, ended;
		int status;

		line[strcspn(line, "\n")] = 0;
		printf("\n== %s\n", line);
		clock_gettime(CLOCK_MONOTONIC, &begun);
		status = run(line);
		clock_gettime(CLOCK_MONOTONIC, &ended);
		printf("== %s after %ld s, status %x\n", status ? "FAILED" : "passed", (long)(ended.tv_sec - begun.tv_sec), status);
		failed += status != 0;
		n++;
	}
	printf("\n%s: %d of %d commands\n", n && !failed ? "all passed" : "failed", n - failed, n);
	sync();
	reboot(RB_POWER_OFF);
	return 1;
}
