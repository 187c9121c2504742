# magicpigd. `make help` lists the targets. Everything that is built goes under $(B).
VERSION := 0.1.0
B       ?= build
PREFIX  ?= /usr/local
DESTDIR ?=
BINDIR  := $(PREFIX)/bin
SBINDIR := $(PREFIX)/sbin
LIBDIR  ?= $(PREFIX)/lib
INCDIR  := $(PREFIX)/include
MANDIR  := $(PREFIX)/share/man
SYSCONFDIR ?= /etc
UNITDIR := $(PREFIX)/lib/systemd/system
ZSHDIR  ?= site-functions

CC      ?= cc
CSTD    := -std=gnu11
WARN    := -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wvla
OPT     ?= -O2 -g
HARDEN  := -fstack-protector-strong -fno-strict-aliasing
CFLAGS  ?=
CPPFLAGS += -I. -Iclient-lib/include -Icuda/include -D_GNU_SOURCE -DMPIG_VERSION_STRING='"$(VERSION)"'
SAN     ?=
ALL_CFLAGS = $(CSTD) $(WARN) $(OPT) $(HARDEN) -fPIC -pthread $(SAN) $(CFLAGS)
ALL_LDFLAGS = -pthread $(SAN) $(LDFLAGS)

Q := $(if $(V),,@)
say = $(if $(V),,@printf '  %-7s %s\n' $(1) $(2))

