/* See kit.h. */
#include "kit.h"

#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "report.h"

struct channel ch;

/* How often a message is sent before it is given up to reach the tested buffer. */
#define TRIES_MAX 10000

void fail_at(const char *file, int line, const char *format, ...)
{
	char *name = strrchr(file, '/');
	va_list args;
	int len;

	len = snprintf(report, REPORT_MAX, "%s:%d: ", name ? name + 1 : file, line);
	va_start(args, format);
	vsnprintf(report + len, REPORT_MAX - len, format, args);
	va_end(args);
	_exit(1);
}

void equal_at(const char *file, int line, const char *what, long long got, long long want)
{
	if (got != want)
		fail_at(file, line, "%s: expected %lld, came %lld", what, want, got);
}

void fails_at(const char *file, int line, const char *what, long result, int error, int want)
{
	if (result != -1)
		fail_at(file, line, "%s: expected %s, came %ld", what, strerrorname_np(want), result);
	if (error != want)
		fail_at(file, line, "%s: expected %s, came %s", what, strerrorname_np(want), strerrorname_np(error));
}

long works_at(const char *file, int line, const char *what, long result)
{
	if (result == -1)
		fail_at(file, line, "%s: expected success, came %s", what, strerrorname_np(errno));
	return result;
}

static char *next_path(void)
{
	static char paths[4][4096];
	static int next;

	return paths[next++ % 4];
}

const char *file_of(int cpu)
{
	char *path = next_path();

	snprintf(path, 4096, "%s/%s%d", ch.mount, ch.name, cpu);
	return path;
}

const char *control(const char *name)
{
	char *path = next_path();

	snprintf(path, 4096, "%s/.relay/channels/%s/%s", ch.mount, ch.name, name);
	return path;
}

const char *ring_of(int cpu)
{
	char name[30];

	snprintf(name, sizeof name, "map/cpu%d", cpu);
	return control(name);
}

int tell(const char *name, const void *bytes, size_t len)
{
	int fd = WORKS(open(control(name), O_WRONLY));
	ssize_t written = write(fd, bytes, len);
	int error = written < 0 ? errno : 0;

	CHECK(written < 0 || (size_t)written == len, "%s: %zd of %zu bytes written", name, written, len);
	WORKS(close(fd));
	return error;
}

void flush(void)
{
	EQ(tell("flush", "1", 1), 0);
}

void reset(void)
{
	EQ(tell("reset", "1\n", 2), 0);
}

/* The text of `stats`, as it is now. */
static const char *stats(void)
{
	static char text[1 << 20];
	int fd = WORKS(open(control("stats"), O_RDONLY));
	ssize_t len = WORKS(read(fd, text, sizeof text - 1));

	WORKS(close(fd));
	text[len] = 0;
	return text;
}

static long long number_in(const char *text, int cpu, const char *name)
{
	char key[64];
	const char *line;

	snprintf(key, sizeof key, "cpu%d.%s ", cpu, name);
	for (line = text; line && *line; line = strchr(line, '\n'), line = line ? line + 1 : NULL)
		if (!strncmp(line, key, strlen(key)))
			return atoll(line + strlen(key));
	FAIL("stats has no %s", key);
}

long long counted_of(int cpu, const char *name)
{
	return number_in(stats(), cpu, name);
}

long long counted(const char *name)
{
	return counted_of(ch.cpu, name);
}

/* Messages of a buffer that were written, dropped, and too big. */
struct counts {
	long long of[3];
};

static struct counts counts_of(int cpu)
{
	const char *text = stats();
	struct counts counts = { { number_in(text, cpu, "written"), number_in(text, cpu, "dropped"),
				   number_in(text, cpu, "too_big") } };

	return counts;
}

/* Goes to a CPU, if it may run there. */
static void go_to(int cpu)
{
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET(cpu, &cpus);
	sched_setaffinity(0, sizeof cpus, &cpus);
}

/*
 * Which buffer a message to `msg` comes to is decided by the CPU on which the daemon takes it. That depends on where it
 * was sent from, in a way that changes with everything else that runs. So it is sent, from one CPU after the other, until
 * the counts of the buffer under test say that it came there; the others get the rest.
 */
enum placed put_bytes(int cpu, const void *bytes, size_t len)
{
	static const int errnos[3] = { 0, ENOSPC, EMSGSIZE };
	static int here; /* the CPU that it last came from */
	int n_cpus = sysconf(_SC_NPROCESSORS_CONF);

	for (int i = 0; i < TRIES_MAX; i++) {
		struct counts before = counts_of(cpu);
		int error = tell("msg", bytes, len);
		struct counts after = counts_of(cpu);

		for (int placed = WRITTEN; placed <= TOO_BIG; placed++) {
			if (after.of[placed] == before.of[placed])
				continue;
			EQ(after.of[placed], before.of[placed] + 1);
			EQ(error, errnos[placed]);
			return placed;
		}
		here = (here + 1) % n_cpus;
		go_to(here);
	}
	FAIL("no message has come to CPU %d, in %d tries", cpu, TRIES_MAX);
}

