/*
 * Whether a channel's files behave as relay files do: plain system calls on paths, a case for each promise. The cases
 * follow the recorded behaviour of the kernel's relay. Where relayfs differs on purpose, a case holds it to what
 * relay/docs/SEMANTICS.md says instead, and has "unlike-kernel" in its name.
 *
 * Here is how they are chosen, run and told of; the cases are in the files beside it, and what they are made of in
 * kit.h. A case runs in a process group of its own, so that none disturbs another, whatever becomes of it.
 */
#include "kit.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "report.h"

static const struct test *const subjects[] = {
	open_cases, attribute_cases, read_cases, credit_cases, full_cases, overwrite_cases, flush_cases, header_cases,
	poll_cases, mmap_cases, splice_cases, seek_cases, close_cases, control_cases,
};

static const char usage[] =
	"usage: conformance [OPTION]... MOUNTPOINT CHANNEL [CASE]...\n"
	"Checks that the files of a relayfs channel behave as relay files do, or just the CASEs.\n"
	"\n"
	"      --cpu N           the buffer to use: 0\n"
	"      --mapping HOW     'ring' if the kernel can map the files, as with a daemon run by root on Linux 6.9 and\n"
	"                        later; 'none' if not; by default, whether it can\n"
	"      --until-closed    wait until somebody ends the channel, by umount -l, and check how its open files end\n"
	"      --list            names of the cases, and what of the channel each needs\n"
	"      --help\n"
	"\n"
	"Prints a line for each case: \"ok NAME\", \"not ok NAME: what was expected, what came\", or, for one that the\n"
	"channel is not made for, \"skip NAME: what it needs\". Exit status: 0 if none failed, 1 if one did, 2 if it could\n"
	"not begin.\n"
	"\n"
	"It takes who may read the files, write to msg, flush and reset. What is unread in the channel is thrown away, and\n"
	"nobody else may use it meanwhile. A channel with all of S between 40 bytes and 1019 KiB beside its header, and\n"
	"no more than 1 MiB in all, will do. All cases have run after these:\n"
	"\n"
	"  relayfsd --channel a:subbuf-size=8K:n-subbufs=2 --channel b:subbuf-size=64:n-subbufs=4:header=16\n"
	"           --channel c:subbuf-size=8K:n-subbufs=3:overwrite --channel d:subbuf-size=4K:n-subbufs=1\n"
	"           --channel e:subbuf-size=4K:n-subbufs=1:overwrite MOUNTPOINT\n"
	"  once by root, and the first once by a user with -o default_permissions.\n";

char *report;

static void cannot(const char *what, const char *why)
{
	fprintf(stderr, "conformance: %s: %s\n", what, why);
	exit(2);
}

/* What a case needs and the channel is not, or all it needs if `all`. */
static const char *needs(const struct test *test, int all)
{
	static char text[200];
	const struct {
		unsigned flag;
		const char *what;
		int is_met;
	} known[] = {
		{ MANY, "two sub-buffers or more", ch.n > 1 },
		{ ONE, "a single sub-buffer", ch.n == 1 },
		{ OVER, "overwrite mode", ch.over },
		{ NO_OVER, "no-overwrite mode", !ch.over },
		{ HEADER, "a header", ch.h > 0 },
		{ NO_HEADER, "no header", ch.h == 0 },
		{ CPUS, "two buffers or more", ch.n_bufs > 1 },
		{ RINGS, "files that can be mapped", ch.rings },
		{ NO_RINGS, "files that cannot be mapped", !ch.rings },
		{ ROOT, "root", geteuid() == 0 },
		{ USER, "a user other than root", geteuid() != 0 },
		{ MODES, "a mount with default_permissions", ch.modes },
		{ KEEPS, "no-overwrite mode or two sub-buffers", ch.n > 1 || !ch.over },
	};

	*text = 0;
	for (size_t i = 0; i < sizeof known / sizeof *known; i++)
		if (test->needs & known[i].flag && (all || !known[i].is_met))
			sprintf(text + strlen(text), "%s%s", *text ? ", " : "", known[i].what);
	return *text ? text : NULL;
}

static void list(void)
{
	for (size_t i = 0; i < sizeof subjects / sizeof *subjects; i++)
		for (const struct test *test = subjects[i]; test->name; test++) {
			const char *what = needs(test, 1);

			printf("%s%s%s\n", test->name, what ? ": " : "", what ? what : "");
		}
}

/* The number in a small file of the channel. */
static size_t number_in(const char *name)
{
	char text[40] = "";
	int fd = open(control(name), O_RDONLY);

	if (fd < 0 || read(fd, text, sizeof text - 1) < 0)
		cannot(control(name), strerror(errno));
	close(fd);
	return strtoul(text, NULL, 10);
}