# ---- sources, by folder: the layout is the architecture ----------------------------------------------------------------
SHM_SRC    := $(wildcard shm/*.c)
CLIENT_SRC := $(wildcard client-lib/src/*.c)
CUDA_SRC   := $(filter-out cuda/image.c,$(wildcard cuda/*.c))
CONFIG_SRC := $(wildcard config/*.c)
DAEMON_SRC := $(filter-out daemon/main.c,$(wildcard daemon/*/*.c))
TOOLS_SRC  := $(wildcard tools/common/*.c)
CTL_SRC    := $(wildcard tools/magicpigctl/*.c) $(TOOLS_SRC)
BENCH_SRC  := $(wildcard tools/magicpig-bench/*.c) $(TOOLS_SRC)
TEST_SRC   := $(shell find tests -name 'test_*.c' 2>/dev/null)
TESTLIB_SRC:= $(wildcard tests/lib/*.c)
EXAMPLES   := $(wildcard client-lib/examples/*.c)

obj = $(patsubst %.c,$(B)/obj/%.o,$(1))

DAEMON_LIBS := -luring -lnuma -linih -lxxhash -lsystemd -lm
CLIENT_LIBS := -lm
CTL_LIBS    := -lncursesw -ltinfo -ljansson -linih $(CLIENT_LIBS)
TEST_LIBS   := $(shell pkg-config --libs check 2>/dev/null || echo -lcheck -lsubunit -lrt -lm)

PROGRAMS := $(B)/magicpigd $(B)/magicpigctl $(B)/magicpig-bench
LIBRARIES := $(B)/libmagicpig.so.0 $(B)/libmagicpig.so $(B)/libmagicpig.a
NVCC ?= $(shell command -v nvcc)
TESTS := $(patsubst %.c,$(B)/%,$(TEST_SRC))
MAN_PAGES := $(patsubst man/%.scd.in,$(B)/man/%,$(wildcard man/*.scd.in))
COMPLETIONS := $(B)/completions/magicpigctl.bash $(B)/completions/_magicpigctl

.PHONY: man completions
man: $(MAN_PAGES) ## the manual pages
completions: $(COMPLETIONS)
.PHONY: all help demo check check-long check-asan check-tsan check-python bench install uninstall clean deps python-deps format includes
all: deps includes $(PROGRAMS) $(LIBRARIES) man completions $(if $(NVCC),gpu-compile) $(patsubst client-lib/examples/%.c,$(B)/examples/%,$(EXAMPLES))
.DEFAULT_GOAL := all

# ---- rules -------------------------------------------------------------------------------------------------------------
# One set of flags per ISA, by file name, so that no such instruction can leak into common code. Kernels are never
# fused or reassociated behind our back: estimates agree to the bit between ISAs.
$(B)/obj/daemon/kernels/%.o: OPT := -O3 -g
$(B)/obj/daemon/kernels/%.o: ISA := -ffp-contract=off
$(B)/obj/daemon/index/%.o: OPT := -O3 -g
$(B)/obj/daemon/attn/%.o: OPT := -O3 -g
ISA_avx2 := -mavx2 -mfma -mf16c
ISA_avx512 := -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c
ISA_avx512vnni := $(ISA_avx512) -mavx512vnni
ISA_avx512bf16 := $(ISA_avx512) -mavx512bf16
ISA_amx := $(ISA_avx512vnni) -mamx-tile -mamx-int8
$(B)/obj/daemon/kernels/%_avx2.o: ISA := -ffp-contract=off $(ISA_avx2)
$(B)/obj/daemon/kernels/%_avx512.o: ISA := -ffp-contract=off $(ISA_avx512)
$(B)/obj/daemon/kernels/%_avx512vnni.o: ISA := -ffp-contract=off $(ISA_avx512vnni)
$(B)/obj/daemon/kernels/%_avx512bf16.o: ISA := -ffp-contract=off $(ISA_avx512bf16)
$(B)/obj/daemon/kernels/%_amx.o: ISA := -ffp-contract=off $(ISA_amx)

$(B)/obj/%.o: %.c
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(ALL_CFLAGS) $(ISA) $(VISIBILITY) -MMD -MP -c -o $@ $<

$(B)/libdaemon.a: $(call obj,$(DAEMON_SRC) $(CONFIG_SRC) $(SHM_SRC))
	$(call say,AR,$@)
	$(Q)rm -f $@ && ar rcs $@ $^
$(B)/libtest.a: $(call obj,$(TESTLIB_SRC))
	$(Q)rm -f $@ && ar rcs $@ $^
# One object with only the public symbols left global: a program that links the static library meets none of our names.
$(B)/obj/client-lib/src/%.o: VISIBILITY := -fvisibility=hidden
# xxhash from its header, so that a program needs no second library for one hash.
$(B)/obj/client-lib/src/%.o: CPPFLAGS += -DXXH_INLINE_ALL
$(B)/obj/shm/%.o: VISIBILITY := -fvisibility=hidden
$(B)/libmagicpig.a: $(call obj,$(CLIENT_SRC) $(SHM_SRC))
	$(call say,AR,$@)
	$(Q)rm -f $@ && ld -r -o $(B)/obj/libmagicpig.o $^ && objcopy --localize-hidden $(B)/obj/libmagicpig.o && ar rcs $@ $(B)/obj/libmagicpig.o
$(B)/libmagicpig.so.0: $(call obj,$(CLIENT_SRC) $(SHM_SRC)) client-lib/libmagicpig.map
	$(call say,LD,$@)
	$(Q)$(CC) -shared -Wl,-soname,libmagicpig.so.0 -Wl,--version-script=client-lib/libmagicpig.map -Wl,-z,defs $(ALL_LDFLAGS) -o $@ $(filter %.o,$^) $(CLIENT_LIBS)
$(B)/libmagicpig.so: $(B)/libmagicpig.so.0
	$(Q)ln -sf libmagicpig.so.0 $@

$(B)/magicpigd: $(call obj,daemon/main.c) $(B)/libdaemon.a
	$(call say,LD,$@)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ $(DAEMON_LIBS)
CTL_PARTS := $(CTL_SRC) $(CONFIG_SRC) daemon/base/affinity.c daemon/base/log.c
$(B)/magicpigctl: $(call obj,$(CTL_PARTS)) $(B)/libmagicpig.a
	$(call say,LD,$@)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ $(CTL_LIBS)
$(B)/magicpig-bench: $(call obj,$(BENCH_SRC)) $(B)/libtest.a $(B)/libdaemon.a $(B)/libmagicpig.a
	$(call say,LD,$@)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $(call obj,$(BENCH_SRC)) $(B)/libtest.a $(B)/libdaemon.a $(B)/libmagicpig.a $(DAEMON_LIBS)
$(B)/examples/%: client-lib/examples/%.c $(B)/libmagicpig.a
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) -Iclient-lib/include $(CSTD) $(WARN) $(OPT) -pthread $(SAN) -o $@ $^ $(CLIENT_LIBS)
# Programs whose calls of the system a test counts, fails and stops at: tests/lib/points.c.
WRAPPED := fallocate mmap ftruncate mkdir mkdirat fsync renameat linkat unlinkat fstat fstatat fstatfs flock dup fdopendir \
           getrandom malloc calloc realloc aligned_alloc pread pwrite openat io_uring_queue_init io_uring_submit __io_uring_get_cqe
WRAPPED_TESTS := $(addprefix $(B)/tests/,store/test_crash store/test_attach store/test_errors disk/test_crash disk/test_errors \
                   disk/test_power_loss)
$(WRAPPED_TESTS) $(B)/tests/magicpigd: WRAP := $(WRAPPED:%=-Wl,--wrap=%)
$(B)/tests/magicpigd: $(call obj,daemon/main.c) $(B)/libtest.a $(B)/libdaemon.a
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) $(WRAP) -Wl,--undefined=points_of_environment -o $@ $^ $(DAEMON_LIBS)
include cuda/rules.mk
$(B)/tests/%: $(B)/obj/tests/%.o $(B)/libtest.a $(B)/libdaemon.a $(B)/libmagicpig.a
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) $(WRAP) -o $@ $< $(B)/libtest.a $(B)/libdaemon.a $(B)/libmagicpig.a $(TEST_LIBS) $(DAEMON_LIBS)
# The table of options and the commands' help go into manual pages and completions: what is documented is what there is.
$(B)/config_man: $(call obj,tools/build/config_man.c) $(call obj,$(CONFIG_SRC) daemon/base/affinity.c daemon/base/log.c)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ -linih
$(B)/man/%: man/%.scd.in tools/build/man-source tools/build/ctl-table client-lib/include/magicpig.h daemon/disk/FORMAT.md $(B)/config_man $(B)/magicpigctl $(B)/magicpig-bench | deps
	$(call say,MAN,$@)
	$(Q)mkdir -p $(@D)
	$(Q)tools/build/man-source $* $(B) $(VERSION) > $@.scd && SOURCE_DATE_EPOCH=$${SOURCE_DATE_EPOCH:-$(MAN_DATE)} scdoc < $@.scd > $@.new && mv $@.new $@
MAN_DATE := $(shell date -r CHANGELOG.md +%s)
$(B)/completions/magicpigctl.bash: tools/build/completions tools/build/ctl-table $(B)/magicpigctl $(B)/magicpigd
	$(Q)mkdir -p $(@D)
	$(Q)tools/build/completions bash $(B)/magicpigctl $(B)/magicpigd > $@.new && mv $@.new $@
$(B)/completions/_magicpigctl: tools/build/completions tools/build/ctl-table $(B)/magicpigctl $(B)/magicpigd
	$(Q)mkdir -p $(@D)
	$(Q)tools/build/completions zsh $(B)/magicpigctl $(B)/magicpigd > $@.new && mv $@.new $@
.SECONDARY:

# An object is older than its flags when the compiler, the sanitizer, the version or a rule above changed.
ALL_OBJECTS := $(call obj,$(SHM_SRC) $(CLIENT_SRC) $(CUDA_SRC) cuda/image.c $(wildcard tests/gpu/fake/*.c tests/gpu/bench_*.c) $(CONFIG_SRC) $(DAEMON_SRC) daemon/main.c $(CTL_SRC) $(BENCH_SRC) $(TESTLIB_SRC) $(TEST_SRC) tools/build/config_man.c)
FLAGS = $(CC) $(CPPFLAGS) $(ALL_CFLAGS) $(ALL_LDFLAGS)
$(ALL_OBJECTS): $(B)/flags Makefile cuda/rules.mk | deps
$(B)/flags: FORCE
	@mkdir -p $(@D)
	@printf '%s\n' '$(subst ','\'',$(FLAGS))' | cmp -s - $@ || printf '%s\n' '$(subst ','\'',$(FLAGS))' > $@

# ---- what people type --------------------------------------------------------------------------------------------------
VENV     ?= build/venv
# Python tests of parts that are in the tree; C tests that mean something under ThreadSanitizer.
PYTESTS  := $(wildcard tests/python tests/gpu tests/systemd tests/man client-lib/python/tests tests/cli tests/quality)
TSAN_TESTS = $(filter $(B)/tests/shm/test_ring% $(B)/tests/engine/% $(B)/tests/server/test_worker $(B)/tests/server/test_recording $(B)/tests/server/test_leftover,$(TESTS))
HEADERS  := $(shell find shm client-lib cuda config daemon tools tests -name '*.h' 2>/dev/null)
TEST_ENV  = MAGICPIGD=$(abspath $(B))/magicpigd MAGICPIGD_POINTS=$(abspath $(B))/tests/magicpigd MAGICPIGCTL=$(abspath $(B))/magicpigctl \
            MAGICPIG_LIBRARY=$(abspath $(B))/libmagicpig.so.0 MAGICPIG_EXAMPLES=$(abspath $(B))/examples
TEST_LIMIT ?= $(if $(MPIG_LONG),3600,300)
CLANG_FORMAT ?= $(or $(shell command -v clang-format),clang-format-14)

.PHONY: FORCE check-c quality-demo quality quality-quick quality-speed

all: ## build everything (the default)

help: ## this list
	@echo 'Usage: make [TARGET] [V=1] [B=build] [CC=gcc] [PREFIX=/usr/local] [DESTDIR=]'
	@awk -F ':[^#]*## ' '/^[a-z-]+:.*## / { printf "  %-19s %s\n", $$1, $$2 }' Makefile cuda/rules.mk

demo: deps python-deps all ## a language model decodes from KV that lives in the daemon, is killed and goes on
	@$(VENV)/bin/python tools/demo/demo.py --build $(B)
quality-demo: deps python-deps all ## the demo, with every planted fact over several seeds (tens of minutes)
	@$(VENV)/bin/python tools/demo/demo.py --build $(B) --quality

quality: deps python-deps all ## how near the answers come to full attention, on two models (hours; QUICK=1: a fixture)
	@$(VENV)/bin/python tools/quality/quality.py --build $(B) $(if $(QUICK),--quick) $(QUALITY)
quality-speed: deps python-deps all ## time at equal error, signature against paper, on the documents that `make quality` has captured
	@$(VENV)/bin/python tools/quality/speed.py --build $(B) --json $(B)/quality/speed.json $(SPEED) $(wildcard $(B)/quality/documents/*-[0-9].npz)

quality-quick: deps python-deps all ## the same on committed tensors, with thresholds (a minute)
	@$(VENV)/bin/python tools/quality/quality.py --build $(B) --quick $(QUALITY)

.PHONY: crosspolytope-table
crosspolytope-table: ## simulate daemon/index/crosspolytope_table.c anew (five minutes)
	@mkdir -p $(B)
	$(CC) -std=gnu11 -O3 -march=native -ffp-contract=off -I. -o $(B)/crosspolytope_table tools/build/crosspolytope_table.c daemon/base/rng.c -lm
	$(B)/crosspolytope_table > $(B)/crosspolytope_table.c
	mv $(B)/crosspolytope_table.c daemon/index/crosspolytope_table.c

check: deps python-deps all $(TESTS) $(B)/tests/magicpigd $(FAKE_CUDA_LIBRARY) $(FAKE_EXAMPLES) $(FAKE_BENCHES) ## all tests, C and Python
	@$(TEST_ENV) tools/build/run-tests --limit $(TEST_LIMIT) --pytest $(VENV)/bin/python $(PYTESTS) -- $(sort $(TESTS))

check-c: deps all $(TESTS) $(B)/tests/magicpigd ## the C tests only
	@$(TEST_ENV) tools/build/run-tests --limit $(TEST_LIMIT) $(sort $(TESTS))

check-python: deps python-deps all $(FAKE_CUDA_LIBRARY) $(FAKE_EXAMPLES) $(FAKE_BENCHES) ## the Python and command line tests only
	@$(TEST_ENV) tools/build/run-tests --pytest $(VENV)/bin/python $(PYTESTS)

check-long: ## all tests in their long form (minutes to hours)
	@$(MAKE) --no-print-directory check MPIG_LONG=1

check-asan: ## the C tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@ASAN_OPTIONS=allocator_may_return_null=1 $(MAKE) --no-print-directory check-c B=build-asan OPT='-O1 -g' SAN='-fsanitize=address,undefined -fno-sanitize-recover=undefined'

# setarch: ThreadSanitizer of gcc 12 and clang 14 does not know every address layout of newer kernels. It takes no part in fences,
# which gcc warns of; the pairs that need one are tested by test_ring_circle in two processes, without it.
check-tsan: ## the ring, the workers and the engine under ThreadSanitizer
	@$(MAKE) --no-print-directory check-tsan-run B=build-tsan OPT='-O1 -g' SAN=-fsanitize=thread \
		CFLAGS='$(if $(findstring clang,$(CC)),,-Wno-tsan)'
.PHONY: check-tsan-run
check-tsan-run: deps $(TSAN_TESTS)
	@$(TEST_ENV) setarch -R tools/build/run-tests --limit $(TEST_LIMIT) $(sort $(TSAN_TESTS))

bench: deps $(B)/magicpig-bench $(B)/magicpigd $(B)/tests/kernels/bench_kernels ## measure this machine; also writes build/bench/*.json
	@mkdir -p $(B)/bench
	@$(TEST_ENV) $(B)/magicpig-bench --json $(B)/bench/report.json
	@$(B)/tests/kernels/bench_kernels --json $(B)/bench/kernels.json

# Each of them asserts what it is about; the figures are of those that passed. QUICK=1: in the form that `make check` runs.
PERSIST_TESTS := store/test_crash store/test_attach store/test_errors disk/test_crash disk/test_errors disk/test_power_loss \
                 server/test_profiles integration/test_profiles integration/test_kill_points integration/test_warm_restart
PERSIST_BENCHES := store/bench_forks disk/bench_disk
.PHONY: persist-report
persist-report: deps all $(PERSIST_TESTS:%=$(B)/tests/%) $(PERSIST_BENCHES:%=$(B)/tests/%) $(B)/tests/magicpigd ## what survives what, in figures (half an hour; QUICK=1: two minutes)
	@mkdir -p $(B)/persist && rm -f $(B)/persist/figures
	@$(TEST_ENV) MPIG_FIGURES=$(abspath $(B))/persist/figures $(if $(QUICK),,MPIG_LONG=1) \
		tools/build/run-tests --limit 7200 $(PERSIST_TESTS:%=$(B)/tests/%)
	@for bench in $(PERSIST_BENCHES:%=$(B)/tests/%); do MPIG_FIGURES=$(abspath $(B))/persist/figures $(TEST_ENV) $$bench || exit 1; done
	@$(if $(QUICK),,MPIG_LONG=1) tools/build/persist-report $(B)/persist/figures $(B)/persist/report.json

deps: ## install the Debian packages that are missing
	@CC='$(CC)' tools/build/install-deps

python-deps: ## make the Python environment in build/venv
	@VENV='$(VENV)' tools/build/install-deps --python

includes: $(HEADERS:%=$(B)/obj/%.ok) ## check the directions of includes, and that every header compiles alone
	@tools/build/check-includes

$(B)/obj/%.h.ok: %.h | deps
	$(Q)mkdir -p $(@D)
	$(Q)echo '#include "$<"' | $(CC) $(CPPFLAGS) $(CSTD) $(WARN) -Wno-unused-function $(ISA_$(lastword $(subst _, ,$*))) \
		-MMD -MP -MT $@ -MF $(@:.ok=.d) -fsyntax-only -x c -
	@touch $@

install: all ## install below $(DESTDIR)$(PREFIX)
	install -d $(addprefix $(DESTDIR),$(BINDIR) $(SBINDIR) $(LIBDIR)/pkgconfig $(INCDIR))
	install -m 755 $(B)/magicpigd $(DESTDIR)$(SBINDIR)
	install -m 755 $(B)/magicpigctl $(B)/magicpig-bench $(DESTDIR)$(BINDIR)
	install -m 755 $(B)/libmagicpig.so.0 $(DESTDIR)$(LIBDIR)/libmagicpig.so.$(VERSION)
	ln -sf libmagicpig.so.$(VERSION) $(DESTDIR)$(LIBDIR)/libmagicpig.so.0
	ln -sf libmagicpig.so.0 $(DESTDIR)$(LIBDIR)/libmagicpig.so
	install -m 644 $(B)/libmagicpig.a $(DESTDIR)$(LIBDIR)
	install -m 644 client-lib/include/magicpig.h $(DESTDIR)$(INCDIR)
	install -D -m 644 tools/grafana/magicpigd.json $(DESTDIR)$(PREFIX)/share/magicpig/grafana/magicpigd.json
	sed -e 's|@PREFIX@|$(PREFIX)|; s|@VERSION@|$(VERSION)|; s|^libdir=.*|libdir=$(LIBDIR)|; s|^includedir=.*|includedir=$(INCDIR)|' \
		client-lib/magicpig.pc.in > $(DESTDIR)$(LIBDIR)/pkgconfig/magicpig.pc
	install -D -m 644 config/magicpigd.conf $(DESTDIR)$(SYSCONFDIR)/magicpig/magicpigd.conf.sample
	$(foreach page,$(MAN_PAGES),install -D -m 644 $(page) $(DESTDIR)$(MANDIR)/man$(lastword $(subst ., ,$(page)))/$(notdir $(page)) && ) true
	install -D -m 644 $(B)/completions/magicpigctl.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/magicpigctl
	ln -sf magicpigctl $(DESTDIR)$(PREFIX)/share/bash-completion/completions/magicpigd
	install -D -m 644 $(B)/completions/_magicpigctl $(DESTDIR)$(PREFIX)/share/zsh/$(ZSHDIR)/_magicpigctl
	tools/build/units $(DESTDIR)$(UNITDIR) $(SBINDIR) $(SYSCONFDIR) $(BINDIR)
	install -D -m 644 systemd/magicpig.sysusers $(DESTDIR)$(PREFIX)/lib/sysusers.d/magicpig.conf
	install -D -m 644 systemd/magicpig.tmpfiles $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/magicpig.conf
	install -D -m 644 systemd/magicpigd.catalog $(DESTDIR)$(PREFIX)/lib/systemd/catalog/magicpigd.catalog
	$(if $(NVCC),install -m 755 $(B)/libmagicpig-cuda.so.0 $(DESTDIR)$(LIBDIR)/libmagicpig-cuda.so.$(VERSION))
	$(if $(NVCC),ln -sf libmagicpig-cuda.so.$(VERSION) $(DESTDIR)$(LIBDIR)/libmagicpig-cuda.so.0)
	$(if $(NVCC),ln -sf libmagicpig-cuda.so.0 $(DESTDIR)$(LIBDIR)/libmagicpig-cuda.so)
	$(if $(NVCC),install -m 644 $(B)/libmagicpig-cuda.a $(DESTDIR)$(LIBDIR))
	$(if $(NVCC),install -m 644 cuda/include/magicpig_cuda.h $(DESTDIR)$(INCDIR))
	$(if $(NVCC),sed -e 's|@PREFIX@|$(PREFIX)|; s|@VERSION@|$(VERSION)|; s|^libdir=.*|libdir=$(LIBDIR)|; s|^includedir=.*|includedir=$(INCDIR)|' \
		cuda/magicpig-cuda.pc.in > $(DESTDIR)$(LIBDIR)/pkgconfig/magicpig-cuda.pc)

uninstall: ## remove what install has put there
	rm -f $(addprefix $(DESTDIR)$(LIBDIR)/,libmagicpig.so.$(VERSION) libmagicpig.so.0 libmagicpig.so libmagicpig.a pkgconfig/magicpig.pc)
	rm -f $(addprefix $(DESTDIR)$(LIBDIR)/,libmagicpig-cuda.so.$(VERSION) libmagicpig-cuda.so.0 libmagicpig-cuda.so libmagicpig-cuda.a pkgconfig/magicpig-cuda.pc)
	rm -f $(DESTDIR)$(INCDIR)/magicpig_cuda.h
	rm -f $(DESTDIR)$(SBINDIR)/magicpigd $(addprefix $(DESTDIR)$(BINDIR)/,magicpigctl magicpig-bench) $(DESTDIR)$(INCDIR)/magicpig.h
	rm -f $(DESTDIR)$(SYSCONFDIR)/magicpig/magicpigd.conf.sample $(DESTDIR)$(PREFIX)/share/magicpig/grafana/magicpigd.json
	rm -f $(foreach page,$(MAN_PAGES),$(DESTDIR)$(MANDIR)/man$(lastword $(subst ., ,$(page)))/$(notdir $(page)))
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/share/,$(addprefix bash-completion/completions/,magicpigctl magicpigd) zsh/$(ZSHDIR)/_magicpigctl)
	rm -f $(addprefix $(DESTDIR)$(UNITDIR)/,magicpigd.service magicpigd.socket magicpigd@.service magicpigd@.socket magicpigd-metrics.service magicpigd-metrics.socket)
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/lib/,sysusers.d/magicpig.conf tmpfiles.d/magicpig.conf systemd/catalog/magicpigd.catalog)
	-rmdir $(DESTDIR)$(SYSCONFDIR)/magicpig $(addprefix $(DESTDIR)$(PREFIX)/share/magicpig,/grafana /) 2>/dev/null

clean: ## remove what was built (the Python environment, the demo's model and the captures of quality stay)
	rm -rf build-asan build-tsan $(filter-out $(B)/venv $(B)/demo $(B)/quality,$(wildcard $(B)/*))

.PHONY: wheel deb check-deb
wheel: deps python-deps $(B)/libmagicpig.so.0 ## a Python wheel in build/wheel, with the library inside
	@tools/build/wheel $(VENV)/bin/python $(B)/libmagicpig.so.0 $(B)/wheel

deb: ## Debian packages in build/deb (Debian 12); those of the GPU's side where there is nvcc
	@tools/build/install-deps --deb
	@tools/build/copy-tree $(B)/deb/magicpigd
	cd $(B)/deb/magicpigd && $(if $(NVCC),DEB_BUILD_PROFILES='$(strip $(DEB_BUILD_PROFILES) pkg.magicpigd.cuda)') dpkg-buildpackage -b -us -uc -j$(shell nproc) > ../build.log 2>&1 || { tail -n 40 ../build.log; exit 1; }
	@rm -r $(B)/deb/magicpigd
	@cd $(B)/deb && lintian --allow-root --fail-on error --suppress-tags bad-distribution-in-changes-file *.changes
	@ls $(B)/deb/*.deb

check-deb: deb ## install, start, upgrade, remove and purge the packages in a bare Debian 12 (root, minutes)
	@tests/packages/check-deb $(B)/deb

.PHONY: abi
abi: $(B)/libmagicpig.so.0 ## write down the library's interface anew, for a release
	CC='$(CC)' tools/build/abi-list $< > client-lib/abi/libmagicpig.so.0.abi

format: ## run clang-format over all C files
	$(CLANG_FORMAT) -i $(sort $(HEADERS) $(wildcard shm/*.c client-lib/*/*.c cuda/*.c cuda/*.cu cuda/*.cuh cuda/examples/*.c config/*.c daemon/*.c daemon/*/*.c tools/*/*.c) \
		$(shell find tests -name '*.c'))

-include $(shell find $(B)/obj -name '*.d' 2>/dev/null)
