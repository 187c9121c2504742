// What the steps of attaching share; see attach.c. Inside daemon/store.
#ifndef MPIG_STORE_ATTACH_H
#define MPIG_STORE_ATTACH_H

#include "daemon/store/internal.h"

struct lookup { // of segments and parameters by their offset
	struct {
		uint64_t offset;
		void *object;
	} * entry;
	size_t count, capacity; // a power of two
};

struct attach {
	struct store *s;
	const struct store_attach_options *options;
	struct store_attached *out;
	struct lookup segments, params;
	bool *owned;             // [contexts_max] entries of the context table that lead to a context; the others are cleared
	struct extents conflict; // claimed by more than one open segment
	char why[MPIG_TEXT_BYTES];
	bool no_memory;
};

enum turn { TURN_LIVE, TURN_QUARANTINED, TURN_UNREADABLE };

// attach_read.c: every context record of one kind, with all that a checksum vouches for.
void attach_read_all(struct attach *a, enum turn turn);
// The record there, if its own checksum holds; else NULL.
const struct context_record *attach_valid_record(const struct attach *a, uint64_t offset);
bool attach_has_params(const struct attach *a, uint64_t offset);   // some context does
void attach_forget_segment(struct attach *a, struct segment *seg); // an open one that its context loses

// attach_claim.c
// Notes why a context is not to be believed; the first reason stays. Returns false.
bool attach_damaged(struct attach *a, struct context *c, const char *format, ...) __attribute__((format(printf, 3, 4)));
bool attach_claim_record(struct attach *a, struct context *c, uint64_t offset, uint64_t bytes, const char *what);
bool attach_claim_segment(struct attach *a, struct segment *seg, struct extent *failed); // all of its extents or none
void attach_claim_all(struct attach *a);                                                 // the open segments

#endif
