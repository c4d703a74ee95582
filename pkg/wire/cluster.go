package wire

import (
	"fmt"
	"net/netip"
	"time"
)

// Limits on what one row may hold. They bound what a peer can make us keep.
const (
	maxPrefixes     = 256
	maxEndpoints    = 64
	maxCapabilities = 64
	maxText         = 253
	maxBundle       = 64 << 10
)

// Cluster is the header row of a cluster: who it is and how to reach it. A row
// that can't be decoded, or names another cluster, refuses the whole peer.
type Cluster struct {
	Name string
	// Product is the version of the software that wrote the row.
	Product string
	// MinVersion and MaxVersion are the encodings that the cluster reads.
	MinVersion, MaxVersion uint8
	// Incarnation tells one life of the cluster's exporter from the next.
	Incarnation  string
	PodCIDRs     []netip.Prefix
	ServiceCIDRs []netip.Prefix
	// Endpoints are the mesh API's addresses, host:port each.
	Endpoints    []string
	Capabilities []string
	// CABundle is PEM: the certificates that the cluster's mesh CA signs with
	// now and will sign with next.
	CABundle []byte
}

// Encode is the row's value.
func (c Cluster) Encode() []byte {
	e := newEncoder()
	e.string(1, c.Name)
	e.string(2, c.Product)
	e.uint(3, uint64(c.MinVersion))
	e.uint(4, uint64(c.MaxVersion))
	e.string(5, c.Incarnation)
	for _, p := range c.PodCIDRs {
		e.prefix(6, p)
	}
	for _, p := range c.ServiceCIDRs {
		e.prefix(7, p)
	}
	e.strings(8, c.Endpoints)
	e.strings(9, c.Capabilities)
	e.bytes(10, c.CABundle)
	return e.b
}

// DecodeCluster reads what Cluster.Encode wrote.
func DecodeCluster(value []byte) (c Cluster, err error) {
	err = decode(value, func(x field) (err error) {
		var n uint64
		switch x.n {
		case 1:
			c.Name, err = x.string(63)
		case 2:
			c.Product, err = x.string(maxText)
		case 3:
			n, err = x.uint(255)
			c.MinVersion = uint8(n)
		case 4:
			n, err = x.uint(255)
			c.MaxVersion = uint8(n)
		case 5:
			c.Incarnation, err = x.string(maxText)
		case 6:
			err = appendPrefix(&c.PodCIDRs, x)
		case 7:
			err = appendPrefix(&c.ServiceCIDRs, x)
		case 8:
			err = appendString(&c.Endpoints, x, maxEndpoints)
		case 9:
			err = appendString(&c.Capabilities, x, maxCapabilities)
		case 10:
			var b []byte
			b, err = x.bytes(maxBundle)
			c.CABundle = append([]byte(nil), b...)
		}
		return err
	})
	if err == nil && !ValidClusterName(c.Name) {
		err = fmt.Errorf("cluster name %.80q is not an RFC 1123 label", c.Name)
	}
	return c, err
}

func appendPrefix(to *[]netip.Prefix, x field) error {
	p, err := x.prefix()
	if err != nil {
		return err
	}
	if len(*to) == maxPrefixes {
		return fmt.Errorf("more than %d prefixes", maxPrefixes)
	}
	*to = append(*to, p)
	return nil
}

func appendString(to *[]string, x field, max int) error {
	s, err := x.string(maxText)
	if err != nil {
		return err
	}
	if len(*to) == max {
		return fmt.Errorf("more than %d entries", max)
	}
	*to = append(*to, s)
	return nil
}

// Heartbeat is rewritten every few seconds. Readers look only at whether it
// changes, never at its time: clocks differ.
type Heartbeat struct {
	Count uint64
	At    time.Time // for people, to the millisecond
}

// Encode is the row's value.
func (h Heartbeat) Encode() []byte {
	e := newEncoder()
	e.uint(1, h.Count)
	if !h.At.IsZero() {
		e.uint(2, uint64(h.At.UnixMilli()))
	}
	return e.b
}

// DecodeHeartbeat reads what Heartbeat.Encode wrote.
func DecodeHeartbeat(value []byte) (h Heartbeat, err error) {
	err = decode(value, func(x field) (err error) {
		switch x.n {
		case 1:
			h.Count, err = x.uint(1<<63 - 1)
		case 2:
			var ms uint64
			ms, err = x.uint(1 << 52)
			if ms != 0 {
				h.At = time.UnixMilli(int64(ms)).UTC()
			}
		}
		return err
	})
	return h, err
}

// Grant says which ranges of the cluster's prefix a peer may read. None means
// all of it.
type Grant struct{ Namespaces []string }

// Encode is the row's value.
func (g Grant) Encode() []byte {
	e := newEncoder()
	e.strings(1, g.Namespaces)
	return e.b
}

// DecodeGrant reads what Grant.Encode wrote.
func DecodeGrant(value []byte) (g Grant, err error) {
	err = decode(value, func(x field) error {
		if x.n == 1 {
			return appendString(&g.Namespaces, x, 10_000)
		}
		return nil
	})
	return g, err
}

// Synced is the mark that all rows of a kind have been written since the store
// was created: what a list lacks is gone, not late.
type Synced struct{ Incarnation string }

// Encode is the row's value.
func (s Synced) Encode() []byte {
	e := newEncoder()
	e.string(1, s.Incarnation)
	return e.b
}

// DecodeSynced reads what Synced.Encode wrote.
func DecodeSynced(value []byte) (s Synced, err error) {
	err = decode(value, func(x field) (err error) {
		if x.n == 1 {
			s.Incarnation, err = x.string(maxText)
		}
		return err
	})
	return s, err
}
