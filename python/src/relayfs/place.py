"""Finds a mount, its socket, and the files of a channel."""

import errno
import os
import stat
from typing import Optional, Union

MOUNT_ENV = "RELAYFS"
MOUNT_DEFAULT = "/mnt/relay"

Path = Union[str, "os.PathLike[str]"]


def mount_point(mount: Optional[Path] = None) -> str:
    """Returns the mount point or socket: the argument, else $RELAYFS, else /mnt/relay."""
    if mount is not None:
        return os.fspath(mount)
    return os.environ.get(MOUNT_ENV) or MOUNT_DEFAULT


def socket_path(mount: str) -> str:
    """Returns the socket of a mount, or the path itself if it is a socket."""
    try:
        kind = os.stat(mount).st_mode
        if stat.S_ISSOCK(kind):
            return mount
        if not stat.S_ISDIR(kind):
            raise OSError(errno.ENODEV, f"{mount} is neither a directory nor a socket; name the mount point of a relayfs")
        link = os.path.join(mount, ".relay", "socket")
        try:
            target = os.readlink(link)
        except OSError as error:
            if error.errno == errno.EINVAL:  # the socket itself is bind-mounted there
                return link
            raise
        return os.path.join(os.path.dirname(link), target)
    except OSError as error:
        raise explain(error, mount) from None


def explain(error: OSError, mount: str) -> OSError:
    """Returns the error of a look into a mount as one that says what to do."""
    advice = f"mount one with: relayfsd {mount}; or name another mount point"
    if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
        return OSError(errno.ENODEV, f"the daemon of {mount} has died; start it again: relayfsd {mount}")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return OSError(errno.ENODEV, f"no relayfs is mounted on {mount}; {advice}")
    return error


def control_dir(mount: str, channel: str) -> str:
    """Returns the directory of a channel's control files. A name that leads elsewhere is refused."""
    check_name(channel)
    return os.path.join(mount, ".relay", "channels", channel)


def check_name(channel: str) -> None:
    """Refuses a name that no channel can have."""
    parts = channel.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in channel:
        raise OSError(errno.EINVAL, f"channel {channel!r}: no channel can have this name")
