/*
 * relay.hpp - relay.h for C++11 and later: a channel that closes itself, and std::format where the library has it.
 *
 *     relay::channel log = relay::channel::open_timed("app/log");
 *     log.log(relay::level::info, "started");
 *     log.info("listening on port {}", port);           // C++20 with <format>
 *     RELAY_INFO(log, "listening on port %d", port);    // as in C
 *
 * No function throws. Functions that can fail return std::error_code, whose category is std::generic_category(); relay.h
 * says which errno means what. A program that does not look at it loses a message, as with relay_write, and no more.
 */
#ifndef RELAY_HPP
#define RELAY_HPP

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <system_error>
#include <type_traits>
#include <utility>

#include "relay.h"

#ifdef __has_include
#if __has_include(<version>)
#include <version>
#endif
#endif
#if defined(__cpp_lib_format) && defined(__cpp_lib_source_location)
#define RELAY_HAS_FORMAT 1
#include <cstdio>
#include <format>
#include <iterator>
#include <new>
#include <source_location>
#include <string>
#endif

namespace relay {

enum class level : int {
	error = RELAY_ERROR,
	warn = RELAY_WARN,
	info = RELAY_INFO,
	debug = RELAY_DEBUG,
	trace = RELAY_TRACE
};

/* Bytes of the caller: a literal, a std::string, a std::string_view, a std::vector, or a pointer with a length. */
class bytes {
public:
	bytes(const char *text) noexcept : data_(text), size_(text ? std::strlen(text) : 0) {}
	bytes(const void *data, std::size_t size) noexcept : data_(data), size_(size) {}
	template <class Container, class Element = typename std::remove_pointer<decltype(std::declval<const Container &>().data())>::type,
		  class = decltype(std::declval<const Container &>().size()),
		  class = typename std::enable_if<std::is_trivially_copyable<Element>::value>::type>
	bytes(const Container &container) noexcept : data_(container.data()), size_(container.size() * sizeof(Element))
	{
	}
	const void *data() const noexcept { return data_; }
	std::size_t size() const noexcept { return size_; }

private:
	const void *data_;
	std::size_t size_;
};

#ifdef RELAY_HAS_FORMAT
/* A format that is checked at compile time, and the place where it stands. */
template <class... Args> struct format_here {
	template <class Text>
	consteval format_here(const Text &text, std::source_location where = std::source_location::current())
		: format(text), where(where)
	{
	}
	std::format_string<Args...> format;
	std::source_location where;
};

namespace detail {

/* Keeps the start of a text, and counts all of it. */
class start_of_text {
public:
	using value_type = char;
	void push_back(char c) noexcept
	{
		if (size < sizeof(text))
			text[size] = c;
		size++;
	}
	char text[1024];
	std::size_t size = 0;
};

} // namespace detail
#endif

/* A channel, closed at the end of its scope. Many threads may write to it; only one may move or close it. */
class channel {
public:
	channel() noexcept : chan_(nullptr), error_(EBADF) {}

	/*
	 * relay_open_at, without callbacks. mount may be null: that of $RELAYFS, else /mnt/relay. A channel that is false
	 * was not opened; open_error() says why. Writing to it is an error, and nothing else.
	 */
	static channel open(const char *name, const char *mount = nullptr, std::size_t subbuf_size = 262144,
			    std::size_t n_subbufs = 4) noexcept
	{
		return channel(relay_open_at(mount, name, nullptr, subbuf_size, n_subbufs, nullptr, nullptr));
	}

	/* The same with relay_open_timed: what it creates has records, with time, thread and level. */
	static channel open_timed(const char *name, const char *mount = nullptr, std::size_t subbuf_size = 262144,
				  std::size_t n_subbufs = 4) noexcept
	{
		return channel(relay_open_timed(mount, name, nullptr, subbuf_size, n_subbufs, nullptr, nullptr));
	}

	/* Takes what relay_open returned; null leaves errno as the error. */
	explicit channel(rchan *chan) noexcept : chan_(chan), error_(chan ? 0 : errno) {}

	channel(const channel &) = delete;
	channel &operator=(const channel &) = delete;

	channel(channel &&other) noexcept : chan_(other.release()), error_(other.error_)
	{
		other.error_ = EBADF;
	}

	channel &operator=(channel &&other) noexcept
	{
		if (this != &other) {
			close();
			error_ = other.error_;
			chan_ = other.release();
			other.error_ = EBADF;
		}
		return *this;
	}

	~channel()
	{
		if (chan_) {
			int saved = errno;

			relay_close(chan_);
			errno = saved;
		}
	}

