/* Bytes reserved at the start of each sub-buffer: table 4.7, H8 to H12. */
#include "kit.h"

static void in_stream(void)
{
	int fd = READER();
	off_t begin = WORKS(lseek(fd, 0, SEEK_END));

	WORKS(lseek(fd, 0, SEEK_SET));
	READS(fd, MIB, "h");
	POLLS(fd, 0);
	WROTE('a', 20);
	READS(fd, MIB, "a*20");
	WROTE('b', ch.d);
	POLLS(fd, READABLE);
	READS(fd, MIB, "h b*%zu", ch.d);
	EQ(lseek(fd, 0, SEEK_END) - begin, 20 + ch.s);
}

static void too_big_beside_it(void)
{
	int fd = READER();

	READS(fd, MIB, "h");
	for (int i = 0; i < 3; i++) {
		IS_TOO_BIG('x', ch.d + 1);
		POLLS(fd, READABLE);
		READS(fd, MIB, "h");
		POLLS(fd, 0);
	}
}

static void alone(void)
{
	int fd = READER();

	flush();
	POLLS(fd, READABLE);
	READS(fd, ch.h, "h");
	POLLS(fd, 0);
	READS(fd, MIB, "h");
}

static void in_each(void)
{
	for (size_t i = 0; i < 3 * ch.n; i++) {
		if (i < ch.n)
			WROTE(letter(i), ch.d);
		else
			IS_FULL('X', ch.d);
	}
	for (size_t i = 0; i < ch.n; i++)
		WANT("h %c*%zu", letter(i), ch.d);
	READS(READER(), MIB, "");
}

/* The kernel would show what was there before. */
static void zero(void)
{
	int fd = READER();

	for (size_t i = 0; i < 2 * ch.n + 1; i++) {
		WROTE(letter(i), ch.d);
		READS(fd, MIB, "h %c*%zu", letter(i), ch.d);
	}
}

const struct test header_cases[] = {
	{ "header-is-part-of-the-stream", HEADER | MANY, in_stream },
	{ "header-and-a-message-too-big-beside-it", HEADER | MANY, too_big_beside_it },
	{ "header-alone-is-flushed", HEADER | MANY, alone },
	{ "header-in-each-sub-buffer", HEADER | NO_OVER, in_each },
	{ "header-is-zero-unlike-kernel", HEADER | MANY, zero },
	{ 0 },
};
