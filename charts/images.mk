# Binaries and images of the product.
#
#   make build                      static binaries into bin/<arch>/
#   make images                     archives into bin/images/, for nodes and registries
#   make push REGISTRY=host/path    images of all machine types to a registry
#
# ARCHS names the machine types; `make images ARCHS="amd64 arm64"` makes all. Without it only this machine's is built,
# since nothing else can run here; push always takes all.

HOST_ARCH := $(shell $(GO) env GOARCH)
ALL_ARCHS := amd64 arm64
ARCHS ?= $(HOST_ARCH)

# The one in pkg/version counts unless VERSION is given.
VERSION ?= $(shell sed -n 's/^var Version = "\(.*\)"/\1/p' pkg/version/version.go)
LDFLAGS := -s -w -X github.com/clustermesh/clustermesh/pkg/version.Version=$(VERSION)

# push adds -trimpath; without it a build shares the compiler's cache with tests and go run.
BUILDFLAGS ?=

PROGRAMS := ./cmd/clustermesh ./cmd/clustermesh-agent ./cmd/clustermesh-cni ./clustermesh-apiserver

.PHONY: build images images-all push

build: $(ARCHS:%=build-%) ## static binaries of this machine's type (ARCHS="amd64 arm64" for more)

.PHONY: $(ALL_ARCHS:%=build-%)
$(ALL_ARCHS:%=build-%): build-%:
	@mkdir -p bin/$*
	CGO_ENABLED=0 GOOS=linux GOARCH=$* $(GO) build $(BUILDFLAGS) -ldflags '$(LDFLAGS)' -o bin/$*/ $(PROGRAMS)
	@ln -sf clustermesh bin/$*/kubectl-clustermesh

comma := ,
space := $(subst ,, )

images: build ## images as archives in bin/images/
	$(GO) run ./cmd/mkimage -arch '$(subst $(space),$(comma),$(ARCHS))' -tag '$(VERSION)'

images-all: ## images for all machine types
	$(MAKE) images ARCHS='$(ALL_ARCHS)'

push: ## images for all machine types to REGISTRY=host/path
	@test -n '$(REGISTRY)' || { echo "REGISTRY is empty; give the registry and path, for example REGISTRY=ghcr.io/clustermesh"; exit 1; }
	$(MAKE) build ARCHS='$(ALL_ARCHS)' BUILDFLAGS=-trimpath
	$(GO) run ./cmd/mkimage -push -arch '$(subst $(space),$(comma),$(ALL_ARCHS))' -tag '$(VERSION)' -repository '$(REGISTRY)/clustermesh'
