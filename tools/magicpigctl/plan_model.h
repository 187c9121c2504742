// What contexts of a model take, reckoned as the daemon allocates: extents in granules for each strip of each block, blocks that grow from 256
// rows to 4,096, and the records that lead to them.
#ifndef MAGICPIGCTL_PLAN_MODEL_H
#define MAGICPIGCTL_PLAN_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <magicpig.h>

#define PLAN_MAX_LAYERS 512

struct plan_shape {
	int layers;                               // of the model
	struct mpig_layer layer[PLAN_MAX_LAYERS]; // kind GLOBAL: the daemon keeps its rows
	char name[64];
};
// "LAYERS/QUERY/KV/D", or the path of a config.json as Hugging Face models have it. keep_sliding: rows of sliding layers are kept, too
// (without an index). 0, or -1 with a reason.
int plan_shape_read(const char *text, bool keep_sliding, struct plan_shape *shape, char *why, size_t why_bytes);

struct plan_memory {
	uint64_t rows, index, metadata; // bytes of the pool
	uint64_t disk;                  // of the files when it is saved
};
// Of one context whose `tokens` tokens from token `first` on are its own, committed and sealed; upper_rows: engine.upper_rows of the daemon.
struct plan_memory plan_memory(const struct plan_shape *shape, uint64_t first, uint64_t tokens, uint64_t upper_rows);

struct plan_traffic {       // bytes that the daemon looks at for one token of one context
	double codes, rows; // in a stream; gathered
	double dense;       // all rows, in a stream
	int attends;        // layers it is asked about
};
// budget: share of the rows a query head reads. Rows that several heads of a group want count once, as far as they fall together by chance.
// tables: by the layers' tables instead of their signatures; budget 0: the share that they choose of rows without structure.
struct plan_traffic plan_traffic(const struct plan_shape *shape, uint64_t tokens, double budget, bool tables);
// Share of the rows that share two of L buckets of K bits with a query, when keys and queries of d dimensions have nothing to do with each
// other: u(c) of arXiv 2410.16179 over their cosines. A model's have, and more rows do.
double plan_table_share(int k, int l, int d);
// Bytes of a window's K and V, of all layers, in 16 bits: what a client keeps for itself.
double plan_window_bytes(const struct plan_shape *shape, uint64_t tokens);

// Of one table blob of `rows` rows: (2^k + 1) starts for each of l tables, an id of 16 bits for each row and table, a norm for each row.
uint64_t plan_table_bytes(unsigned k, unsigned l, uint64_t rows);

#endif
