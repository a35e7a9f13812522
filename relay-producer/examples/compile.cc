// relay.h from C++: callbacks, five arguments and six.
#include <relay.h>

#include <cstdio>
#include <string>

static int subbuf_start(rchan_buf *buf, void *, void *, size_t)
{
	return !relay_buf_full(buf);
}

int main()
{
	rchan_callbacks callbacks = {};
	std::string line = "from C++\n";

	callbacks.subbuf_start = subbuf_start;
	rchan *chan = relay_open("app/cplusplus", NULL, 65536, 4, &callbacks, &line);
	// If the daemon writes for this process, there are no callbacks.
	if (!chan)
		chan = relay_open("app/cplusplus", NULL, 65536, 4, NULL);
	if (!chan || relay_write(chan, line.data(), line.size())) {
		std::perror("relay");
		return 1;
	}
	return relay_close(chan) ? 1 : 0;
}
