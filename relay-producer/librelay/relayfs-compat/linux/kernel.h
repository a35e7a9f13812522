/* The kernel's linux/kernel.h as relay modules use it: printk writes to standard error. See module.h. */
#ifndef RELAYFS_COMPAT_KERNEL_H
#define RELAYFS_COMPAT_KERNEL_H

#ifdef __GNUC__
#pragma GCC system_header
#endif

#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
/* The system's header of this name, which headers of the C library include. */
#if defined(__has_include_next)
#if __has_include_next(<linux/kernel.h>)
#include_next <linux/kernel.h>
#endif
#endif

#define KERN_SOH "\001"
#define KERN_EMERG KERN_SOH "0"
#define KERN_ALERT KERN_SOH "1"
#define KERN_CRIT KERN_SOH "2"
#define KERN_ERR KERN_SOH "3"
#define KERN_WARNING KERN_SOH "4"
#define KERN_NOTICE KERN_SOH "5"
#define KERN_INFO KERN_SOH "6"
#define KERN_DEBUG KERN_SOH "7"
#define KERN_DEFAULT ""
#define KERN_CONT KERN_SOH "c"

/* Removes a level at the start, also one like "<6>". */
static __attribute__((unused, format(printf, 1, 2))) int printk(const char *format, ...)
{
	va_list args;
	int n;

	if (format[0] == '\001' && format[1])
		format += 2;
	else if (format[0] == '<' && format[1] >= '0' && format[1] <= '7' && format[2] == '>')
		format += 3;
	va_start(args, format);
	n = vfprintf(stderr, format, args);
	va_end(args);
	return n;
}

#ifndef pr_fmt
#define pr_fmt(format) format
#endif
#define pr_err(format, ...) printk(KERN_ERR pr_fmt(format), ##__VA_ARGS__)
#define pr_warn(format, ...) printk(KERN_WARNING pr_fmt(format), ##__VA_ARGS__)
#define pr_notice(format, ...) printk(KERN_NOTICE pr_fmt(format), ##__VA_ARGS__)
#define pr_info(format, ...) printk(KERN_INFO pr_fmt(format), ##__VA_ARGS__)

#endif
