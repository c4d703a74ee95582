# Lab: real Kubernetes clusters in network namespaces of this machine (test/lab).
# Needs root. LAB_DIR moves its state (default /var/lib/clustermesh-lab).

.PHONY: lab-deps lab-build lab-up lab-down lab-status

# Installs the Debian packages that the lab, and the tests with the race detector, need and this machine lacks.
lab-deps:
	@missing=""; \
	[ -e /usr/include/stdlib.h ] || missing=" libc6-dev"; \
	for want in runc:runc nft:nftables conntrack:conntrack ip:iproute2 nsenter:util-linux unshare:util-linux mount:mount busybox:busybox-static gcc:gcc; do \
		PATH="$$PATH:/usr/sbin:/sbin" command -v "$${want%%:*}" >/dev/null || missing="$$missing $${want##*:}"; \
	done; \
	[ -z "$$missing" ] || { echo "installing:$$missing"; apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$missing; }

# Builds Kubernetes, etcd, containerd and the CNI plugins once per version, into
# the user's cache directory (about ten minutes on two cores the first time).
lab-build: lab-deps
	go run ./test/lab/cmd/lab build

lab-up: lab-deps
	go run ./test/lab/cmd/lab up

lab-down:
	go run ./test/lab/cmd/lab down

lab-status:
	go run ./test/lab/cmd/lab status
