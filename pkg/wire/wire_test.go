package wire

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/testutil"
)

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func ip(s string) netip.Addr    { return netip.MustParseAddr(s) }

var (
	sampleCluster = Cluster{
		Name: "west", Product: "0.1.0", MinVersion: 1, MaxVersion: 1, Incarnation: "7f3a",
		PodCIDRs: []netip.Prefix{pfx("10.11.0.0/16"), pfx("fd00:10:11::/48")}, ServiceCIDRs: []netip.Prefix{pfx("10.96.0.0/16")},
		Endpoints: []string{"172.18.11.1:7473", "[fd00::1]:7473"}, Capabilities: []string{"nodes"}, CABundle: []byte("PEM"),
	}
	sampleNode = model.Node{
		Key:      model.NodeKey{Cluster: "west", Name: "n1"},
		Internal: model.Addrs{V4: ip("172.18.11.1"), V6: ip("fd00:172:18::11:1")}, External: model.Addrs{V4: ip("203.0.113.7")},
		PodCIDRs: model.Prefixes{V4: pfx("10.11.0.0/24"), V6: pfx("fd00:10:11::/64")},
		Encap:    model.EncapVXLAN, VXLANPort: 8472, VNI: 7473, WireGuardKey: [32]byte{1, 2, 31: 9},
	}
	sampleIdentity = Identity{Cluster: "west", Namespace: "shop",
		NamespaceLabels: map[string]string{"kubernetes.io/metadata.name": "shop", "team": ""},
		Labels:          map[string]string{"app": "web", "tier": "front"}}
	sampleEndpoint = Endpoint{Node: "n1", Ports: []NamedPort{{"http", 6, 8080}, {"dns", 17, 53}}}
	sampleService  = Service{Ports: []Port{{Name: "http", AppProtocol: "h2c", Protocol: 6, Port: 80}}, AffinitySeconds: 10800}
	sampleExport   = Export{CreatedMilli: 1700000000123, Type: "ClusterSetIP", SessionAffinity: "None", IPFamilies: []string{"IPv4"},
		Ports: []Port{{Protocol: 17, Port: 53}}, Labels: map[string]string{"a": "b"}, Annotations: map[string]string{"note": strings.Repeat("x", 300)}}
	sampleSlice = Slice{Service: "web", Ports: []Port{{Name: "http", Protocol: 6, Port: 8080}}, Endpoints: []SliceEndpoint{
		{Addr: ip("10.11.0.5"), Ready: true, Serving: true, Zone: "a"},
		{Addr: ip("10.11.0.9"), Ready: true, Serving: true, Zone: "a", Hostname: "web-0"},
		{Addr: ip("10.11.7.1"), Serving: true, Terminating: true, Zone: "b"},
	}}
	sampleDerived = Slice{Service: "clusterset-1", Endpoints: []SliceEndpoint{{Addr: ip("10.11.0.5"), Node: "n1", ForZones: "a,b", ForNodes: "n1"}}, Source: "east"}
	sampleSlice6  = Slice{Service: "web", Endpoints: []SliceEndpoint{{Addr: ip("fd00::5")}, {Addr: ip("fd00::ffff")}, {Addr: ip("fd00:1::")}}}
)

// Each row type with its decoder, as the golden files and the fuzzer see it.
var rows = []struct {
	name   string
	row    any
	value  []byte
	decode func([]byte) (any, error)
}{
	{"cluster", sampleCluster, sampleCluster.Encode(), func(b []byte) (any, error) { return DecodeCluster(b) }},
	{"heartbeat", Heartbeat{Count: 7, At: time.UnixMilli(1700000000123).UTC()}, Heartbeat{Count: 7, At: time.UnixMilli(1700000000123)}.Encode(),
		func(b []byte) (any, error) { return DecodeHeartbeat(b) }},
	{"node", sampleNode, EncodeNode(sampleNode), func(b []byte) (any, error) { return DecodeNode(sampleNode.Key, b) }},
	{"identity", sampleIdentity, sampleIdentity.Encode(), func(b []byte) (any, error) {
		return DecodeIdentity("west", "shop", sampleIdentity.ID(), b)
	}},
	{"endpoint", sampleEndpoint, sampleEndpoint.Encode(), func(b []byte) (any, error) { return DecodeEndpoint(b) }},
	{"service", sampleService, sampleService.Encode(), func(b []byte) (any, error) { return DecodeService(b) }},
	{"export", sampleExport, sampleExport.Encode(), func(b []byte) (any, error) { return DecodeExport(b) }},
	{"slice", sampleSlice, sampleSlice.Encode(), func(b []byte) (any, error) { return DecodeSlice(b) }},
	{"slice6", sampleSlice6, sampleSlice6.Encode(), func(b []byte) (any, error) { return DecodeSlice(b) }},
	{"slice-derived", sampleDerived, sampleDerived.Encode(), func(b []byte) (any, error) { return DecodeSlice(b) }},
	{"grant", Grant{Namespaces: []string{"shop"}}, Grant{Namespaces: []string{"shop"}}.Encode(), func(b []byte) (any, error) { return DecodeGrant(b) }},
	{"synced", Synced{Incarnation: "7f3a"}, Synced{Incarnation: "7f3a"}.Encode(), func(b []byte) (any, error) { return DecodeSynced(b) }},
}

