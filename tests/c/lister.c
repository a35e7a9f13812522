/*
 * Reads a directory in steps as small as getdents(2) makes them: lister DIRECTORY. For each line of its input it takes one
 * step and prints the names on a line, with a slash behind each; an empty line is the end.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Room for an entry or two. */
enum { STEP = 72 };

int main(int argc, char **argv)
{
	int fd = argc == 2 ? open(argv[1], O_RDONLY | O_DIRECTORY) : -1;
	char line[16], entries[STEP];

	if (fd < 0)
		return 2;
	while (fgets(line, sizeof line, stdin)) {
		long len = syscall(SYS_getdents64, fd, entries, sizeof entries);

		if (len < 0) {
			perror("getdents64");
			return 1;
		}
		/* u64 inode, i64 offset, u16 length, u8 type, name */
		for (long at = 0; at < len;) {
			uint16_t entry_len;

			memcpy(&entry_len, entries + at + 16, sizeof entry_len);
			printf("%s/", entries + at + 19);
			at += entry_len;
		}
		putchar('\n');
		fflush(stdout);
	}
	return 0;
}
