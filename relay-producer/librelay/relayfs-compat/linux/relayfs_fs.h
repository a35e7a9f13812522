/* The name of linux/relay.h when relayfs was a separate file system. See module.h. */
#ifndef RELAYFS_COMPAT_RELAYFS_FS_H
#define RELAYFS_COMPAT_RELAYFS_FS_H

#include "relay.h"

#define relayfs_create_dir relay_create_dir
#define relayfs_remove_dir relay_remove_dir

#endif
