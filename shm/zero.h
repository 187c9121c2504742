// Reserved bytes are zero, or the message is of somebody newer.
#ifndef MPIG_ZERO_H
#define MPIG_ZERO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline bool mpig_all_zero(const void *data, size_t bytes)
{
	const uint8_t *byte = data;
	uint8_t any = 0;
	for (size_t i = 0; i < bytes; i++)
		any |= byte[i];
	return any == 0;
}

#endif
