/*
 * The kernel's linux/module.h as relay modules use it. Such a module is compiled into a shared object, which
 * `relay-producer --load` runs:
 *
 *     cc -shared -fPIC -I/usr/local/include/relayfs-compat -o hello-mod.so hello-mod.c
 *
 * This directory is for modules only: other programs would miss the system's headers of these names.
 */
#ifndef RELAYFS_COMPAT_MODULE_H
#define RELAYFS_COMPAT_MODULE_H

#ifdef __GNUC__
#pragma GCC system_header
#endif

#include <linux/errno.h>
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/string.h>

/* A module has these two functions, by these names or by module_init and module_exit. */
int init_module(void);
void cleanup_module(void);

#define module_init(function) int init_module(void) __attribute__((alias(#function)));
#define module_exit(function) void cleanup_module(void) __attribute__((alias(#function)));

struct module;
#define THIS_MODULE ((struct module *)0)

/* Empty declarations: these texts are for tools that inspect the kernel's module files. */
#define MODULE_LICENSE(text) struct module
#define MODULE_DESCRIPTION(text) struct module
#define MODULE_AUTHOR(text) struct module
#define MODULE_VERSION(text) struct module
#define EXPORT_SYMBOL(symbol) struct module
#define EXPORT_SYMBOL_GPL(symbol) struct module

#endif
