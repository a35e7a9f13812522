/*
 * What a relay module takes from the kernel's linux/module.h, for modules that are compiled into shared objects and run by
 * `relay-producer --load`:
 *
 *     cc -shared -fPIC -I/usr/local/include/relayfs-compat -o hello-mod.so hello-mod.c
 *
 * This directory is for them alone: others would miss the system's own headers of these names.
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

/* A module has these two, by these names or by module_init and module_exit. */
int init_module(void);
void cleanup_module(void);

#define module_init(function) int init_module(void) __attribute__((alias(#function)));
#define module_exit(function) void cleanup_module(void) __attribute__((alias(#function)));

struct module;
#define THIS_MODULE ((struct module *)0)

/* Declarations of nothing: what they say is for tools that look into files of the kernel's. */
#define MODULE_LICENSE(text) struct module
#define MODULE_DESCRIPTION(text) struct module
#define MODULE_AUTHOR(text) struct module
#define MODULE_VERSION(text) struct module
#define EXPORT_SYMBOL(symbol) struct module
#define EXPORT_SYMBOL_GPL(symbol) struct module

#endif
