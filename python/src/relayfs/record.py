"""Payloads of records that a program writes."""

import logging

ERROR, WARN, INFO, DEBUG, TRACE = 1, 2, 3, 4, 5
LEVELS = {ERROR: "ERROR", WARN: "WARN", INFO: "INFO", DEBUG: "DEBUG", TRACE: "TRACE"}

# Ids of the built-in events that a program writes.
ID_TEXT, ID_RAW, ID_LOG = 0, 1, 2
# Bytes of a record in a sub-buffer besides its payload.
OVERHEAD = 16
PAYLOAD_MAX = 65535
TARGET_MAX = 255
# Bytes of a ``log`` payload besides its texts.
LOG_FIXED = 4
MARK = "…".encode()


def level_of(levelno: int) -> int:
    """Returns the level of a record for a number of the module ``logging``."""
    if levelno >= logging.ERROR:
        return ERROR
    if levelno >= logging.WARNING:
        return WARN
    if levelno >= logging.INFO:
        return INFO
    return DEBUG if levelno >= logging.DEBUG else TRACE


def utf8(text: str) -> bytes:
    """Returns a text's bytes. Half of a surrogate pair, which UTF-8 does not have, becomes its escape."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace")


def cut(text: bytes, most: int) -> bytes:
    """Returns the text, with a mark at its end if it has to be cut to ``most`` bytes."""
    if len(text) <= most:
        return text
    if most < len(MARK):
        return b""
    end = most - len(MARK)
    # At the start of a character, which has at most 4 bytes.
    start = next((at for at in range(end, max(end - 4, -1), -1) if text[at] & 0xC0 != 0x80), end)
    return text[:start] + MARK


def payload_max(subbuf_size: int) -> int:
    """Returns the longest payload that a sub-buffer of this size can hold."""
    return max(0, min(PAYLOAD_MAX, subbuf_size - OVERHEAD))


def log_payload(level: int, target: bytes, text: bytes, most: int) -> bytes:
    """Returns the payload of a ``log`` record. Texts that are too long are cut, and get a mark."""
    room = max(0, most - LOG_FIXED)
    # In a channel of tiny sub-buffers the text has half of the room.
    target = cut(target, min(TARGET_MAX, room if len(target) + len(text) <= room else room // 2))
    text = cut(text, room - len(target))
    return b"%c%c%b%b%b" % (level, len(target), target, len(text).to_bytes(2, "little"), text)


def head(event: int, tid: int, length: int) -> bytes:
    """Returns the word in front of a payload: event, thread and length."""
    return (event | (tid & 0xFFFFFFFF) << 16 | length << 48).to_bytes(8, "little")
