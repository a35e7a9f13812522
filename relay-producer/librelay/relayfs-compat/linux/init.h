/* The kernel's linux/init.h as relay modules use it: no code is discarded after the start. See module.h. */
#ifndef RELAYFS_COMPAT_INIT_H
#define RELAYFS_COMPAT_INIT_H

#define __init
#define __exit
#define __initdata
#define __exitdata

#endif
