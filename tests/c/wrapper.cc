// relay.hpp: what each function writes, and what it answers. Prints "format" if there is std::format.
#define RELAY_TARGET "wrapper"
#include <relay.hpp>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

static void check(bool holds, const char *what)
{
	if (!holds) {
		std::fprintf(stderr, "wrapper: not so: %s\n", what);
		std::exit(1);
	}
}

static void refuses(relay::channel &chan, std::errc why)
{
	check(!chan && chan.get() == nullptr && chan.release() == nullptr, "it is not open");
	check(chan.open_error() == why, "why it is not open");
	check(chan.write("x") == std::errc::bad_file_descriptor, "writing");
	check(chan.log(relay::level::info, "x") == std::errc::bad_file_descriptor, "logging");
	check(chan.flush() == std::errc::bad_file_descriptor, "flushing");
	check(chan.close() == why, "closing");
	RELAY_ERROR(chan, "it does nothing");
}

int main(int argc, char **argv)
{
	relay::channel none, missing = relay::channel::open("x", "/no/such/place");
	check(argc == 2, "an argument");
	refuses(none, std::errc::bad_file_descriptor);
	refuses(missing, std::errc::no_such_device);

	relay::channel log = relay::channel::open_timed("app/log", argv[1], 65536);
	const std::string host = "db1";
	check(log && !log.open_error() && log.get()->subbuf_size == 65536, "it is open");
	check(!log.log(relay::level::info, "connected to " + host, "app::db"), "a string");
	check(!log.log(relay::level::error, "a literal"), "a literal");
	check(!log.text(relay::bytes("text and more", 4)), "a part");
	check(!log.write(std::vector<unsigned char>{1, 2}), "bytes");
	errno = 0;
	RELAY_WARN(log, "slow, rows=%d", 3);
	check(errno == 0, "a macro");
	check(log.log(static_cast<relay::level>(7), "x") == std::errc::invalid_argument, "a level");
	check(log.write(relay::bytes(nullptr, 3)) == std::errc::bad_address, "no data");
	check(log.write(std::string(100000, 'x')) == std::errc::message_size, "too long");

#ifdef RELAY_HAS_FORMAT
	const int rows = 3;
	check(!log.debug("{} has {} rows", host, rows), "a format");
	std::puts("format");
#endif

	relay::channel moved = std::move(log);
	check(!log && moved, "it is moved");
	log = relay::channel(relay_open_at(argv[1], "app/log", nullptr, 1, 1, nullptr, nullptr));
	check(log && log.get() != moved.get(), "another handle");
	moved = std::move(log);
	check(!moved.log(relay::level::info, "moved"), "after the move");
	check(!moved.flush(), "a flush");
	rchan *chan = moved.release();
	check(!moved && relay_close(chan) == 0 && moved.close() == std::errc::bad_file_descriptor, "the caller closes it");
	return 0;
}