// TestGolden pins every encoding (invariant W1): a change here breaks peers of
// the neighbouring version.
func TestGolden(t *testing.T) {
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			testutil.Golden(t, r.name+".hex", []byte(hex.EncodeToString(r.value)+"\n"))
			got, err := r.decode(r.value)
			if err != nil || !reflect.DeepEqual(got, r.row) {
				t.Errorf("decoded %+v, %v\nwant    %+v", got, err, r.row)
			}
		})
	}
	testutil.Golden(t, "identity.id", []byte(FormatID(sampleIdentity.ID())+"\n"))
}

// TestNewerMinor: a field that this version does not know is skipped, so that
// version N reads rows of N+1.
func TestNewerMinor(t *testing.T) {
	for _, r := range rows {
		if r.name == "identity" {
			continue // content-addressed: a new field makes another identity
		}
		t.Run(r.name, func(t *testing.T) {
			newer := protowire.AppendTag(append([]byte(nil), r.value...), 1000, protowire.BytesType)
			newer = protowire.AppendBytes(newer, []byte("from the future"))
			got, err := r.decode(newer)
			if err != nil || !reflect.DeepEqual(got, r.row) {
				t.Errorf("decoded %+v, %v; want %+v", got, err, r.row)
			}
		})
	}
}

// TestRefused: values that say what can't be, among them identities whose number
// does not follow from their labels (invariant W3).
func TestRefused(t *testing.T) {
	flipped := func(b []byte, at int, v byte) []byte {
		b = append([]byte(nil), b...)
		b[at] = v
		return b
	}
	node := EncodeNode(sampleNode)
	tests := []struct {
		name, want string
		err        error
	}{
		{"empty", "empty value", errOf(DecodeCluster(nil))},
		{"newer major", "unknown encoding version 2", errOf(DecodeCluster(flipped(sampleCluster.Encode(), 0, 2)))},
		{"huge", "over 262144", errOf(DecodeNode(sampleNode.Key, make([]byte, MaxValue+1)))},
		{"cut short", "garbled", errOf(DecodeNode(sampleNode.Key, node[:len(node)-1]))},
		{"no address", "no address", errOf(DecodeNode(sampleNode.Key, []byte{Version}))},
		{"host bits", "no network", errOf(DecodeNode(sampleNode.Key, append([]byte{Version, 0x0a, 4, 1, 2, 3, 4}, 0x2a, 5, 10, 0, 0, 1, 24)))},
		{"mapped address", "IPv4 address written as IPv6", errOf(DecodeNode(sampleNode.Key, append([]byte{Version, 0x12, 16}, netip.MustParseAddr("::ffff:1.2.3.4").AsSlice()...)))},
		{"wrong family", "not of IPv4", errOf(DecodeNode(sampleNode.Key, append([]byte{Version, 0x0a, 16}, ip("fd00::1").AsSlice()...)))},
		{"fields out of order", "stands behind", errOf(DecodeHeartbeat([]byte{Version, 0x10, 1, 0x08, 1}))},
		{"cluster name", "RFC 1123", errOf(DecodeCluster(Cluster{Name: "We/st"}.Encode()))},
		{"control characters", "control character", errOf(DecodeEndpoint(Endpoint{Node: "n\x1b[31m"}.Encode()))},
		{"control characters of 8 bits", "control character", errOf(DecodeEndpoint(Endpoint{Node: "n\u009b31m"}.Encode()))},
		{"writing backwards", "control character", errOf(DecodeEndpoint(Endpoint{Node: "n\u202e"}.Encode()))},
		{"named port", "control character", errOf(DecodeEndpoint(Endpoint{Ports: []NamedPort{{Name: "\x1b[2J", Protocol: 6, Port: 80}}}.Encode()))},
		{"named port in no text", "not UTF-8", errOf(DecodeEndpoint(Endpoint{Ports: []NamedPort{{Name: "\xff", Protocol: 6, Port: 80}}}.Encode()))},
		{"identity under another number", "its key says", errOf(DecodeIdentity("west", "shop", 1, sampleIdentity.Encode()))},
		{"identity of another cluster", "its key of east/shop", errOf(DecodeIdentity("east", "shop", sampleIdentity.ID(), sampleIdentity.Encode()))},
		{"slice run too long", "run does not fit", errOf(DecodeSlice(append([]byte{Version, 0x1a, 5, 0, 10, 0, 0, 1}, 0x22, 2, 9, 1)))},
		{"slice column too short", "has 1 of 2", errOf(DecodeSlice(append([]byte{Version, 0x1a, 6, 0, 10, 0, 0, 1, 1}, 0x22, 2, 1, 1)))},
		{"slice leaves address space", "leaves the address space", errOf(DecodeSlice([]byte{Version, 0x1a, 6, 0, 255, 255, 255, 255, 1}))},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.err == nil || !strings.Contains(tt.err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", tt.err, tt.want)
			}
		})
	}
}

