/*
 * The classic reader of relayfs: mounts it, reads every CPU's file to its end, and unmounts it. It knows of no user-space
 * daemon, and neither includes nor links anything of ours.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <unistd.h>

#define RELAYFS_DIR "/mnt/relay"
#define BUFSIZE 256

static int get_cputotal(void)
{
	return (int)sysconf(_SC_NPROCESSORS_CONF);
}

int main(void)
{
	char name[64], buf[BUFSIZE + 1];
	int i, n, fd;
	ssize_t r;

	if (mount("relayfs", RELAYFS_DIR, "relayfs", 0, NULL) < 0 && errno != EBUSY) {
		perror("mount");
		return EXIT_FAILURE;
	}
	n = get_cputotal();
	for (i = 0; i < n; i++) {
		sprintf(name, RELAYFS_DIR "/cpu%d", i);
		fd = open(name, O_RDONLY);
		if (fd < 0) {
			perror(name);
			return EXIT_FAILURE;
		}
		while ((r = read(fd, buf, BUFSIZE)) > 0) {
			buf[r] = '\0';
			puts(buf);
		}
		close(fd);
	}
	if (umount(RELAYFS_DIR) < 0 && errno != EINVAL) {
		perror("umount");
		return EXIT_FAILURE;
	}
	return EXIT_SUCCESS;
}