enum placed put(int cpu, char letter, size_t len)
{
	static char message[MIB];

	memset(message, letter, len);
	return put_bytes(cpu, message, len);
}

void puts_at(const char *file, int line, char letter, size_t len, enum placed want)
{
	static const char *const words[] = { "written", "dropped", "too big" };
	enum placed placed = put(ch.cpu, letter, len);

	if (placed != want)
		fail_at(file, line, "a message %c*%zu: expected %s, came %s", letter, len, words[want], words[placed]);
}

char letter(size_t i)
{
	return 'a' + i % 26;
}

/* Expected bytes. */
static char wanted[2 * MIB];
static size_t wanted_len;

void want(const char *format, ...)
{
	char text[512], *word, *rest = text;
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof text, format, args);
	va_end(args);
	while ((word = strsep(&rest, " "))) {
		char byte = *word == 'h' && !word[1] ? 0 : *word;
		size_t len = byte ? strtoul(*word ? word + 2 : "0", NULL, 10) : *word ? ch.h : 0;

		CHECK(wanted_len + len <= sizeof wanted, "the case expects too much");
		memset(wanted + wanted_len, byte, len);
		wanted_len += len;
	}
}

/* Bytes as runs, cut short. */
static const char *runs(const char *bytes, size_t len)
{
	static char texts[2][400];
	static int next;
	char *text = texts[next++ % 2];
	size_t at = 0, used = 0;

	strcpy(text, "nothing");
	while (at < len && used < 360) {
		size_t start = at;

		while (at < len && bytes[at] == bytes[start])
			at++;
		used += sprintf(text + used, bytes[start] >= '!' ? "%s%c*%zu" : "%s\\%o*%zu", start ? " " : "",
				(unsigned char)bytes[start], at - start);
	}
	if (at < len)
		strcpy(text + used, " ...");
	return text;
}

void are_at(const char *file, int line, const char *what, const void *bytes, size_t len)
{
	size_t expected = wanted_len;

	wanted_len = 0;
	if (len == expected && !memcmp(bytes, wanted, len))
		return;
	fail_at(file, line, "%s: expected %zu bytes: %s; came %zu bytes: %s", what, expected, runs(wanted, expected), len,
		runs(bytes, len));
}

void reads_at(const char *file, int line, int fd, size_t count)
{
	static char got[2 * MIB];
	ssize_t len = read(fd, got, count);
	char what[40];

	snprintf(what, sizeof what, "read of %zu", count);
	works_at(file, line, what, len);
	are_at(file, line, what, got, len);
}

short poll_now(int fd)
{
	struct pollfd asked = { fd, POLLIN | POLLPRI | POLLOUT | POLLRDNORM | POLLWRNORM | POLLRDHUP, 0 };

	WORKS(poll(&asked, 1, 0));
	return asked.revents;
}

void polls_at(const char *file, int line, int fd, short want)
{
	short came = poll_now(fd);

	if (came != want)
		fail_at(file, line, "poll: expected %#hx, came %#hx", want, came);
}

time_t deadline(void)
{
	return time(NULL) + DEADLINE;
}

int is_over(time_t end)
{
	struct timespec moment = { 0, 1000000 };

	nanosleep(&moment, NULL);
	return time(NULL) > end;
}

pid_t sleeper(int fd)
{
	pid_t pid = WORKS(fork());

	if (pid == 0) {
		struct pollfd asked = { fd, POLLIN | POLLPRI | POLLOUT | POLLRDNORM | POLLRDHUP, 0 };

		WORKS(poll(&asked, 1, -1));
		/* What it was told are its 8 bits; of those above, none is ever to be told. */
		_exit(asked.revents > 255 ? 255 : asked.revents);
	}
	EVENTUALLY(sleeps(pid));
	return pid;
}

int sleeps(pid_t pid)
{
	char path[64], at[64] = "";
	int fd, status;

	CHECK(waitpid(pid, &status, WNOHANG) == 0, "a sleeper woke up: %#x", status);
	snprintf(path, sizeof path, "/proc/%d/wchan", pid);
	fd = WORKS(open(path, O_RDONLY));
	WORKS(read(fd, at, sizeof at - 1));
	close(fd);
	return strstr(at, "poll") || strstr(at, "select");
}

int ended(pid_t pid)
{
	int status;

	EVENTUALLY(WORKS(waitpid(pid, &status, WNOHANG)) == pid);
	return status;
}

short woken(pid_t pid)
{
	int status = ended(pid);

	CHECK(WIFEXITED(status), "a sleeper has died: %#x", status);
	return WEXITSTATUS(status);
}
