/*
 * splice(2), sendfile(2) and copy_file_range(2): refused, as of the kernel's files on debugfs, and nothing is consumed
 * or moved by the attempt (tables 4.9 and 1.1). With O_DIRECT, set by fcntl(2), splicing works, as it reads.
 */
#include "kit.h"

#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>

/* An open file with something in it, of which a byte was read. */
static int begin(void)
{
	int fd = READER();

	WROTE('a', 20);
	flush();
	READS(fd, ch.h + 1, "h a*1");
	return fd;
}

static void nothing_happened(int fd)
{
	EQ(lseek(fd, 0, SEEK_CUR), ch.h + 1);
	POLLS(fd, READABLE);
	READS(fd, 19, "a*19");
}

static void splices(void)
{
	int fd = begin(), ends[2];
	off_t at = 0;

	WORKS(pipe(ends));
	FAILS(splice(fd, NULL, ends[1], NULL, 100, 0), EINVAL);
	FAILS(splice(fd, NULL, ends[1], NULL, 100, SPLICE_F_NONBLOCK), EINVAL);
	FAILS(splice(fd, NULL, ends[1], NULL, MIB, SPLICE_F_MOVE), EINVAL);
	FAILS(splice(fd, &at, ends[1], NULL, 100, 0), EINVAL);
	EQ(at, 0);
	nothing_happened(fd);
}

static void splices_into(void)
{
	int fd = begin(), ends[2];

	WORKS(pipe(ends));
	WORKS(write(ends[1], "x", 1));
	FAILS(splice(ends[0], NULL, fd, NULL, 1, 0), EBADF);
	nothing_happened(fd);
}

static void sends(int to)
{
	int fd = begin();
	off_t at = 0;

	FAILS(sendfile(to, fd, NULL, 100), EINVAL);
	FAILS(sendfile(to, fd, NULL, MIB), EINVAL);
	FAILS(sendfile(to, fd, &at, 100), EINVAL);
	EQ(at, 0);
	nothing_happened(fd);
}

static void sends_to_a_pipe(void)
{
	int ends[2];

	WORKS(pipe(ends));
	sends(ends[1]);
}

static void sends_to_a_file(void)
{
	sends(WORKS(memfd_create("file", 0)));
}

static void sends_to_a_socket(void)
{
	int ends[2];

	WORKS(socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
	sends(ends[1]);
}

static void copies(void)
{
	int fd = begin();

	FAILS(copy_file_range(fd, NULL, WORKS(memfd_create("file", 0)), NULL, 100, 0), EXDEV);
	nothing_happened(fd);
}

static void splices_o_direct(void)
{
	int fd = READER(), ends[2];
	char bytes[4096];

	WORKS(fcntl(fd, F_SETFL, O_DIRECT));
	WORKS(pipe(ends));
	READS(fd, MIB, "h");
	WROTE('a', 30);
	EQ(WORKS(splice(fd, NULL, ends[1], NULL, 10, 0)), 10);
	EQ(WORKS(splice(fd, NULL, ends[1], NULL, 100, 0)), 20);
	EQ(WORKS(splice(fd, NULL, ends[1], NULL, 100, 0)), 0);
	EQ(WORKS(read(ends[0], bytes, sizeof bytes)), 30);
	ARE(bytes, 30, "a*30");
	READS(READER(), MIB, "");
}

const struct test splice_cases[] = {
	{ "splice-is-refused", KEEPS, splices },
	{ "splice-into-it-is-refused", KEEPS, splices_into },
	{ "sendfile-to-a-pipe-is-refused", KEEPS, sends_to_a_pipe },
	{ "sendfile-to-a-file-is-refused", KEEPS, sends_to_a_file },
	{ "sendfile-to-a-socket-is-refused", KEEPS, sends_to_a_socket },
	{ "copy-file-range-is-refused", KEEPS, copies },
	{ "splice-with-o-direct-reads-unlike-kernel", 0, splices_o_direct },
	{ 0 },
};
