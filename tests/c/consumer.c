/*
 * Reads a buffer as clients of kernel relay do: maps it, waits in poll, and gives back what it has read. It uses only what
 * relay/docs/FORMAT.md says of the files.
 *
 *   consumer DATA MAP CONTROL CONSUMED INDEX
 *
 * What it finds is right if nobody has given it back meanwhile. The number of the first sub-buffer is what tells that,
 * so it is looked at again whether that was still there when its number was read.
 *
 * Messages are numbers of 8 bytes, one more each. Whenever something was given back it prints "FROM COUNT FIRST LAST":
 * the number of the first sub-buffer and how many, the first message in them and the last. It ends when the channel does.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static const char *map(const char *path, size_t len, int *fd)
{
	const char *at;

	*fd = open(path, O_RDONLY);
	if (*fd < 0)
		die(path);
	at = mmap(NULL, len, PROT_READ, MAP_SHARED, *fd, 0);
	if (at == MAP_FAILED)
		die(path);
	return at;
}

static size_t size_of(const char *path)
{
	struct stat status;

	if (stat(path, &status))
		die(path);
	return status.st_size;
}

static uint64_t load(const char *at)
{
	return __atomic_load_n((const uint64_t *)at, __ATOMIC_ACQUIRE);
}

static uint32_t u32(const char *at)
{
	uint32_t value;

	memcpy(&value, at, sizeof value);
	return value;
}

int main(int argc, char **argv)
{
	int data_fd, map_fd, control_fd, consumed_fd, ended = 0;

	if (argc != 6)
		return 2;
	const char *control = map(argv[3], size_of(argv[3]), &control_fd);

	data_fd = open(argv[1], O_RDONLY);
	if (data_fd < 0)
		die(argv[1]);
	consumed_fd = open(argv[4], O_WRONLY);
	if (consumed_fd < 0)
		die(argv[4]);
	if (memcmp(control, "relayctl", 8) || u32(control + 8) != 1 || load(control + 16) != 0)
		return 3;

	uint64_t size = u32(control + 32), n = u32(control + 36), header = u32(control + 40);
	const char *data = map(argv[2], size * n, &map_fd);
	int offset_bits = control[52], slot_bits = control[53], lap_shift = offset_bits + slot_bits;
	const char *block = control + load(control + 56) + atoi(argv[5]) * load(control + 64);
	const char *records = block + load(control + 72);
	uint64_t stride = load(control + 80), offsets = ((uint64_t)1 << offset_bits) - 1;
	uint64_t at = load(block + 64);

	for (;;) {
		uint64_t state = load(block), from = 0, count = 0, first = 0, last = 0, messages = 0;
		int gap = 0;

		while ((int64_t)((state & ~offsets) - (at & ~offsets)) > 0) {
			uint64_t lap = at >> lap_shift, slot = at >> offset_bits & (((uint64_t)1 << slot_bits) - 1);
			const char *record = records + (2 * slot + lap % 2) * stride;
			uint64_t end = size - load(record + 16), i = at & offsets;

			if (count++ == 0) {
				from = load(record);
				/* Unless it has been given back meanwhile, when the record may be that of another. */
				if ((load(block + 64) & ~offsets) != (at & ~offsets)) {
					at = load(block + 64);
					count = 0;
					break;
				}
			}
			for (i = i < header ? header : i; i < end; i += 8) {
				uint64_t message;

				memcpy(&message, data + slot * size + i, 8);
				if (messages++ == 0)
					first = message;
				/* Not so if somebody else gave it back, and it is being written again. */
				else if (message != last + 1)
					gap = 1;
				last = message;
			}
			at = slot + 1 < n ? (at & ~offsets) + ((uint64_t)1 << offset_bits) : (lap + 1) << lap_shift;
		}
		if (count > 0) {
			char text[50];
			int len = sprintf(text, "%lu %lu\n", from, count);

			if (write(consumed_fd, text, len) == len) {
				if (gap) {
					fprintf(stderr, "a gap in %lu sub-buffers from %lu on\n", count, from);
					return 4;
				}
				if (messages > 0)
					printf("%lu %lu %lu %lu\n", from, count, first, last);
			} else if (errno == ESTALE) {
				at = load(block + 64);
			} else if (!ended) {
				die(argv[4]);
			}
			continue;
		}
		if (ended)
			return 0;
		struct pollfd asked = { data_fd, POLLIN, 0 };

		if (poll(&asked, 1, -1) < 0)
			die("poll");
		/* What is left has been waiting since before the end. */
		ended = asked.revents & (POLLERR | POLLHUP);
		/* Readable, and nothing here: somebody else has taken what was here, or part of it. */
		at = load(block + 64);
	}
}
