/*
 * open(2): how, and what for; all who have a file open share its cursor. The kernel's table of the file object, F6 to
 * F12 and F18.
 */
#include "kit.h"

#include <stdio.h>
#include <sys/stat.h>
#include <sys/uio.h>

static void open_read_only(void)
{
	static const int more[] = { 0, O_NONBLOCK, O_APPEND, O_CREAT, O_CLOEXEC, O_NOFOLLOW, O_SYNC };
	int kept = O_ACCMODE | O_NONBLOCK | O_APPEND;

	READS(READER(), MIB, "h");
	for (size_t i = 0; i < sizeof more / sizeof *more; i++) {
		int fd = WORKS(open(file_of(ch.cpu), O_RDONLY | more[i], 0400));

		EQ(WORKS(fcntl(fd, F_GETFL)) & kept, more[i] & kept);
		WROTE(letter(i), 5);
		READS(fd, MIB, "%c*5", letter(i));
		WORKS(close(fd));
	}
}

static void open_for_writing(void)
{
	static const int more[] = { 0, O_NONBLOCK, O_APPEND, O_CREAT, O_SYNC };
	int kept = O_ACCMODE | O_NONBLOCK | O_APPEND;

	for (size_t i = 0; i < sizeof more / sizeof *more; i++)
		for (int access = O_WRONLY; access <= O_RDWR; access++) {
			int fd = WORKS(open(file_of(ch.cpu), access | more[i], 0600));

			EQ(WORKS(fcntl(fd, F_GETFL)) & kept, access | (more[i] & kept));
			WORKS(close(fd));
		}
	WROTE('a', 10);
	READS(WORKS(open(file_of(ch.cpu), O_RDWR)), MIB, "h a*10");
}

static void open_for_writing_is_refused(void)
{
	FAILS(open(file_of(ch.cpu), O_WRONLY), EACCES);
	FAILS(open(file_of(ch.cpu), O_RDWR), EACCES);
	FAILS(open(file_of(ch.cpu), O_RDONLY | O_TRUNC), EACCES);
}

static void open_refusals(void)
{
	char below[4200] = "";

	FAILS(open(file_of(ch.cpu), O_RDONLY | O_DIRECTORY), ENOTDIR);
	FAILS(open(file_of(ch.cpu), O_RDONLY | O_CREAT | O_EXCL, 0400), EEXIST);
	FAILS(open(file_of(ch.n_bufs), O_RDONLY), ENOENT);
	for (const char *path = file_of(ch.cpu), *from = path; *from; from++)
		below[from - path] = *from;
	for (size_t i = 0; i < 4100; i++)
		if (!below[i]) {
			below[i] = '/', below[i + 1] = 'x';
			break;
		}
	FAILS(open(below, O_RDONLY), ENOTDIR);
}

static void open_o_direct(void)
{
	WROTE('a', 15);
	FAILS(open(file_of(ch.cpu), O_RDONLY | O_DIRECT), EINVAL);
	READS(READER(), MIB, "h a*15");
}

static void open_o_trunc(void)
{
	struct stat before, after;

	WROTE('a', 20);
	WORKS(stat(file_of(ch.cpu), &before));
	for (int access = O_RDONLY; access <= O_RDWR; access++)
		WORKS(close(WORKS(open(file_of(ch.cpu), access | O_TRUNC))));
	WORKS(stat(file_of(ch.cpu), &after));
	EQ(after.st_size, before.st_size);
	READS(READER(), MIB, "h a*20");
}

static void one_cursor(void)
{
	int first = READER(), second = READER(), copy, third;

	WROTE('a', 30);
	READS(first, MIB, "h a*30");
	READS(first, MIB, "");
	READS(second, MIB, "");
	WROTE('b', 10); /* with the former, all that the smallest channel holds in a sub-buffer */
	READS(second, 6, "b*6");
	READS(first, MIB, "b*4");
	READS(second, MIB, "");
	third = READER();
	READS(third, MIB, "");
	reset();
	WROTE('c', 30);
	copy = WORKS(dup(second));
	READS(second, ch.h + 10, "h c*10");
	READS(copy, 10, "c*10");
	READS(second, MIB, "c*10");
}

static void inherited(void)
{
	int fd = READER();
	pid_t pid;

	WROTE('a', 30);
	READS(fd, ch.h + 10, "h a*10");
	pid = WORKS(fork());
	if (pid == 0) {
		READS(fd, 10, "a*10");
		_exit(0);
	}
	EQ(ended(pid), 0);
	READS(fd, MIB, "a*10");
}

