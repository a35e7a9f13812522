/* Where a case's process leaves its failure for the one that runs the cases: memory that both share. */
#ifndef REPORT_H
#define REPORT_H

#define REPORT_MAX 2048
extern char *report;

#endif
