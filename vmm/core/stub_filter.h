#ifndef RV_STUB_FILTER_H
#define RV_STUB_FILTER_H

#include "stub_maker.h"

/* The filters of a stub whose window is at `base`; [own_start, own_end), inside one 4 GiB, is
 * where the code lies that begins it. */
void rv_stub_filters(struct rv_stub_setup *setup, uint64_t base, uint64_t own_start,
                     uint64_t own_end);

#endif
