/*
 * Reads one CPU's buffer without copying it, as clients of the kernel's relay do. It maps the buffer and the
 * channel's positions, polls for finished sub-buffers, writes them to standard output, and gives them back. It needs
 * no library. It ends with the channel, or, with -n, when no finished sub-buffer is left. The daemon must run as root
 * on Linux 6.9 or later.
 *
 *     cc mmap-reader.c -o mmap-reader && ./mmap-reader [-n] /mnt/relay cpu 0
 *
 * It is for one reader of a channel that does not overwrite. Positions are lap | slot | offset, see relay/docs/FORMAT.md.
 */
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* The layout version of the control file that this program knows, and offsets in the file. */
enum { VERSION = 1, REQUIRED = 16, SUBBUF_SIZE = 32, N_SUBBUFS = 36, HEADER = 40, FLAGS = 44, N_BUFS = 48, OFFSET_BITS = 52,
       SLOT_BITS = 53, BUFFERS = 56, BUFFER_STRIDE = 64, RECORDS = 72, RECORD_STRIDE = 80, HEADER_LEN = 88 };
/* Offsets in a buffer's block, and in a record. */
enum { STATE = 0, CONSUMED = 64, NUMBER = 0, PADDING = 16 };

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void usage(void)
{
	fprintf(stderr, "usage: mmap-reader [-n] MOUNTPOINT CHANNEL CPU, such as mmap-reader /mnt/relay cpu 0\n");
	exit(2);
}

static const char *map(int fd, const char *path, size_t len)
{
	void *at = mmap(NULL, len, PROT_READ, MAP_SHARED, fd, 0);

	if (at == MAP_FAILED)
		fail(path);
	return at;
}

static int open_file(char *path, size_t room, const char *mount, const char *below, const char *channel, const char *end,
		     int flags)
{
	int fd;

	if ((size_t)snprintf(path, room, "%s/%s%s%s", mount, below, channel, end) >= room) {
		fprintf(stderr, "%s: the path is too long\n", mount);
		exit(2);
	}
	fd = open(path, flags);
	if (fd < 0)
		fail(path);
	return fd;
}

static uint64_t u64(const char *at)
{
	return __atomic_load_n((const uint64_t *)at, __ATOMIC_ACQUIRE);
}

static uint32_t u32(const char *at)
{
	return __atomic_load_n((const uint32_t *)at, __ATOMIC_RELAXED);
}

static void put(const char *bytes, size_t len)
{
	if (fwrite(bytes, 1, len, stdout) != len || fflush(stdout))
		fail("standard output");
}

int main(int argc, char **argv)
{
	int drain = argc > 1 && !strcmp(argv[1], "-n"), data_fd, ring_fd, control_fd, consumed_fd, over = 0;
	char path[4096], end[40];
	uint64_t words[HEADER_LEN / 8];
	const char *header = (const char *)words;

	argv += drain;
	if (argc != 4 + drain || !*argv[3] || argv[3][strspn(argv[3], "0123456789")])
		usage();
	control_fd = open_file(path, sizeof path, argv[1], ".relay/channels/", argv[2], "/control", O_RDONLY);
	if (pread(control_fd, words, sizeof words, 0) != sizeof words)
		fail(path);
	if (memcmp(header, "relayctl", 8) || u32(header + 8) != VERSION || u64(header + REQUIRED)) {
		fprintf(stderr, "%s: a layout that this program does not know\n", path);
		return 1;
	}
	uint64_t size = u32(header + SUBBUF_SIZE), n = u32(header + N_SUBBUFS), skip = u32(header + HEADER);
	uint64_t cpu = strtoul(argv[3], NULL, 10), n_bufs = u32(header + N_BUFS), stride = u64(header + RECORD_STRIDE);
	int slot_shift = header[OFFSET_BITS], lap_shift = slot_shift + header[SLOT_BITS];
	uint64_t one_slot = (uint64_t)1 << slot_shift, offset_mask = one_slot - 1;

	if (cpu >= n_bufs || u32(header + FLAGS) & 1) {
		fprintf(stderr, "%s: no such buffer, or an overwriting one\n", argv[2]);
		return 1;
	}
	const char *control = map(control_fd, path, u64(header + BUFFERS) + n_bufs * u64(header + BUFFER_STRIDE));
	const char *block = control + u64(header + BUFFERS) + cpu * u64(header + BUFFER_STRIDE);
	const char *records = block + u64(header + RECORDS);

	sprintf(end, "%lu", (unsigned long)cpu);
	data_fd = open_file(path, sizeof path, argv[1], "", argv[2], end, O_RDONLY);

	/* The buffer's file is for poll; another file maps its ring. */
	sprintf(end, "/map/cpu%lu", (unsigned long)cpu);
	ring_fd = open_file(path, sizeof path, argv[1], ".relay/channels/", argv[2], end, O_RDONLY);
	const char *data = map(ring_fd, path, size * n);

	sprintf(end, "/consumed/cpu%lu", (unsigned long)cpu);
	consumed_fd = open_file(path, sizeof path, argv[1], ".relay/channels/", argv[2], end, O_WRONLY);

	for (;;) {
		uint64_t at = u64(block + CONSUMED), state = u64(block + STATE);
		uint64_t slot = (at & (((uint64_t)1 << lap_shift) - 1)) >> slot_shift, lap = at >> lap_shift;
		const char *record = records + (2 * slot + (lap & 1)) * stride;

		if ((int64_t)((state & ~offset_mask) - (at & ~offset_mask)) > 0) {
			/* Finished: the bytes from the last one read to the padding. */
			uint64_t from = at & offset_mask, to = size - u64(record + PADDING);

			from = from < skip ? skip : from;
			if (slot < n && to <= size && from < to)
				put(data + slot * size + from, to - from);
			sprintf(end, "%llu 1", (unsigned long long)u64(record + NUMBER));
			if (write(consumed_fd, end, strlen(end)) < 0 && !over)
				fail(path);
			continue;
		}
		if (over || drain)
			return 0;
		struct pollfd asked = { data_fd, POLLIN, 0 };

		if (poll(&asked, 1, -1) < 0)
			fail("poll");
		over = asked.revents & (POLLERR | POLLHUP);
	}
}
