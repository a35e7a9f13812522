/* Prints a file as many programs read one: the length by stdio, then rewound, all of it. */
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
	FILE *file = fopen(argv[argc - 1], "r");
	long len;
	char *bytes;

	if (!file || fseek(file, 0, SEEK_END) || (len = ftell(file)) < 0)
		return 1;
	rewind(file);
	bytes = malloc(len + 1);
	if (!bytes)
		return 1;
	len = fread(bytes, 1, len, file);
	return ferror(file) || fwrite(bytes, 1, len, stdout) != (size_t)len;
}
