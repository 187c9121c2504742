#include <cpuid.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "daemon/kernels/kernels.h"

#define LEAF1_ECX (1u << 12 /* FMA */ | 1u << 27 /* OSXSAVE */ | 1u << 28 /* AVX */ | 1u << 29 /* F16C */)
#define LEAF7_EBX_AVX512 (1u << 16 /* F */ | 1u << 17 /* DQ */ | 1u << 30 /* BW */ | 1u << 31 /* VL */)
#define XCR0_YMM 0x06u // SSE and AVX state are saved by the OS
#define XCR0_ZMM 0xe6u // and opmask, upper halves, registers 16 to 31
#define XCR0_TILES (3u << 17)
#define LEAF7_EDX_AMX (1u << 24 /* TILE */ | 1u << 25 /* INT8 */)

static uint32_t xcr0(void)
{
	uint32_t low, high;
	__asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
	return low;
}

// Tiles are 8 KB of state that a process has to ask for (Linux 5.16: Documentation/arch/x86/xstate.rst).
static int tiles_permitted(void)
{
	enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
	return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

uint32_t cpu_features(void)
{
	uint32_t a, b, c, d, features = 0;
	if (!__get_cpuid(1, &a, &b, &c, &d) || (c & LEAF1_ECX) != LEAF1_ECX)
		return 0;
	uint32_t state = xcr0();
	if ((state & XCR0_YMM) != XCR0_YMM || !__get_cpuid_count(7, 0, &a, &b, &c, &d))
		return 0;
	if (b & 1u << 5)
		features |= CPU_AVX2;
	if ((b & LEAF7_EBX_AVX512) != LEAF7_EBX_AVX512 || (state & XCR0_ZMM) != XCR0_ZMM)
		return features;
	features |= CPU_AVX512;
	if (c & 1u << 11)
		features |= CPU_AVX512_VNNI;
	if ((d & LEAF7_EDX_AMX) == LEAF7_EDX_AMX && (state & XCR0_TILES) == XCR0_TILES && tiles_permitted())
		features |= CPU_AMX_INT8;
	if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 5))
		features |= CPU_AVX512_BF16;
	return features;
}

static const struct {
	const char *name;
	uint32_t mask;
} mask_names[] = {
	{"c", 0},
	{"avx2", CPU_AVX2},
	{"avx512", CPU_AVX2 | CPU_AVX512},
	{"avx512vnni", CPU_AVX2 | CPU_AVX512 | CPU_AVX512_VNNI},
	{"avx512bf16", CPU_AVX2 | CPU_AVX512 | CPU_AVX512_BF16},
	{"amx", CPU_AVX2 | CPU_AVX512 | CPU_AVX512_VNNI | CPU_AMX_INT8},
	{"all", UINT32_MAX},
};

static int mask_name(const char *text, size_t bytes, uint32_t *mask)
{
	for (size_t i = 0; i < sizeof mask_names / sizeof *mask_names; i++)
		if (strlen(mask_names[i].name) == bytes && !memcmp(mask_names[i].name, text, bytes)) {
			*mask |= mask_names[i].mask;
			return 0;
		}
	return -1;
}

static int mask_number(const char *text, uint32_t *mask)
{
	char *end;
	errno = 0;
	unsigned long long value = strtoull(text, &end, 0);
	if (errno || *end || value > UINT32_MAX)
		return -1;
	*mask = (uint32_t)value;
	return 0;
}

int cpu_mask_parse(const char *text, uint32_t *mask)
{
	uint32_t all = 0;
	if (*text >= '0' && *text <= '9')
		return mask_number(text, mask);
	for (;;) {
		size_t bytes = strcspn(text, "+");
		if (mask_name(text, bytes, &all))
			return -1;
		if (!text[bytes])
			break;
		text += bytes + 1;
	}
	*mask = all;
	return 0;
}
