/* The same as one copies it from paper: no check that is not needed to understand it, get_cputotal() somewhere else. */
#include <stdio.h>
#include <fcntl.h>
#include <errno.h>
#include <string.h>
#include <sys/mount.h>

extern int get_cputotal();

int main(int argc, char **argv)
{
	int i, n, fd, r, unused;
	char fname[256], buf[257];

	if (mount("relayfs", "/mnt/relay", "relayfs", 0, NULL) && (errno != EBUSY)) {
		printf("mount() failed: %s\n", strerror(errno));
		return 1;
	}
	n = get_cputotal();
	for (i = 0; i < n; i++) {
		sprintf(fname, "/mnt/relay/cpu%d", i);
		fd = open(fname, O_RDONLY);
		if (fd < 0) {
			printf("cannot open %s\n", fname);
			return 1;
		}
		while ((r = read(fd, buf, 256)) > 0) {
			buf[r] = 0;
			puts(buf);
		}
		close(fd);
	}
	if (umount("/mnt/relay") && (errno != EINVAL))
		printf("umount() failed\n");
}
