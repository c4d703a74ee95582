package socketlb

// The object is committed, so that building needs no clang. Debian 12's clang 14
// with libbpf-dev reproduces it.
//
//go:generate sh -c "go run github.com/cilium/ebpf/cmd/bpf2go@v0.22.0 -go-package socketlb -target bpfel -cflags \"-O2 -g -Wall -Werror -mcpu=v3 -I/usr/include/$(uname -m)-linux-gnu\" object socketlb.c"
//go:generate sh -c "sha256sum socketlb.c > socketlb.c.sha256"
