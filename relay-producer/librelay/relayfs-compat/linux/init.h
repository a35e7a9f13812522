/* What a relay module takes from the kernel's linux/init.h: nothing is thrown away after the start. See module.h. */
#ifndef RELAYFS_COMPAT_INIT_H
#define RELAYFS_COMPAT_INIT_H

#define __init
#define __exit
#define __initdata
#define __exitdata

#endif