func errOf[T any](_ T, err error) error { return err }

func TestTail(t *testing.T) {
	good := []Tail{ClusterTail(), HeartbeatTail(), NodeTail("n1.example.com"), IdentityTail("shop", 0xab), EndpointTail("shop", 1, ip("fd00::1")),
		ServiceTail("a", "b"), SliceTail("a", "b-x7"), ExportTail("a", "b"), GrantTail("east"), SyncedTail(KindNode)}
	for _, want := range good {
		if got, err := ParseTail(want.String()); err != nil || got != want {
			t.Errorf("ParseTail(%q) = %+v, %v; want %+v", want.String(), got, err, want)
		}
	}
	for _, s := range []string{"", "node", "node/", "node/a/b", "cluster/x", "node/A", "node/a b", "node/" + strings.Repeat("a", 254), "endpoint/a/b", "/node/a"} {
		if got, err := ParseTail(s); err == nil {
			t.Errorf("ParseTail(%q) = %+v, want an error", s, got)
		}
	}
	var unknown *UnknownKindError
	if _, err := ParseTail("gadget/x"); !errors.As(err, &unknown) {
		t.Errorf("ParseTail of an unknown kind: %v, want UnknownKindError", err)
	}
	for _, k := range Kinds() {
		if _, ok := parts[k]; !ok {
			t.Errorf("kind %s has no parts", k)
		}
	}
	if len(Kinds()) != len(parts) {
		t.Errorf("Kinds has %d, parts %d", len(Kinds()), len(parts))
	}
}

// encode is the value of any row. A node's row has no method, as pkg/model
// knows nothing of encodings.
func encode(t *testing.T, row any) []byte {
	switch row := row.(type) {
	case model.Node:
		return EncodeNode(row)
	case interface{ Encode() []byte }:
		return row.Encode()
	}
	t.Fatalf("no encoder for a %T", row)
	return nil
}

// FuzzDecode feeds every decoder: none may panic, and what is accepted must be
// stable: what was decoded decodes again, and is encoded and decoded, to the same row.
func FuzzDecode(f *testing.F) {
	for i, r := range rows {
		f.Add(uint8(i), r.value)
	}
	f.Fuzz(func(t *testing.T, which uint8, value []byte) {
		r := rows[int(which)%len(rows)]
		got, err := r.decode(value)
		if err != nil {
			return
		}
		if again, err := r.decode(value); err != nil || !reflect.DeepEqual(got, again) {
			t.Errorf("second decode of the same bytes: %+v, %v", again, err)
		}
		if back, err := r.decode(encode(t, got)); err != nil || fmt.Sprint(back) != fmt.Sprint(got) {
			t.Errorf("round trip of %+v gave %+v, %v", got, back, err)
		}
	})
}

func FuzzTail(f *testing.F) {
	f.Add("node/a")
	f.Fuzz(func(t *testing.T, s string) {
		if tail, err := ParseTail(s); err == nil && tail.String() != s {
			t.Errorf("ParseTail(%q).String() = %q", s, tail.String())
		}
	})
}

// hundredPods is a slice as a Deployment of 100 pods on 10 nodes has it.
func hundredPods() Slice {
	s := Slice{Service: "web", Ports: []Port{{Name: "http", Protocol: 6, Port: 8080}}}
	for node := range 10 {
		for pod := range 10 {
			a := netip.AddrFrom4([4]byte{10, 11, byte(node), byte(2 + 7*pod)})
			s.Endpoints = append(s.Endpoints, SliceEndpoint{Addr: a, Ready: true, Serving: true, Zone: fmt.Sprintf("zone-%d", node/4)})
		}
	}
	return s
}

// TestSliceSize: most of what a mesh carries are slices of Deployments.
func TestSliceSize(t *testing.T) {
	if n := len(hundredPods().Encode()); n > 300 {
		t.Errorf("a slice of 100 pods takes %d bytes, more than 300", n)
	}
}

func BenchmarkSlice100(b *testing.B) {
	value := hundredPods().Encode()
	for b.Loop() {
		if _, err := DecodeSlice(value); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(value)), "bytes")
}
