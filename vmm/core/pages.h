/*
 * Guest pages in and out of RAM, many at a time: what a migration does with most of its time.
 *
 * RAM may be written by the guest meanwhile. Every page is copied once and then looked at, so that
 * what is found out about it holds for what is sent of it.
 */
#ifndef RV_PAGES_H
#define RV_PAGES_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Add pick_pages and put_pages to the module. 0 or -1 with an exception. */
int rv_pages_add(PyObject *module);

#endif
