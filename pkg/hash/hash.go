// Package hash makes numbers that choose: which node answers for an address,
// which slot is a backend's. Every node and every version has to get the same
// ones, so they must never change, and they keep nobody out who tries.
package hash

import "hash/fnv"

// Sum is a number made from the parts, as if they were one.
func Sum(parts ...[]byte) uint64 {
	h := fnv.New64a()
	for _, p := range parts {
		h.Write(p)
	}
	return Mix(h.Sum64())
}

// Mix spreads the bits of a number (the finalizer of SplitMix64). FNV alone
// leaves those of inputs that differ only at their end much alike.
func Mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}
