# libmagicpig-cuda, its examples, tests and benches; included by the Makefile. The GPU's side is built where there is nvcc; its tests are
# built everywhere, over a driver without a GPU (tests/gpu/fake).
CUDA_LIBRARIES := $(B)/libmagicpig-cuda.so.0 $(B)/libmagicpig-cuda.so $(B)/libmagicpig-cuda.a
GPU_TESTS := $(patsubst tests/gpu/%.c,$(B)/gpu/%,$(wildcard tests/gpu/test_*.c tests/gpu/bench_*.c))

# The kernels: machine code for A100 and H100, and PTX for what is between and after them. Nothing is fused or approximated that the
# source does not fuse: signatures agree with the daemon's to the bit.
NVCC_FLAGS ?= -O3 -std=c++17 -fmad=false -lineinfo -gencode arch=compute_80,code=[sm_80,compute_80] -gencode arch=compute_90,code=[sm_90,compute_90]
$(B)/cuda/kernels.fatbin: $(wildcard cuda/*.cu cuda/*.cuh) cuda/device.h shm/abi.h shm/status.h cuda/rules.mk
	$(call say,NVCC,cuda/kernels.cu)
	$(Q)mkdir -p $(@D)
	$(Q)$(NVCC) $(NVCC_FLAGS) -I. -fatbin -o $@ cuda/kernels.cu
$(B)/obj/cuda/%.o: VISIBILITY := -fvisibility=hidden
$(B)/obj/cuda/image.o: ISA := -DMPIG_CUDA_FATBIN='"$(B)/cuda/kernels.fatbin"'
$(B)/obj/cuda/image.o: $(B)/cuda/kernels.fatbin
$(B)/libmagicpig-cuda.a: $(call obj,$(CUDA_SRC) cuda/image.c)
	$(call say,AR,$@)
	$(Q)rm -f $@ && ld -r -o $(B)/obj/libmagicpig-cuda.o $^ && objcopy --localize-hidden $(B)/obj/libmagicpig-cuda.o && ar rcs $@ $(B)/obj/libmagicpig-cuda.o
$(B)/libmagicpig-cuda.so.0: $(call obj,$(CUDA_SRC) cuda/image.c) $(B)/libmagicpig.so.0 cuda/libmagicpig-cuda.map | $(B)/libmagicpig.so
	$(call say,LD,$@)
	$(Q)$(CC) -shared -Wl,-soname,libmagicpig-cuda.so.0 -Wl,--version-script=cuda/libmagicpig-cuda.map -Wl,-z,defs $(ALL_LDFLAGS) -o $@ $(filter %.o,$^) -L$(B) -lmagicpig -lm
$(B)/libmagicpig-cuda.so: $(B)/libmagicpig-cuda.so.0
	$(Q)ln -sf libmagicpig-cuda.so.0 $@

FAKE_CUDA := $(B)/tests/gpu/fake/libcuda.so.1
$(B)/obj/tests/gpu/fake/%.o: ISA := -ffp-contract=off
$(B)/obj/tests/gpu/fake/%.o: VISIBILITY := -fvisibility=hidden
$(FAKE_CUDA): $(call obj,tests/gpu/fake/libcuda.c tests/gpu/fake/simt.c daemon/kernels/convert.c)
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) -shared -Wl,-soname,libcuda.so.1 $(ALL_LDFLAGS) -o $@ $^ -lm
# The library over that driver, for the Python package's tests.
FAKE_CUDA_LIBRARY := $(B)/tests/gpu/fake/libmagicpig-cuda.so.0
$(FAKE_CUDA_LIBRARY): $(call obj,$(CUDA_SRC) tests/gpu/fake/image.c) $(FAKE_CUDA) $(B)/libmagicpig.so.0 cuda/libmagicpig-cuda.map | $(B)/libmagicpig.so
	$(call say,LD,$@)
	$(Q)$(CC) -shared -Wl,-soname,libmagicpig-cuda.so.0 -Wl,--version-script=cuda/libmagicpig-cuda.map -Wl,-z,defs $(ALL_LDFLAGS) \
		-Wl,--enable-new-dtags,-rpath,'$$ORIGIN' -o $@ $(filter %.o,$^) -L$(B) -lmagicpig -lm
# The examples of the GPU's side, twice: for a GPU, linked against that driver as they would be against libcuda; and over it, for the tests. Its part of
# cuda.h serves where CUDA's own is missing.
GPU_EXAMPLES := $(patsubst cuda/examples/%.c,%,$(wildcard cuda/examples/*.c))
FAKE_EXAMPLES := $(GPU_EXAMPLES:%=$(B)/tests/gpu/examples/%)
CUDA_INCLUDE := $(if $(NVCC),-isystem $(dir $(realpath $(NVCC)))../include) -Itests/gpu/fake
$(B)/gpu/examples/%: cuda/examples/%.c $(B)/libmagicpig-cuda.a $(B)/libmagicpig.a $(FAKE_CUDA)
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) -Iclient-lib/include -Icuda/include $(CUDA_INCLUDE) $(CSTD) $(WARN) $(OPT) -pthread $(SAN) -o $@ $^ -lm -ldl
$(FAKE_EXAMPLES): $(B)/tests/gpu/examples/%: cuda/examples/%.c $(FAKE_CUDA_LIBRARY) $(B)/libmagicpig.so.0 $(FAKE_CUDA)
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) -Iclient-lib/include -Icuda/include -Itests/gpu/fake $(CSTD) $(WARN) $(OPT) -pthread $(SAN) \
		-Wl,--disable-new-dtags,-rpath,'$$ORIGIN/../fake:$$ORIGIN/../../..' -o $@ $^ -lm
GPU_OBJECTS = $(call obj,$(CUDA_SRC)) $(B)/libtest.a $(B)/libdaemon.a $(B)/libmagicpig.a
FAKE_BENCHES := $(B)/tests/gpu/bench_gpu $(B)/tests/gpu/bench_ingest
$(FAKE_BENCHES) $(FAKE_BENCHES:$(B)/tests/%=$(B)/%): $(call obj,tools/magicpig-bench/private_daemon.c tools/common/output.c)
$(B)/tests/gpu/%: $(B)/obj/tests/gpu/%.o $(B)/obj/tests/gpu/fake/image.o $(GPU_OBJECTS) | $(FAKE_CUDA)
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) -Wl,--disable-new-dtags,-rpath,'$$ORIGIN/fake' -o $@ $(filter %.o %.a,$^) $(TEST_LIBS) $(DAEMON_LIBS) -ldl
$(B)/gpu/%: $(B)/obj/tests/gpu/%.o $(B)/obj/cuda/image.o $(GPU_OBJECTS)
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $(filter %.o %.a,$^) $(TEST_LIBS) $(DAEMON_LIBS) -ldl

# ---- what people type --------------------------------------------------------------------------------------------------
.PHONY: gpu-compile check-gpu
gpu-compile: $(CUDA_LIBRARIES) $(GPU_TESTS) $(GPU_EXAMPLES:%=$(B)/gpu/examples/%) ## build the GPU's side and its tests (needs nvcc, and no GPU)
# Python tests of the GPU's side: over a driver without a GPU in `make check`, on the GPU here.
GPU_PYTESTS := $(addprefix client-lib/python/tests/test_,cuda.py ops.py parity.py real_heads.py prompt_rows.py gpu_transformers.py)
GPU_PYTHON ?= $(VENV)/bin/python
check-gpu: deps all $(if $(NVCC),$(GPU_TESTS)) ## the tests of the GPU's side, on the GPU of this machine (GPU_PYTHON: one whose torch has CUDA)
ifeq ($(NVCC),)
	@echo 'check-gpu: skipped: no nvcc on this machine'
else ifeq ($(wildcard /dev/nvidiactl),)
	@echo 'check-gpu: skipped: no GPU on this machine'
else
	@if $(GPU_PYTHON) -c 'import pytest, transformers, torch; raise SystemExit(not torch.cuda.is_available())' 2> /dev/null; \
	then set -- --pytest $(GPU_PYTHON) $(GPU_PYTESTS); \
	else set --; echo 'check-gpu: the Python tests are skipped: $(GPU_PYTHON) has no pytest, transformers and torch with CUDA; set GPU_PYTHON'; fi; \
	$(TEST_ENV) tools/build/run-tests --limit $(TEST_LIMIT) "$$@" -- $(filter $(B)/gpu/test_%,$(GPU_TESTS))
endif

.PHONY: bench-gpu
bench-gpu: deps all $(if $(NVCC),gpu-compile) ## the GPU's side and a decode loop of an 8B model's shape, on the GPU of this machine (ten minutes)
ifeq ($(and $(NVCC),$(wildcard /dev/nvidiactl)),)
	@echo 'bench-gpu: skipped: no nvcc or no GPU on this machine'
else
	@mkdir -p $(B)/bench
	@$(TEST_ENV) $(B)/gpu/bench_gpu --json $(B)/bench/gpu.json --decode 98304
	@$(TEST_ENV) $(GPU_PYTHON) tests/gpu/bench_model.py --build $(B) --json $(B)/bench/model.json $(BENCH_MODEL)
endif