	/* Whether it is open. */
	explicit operator bool() const noexcept { return chan_ != nullptr; }

	/* Why it is not. */
	std::error_code open_error() const noexcept
	{
		return std::error_code(chan_ ? 0 : error_, std::generic_category());
	}

	/* For the functions and macros of relay.h. */
	operator rchan *() const noexcept { return chan_; }
	rchan *get() const noexcept { return chan_; }

	/* Gives the channel to the caller, who closes it. */
	rchan *release() noexcept
	{
		rchan *chan = chan_;

		chan_ = nullptr;
		if (chan)
			error_ = EBADF;
		return chan;
	}

	/* relay_close: waits, where buffers are not shared, until the daemon has the messages. */
	std::error_code close() noexcept
	{
		return chan_ ? result(relay_close(release())) : open_error();
	}

	/* relay_write: a message, or in a timed channel a record of bytes. */
	std::error_code write(bytes message) const noexcept
	{
		return result(chan_, relay_write(chan_, message.data(), message.size()));
	}

	/* relay_text: a record of text, without level. */
	std::error_code text(bytes text) const noexcept
	{
		return result(chan_, relay_text(chan_, text.data(), text.size()));
	}

	/* relay_log: a text with its level. target says which part of the program writes. */
	std::error_code log(level severity, bytes text, const char *target = nullptr) const noexcept
	{
		return result(chan_, relay_log(chan_, static_cast<int>(severity), target, text.data(), text.size()));
	}

	/* relay_flush: finishes the current sub-buffers, so that their readers see them. */
	std::error_code flush() const noexcept { return result(chan_, relay_flush(chan_)); }

#ifdef RELAY_HAS_FORMAT
	/*
	 * A text that std::format makes, with its level; file and line are the target. More than 1024 bytes take memory.
	 * std::errc::invalid_argument: a formatter of the program threw an exception.
	 */
	template <class... Args>
	std::error_code format(level severity, format_here<std::type_identity_t<Args>...> text, Args &&...args) const noexcept
	{
		return format_at(severity, text.where, text.format.get(), std::make_format_args(args...));
	}

	template <class... Args>
	std::error_code error(format_here<std::type_identity_t<Args>...> text, Args &&...args) const noexcept
	{
		return format_at(level::error, text.where, text.format.get(), std::make_format_args(args...));
	}

	template <class... Args>
	std::error_code warn(format_here<std::type_identity_t<Args>...> text, Args &&...args) const noexcept
	{
		return format_at(level::warn, text.where, text.format.get(), std::make_format_args(args...));
	}

	template <class... Args>
	std::error_code info(format_here<std::type_identity_t<Args>...> text, Args &&...args) const noexcept
	{
		return format_at(level::info, text.where, text.format.get(), std::make_format_args(args...));
	}

	template <class... Args>
	std::error_code debug(format_here<std::type_identity_t<Args>...> text, Args &&...args) const noexcept
	{
		return format_at(level::debug, text.where, text.format.get(), std::make_format_args(args...));
	}

	template <class... Args>
	std::error_code trace(format_here<std::type_identity_t<Args>...> text, Args &&...args) const noexcept
	{
		return format_at(level::trace, text.where, text.format.get(), std::make_format_args(args...));
	}
#endif

private:
	static std::error_code result(int status) noexcept
	{
		return std::error_code(status ? errno : 0, std::generic_category());
	}

	static std::error_code result(const rchan *chan, int status) noexcept
	{
		return chan ? result(status) : std::error_code(EBADF, std::generic_category());
	}

#ifdef RELAY_HAS_FORMAT
	std::error_code format_at(level severity, const std::source_location &where, std::string_view format,
				  std::format_args args) const noexcept
	{
		const char *file = where.file_name(), *slash = std::strrchr(file, '/');
		char target[256];

		std::snprintf(target, sizeof(target), "%s:%u", slash ? slash + 1 : file, unsigned(where.line()));
#ifdef __cpp_exceptions
		try {
#endif
			detail::start_of_text start;

			std::vformat_to(std::back_inserter(start), format, args);
			if (start.size <= sizeof(start.text))
				return log(severity, bytes(start.text, start.size), target);
			return log(severity, std::vformat(format, args), target);
#ifdef __cpp_exceptions
		} catch (const std::bad_alloc &) {
			return std::make_error_code(std::errc::not_enough_memory);
		} catch (...) {
			return std::make_error_code(std::errc::invalid_argument);
		}
#endif
	}
#endif

	rchan *chan_;
	int error_;
};

} // namespace relay

#endif
