// A profile: how the layers of a model's contexts are answered and indexed where neither request nor spec says. `magicpigctl tune` makes one,
// the daemon keeps it by owner and fingerprint. One table (profile.c) has its keys; parser, printer and checks go by it.
//
//   [profile]           version, fingerprint, what was aimed at, what was measured, at which rates
//   [layer 7]           one section for each layer that stores rows, ascending
//   [end]               layers = how many there were: a text that was cut off is not taken for a whole one
#ifndef MPIG_CONFIG_PROFILE_H
#define MPIG_CONFIG_PROFILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PROFILE_VERSION 1u
#define PROFILE_LAYERS 512u
#define PROFILE_TEXT_BYTES 65024u // what a control message carries
#define PROFILE_WHY_BYTES 256u
#define PROFILE_HEX_BYTES 129u // of a fingerprint: digits, and a zero

enum profile_proposal { PROFILE_SIGNATURE, PROFILE_DENSE, PROFILE_PAPER, PROFILE_CROSSPOLYTOPE, PROFILE_PROPOSALS };
extern const char *const profile_proposal_words[PROFILE_PROPOSALS + 1]; // NULL after the last

struct profile_layer {
	uint32_t number; // in the model
	int proposal;    // enum profile_proposal
	// Of a signature: one of both; 0 = none
	float budget, error_target;
	float budget_floor, budget_cap; // with error_target
	uint32_t signature_bits;        // of new contexts that leave it to the daemon; 0: it chooses
	uint32_t paper_k, paper_l;      // of its tables; 0: none
	float rows, error, ms; // told by tune: share of the rows read, root mean square of the relative error, time of an answer
};

struct profile {
	char fingerprint[PROFILE_HEX_BYTES]; // hexadecimal
	uint32_t seed, seeds, queries;
	uint32_t rates_tokens;     // of the context on which the rates were measured; 0: they were given
	float goal_error, goal_ms; // 0: none
	float error, ms;           // of a token, on queries that nothing was chosen by
	float ns_request, ns_dense, ns_scan, ns_read, ns_lookup; // rates that times were reckoned with (magicpigctl tune --help)
	float ns_scan_1, ns_scan_2, ns_scan_4;
	uint32_t count; // of layer[]
	struct profile_layer layer[PROFILE_LAYERS];
};

// 0, or -1 and `why` (PROFILE_WHY_BYTES): line, key and what is allowed. *profile is written in either case. text: `bytes` of them.
int profile_parse(const char *text, size_t bytes, struct profile *profile, char *why);
// The text of a profile that profile_parse would take, into `text` (PROFILE_TEXT_BYTES). Its length; 0: it does not fit.
size_t profile_format(const struct profile *profile, char *text);
// The layer of that number, or NULL.
const struct profile_layer *profile_find(const struct profile *profile, uint32_t number);
// A fingerprint's hexadecimal digits, zero bytes at its end left out, and back; false: not that.
void profile_hex(const uint8_t fingerprint[64], char hex[PROFILE_HEX_BYTES]);
bool profile_unhex(const char *hex, uint8_t fingerprint[64]);

#endif
