/*
 * Opens, maps, polls and reads files as it is told, a command a line, and answers each with a line: what there is to
 * say, "ok", or the name of an error. Bytes are said as runs: "a*100 \0*3996". Descriptors and maps are numbered by
 * the teller, 0 to 63.
 *
 *   open FD PATH r|rw|w        close FD              read FD COUNT          poll FD MILLISECONDS
 *   map M FD LEN OFFSET PROT shared|private           show M OFFSET LEN      poke M OFFSET BYTE
 *   protect M PROT             grow M LEN            unmap M                advise M
 *   child M OFFSET LEN         what a child process sees there, after another line
 *
 * PROT is of the letters r, w, x.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static int fds[64];
static struct { volatile char *at; size_t len; } maps[64];
static sigjmp_buf fault;

static void on_fault(int signal)
{
	siglongjmp(fault, signal);
}

static void answer(int failed)
{
	puts(failed ? strerrorname_np(errno) : "ok");
}

static int prot(const char *letters)
{
	return (strchr(letters, 'r') ? PROT_READ : 0) | (strchr(letters, 'w') ? PROT_WRITE : 0) |
	       (strchr(letters, 'x') ? PROT_EXEC : 0);
}

static void runs(const volatile char *bytes, size_t len)
{
	size_t at = 0;

	if (len == 0)
		fputs("nothing", stdout);
	while (at < len) {
		char byte = bytes[at];
		size_t start = at;

		while (at < len && bytes[at] == byte)
			at++;
		fputs(start ? " " : "", stdout);
		printf(isgraph((unsigned char)byte) ? "%c" : "\\%hho", byte);
		printf("*%zu", at - start);
	}
	putchar('\n');
}

static void guarded(void (*act)(int, long, long), int m, long a, long b)
{
	int signal = sigsetjmp(fault, 1);

	if (signal)
		puts(signal == SIGBUS ? "SIGBUS" : "SIGSEGV");
	else
		act(m, a, b);
}

static void show(int m, long offset, long len)
{
	char *bytes = malloc(len + 1);

	for (long i = 0; i < len; i++)
		bytes[i] = maps[m].at[offset + i];
	runs(bytes, len);
	free(bytes);
}

static void poke(int m, long offset, long byte)
{
	maps[m].at[offset] = byte;
	puts("ok");
}

static void map(int m, int fd, size_t len, long offset, const char *how, const char *kind)
{
	int flags = strcmp(kind, "shared") ? MAP_PRIVATE : MAP_SHARED;
	void *at = mmap(NULL, len, prot(how), flags, fds[fd], offset);

	answer(at == MAP_FAILED);
	maps[m].at = at;
	maps[m].len = len;
}

static void ask(int fd, int timeout)
{
	struct pollfd asked = { fds[fd], POLLIN | POLLPRI | POLLOUT | POLLRDNORM | POLLRDHUP, 0 };

	if (poll(&asked, 1, timeout) < 0)
		return answer(1);
	printf("%s%s%s%s%s\n", asked.revents ? "" : "idle", asked.revents & POLLIN ? "in" : "",
	       asked.revents & POLLRDNORM ? " rdnorm" : "", asked.revents & POLLERR ? "err" : "",
	       asked.revents & (POLLOUT | POLLPRI | POLLRDHUP | POLLHUP | POLLNVAL) ? " other" : "");
}

static void read_once(int fd, long count)
{
	char *bytes = malloc(count + 1);
	ssize_t len = read(fds[fd], bytes, count);

	if (len < 0)
		answer(1);
	else
		runs(bytes, len);
	free(bytes);
}

static void child(int m, long offset, long len)
{
	char line[10];
	pid_t pid = fork();

	if (pid == 0) {
		puts("forked");
		fflush(stdout);
		/* The parent waits, and has read no further than this line. */
		if (read(0, line, 1) == 1)
			guarded(show, m, offset, len);
		fflush(stdout);
		_exit(0);
	}
	waitpid(pid, NULL, 0);
}

int main(void)
{
	char line[4096], path[4096], how[10], kind[10];
	int n, fd;
	long a, b;

	setvbuf(stdin, NULL, _IONBF, 0);
	signal(SIGBUS, on_fault);
	signal(SIGSEGV, on_fault);
	while (fgets(line, sizeof line, stdin)) {
		if (sscanf(line, "open %d %4000s %9s", &n, path, how) == 3) {
			fds[n] = open(path, strcmp(how, "rw") ? (*how == 'r' ? O_RDONLY : O_WRONLY) : O_RDWR);
			answer(fds[n] < 0);
		} else if (sscanf(line, "close %d", &n) == 1) {
			answer(close(fds[n]));
		} else if (sscanf(line, "read %d %ld", &n, &a) == 2) {
			read_once(n, a);
		} else if (sscanf(line, "poll %d %ld", &n, &a) == 2) {
			ask(n, a);
		} else if (sscanf(line, "map %d %d %ld %ld %9s %9s", &n, &fd, &a, &b, how, kind) == 6) {
			map(n, fd, a, b, how, kind);
		} else if (sscanf(line, "show %d %ld %ld", &n, &a, &b) == 3) {
			guarded(show, n, a, b);
		} else if (sscanf(line, "poke %d %ld %c", &n, &a, kind) == 3) {
			guarded(poke, n, a, *kind);
		} else if (sscanf(line, "protect %d %9s", &n, how) == 2) {
			answer(mprotect((void *)maps[n].at, maps[n].len, prot(how)));
		} else if (sscanf(line, "grow %d %ld", &n, &a) == 2) {
			void *at = mremap((void *)maps[n].at, maps[n].len, a, MREMAP_MAYMOVE);

			answer(at == MAP_FAILED);
			if (at != MAP_FAILED) {
				maps[n].at = at;
				maps[n].len = a;
			}
		} else if (sscanf(line, "unmap %d", &n) == 1) {
			answer(munmap((void *)maps[n].at, maps[n].len));
		} else if (sscanf(line, "advise %d", &n) == 1) {
			void *at = (void *)maps[n].at;

			answer(madvise(at, maps[n].len, MADV_DONTNEED) || msync(at, maps[n].len, MS_SYNC) ||
			       mlock(at, maps[n].len) || munlock(at, maps[n].len));
		} else if (sscanf(line, "child %d %ld %ld", &n, &a, &b) == 3) {
			child(n, a, b);
		} else {
			puts("what?");
		}
		fflush(stdout);
	}
	return 0;
}