/* Finds out what the channel is like. `control` has what no text file has, see relay/docs/FORMAT.md. */
static void look_at_channel(const char *mapping)
{
	char head[88] = "", mode[40] = "";
	uint32_t header = 0;
	int fd = open(control("control"), O_RDONLY);
	void *map;
	struct stat stat;

	if (fd < 0 || read(fd, head, sizeof head) < 0)
		cannot(control("control"), strerror(errno));
	memcpy(&header, head + 40, sizeof header);
	map = mmap(NULL, sizeof head, PROT_READ, MAP_SHARED, fd, 0);
	ch.rings = mapping ? !strcmp(mapping, "ring") : map != MAP_FAILED;
	close(fd);
	fd = open(control("mode"), O_RDONLY);
	if (fd < 0 || read(fd, mode, sizeof mode - 1) < 0)
		cannot(control("mode"), strerror(errno));
	close(fd);
	ch.modes = access(file_of(ch.cpu), X_OK) != 0;
	ch.over = !strncmp(mode, "overwrite", 9);
	ch.s = number_in("subbuf_size");
	ch.n = number_in("n_subbufs");
	ch.h = header;
	ch.d = ch.s - ch.h;
	while (!lstat(file_of(ch.n_bufs), &stat))
		ch.n_bufs++;
	if (ch.n_bufs <= ch.cpu)
		cannot(file_of(ch.cpu), "there is no such buffer");
	if (ch.h + 40 > ch.s || ch.s > 1019 << 10 || !ch.n || ch.n > MIB / ch.s)
		cannot(ch.name, "the cases are not made for its geometry, see --help");
}

/* Runs a case in a process of its own, for so many seconds at most, or without end; whether it was passed. */
static int passes(void (*run)(void), int seconds)
{
	pid_t pid = fork();
	struct pollfd end = { -1, POLLIN, 0 };
	int status;

	if (pid == 0) {
		setpgid(0, 0);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		*report = 0;
		run();
		_exit(0);
	}
	end.fd = syscall(SYS_pidfd_open, pid, 0);
	if (pid < 0 || end.fd < 0)
		cannot("a process for a case", strerror(errno));
	setpgid(pid, pid);
	if (poll(&end, 1, seconds < 0 ? -1 : seconds * 1000) == 0)
		snprintf(report, REPORT_MAX, "expected an end, came none within %d s", seconds);
	/* With whatever it has left. */
	kill(-pid, SIGKILL);
	if (poll(&end, 1, DEADLINE * 1000) == 0) {
		printf("Bail out! process %d cannot be killed\n", pid);
		exit(1);
	}
	close(end.fd);
	waitpid(pid, &status, 0);
	if (!*report && WIFSIGNALED(status))
		snprintf(report, REPORT_MAX, "expected an exit, came signal %d", WTERMSIG(status));
	return !*report && status == 0;
}

static int try(const char *name, void (*run)(void), int seconds)
{
	int passed = passes(run, seconds);

	if (passed)
		printf("ok %s\n", name);
	else
		printf("not ok %s: %s\n", name, report);
	fflush(stdout);
	return passed;
}

static const struct test *now;

static void from_reset(void)
{
	reset();
	now->run();
}

static int is_asked(const char *name, char **names)
{
	for (int all = !*names; !all; names++) {
		if (!*names)
			return 0;
		if (!strcmp(name, *names))
			return 1;
	}
	return 1;
}

int main(int argc, char **argv)
{
	const char *mapping = NULL;
	int until_closed = 0, n_run = 0, n_failed = 0, n_skipped = 0;

	report = mmap(NULL, REPORT_MAX, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (report == MAP_FAILED)
		cannot("memory", strerror(errno));
	for (argc--, argv++; argc && !strncmp(*argv, "--", 2); argc--, argv++) {
		if (!strcmp(*argv, "--help")) {
			fputs(usage, stdout);
			return 0;
		} else if (!strcmp(*argv, "--list")) {
			list();
			return 0;
		} else if (!strcmp(*argv, "--until-closed")) {
			until_closed = 1;
		} else if (!strcmp(*argv, "--cpu") && argc > 1) {
			ch.cpu = atoi(*++argv);
			argc--;
		} else if (!strcmp(*argv, "--mapping") && argc > 1 && (!strcmp(argv[1], "ring") || !strcmp(argv[1], "none"))) {
			mapping = *++argv;
			argc--;
		} else {
			cannot(*argv, "no such option, see --help");
		}
	}
	if (argc < 2)
		cannot("usage", "conformance [OPTION]... MOUNTPOINT CHANNEL [CASE]..., see --help");
	ch.mount = argv[0];
	ch.name = argv[1];
	look_at_channel(mapping);
	printf("# %s: %zux%zu, %s, header %zu, buffer %d of %d, mapping %s\n", ch.name, ch.s, ch.n,
	       ch.over ? "overwrite" : "no-overwrite", ch.h, ch.cpu, ch.n_bufs, ch.rings ? "ring" : "none");
	fflush(stdout);

	if (until_closed)
		return !try("channel-ends", channel_ends, -1);
	for (size_t i = 0; i < sizeof subjects / sizeof *subjects; i++)
		for (now = subjects[i]; now->name; now++) {
			const char *lacking = needs(now, 0);

			if (!is_asked(now->name, argv + 2))
				continue;
			if (lacking) {
				printf("skip %s: %s\n", now->name, lacking);
				n_skipped++;
			} else {
				n_failed += !try(now->name, from_reset, 3 * DEADLINE);
				n_run++;
			}
		}
	if (n_run + n_skipped == 0)
		cannot("no such case", "see --list");
	printf("# %d passed, %d failed, %d skipped\n", n_run - n_failed, n_failed, n_skipped);
	return n_failed > 0;
}
