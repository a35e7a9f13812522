/*
 * What stat(2) says, what cannot be set, and calls that relay files have no use for: the kernel's table of the file
 * object, F1 to F5 and F13 to F22.
 */
#include "kit.h"

#include <string.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <termios.h>

static struct stat now(void)
{
	struct stat stat_now;

	WORKS(stat(file_of(ch.cpu), &stat_now));
	return stat_now;
}

static void file(void)
{
	struct stat by_path = now(), by_link, by_fd;
	int fd = READER();

	WORKS(lstat(file_of(ch.cpu), &by_link));
	WORKS(fstat(fd, &by_fd));
	EQ(by_path.st_mode & S_IFMT, S_IFREG);
	EQ(by_path.st_mode & 0111, 0);
	EQ(by_path.st_mode & 0400, 0400);
	EQ(by_path.st_nlink, 1);
	EQ(by_fd.st_mode, by_path.st_mode);
	EQ(by_link.st_mode, by_path.st_mode);
	EQ(by_fd.st_ino, by_path.st_ino);
	EQ(by_fd.st_dev, by_path.st_dev);
	EQ(by_fd.st_uid, by_path.st_uid);
	EQ(by_fd.st_size, by_path.st_size);
}

static void by_mode(void)
{
	WORKS(access(file_of(ch.cpu), F_OK));
	WORKS(access(file_of(ch.cpu), R_OK));
	FAILS(access(file_of(ch.cpu), X_OK), EACCES);
	if (geteuid() != 0)
		FAILS(access(file_of(ch.cpu), W_OK), EACCES);
}

static void block_size(void)
{
	WROTE('a', 10);
	EQ(now().st_blksize, MIB);
	EQ(now().st_blocks, (now().st_size + 511) / 512);
}

static void size(void)
{
	int fd = READER();
	off_t begin = now().st_size;
	struct stat by_fd;

	WROTE('a', ch.d / 4);
	EQ(now().st_size - begin, ch.d / 4);
	WORKS(fstat(fd, &by_fd));
	EQ(by_fd.st_size - begin, ch.d / 4);
	WROTE('b', ch.d);
	EQ(now().st_size - begin, ch.d / 4 + ch.h + ch.d);
	IS_TOO_BIG('x', ch.s + 1);
	EQ(now().st_size - begin, ch.d / 4 + ch.h + ch.d);
	READS(fd, MIB, "h a*%zu h b*%zu", ch.d / 4, ch.d);
	EQ(now().st_size - begin, ch.d / 4 + ch.h + ch.d);
	flush(); /* begins another, with its header */
	EQ(now().st_size - begin, ch.d / 4 + 2 * ch.h + ch.d);
	reset();
	EQ(now().st_size - begin, ch.d / 4 + 3 * ch.h + ch.d);
	WROTE('c', 10);
	EQ(now().st_size - begin, ch.d / 4 + 3 * ch.h + ch.d + 10);
}

static int is_later(struct timespec a, struct timespec b)
{
	return a.tv_sec > b.tv_sec || (a.tv_sec == b.tv_sec && a.tv_nsec > b.tv_nsec);
}

static void modified(void)
{
	struct stat before = now(), after;
	int fd = READER();

	WROTE('a', 10);
	after = now();
	CHECK(is_later(after.st_mtim, before.st_mtim), "mtime: expected a later one, came the same");
	READS(fd, ch.h + 5, "h a*5");
	POLLS(fd, 0);
	IS_TOO_BIG('x', ch.s + 1);
	before = now();
	EQ(before.st_mtim.tv_sec, after.st_mtim.tv_sec);
	EQ(before.st_mtim.tv_nsec, after.st_mtim.tv_nsec);
	WROTE('b', 10);
	CHECK(is_later(now().st_mtim, before.st_mtim), "mtime: expected a later one, came the same");
}

