# Two commands do everything: `make demo` and `make test`. They set up their own virtual environments, one for
# the compiled build and one for the plain-Python build, below .venv/ and named after the interpreter.
#
#   make demo                        build, serve, drive with load, print a table
#   make test                        build and run every test, compiled and pure
#   make test PYTHON=python3.13      the same with another interpreter
#   make bench                       compare with uvloop and others: ten minutes; ARGS=… is for benchmarks/bench.py
#   make bench-quick                 every benchmark once, very short: does everything work?
#   make fuzz SECONDS=60             look for inputs that break a promise, that long for each target
#   make soak MINUTES=10             churn, and whether memory, descriptors, threads or objects grow; draws soak.png
#   make extremes                    very many connections, a greedy peer, ten thousand who trickle: are others served?
#   make sanitize                    every test with the compiled modules under Address- and UndefinedBehaviorSanitizer
#   make valgrind                    the tests under valgrind's memory checker
#   make refleaks PYTHON=python3.11-dbg    every test several times over, and whether references are left behind
#   make lint                        ruff and mypy --strict
#   make package                     sdist, and from it a wheel, into dist/; the wheel is tried in a clean environment
#   make clean                       remove everything that was built

PYTHON ?= python3
TAG := $(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_config_var("SOABI"))')
ifeq ($(TAG),)
$(error $(PYTHON) does not run; name a Python 3.11 or newer with PYTHON=…)
endif
COMPILED := .venv/$(TAG)
PURE := .venv/$(TAG)-pure
LINT := .venv/$(TAG)-lint
SOURCES := pyproject.toml setup.py README.md LICENSE \
	$(shell find src -name '*.py' -o -name '*.pyx' -o -name '*.pxd' -o -name 'py.typed')
PIP_INSTALL := -m pip --disable-pip-version-check install --quiet --prefer-binary
PYTEST ?= -m pytest

.PHONY: demo test test-compiled test-pure test-poll test-ready bench bench-quick fuzz fuzz-ready soak extremes sanitize valgrind refleaks lint package clean

demo: $(COMPILED)/installed
	$(COMPILED)/bin/python benchmarks/demo.py

test: test-compiled test-pure test-poll

test-compiled: $(COMPILED)/installed
	PYMUDUO_EXPECT=compiled $(COMPILED)/bin/python $(PYTEST)

test-pure: $(PURE)/installed
	PYMUDUO_EXPECT=pure $(PURE)/bin/python $(PYTEST)

# The poll(2) poller under everything that touches a loop; the programs and packaging do not depend on it. In Python's
# development mode, whose allocator sees what is written beside memory or read after its end.
test-poll: $(COMPILED)/installed
	PYMUDUO_POLLER=poll $(COMPILED)/bin/python -X dev $(PYTEST) tests --ignore=tests/examples

# On the plain-Python build, which is what the fuzzer's coverage sees.
SECONDS ?= 10
fuzz: $(PURE)/fuzz
	$(PURE)/bin/python tests/fuzz/fuzz.py --seconds $(SECONDS) $(ARGS)

MINUTES ?= 1
soak: $(COMPILED)/installed
	-$(COMPILED)/bin/python $(PIP_INSTALL) matplotlib
	$(COMPILED)/bin/python tests/stress/soak.py --minutes $(MINUTES) --out soak

# Best on a machine that does nothing else: a busy one is told apart, but can't be judged.
extremes: $(COMPILED)/installed
	$(COMPILED)/bin/python tests/stress/extremes.py --judge

# Leaks are the soak's business: the interpreter itself keeps memory to its end. Left out are tests that count
# instructions or memory, or run programs that do not bear this library. With SANITIZER=thread only what the compiled
# modules do is seen; TESTS='tests/stress/test_many_threads.py' is of use there.
comma := ,
SANITIZER ?= address,undefined
TESTS ?= tests
SANITIZED = .venv/$(TAG)-$(subst $(comma),-,$(SANITIZER))
REPORT = $(CURDIR)/$(SANITIZED)/report# of each process one, which pytest can't swallow
FLAGS = -fsanitize=$(SANITIZER) -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g
LIBRARY_address := libasan.so
LIBRARY_undefined := libubsan.so
LIBRARY_thread := libtsan.so
PRELOADED = $(foreach kind,$(subst $(comma), ,$(SANITIZER)),$(shell $(CC) -print-file-name=$(LIBRARY_$(kind))))
sanitize:
	test -d $(SANITIZED) || $(PYTHON) -m venv $(SANITIZED)
	PYMUDUO_PURE=1 $(SANITIZED)/bin/python $(PIP_INSTALL) '.[test]'
	$(call install_each,$(SANITIZED),test-native)
	# Its gets reads what it has freed: no client for this.
	-$(SANITIZED)/bin/python -m pip --disable-pip-version-check uninstall --quiet --yes pylibmc
	rm -f $(SANITIZED)/report.*
	CFLAGS="$(FLAGS)" LDFLAGS="$(FLAGS)" $(SANITIZED)/bin/python $(PIP_INSTALL) --force-reinstall --no-deps .
	LD_PRELOAD="$(PRELOADED)" PYTHONMALLOC=malloc PYMUDUO_EXPECT=compiled \
		ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:log_path=$(REPORT) \
		UBSAN_OPTIONS=print_stacktrace=1:log_path=$(REPORT) TSAN_OPTIONS=log_path=$(REPORT) \
		$(SANITIZED)/bin/python $(PYTEST) $(TESTS) \
		--ignore=tests/test_cost.py --ignore=tests/integration \
		-k 'not curl and not systemd' -m 'not measures_memory' $(ARGS); status=$$?; \
	for report in $(REPORT).*; do if [ -e $$report ]; then cat $$report; status=1; fi; done; exit $$status

