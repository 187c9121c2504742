#include <stdarg.h>
#include <stdio.h>

#include "cuda/driver.h"
#include "shm/status.h"

#include <magicpig_cuda.h>

static _Thread_local char text[512];

int cuda_error_set(int status, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	return status;
}

void cuda_error_clear(void)
{
	text[0] = 0;
}

const char *mpig_cuda_error(void)
{
	return text;
}

int cuda_error_of(const struct driver *d, int result, const char *what)
{
	if (result == CU_OK)
		return MPIG_OK;
	const char *why = NULL;
	if (d->error_string(result, &why) != CU_OK || !why)
		why = "unknown error";
	int status = result == CU_OUT_OF_MEMORY ? MPIG_ENOMEM : result == CU_NO_DEVICE ? MPIG_ENOTSUP : MPIG_EIO;
	return cuda_error_set(status, "%s: %s (CUDA error %d)", what, why, result);
}