static void no_setting(void)
{
	struct stat before, after;
	struct timespec times[2] = { { 0, 0 }, { 0, 0 } };
	int fd = READER();

	WROTE('a', 10);
	before = now();
	FAILS(fchmod(fd, 0644), EPERM);
	FAILS(chmod(file_of(ch.cpu), 0600), EPERM);
	FAILS(fchown(fd, geteuid(), getegid()), EPERM);
	FAILS(futimens(fd, times), EPERM);
	FAILS(ftruncate(fd, 0), EINVAL);
	after = now();
	EQ(after.st_mode, before.st_mode);
	EQ(after.st_size, before.st_size);
	EQ(after.st_mtim.tv_sec, before.st_mtim.tv_sec);
	READS(fd, MIB, "h a*10");
}

static void no_truncating(void)
{
	static const off_t sizes[] = { 0, 100, 1 << 20, (off_t)1 << 40 };
	int fd = WORKS(open(file_of(ch.cpu), O_RDWR));
	off_t before;

	WROTE('a', 10);
	before = now().st_size;
	for (int i = 0; i < 4; i++) {
		FAILS(ftruncate(fd, sizes[i]), EINVAL);
		FAILS(truncate(file_of(ch.cpu), sizes[i]), EINVAL);
		EQ(now().st_size, before);
	}
	FAILS(fallocate(fd, 0, 0, 100), EOPNOTSUPP);
	READS(fd, MIB, "h a*10");
}

static void no_syncing(void)
{
	int fd = READER();

	WROTE('a', 10);
	FAILS(fsync(fd), EINVAL);
	FAILS(fdatasync(fd), EINVAL);
	EQ(posix_fadvise(fd, 0, 0, POSIX_FADV_WILLNEED), 0);
	EQ(posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL), 0);
	EQ(readahead(fd, 0, 4096), 0);
	READS(fd, MIB, "h a*10");
}

static void no_ioctl(void)
{
	int fd = READER(), n;
	struct termios terminal;

	FAILS(ioctl(fd, TCGETS, &terminal), ENOTTY);
	FAILS(ioctl(fd, 0x7b01, &n), ENOTTY);
	EQ(ioctl(fd, FIONREAD, &n), 0);
}

/* The events that have come, all together. */
static uint32_t events(int fd)
{
	char bytes[4096] __attribute__((aligned(8)));
	ssize_t len = read(fd, bytes, sizeof bytes);
	uint32_t all = 0;

	if (len < 0) {
		EQ(errno, EAGAIN);
		return 0;
	}
	for (ssize_t at = 0; at < len;) {
		const struct inotify_event *event = (const void *)(bytes + at);

		all |= event->mask;
		at += sizeof *event + event->len;
	}
	return all;
}

static void notified(void)
{
	int watch = WORKS(inotify_init1(IN_NONBLOCK)), fd;

	WORKS(inotify_add_watch(watch, file_of(ch.cpu), IN_ALL_EVENTS));
	fd = READER();
	EQ(events(watch), IN_OPEN);
	WROTE('a', ch.d);
	WROTE('b', 1);
	flush();
	reset();
	EQ(events(watch), 0);
	WROTE('c', 10);
	READS(fd, MIB, "h c*10");
	EQ(events(watch), IN_ACCESS);
	READS(fd, MIB, "");
	EQ(events(watch), 0);
	WORKS(close(fd));
	EQ(events(watch), IN_CLOSE_NOWRITE);
}

const struct test attribute_cases[] = {
	{ "stat-of-the-file", 0, file },
	{ "access-goes-by-the-mode", MODES, by_mode },
	{ "stat-block-size-unlike-kernel", 0, block_size },
	{ "stat-size-is-all-that-was-written-unlike-kernel", MANY, size },
	{ "stat-mtime-moves-with-the-data-unlike-kernel", 0, modified },
	{ "attributes-are-not-set-unlike-kernel", 0, no_setting },
	{ "truncate-is-refused-unlike-kernel", ROOT, no_truncating },
	{ "fsync-and-readahead", 0, no_syncing },
	{ "ioctl-is-refused", 0, no_ioctl },
	{ "inotify-tells-of-readers-only", MANY, notified },
	{ 0 },
};
