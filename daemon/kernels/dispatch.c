#include <stdio.h>

#include "daemon/kernels/kernels.h"

void kernels_init(struct kernels *k, uint32_t features, char *name, size_t name_bytes)
{
	kernels_init_c(k);
	if (features & CPU_AVX2)
		kernels_init_avx2(k);
	if (features & CPU_AVX512) {
		kernels_init_avx512(k);
		if (features & CPU_AVX512_VNNI)
			kernels_init_avx512vnni(k);
		if (features & CPU_AVX512_VNNI && features & CPU_AMX_INT8)
			kernels_init_amx(k);
	}
	if (name && name_bytes)
		snprintf(name, name_bytes, "%s", k->isa);
}