static void many_openers(void)
{
	enum { N = 200 };
	int fds[N];

	for (int i = 0; i < N; i++)
		fds[i] = READER();
	WROTE('a', 20);
	flush();
	for (int i = 0; i < N; i++)
		POLLS(fds[i], READABLE);
	READS(fds[N / 2], MIB, "h a*20 %s", OPENED(1));
	for (int i = 0; i < N; i++) {
		POLLS(fds[i], 0);
		READS(fds[i], 10, "");
	}
}

static void write_on_read_only(void)
{
	int fd = READER();
	struct iovec parts[2] = { { "x", 1 }, { "y", 1 } };

	FAILS(write(fd, "x", 1), EBADF);
	FAILS(writev(fd, parts, 2), EBADF);
	FAILS(pwrite(fd, "x", 1, 0), EBADF);
	WROTE('a', 10);
	READS(fd, MIB, "h a*10");
}

static void write_is_refused(void)
{
	static char long_message[3 * MIB];
	struct iovec parts[2] = { { "x", 1 }, { "y", 1 } };

	for (int how = 0; how < 4; how++) {
		int fd = WORKS(open(file_of(ch.cpu), how & 1 ? O_WRONLY : O_RDWR | (how & 2 ? O_APPEND : 0)));

		FAILS(write(fd, "x", 1), EINVAL);
		FAILS(write(fd, long_message, sizeof long_message), EINVAL);
		FAILS(writev(fd, parts, 2), EINVAL);
		WORKS(close(fd));
	}
	WROTE('a', 10);
	READS(READER(), MIB, "h a*10");
}

static void pwrite_is_refused(void)
{
	int fd = WORKS(open(file_of(ch.cpu), O_RDWR));

	FAILS(pwrite(fd, "x", 1, 0), EINVAL);
	FAILS(pwrite(fd, "x", 1, 100), EINVAL);
	EQ(write(fd, "", 0), 0);
	WROTE('a', 10);
	READS(fd, MIB, "h a*10");
}

static void write_only(void)
{
	int fd = WORKS(open(file_of(ch.cpu), O_WRONLY));
	char byte;

	WROTE('a', 10);
	flush();
	FAILS(read(fd, &byte, 1), EBADF);
	POLLS(fd, 0);
	POLLS(READER(), READABLE);
}

static void directory(void)
{
	char new[4096], other[4096];
	const char *path = file_of(ch.cpu);
	int end = 0;

	/* Beside the file, in a directory that nobody but the daemon changes. */
	for (int i = 0; path[i]; i++)
		if (path[i] == '/')
			end = i + 1;
	for (int i = 0; i < end; i++)
		new[i] = other[i] = path[i];
	for (int i = 0; i < 4; i++)
		new[end + i] = "new"[i], other[end + i] = "two"[i];
	FAILS(open(new, O_WRONLY | O_CREAT, 0600), EACCES);
	FAILS(mkdir(new, 0700), EACCES);
	FAILS(symlink("x", new), EACCES);
	FAILS(mknod(new, S_IFIFO | 0600, 0), EACCES);
	FAILS(link(path, new), EPERM);
	FAILS(rename(path, new), EPERM);
	FAILS(unlink(path), EPERM);
	FAILS(rename(other, new), ENOENT);
	WROTE('a', 10);
	READS(READER(), MIB, "h a*10");
}

const struct test open_cases[] = {
	{ "open-read-only", 0, open_read_only },
	{ "open-for-writing", ROOT, open_for_writing },
	{ "open-for-writing-is-refused", USER | MODES, open_for_writing_is_refused },
	{ "open-refusals", 0, open_refusals },
	{ "open-o-direct-is-refused", 0, open_o_direct },
	{ "open-o-trunc-changes-nothing-unlike-kernel", ROOT, open_o_trunc },
	{ "open-shares-one-cursor", 0, one_cursor },
	{ "open-is-inherited", 0, inherited },
	{ "open-many", KEEPS, many_openers },
	{ "write-on-read-only-is-refused", 0, write_on_read_only },
	{ "write-is-refused", ROOT, write_is_refused },
	{ "write-at-a-position-unlike-kernel", ROOT, pwrite_is_refused },
	{ "write-only-is-never-readable", ROOT, write_only },
	{ "directory-is-not-changed", 0, directory },
	{ 0 },
};
