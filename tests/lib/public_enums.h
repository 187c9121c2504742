// The enumerators of magicpig.h as data. public_enums.c sees only the public header and test_abi.c only shm/'s, so that the two
// copies are compared instead of one hiding the other.
#ifndef MPIG_TESTS_PUBLIC_ENUMS_H
#define MPIG_TESTS_PUBLIC_ENUMS_H

struct public_enum {
	const char *name;
	int value;
};

// Each ends with a NULL name.
extern const struct public_enum public_statuses[], public_dtypes[], public_proposals[], public_table_hashes[],
	public_layer_kinds[];

#endif
