#include "cuda/driver.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>

#include "shm/status.h"

#define LIBRARY "libcuda.so.1"

static struct {
	pthread_once_t once;
	void *library;
	struct driver driver;
	const char *missing; // the first function it lacks
	int result;          // of cuInit
	char why[256];       // dlopen's text
} loaded = {.once = PTHREAD_ONCE_INIT};

static bool find(void *to, const char *symbol)
{
	*(void **)to = dlsym(loaded.library, symbol);
	if (!*(void **)to && !loaded.missing)
		loaded.missing = symbol;
	return *(void **)to != NULL;
}

static void load(void)
{
	loaded.library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
	if (!loaded.library) {
		const char *why = dlerror();
		for (size_t i = 0; why && why[i] && i + 1 < sizeof(loaded.why); i++)
			loaded.why[i] = why[i];
		return;
	}
	bool all = true;
#define X(name, symbol, arguments) all &= find(&loaded.driver.name, symbol);
	DRIVER_LIST(X)
#undef X
	loaded.result = all ? loaded.driver.init(0) : 0;
}

int driver_get(const struct driver **out)
{
	pthread_once(&loaded.once, load);
	if (!loaded.library)
		return cuda_error_set(MPIG_ENOTSUP, "no CUDA driver on this machine: %s", loaded.why);
	if (loaded.missing)
		return cuda_error_set(MPIG_ENOTSUP, "the CUDA driver has no %s: it is older than 12.0; update it",
		                      loaded.missing);
	if (loaded.result != CU_OK) {
		cuda_error_of(&loaded.driver, loaded.result, "cuInit");
		return MPIG_ENOTSUP;
	}
	*out = &loaded.driver;
	return MPIG_OK;
}

void *driver_symbol(const char *name)
{
	const struct driver *d;
	return driver_get(&d) == MPIG_OK ? dlsym(loaded.library, name) : NULL;
}
