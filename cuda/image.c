// The kernels: a fatbin of cuda/kernels.cu. MPIG_CUDA_FATBIN names the file.
__asm__(".pushsection .rodata.mpig_cuda_image, \"a\", @progbits\n"
        ".balign 64\n"
        ".globl mpig_cuda_image\n"
        ".hidden mpig_cuda_image\n"
        ".type mpig_cuda_image, @object\n"
        "mpig_cuda_image:\n"
        ".incbin \"" MPIG_CUDA_FATBIN "\"\n"
        ".size mpig_cuda_image, . - mpig_cuda_image\n"
        ".popsection\n");
