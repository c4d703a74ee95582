# make demo        two real clusters, one mesh, step by step
# make demo-down   take them down again
# make test        every test of the project
# make bench       figures and their targets (ONLY=<prefix> for a part)
# make generate    rebuild what is generated; make golden rewrites golden files
# make help        the rest

SHELL := /bin/bash
.DEFAULT_GOAL := help
export CGO_ENABLED ?= 0
GO ?= go

include charts/images.mk
include test/lab/lab.mk

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

.PHONY: help demo demo-down test unit e2e lint bench generate golden fuzz

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/:/' | awk -F: '{printf "  make %-12s %s\n", $$1, $$2}'

demo: lab-deps lab-build images ## boot two clusters, install, connect, show that pods reach pods
	$(GO) run ./test/demo up

demo-down: ## take the demo's clusters down
	$(GO) run ./test/demo down

test: lab-deps lab-build images lint unit e2e ## every test of the project

lint: ## gofmt, go vet, staticcheck
	@bad=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$bad" ] || { echo "gofmt would change:"; echo "$$bad"; exit 1; }
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...

# The race detector needs cgo. Kernel tests make their own network namespaces.
unit: bin/coredns ## unit, kernel and contract tests, with the race detector
	COREDNS=$(CURDIR)/bin/coredns CGO_ENABLED=1 $(GO) test -race -count=1 -timeout 20m $$($(GO) list ./... | grep -v -e /test/e2e -e /test/lab$$)

# A real CoreDNS, which the resolver is compared with (four minutes of CPU time once).
bin/coredns: test/coredns/main.go test/coredns/go.mod test/coredns/go.sum
	$(GO) build -C test/coredns -trimpath -ldflags '-s -w' -o $(CURDIR)/$@ .

e2e: ## the lab's own tests, then the product on real clusters
	$(GO) test -v -count=1 -timeout 40m -p 1 ./test/lab ./test/e2e 2>&1 | grep -v -e '^=== ' ; exit $${PIPESTATUS[0]}

# kube-proxy, which Services are compared with, needs iptables for its older mode.
bench: lab-deps lab-build images ## print the figures, write bin/bench.json
	@PATH="$$PATH:/usr/sbin:/sbin" command -v iptables >/dev/null || { apt-get update -q && apt-get install -y -q --no-install-recommends iptables; }
	$(GO) run ./test/bench -only '$(ONLY)' -out bin/bench.json

# The committed objects are those of Debian 12's clang.
generate: ## rebuild what is generated (needs clang)
	@command -v clang llvm-strip >/dev/null && [ -e /usr/include/bpf/bpf_helpers.h ] || { apt-get update -q && apt-get install -y -q --no-install-recommends clang llvm libbpf-dev; }
	$(GO) generate ./...

golden: ## rewrite golden files
	$(GO) test ./pkg/wire ./pkg/dns/zone ./cmd/clustermesh -update

FUZZTIME ?= 30s
fuzz: ## run every fuzz test for FUZZTIME
	@set -e; for p in $$($(GO) list ./...); do for f in $$(grep -hoE '^func Fuzz[A-Za-z]+' $$($(GO) list -f '{{.Dir}}' $$p)/*_test.go 2>/dev/null | sed 's/func //'); do \
		echo "$$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$p; done; done
