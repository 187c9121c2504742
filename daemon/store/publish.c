#include <assert.h>

#include "daemon/store/pool.h"

void (*pool_publish_hook)(const void *dst, size_t bytes, int after);

// Not memcpy: a process may be killed between any two instructions, and a string move may stop inside a word. The words are
// stored atomically because readers without the lock look at neighbours of what is being published.
static void copy_words(unsigned char *dst, const unsigned char *src, size_t bytes)
{
	size_t last8 = bytes >= 8 && ((uintptr_t)dst + bytes) % 8 == 0 ? bytes - 8 : bytes;
	size_t last = last8 < bytes ? last8 : bytes - 4, i = 0;
	if ((uintptr_t)dst % 8 && i < last) {
		uint32_t w;
		__builtin_memcpy(&w, src, 4);
		__atomic_store_n((uint32_t *)(void *)dst, w, __ATOMIC_RELAXED);
		i = 4;
	}
	for (; i + 8 <= last; i += 8) {
		uint64_t w;
		__builtin_memcpy(&w, src + i, 8);
		__atomic_store_n((uint64_t *)(void *)(dst + i), w, __ATOMIC_RELAXED);
	}
	for (; i < last; i += 4) {
		uint32_t w;
		__builtin_memcpy(&w, src + i, 4);
		__atomic_store_n((uint32_t *)(void *)(dst + i), w, __ATOMIC_RELAXED);
	}
	// Partner: the acquire loads of the store's readers (record.h: load_word, load_word32).
	if (last8 < bytes) {
		uint64_t w;
		__builtin_memcpy(&w, src + last8, 8);
		__atomic_store_n((uint64_t *)(void *)(dst + last8), w, __ATOMIC_RELEASE);
	} else {
		uint32_t w;
		__builtin_memcpy(&w, src + last, 4);
		__atomic_store_n((uint32_t *)(void *)(dst + last), w, __ATOMIC_RELEASE);
	}
}

void pool_publish(struct pool *pool, void *dst, const void *src, size_t bytes)
{
	unsigned char *base = pool_at(pool, 0);
	assert((unsigned char *)dst >= base && (unsigned char *)dst + bytes <= base + pool_bytes(pool));
	assert(bytes && bytes % 4 == 0 && (uintptr_t)dst % 4 == 0);
	if (pool_publish_hook)
		pool_publish_hook(dst, bytes, 0);
	copy_words(dst, src, bytes);
	if (pool_publish_hook)
		pool_publish_hook(dst, bytes, 1);
}
