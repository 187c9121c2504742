// In the place of the kernels' machine code: the fake driver has the kernels.
extern const unsigned char mpig_cuda_image[];
const unsigned char mpig_cuda_image[1] = {0};
