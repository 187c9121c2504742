// XXH3 of the library, with AVX2: which instructions it takes its header chooses by the flags of this file.
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "daemon/kernels/parts.h"

uint64_t checksum_avx2(const void *data, size_t bytes)
{
	return XXH3_64bits(data, bytes);
}
