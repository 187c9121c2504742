// The parts of a segment, for images taken and made; see image.h. Inside daemon/store.
#ifndef MPIG_STORE_IMAGE_PARTS_H
#define MPIG_STORE_IMAGE_PARTS_H

#include "daemon/store/image.h"
#include "daemon/store/internal.h"

// Block by block: token ids, then of each strip its rows and codes. Then tables by strip, then the frames.
// g: the generation that the image has of it, or NULL.
int parts_list(const struct segment *seg, struct generation_record *g, const struct image_segment *shape,
               struct image_part **parts,
               size_t *count); // 0 or MPIG_ENOMEM
void *part_memory(const struct pool *pool, const struct segment *seg, struct generation_record *g, const struct image_part *part);

#endif