# The same question put to another checker, which needs no build of its own.
valgrind: $(COMPILED)/installed
	PYMUDUO_EXPECT=compiled $(COMPILED)/bin/python tests/native/under_valgrind.py $(ARGS)

# References are counted by a debug build of the interpreter alone. Left out are the tests of programs, of what is never
# the same twice (the model's), and of what is measured or built elsewhere. protobuf's own compiled part, made for any
# interpreter, takes references uncounted.
refleaks: $(COMPILED)/installed
	$(COMPILED)/bin/python $(PYTEST) tests/native/test_reference_leaks.py
	PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION=python PYTHONPATH=tests/native PYMUDUO_EXPECT=compiled \
		$(COMPILED)/bin/python $(PYTEST) -p reference_leaks -o timeout=900 \
		$(TESTS) --ignore=tests/examples --ignore=tests/integration --ignore=tests/native --ignore=tests/test_cost.py \
		--ignore=tests/test_docs.py --ignore=tests/test_package.py \
		--ignore=tests/stress/test_faults.py --ignore=tests/stress/test_model.py $(ARGS)

bench: $(COMPILED)/bench
	$(COMPILED)/bin/python benchmarks/bench.py --record $(ARGS)

bench-quick: $(COMPILED)/bench
	$(COMPILED)/bin/python benchmarks/bench.py --quick $(ARGS)

lint: $(LINT)/installed
	$(LINT)/bin/ruff check .
	$(LINT)/bin/ruff format --check .
	$(LINT)/bin/mypy
	for folder in examples examples/*/; do $(LINT)/bin/mypy $$folder/*.py || exit 1; done
	$(LINT)/bin/mypy --allow-untyped-defs --allow-incomplete-defs --allow-untyped-calls \
		--disable-error-code func-returns-value tests

package: $(COMPILED)/created
	rm -rf dist
	$(COMPILED)/bin/python $(PIP_INSTALL) 'build>=1.2'
	$(COMPILED)/bin/python -m build --outdir dist .
	$(PYTHON) tests/try_package.py dist

$(COMPILED)/created $(PURE)/created $(LINT)/created: %/created:
	$(PYTHON) -m venv $*
	touch $@

# Installs what an extra lists, one by one: $(call install_each,environment,extra,options). What this Python can't have
# is left out, and who needs it says so: a test is skipped, a peer is reported absent.
define install_each
$(1)/bin/python -c 'import pathlib, tomllib; \
	extras = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]["optional-dependencies"]; \
	print(*extras["$(2)"], sep="\n")' > $(1)/$(2).txt
while read -r requirement; do \
	$(1)/bin/python $(PIP_INSTALL) $(3) "$$requirement" </dev/null || echo "left out: $$requirement"; \
done < $(1)/$(2).txt
endef

$(COMPILED)/installed: $(COMPILED)/created $(SOURCES)
	$(COMPILED)/bin/python $(PIP_INSTALL) --force-reinstall --no-deps .
	$(COMPILED)/bin/python $(PIP_INSTALL) '.[test]'
	$(call install_each,$(COMPILED),test-native)
	touch $@

$(COMPILED)/bench: $(COMPILED)/installed
	$(call install_each,$(COMPILED),bench,--only-binary=:all:)
	touch $@

$(PURE)/installed: $(PURE)/created $(SOURCES)
	PYMUDUO_PURE=1 $(PURE)/bin/python $(PIP_INSTALL) --force-reinstall --no-deps .
	PYMUDUO_PURE=1 $(PURE)/bin/python $(PIP_INSTALL) '.[test]'
	$(call install_each,$(PURE),test-native)
	touch $@

test-ready: $(COMPILED)/installed $(PURE)/installed

fuzz-ready: $(PURE)/fuzz

$(PURE)/fuzz: $(PURE)/installed
	$(PURE)/bin/python $(PIP_INSTALL) 'atheris>=2.3'
	touch $@

$(LINT)/installed: $(LINT)/created pyproject.toml
	PYMUDUO_PURE=1 $(LINT)/bin/python $(PIP_INSTALL) '.[lint,test]'
	$(call install_each,$(LINT),test-native)
	# mypy and ruff read src/, not an installed copy.
	$(LINT)/bin/python -m pip --disable-pip-version-check uninstall --quiet --yes pymuduo
	touch $@

clean:
	rm -rf .venv build dist src/*.egg-info benchmarks/build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
